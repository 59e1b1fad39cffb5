"""What each door promises, on a real server."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from backchannel import errors
from backchannel.rpc.server import SERVICES, Server
from backchannel.v1 import conversation_service_pb2 as pb
from backchannel.v1 import (
    event_pb2,
    frame_pb2,
    model_service_pb2,
    probe_service_pb2,
    session_pb2,
)
from tests.support.server import config, connected, healthy
from tests.support.stream import (
    PATIENCE_S,
    Client,
    Refused,
    Stream,
    check_log,
    create,
    duplex,
    interrupt,
    resume,
    say,
    server_stream,
    unary,
)

ACCEPTED = frame_pb2.RECEIPT_STATUS_ACCEPTED
DUPLICATE = frame_pb2.RECEIPT_STATUS_DUPLICATE
STALE = frame_pb2.RECEIPT_STATUS_STALE
REJECTED = frame_pb2.RECEIPT_STATUS_REJECTED
SLOW = {"rate": "50"}

ids = (f"chosen-by-the-test-{number:04d}" for number in itertools.count())


def without_accidents(events: list[event_pb2.Event]) -> list[event_pb2.Event]:
    """Events without what differs from run to run: ids, times, how tokens fell into deltas."""
    names: dict[str, str] = {}
    kept: list[event_pb2.Event] = []
    for event in events:
        plain = event_pb2.Event()
        plain.CopyFrom(event)
        plain.ClearField("time")
        plain.ClearField("seq")
        if plain.HasField("session_opened"):
            for field in ("session_id", "create_time", "update_time", "expire_time"):
                plain.session_opened.session.ClearField(field)
            plain.session_opened.session.config.ClearField("session_id")
            plain.ClearField("frame_digest")
        kind = plain.WhichOneof("kind")
        assert kind is not None
        body: Any = getattr(plain, kind)
        if "turn_id" in body.DESCRIPTOR.fields_by_name:
            body.turn_id = names.setdefault(body.turn_id, f"turn {len(names)}")
        if plain.HasField("turn_finished"):
            body.ClearField("timing")
        if kept and kind == "output_delta" and kept[-1].HasField("output_delta"):
            kept[-1].output_delta.text += body.text
            kept[-1].output_delta.token_count += body.token_count
        else:
            kept.append(plain)
    return kept


async def test_converse_is_create_attach_and_send(client: Client) -> None:
    settings: dict[str, Any] = {"model": "scripted/echo", "labels": {"a": "b"}}
    one, other = next(ids), next(ids)

    async with client.converse(
        create("open-1", session_id=one, **settings), say("one two three", "m1")
    ) as stream:
        await stream.event("turn_finished")
        together = stream.events

    await client.create(session_id=other, **settings)
    async with client.attach(other) as stream:
        receipt = await client.send(other, say("one two three", "m1"))
        await stream.event("turn_finished")
        halves = stream.events

    assert receipt.status == ACCEPTED
    check_log(together)
    check_log(halves)
    opened = together[0]
    assert opened.frame_id == "open-1"
    opened.ClearField("frame_id")  # CreateSession has no frame
    assert without_accidents(together) == without_accidents(halves)
    # And one log is the same log on both doors, to the byte.
    again = [event.SerializeToString() for event in await client.events(one)]
    assert again[1:] == [event.SerializeToString() for event in together[1:]]


async def test_receipts_come_in_the_order_of_their_frames(client: Client) -> None:
    frames = [create("open", model="scripted/count")]
    frames += [say(f"say {number}", f"m{number}") for number in range(5)]
    frames.append(say("", "bad"))
    frames.append(frame_pb2.ClientFrame(frame_id="ping", ping=frame_pb2.Ping()))
    frames.append(say("say 0", "m0"))
    async with client.converse(*frames) as stream:
        await stream.until(lambda s: len(s.receipts) == len(frames))
        receipts = stream.receipts
    assert [one.frame_id for one in receipts] == [frame.frame_id for frame in frames]
    statuses = [one.status for one in receipts]
    assert statuses == [ACCEPTED] * 6 + [REJECTED, ACCEPTED, DUPLICATE]
    assert receipts[0].seq == 1
    assert receipts[-1].seq == receipts[1].seq


async def test_an_open_that_is_repeated_gives_the_same_session(client: Client) -> None:
    session_id = next(ids)
    opening = create("open", session_id=session_id, model="scripted/echo")
    async with client.converse(opening) as stream:
        first = await stream.receipt("open")
    async with client.converse(opening) as stream:
        again = await stream.receipt("open")
        opened = await stream.event("session_opened")
    assert (first.status, again.status) == (ACCEPTED, DUPLICATE)
    assert opened.session_opened.session.session_id == session_id
    assert len(await client.events(session_id)) == 1


async def test_half_close_delivers_the_answer_and_then_ends(client: Client) -> None:
    slow = {"rate": "100"}
    async with client.converse(
        create(model="scripted/echo", engine_options=slow), say("one two three four")
    ) as stream:
        await stream.half_close()
        end = await stream.end()
        assert end.code is grpc.StatusCode.OK
        assert stream.kinds()[-1] == "turn_finished"
        assert stream.text == "one two three four"


async def test_half_close_with_nothing_to_say_ends_at_once(client: Client) -> None:
    async with client.converse(create(model="scripted/echo")) as stream:
        await stream.event("session_opened")
        await stream.half_close()
        assert (await stream.end()).code is grpc.StatusCode.OK


async def test_close_ends_the_stream_after_its_receipt_and_not_the_session(
    client: Client,
) -> None:
    session_id = next(ids)
    config = create(
        session_id=session_id,
        model="scripted/count",
        engine_options=SLOW,
        sampling=session_pb2.Sampling(max_tokens=20),
    )
    closing = frame_pb2.ClientFrame(frame_id="bye", close=frame_pb2.Close())
    async with client.converse(config, say("go", "m"), closing) as stream:
        assert (await stream.end()).code is grpc.StatusCode.OK
        assert [one.frame_id for one in stream.receipts] == ["m", "bye"]
        assert "turn_finished" not in stream.kinds()
    async with client.attach(session_id) as stream:
        finished = await stream.event("turn_finished")
        assert finished.turn_finished.finish_reason == session_pb2.FINISH_REASON_STOP
        check_log(stream.events)


async def test_close_without_an_id_ends_the_stream_too(client: Client) -> None:
    closing = frame_pb2.ClientFrame(close=frame_pb2.Close())
    async with client.converse(create(model="scripted/echo"), closing) as stream:
        assert (await stream.end()).code is grpc.StatusCode.OK


async def test_a_close_with_a_bad_id_is_refused_and_the_stream_goes_on(client: Client) -> None:
    closing = frame_pb2.ClientFrame(frame_id="x" * 129, close=frame_pb2.Close())
    async with client.converse(create(model="scripted/echo"), closing) as stream:
        receipt = await stream.receipt("x" * 128)
        assert receipt.status == REJECTED
        assert errors.reason_of(receipt.error) == "FIELD_TOO_LONG"
        await stream.send(say("still here"))
        await stream.event("turn_finished")


async def test_cut_and_resume_has_no_gap_and_no_repeat(client: Client) -> None:
    session_id = next(ids)
    opening = create(
        session_id=session_id,
        model="scripted/count",
        engine_options={"rate": "200"},
        sampling=session_pb2.Sampling(max_tokens=60),
    )
    events: list[event_pb2.Event] = []
    async with client.converse(opening, say("go")) as stream:
        await stream.event("output_delta", 5)
        events += stream.events
    while not events[-1].HasField("turn_finished"):
        last = events[-1].seq
        async with client.converse(resume(session_id, last)) as stream:
            await stream.until(lambda s: len(s.events) >= 10 or "turn_finished" in s.kinds())
            events += stream.events
    check_log(events)
    assert "".join(e.output_delta.text for e in events) == " ".join(map(str, range(1, 61)))


async def test_the_turn_outlives_the_call_that_started_it(client: Client) -> None:
    session_id = next(ids)
    opening = create(session_id=session_id, model="scripted/count", engine_options=SLOW)
    async with client.converse(opening, say("go")) as stream:
        await stream.event("output_delta")
    assert (await client.get(session_id)).state == session_pb2.Session.STATE_GENERATING
    async with client.attach(session_id, 1) as stream:
        seen = len((await client.get(session_id)).running_turn_id)
        assert seen > 0
        await stream.event("output_delta", 8)


async def test_interrupt_and_what_comes_after_it(client: Client) -> None:
    opening = create(model="scripted/count", engine_options=SLOW)
    async with client.converse(opening, say("go", "m")) as stream:
        started = await stream.event("turn_started")
        turn_id = started.turn_started.turn_id
        shown = await stream.event("output_delta", 3)
        await stream.send(interrupt(turn_id, "stop", displayed_seq=shown.seq))
        receipt = await stream.receipt("stop")
        assert (receipt.status, receipt.turn_id) == (ACCEPTED, turn_id)
        await stream.event("turn_finished")
        kinds = stream.kinds()
        assert "output_delta" not in kinds[kinds.index("turn_interrupted") :]
        interrupted = (await stream.event("turn_interrupted")).turn_interrupted
        assert interrupted.kept_chars == len("1 2 3")
        await stream.send(interrupt(turn_id, "again"))
        assert (await stream.receipt("again")).status == STALE


async def test_a_clients_cancel_counts_as_a_disconnect_at_once(client: Client) -> None:
    session_id = next(ids)
    policy = session_pb2.DisconnectPolicy(action=session_pb2.DisconnectPolicy.ACTION_CANCEL_NOW)
    opening = create(
        session_id=session_id,
        model="scripted/count",
        engine_options=SLOW,
        on_disconnect=policy,
    )
    async with client.converse(opening, say("go")) as stream:
        await stream.event("output_delta")
    async with client.attach(session_id) as stream:
        finished = await stream.event("turn_finished")
        reason = finished.turn_finished.finish_reason
        assert reason == session_pb2.FINISH_REASON_DISCONNECTED
        check_log(stream.events)


async def test_tool_round_over_both_doors(client: Client) -> None:
    tool = session_pb2.ToolSpec(name="look", parameters_json_schema='{"type":"object"}')
    session_id = next(ids)
    opening = create(session_id=session_id, model="scripted/tool", tools=[tool])
    async with client.converse(opening, say("up")) as stream:
        ready = (await stream.event("tool_call_ready")).tool_call_ready
        assert ready.arguments_json == '{"input":"up"}' or "up" in ready.arguments_json
        result = session_pb2.ToolResult(call_id=ready.call_id, json='{"answer": 42}')
        frame = frame_pb2.ClientFrame(frame_id="result", tool_result=result)
        assert (await client.send(session_id, frame)).status == ACCEPTED
        await stream.event("turn_finished")
        assert stream.text == 'result: {"answer":42}'
        check_log(stream.events)


async def test_snapshot_comes_first_and_sets_the_cursor(client: Client) -> None:
    session_id = next(ids)
    async with client.converse(
        create(session_id=session_id, model="scripted/echo"), say("one two")
    ) as stream:
        await stream.event("turn_finished")
    frame = resume(session_id, snapshot=True)
    frame.frame_id = "open"
    async with client.converse(frame) as stream:
        first = await stream.next()
        assert first is not None
        assert first.HasField("snapshot")
        [turn] = first.snapshot.turns
        assert (turn.text, first.snapshot.more) == ("one two", False)
        assert first.snapshot.seq == first.snapshot.session.last_seq
        assert (await stream.receipt("open")).status == ACCEPTED
        await stream.send(say("three"))
        started = await stream.event("input_accepted")
        assert started.seq == first.snapshot.seq + 1
    async with client.attach(session_id, snapshot=True) as stream:
        first = await stream.next()
        assert first is not None
        assert first.HasField("snapshot")


async def test_ping_gets_a_heartbeat_at_the_cursor(client: Client) -> None:
    async with client.converse(create(model="scripted/echo")) as stream:
        await stream.event("session_opened")
        ping = frame_pb2.ClientFrame(frame_id="ping", ping=frame_pb2.Ping())
        await stream.send(ping)
        await stream.receipt("ping")
        beat = await stream.until(
            lambda s: next((f.heartbeat for f in s.frames if f.HasField("heartbeat")), None)
        )
        assert beat.seq == 1


async def test_a_ping_through_send_gets_only_its_receipt(client: Client) -> None:
    session = await client.create(model="scripted/echo")
    ping = frame_pb2.ClientFrame(frame_id="ping", ping=frame_pb2.Ping())
    assert (await client.send(session.session_id, ping)).status == ACCEPTED


async def test_a_fresh_stream_with_nothing_to_say_begins_with_a_heartbeat(
    client: Client,
) -> None:
    session = await client.create(model="scripted/echo")
    async with client.attach(session.session_id, session.last_seq) as stream:
        first = await stream.next()
        assert first is not None
        assert first.heartbeat.seq == session.last_seq


async def test_heartbeats_on_an_idle_stream() -> None:
    from dataclasses import replace

    from backchannel.host.config import HostConfig

    quick = config(sessions=replace(HostConfig(), heartbeat_s=0.05))
    async with Server(quick) as server, connected(server.address) as client:
        session = await client.create(model="scripted/echo")
        async with client.attach(session.session_id) as stream:
            await stream.until(lambda s: sum(f.HasField("heartbeat") for f in s.frames) >= 3)


async def test_readers_of_a_deleted_session_are_told(client: Client) -> None:
    session = await client.create(model="scripted/echo")
    async with (
        client.converse(resume(session.session_id)) as one,
        client.attach(session.session_id) as other,
    ):
        await one.event("session_opened")
        await other.event("session_opened")
        await client.delete(session.session_id)
        for stream in (one, other):
            assert (await stream.end()).code is grpc.StatusCode.OK
            assert stream.kinds() == ["session_opened", "session_closed"]
    with Refused() as refused:
        await client.get(session.session_id)
    assert refused.ending is not None
    assert refused.ending.reason == "SESSION_NOT_FOUND"


async def test_list_sessions_page_by_page(client: Client) -> None:
    made = [(await client.create(model="scripted/echo")).session_id for _ in range(5)]
    listed, token = [], ""
    while True:
        request = pb.ListSessionsRequest(page_size=2, page_token=token)
        raw = await client.raw("ListSessions", request)
        page = pb.ListSessionsResponse.FromString(raw)
        assert len(page.sessions) <= 2
        listed += [session.session_id for session in page.sessions]
        token = page.next_page_token
        if not token:
            break
    assert listed == made[::-1]


@pytest.mark.parametrize(
    ("forwarded", "permitted"),
    [("127.0.0.1", True), ("::1", True), ("192.0.2.7", False), ("192.0.2.7, 127.0.0.1", False)],
)
async def test_list_sessions_for_somebody_behind_a_proxy(
    client: Client, forwarded: str, permitted: bool
) -> None:
    method = unary(client.channel, "/backchannel.v1.ConversationService/ListSessions")
    with Refused() as refused:
        await method(b"", metadata=(("x-forwarded-for", forwarded),), timeout=PATIENCE_S)
    if permitted:
        assert refused.ending is None
    else:
        assert refused.ending is not None
        assert refused.ending.code is grpc.StatusCode.PERMISSION_DENIED
        assert refused.ending.reason == "LIST_NOT_PERMITTED"


@pytest.mark.parametrize(
    "exposed",
    [{"edge_hosts": ("chat.example",)}, {"edge_listen": "0.0.0.0:8080", "anonymous": True}],
)
async def test_nobody_lists_through_an_edge_that_others_may_reach(exposed: dict[str, Any]) -> None:
    """A proxy before it is on this machine, and need not say for whom it speaks."""
    listing = pb.ListSessionsRequest().SerializeToString()
    async with Server(config(**exposed)) as server, connected(server.address) as client:
        method = unary(client.channel, "/backchannel.v1.ConversationService/ListSessions")
        with Refused() as refused:
            await method(listing, metadata=(("x-forwarded-for", "127.0.0.1"),), timeout=PATIENCE_S)
        assert refused.ending is not None
        assert refused.ending.reason == "LIST_NOT_PERMITTED"
        await method(listing, timeout=PATIENCE_S)  # Whoever is here asks by gRPC.


async def test_models_the_default_first(client: Client, server: Server) -> None:
    raw = await client.raw(
        "/backchannel.v1.ModelService/ListModels", model_service_pb2.ListModelsRequest()
    )
    models = model_service_pb2.ListModelsResponse.FromString(raw).models
    assert models[0].name == server.engines.default_model
    names = [model.name for model in models]
    assert {"scripted/echo", "scripted/count", "scripted/tool", "scripted/stall"} <= set(names)
    assert all(model.description for model in models)


async def test_an_empty_model_is_the_default(client: Client, server: Server) -> None:
    session = await client.create()
    assert session.config.model == server.engines.default_model


async def test_probe_sends_frames_at_their_times(client: Client) -> None:
    request = probe_service_pb2.ProbeRequest(count=5, padding_bytes=1000)
    request.interval.FromMilliseconds(20)
    call = server_stream(client.channel, "/backchannel.v1.ProbeService/Probe")(
        request.SerializeToString(), timeout=PATIENCE_S
    )
    got = [probe_service_pb2.ProbeResponse.FromString(raw) async for raw in call]
    assert [one.index for one in got] == list(range(5))
    assert {len(one.padding) for one in got} == {1000}
    first, *_, last = (one.send_time.ToNanoseconds() for one in got)
    assert last - first >= 4 * 19_000_000


@pytest.mark.parametrize("service", ["", *SERVICES, "grpc.health.v1.Health"])
async def test_health_by_name(client: Client, service: str) -> None:
    assert await healthy(client, service)


async def test_health_of_a_service_there_is_not(client: Client) -> None:
    with Refused() as refused:
        await healthy(client, "nothing.of.the.kind")
    assert refused.ending is not None
    assert refused.ending.code is grpc.StatusCode.NOT_FOUND


async def test_health_watch_sees_the_drain(server: Server, client: Client) -> None:
    call = server_stream(client.channel, "/grpc.health.v1.Health/Watch")(
        health_pb2.HealthCheckRequest(service=SERVICES[0]).SerializeToString()
    )
    first = health_pb2.HealthCheckResponse.FromString(await call.read())
    assert first.status == health_pb2.HealthCheckResponse.SERVING
    draining = asyncio.create_task(server.drain(1.0))
    second = health_pb2.HealthCheckResponse.FromString(await call.read())
    assert second.status == health_pb2.HealthCheckResponse.NOT_SERVING
    call.cancel()
    await draining


async def test_reflection_as_clients_use_it(server: Server) -> None:
    def ask() -> tuple[set[str], str]:
        with grpc.insecure_channel(str(server.address)) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            services = set(database.get_services())
            file = database.FindFileContainingSymbol(SERVICES[0])
            return services, file.service[0].method[0].name

    services, first_method = await asyncio.to_thread(ask)
    both = {"grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"}
    assert services == {*SERVICES, "grpc.health.v1.Health", *both}
    assert first_method == "Converse"


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_describes_every_service_it_lists(client: Client, version: str) -> None:
    call = duplex(
        client.channel, f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    )()

    async def ask(**request: str) -> reflection_pb2.ServerReflectionResponse:
        message = reflection_pb2.ServerReflectionRequest(**request)  # type: ignore[arg-type]
        await call.write(message.SerializeToString())
        return reflection_pb2.ServerReflectionResponse.FromString(await call.read())

    listed = (await ask(list_services="*")).list_services_response.service
    assert len(listed) == len(SERVICES) + 3
    for service in listed:
        answer = await ask(file_containing_symbol=service.name)
        assert answer.file_descriptor_response.file_descriptor_proto, service.name
    await call.done_writing()
    call.cancel()


@pytest.mark.parametrize("listen", ["unix:{}/door.sock", "[::1]:0", "localhost:0"])
async def test_other_addresses(listen: str, tmp_path: Path) -> None:
    async with (
        Server(config(listen=listen.format(tmp_path))) as server,
        connected(server.address) as client,
    ):
        await client.create(model="scripted/echo")
        raw = await client.raw("ListSessions", pb.ListSessionsRequest())
        assert len(pb.ListSessionsResponse.FromString(raw).sessions) == 1


async def test_many_readers_see_the_same_bytes(client: Client) -> None:
    session = await client.create(model="scripted/echo")
    streams: list[Stream] = []
    async with (
        client.attach(session.session_id) as one,
        client.attach(session.session_id) as two,
        client.converse(resume(session.session_id)) as three,
    ):
        await three.send(say("one two three"))
        streams = [one, two, three]
        for stream in streams:
            await stream.event("turn_finished")
    logs = [[event.SerializeToString() for event in stream.events] for stream in streams]
    assert logs[0] == logs[1] == logs[2]
