"""gRPC-Web through a real Envoy, in both encodings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import httpx
import pytest

from backchannel.v1 import conversation_service_pb2 as pb
from backchannel.v1 import event_pb2, frame_pb2, probe_service_pb2, session_pb2
from tests.support import stream as frames
from tests.support.edge import Site, attach, gone, readers, web_call, web_unary

pytestmark = pytest.mark.parametrize("text", [False, True], ids=["proto", "text"])


async def started(client: httpx.AsyncClient, text: bool, **config: Any) -> str:
    request = pb.CreateSessionRequest(config=session_pb2.SessionConfig(**config))
    raw, ending = await web_unary(client, "CreateSession", request, text=text)
    assert ending.code == 0
    return pb.CreateSessionResponse.FromString(raw).session.session_id


async def sent(
    client: httpx.AsyncClient, text: bool, session_id: str, frame: frame_pb2.ClientFrame
) -> frame_pb2.Receipt:
    request = pb.SendRequest(session_id=session_id, frame=frame)
    raw, ending = await web_unary(client, "Send", request, text=text)
    assert ending.code == 0
    return pb.SendResponse.FromString(raw).receipt


async def test_a_conversation_in_two_halves(either: httpx.AsyncClient, text: bool) -> None:
    session_id = await started(either, text, model="scripted/echo")
    async with web_call(either, "Attach", attach(session_id), text=text) as call:
        assert call.response.headers["content-type"].startswith("application/grpc-web")
        receipt = await sent(either, text, session_id, frames.say("one two three", "m"))
        assert receipt.status == frame_pb2.RECEIPT_STATUS_ACCEPTED
        events: list[event_pb2.Event] = []
        async for frame in call:
            events += frame.events
            if events and events[-1].HasField("turn_finished"):
                break
        frames.check_log(events)
        assert frames.text_of(events) == "one two three"


async def test_each_token_comes_by_itself(
    edge: Site, either: httpx.AsyncClient, text: bool
) -> None:
    session_id = await started(either, text, model="scripted/count", engine_options={"rate": "40"})
    await sent(either, text, session_id, frames.say("go"))
    (live,) = edge.server.host.residents
    late = 0
    async with web_call(either, "Attach", attach(session_id), text=text) as call:
        seq = 0
        async for frame in call:
            seq = frame.events[-1].seq
            if seq > 4:
                late = max(late, live.ledger.committed_seq - seq)
            if seq >= 24:
                break
    # Held back somewhere, the stream would be far behind the log.
    assert late <= 5


async def test_a_stream_that_ends_says_how(either: httpx.AsyncClient, text: bool) -> None:
    session_id = await started(either, text, model="scripted/echo")
    async with web_call(either, "Attach", attach(session_id), text=text) as call:
        assert await call.next() is not None
        request = pb.DeleteSessionRequest(session_id=session_id)
        await web_unary(either, "DeleteSession", request, text=text)
        assert [frame.events[0].WhichOneof("kind") async for frame in call] == ["session_closed"]
        assert call.ending is not None
        assert call.ending.code == 0


async def test_errors_are_gRPCs_own(  # noqa: N802 - its name
    either: httpx.AsyncClient, text: bool
) -> None:
    request = pb.GetSessionRequest(session_id="nobody-has-ever-made-this")
    raw, ending = await web_unary(either, "GetSession", request, text=text)
    assert raw == b""
    assert (ending.code, ending.reason) == (5, "SESSION_NOT_FOUND")
    async with web_call(either, "Attach", attach("nobody-has-ever-made-this"), text=text) as call:
        assert await call.next() is None
        assert call.ending is not None
        assert (call.ending.code, call.ending.reason) == (5, "SESSION_NOT_FOUND")
        # gRPC's status is its own; HTTP's says only that it arrived.
        assert call.response.status_code == 200


async def test_a_cancelled_call_is_noticed_at_once(
    edge: Site, either: httpx.AsyncClient, text: bool, record_property: Callable[..., None]
) -> None:
    session_id = await started(either, text, model="scripted/echo")
    async with web_call(either, "Attach", attach(session_id), text=text) as call:
        await call.next()
        assert len(readers(edge.server, session_id)) == 1
        await either.aclose()
        await gone(edge.server, session_id)


async def test_a_deadline_holds(either: httpx.AsyncClient, text: bool) -> None:
    session_id = await started(either, text, model="scripted/echo")
    deadline = {"grpc-timeout": "200m"}
    async with web_call(either, "Attach", attach(session_id), text=text, headers=deadline) as call:
        while await call.next() is not None:
            pass
        assert call.ending is not None
        assert call.ending.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


async def test_the_probe_is_not_held_back(either: httpx.AsyncClient, text: bool) -> None:
    request = probe_service_pb2.ProbeRequest(count=5)
    request.interval.FromMilliseconds(20)
    path = "/backchannel.v1.ProbeService/Probe"
    async with web_call(either, path, request, text=text) as call:
        count = 0
        while await call.next() is not None:
            count += 1
    assert count == 5
    # Five messages, at least five pieces: nothing gathered them.
    assert call.chunks >= 5


async def test_no_proxy_is_to_hold_keep_or_change_it(either: httpx.AsyncClient, text: bool) -> None:
    session_id = await started(either, text, model="scripted/echo")
    nobody = "nobody-has-ever-made-this"
    # Streams, unary calls and refusals, before and behind a first message.
    for method, request in (
        ("Attach", attach(session_id)),
        ("Attach", attach(nobody)),
        ("GetSession", pb.GetSessionRequest(session_id=session_id)),
        ("GetSession", pb.GetSessionRequest(session_id=nobody)),
    ):
        async with web_call(either, method, request, text=text) as call:
            assert call.response.headers["x-accel-buffering"] == "no"
            assert call.response.headers["cache-control"] == "no-store, no-transform"
