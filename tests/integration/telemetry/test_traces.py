"""The spans that a real collector gets, for turns that go well and turns that do not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from backchannel.rpc.server import Server
from backchannel.telemetry.config import TelemetryConfig
from backchannel.telemetry.content import MAX_BYTES
from backchannel.telemetry.table import CALLS
from backchannel.telemetry.telemetry import Telemetry
from backchannel.v1 import frame_pb2, session_pb2
from tests.support.edge import events, site
from tests.support.otlp import Collector, Span, collector
from tests.support.server import config, connected
from tests.support.stream import (
    CONVERSATION,
    Client,
    Stream,
    create,
    duplex,
    interrupt,
    say,
)

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
TRACEPARENT = ("traceparent", f"00-{TRACE}-{PARENT}-01")
CONVERSE = "backchannel.v1.ConversationService/Converse"


@asynccontextmanager
async def traced(**more: Any) -> AsyncIterator[tuple[Collector, Telemetry]]:
    """A collector, and what sends to it."""
    async with collector() as taken:
        settings = TelemetryConfig(
            metrics_listen="off", otlp_metrics=False, otlp_endpoint=taken.address, **more
        )
        async with Telemetry(settings) as telemetry:
            yield taken, telemetry


@asynccontextmanager
async def serving(**more: Any) -> AsyncIterator[tuple[Collector, Telemetry, Client]]:
    async with (
        traced(**more) as (taken, telemetry),
        Server(config(), observer=telemetry) as server,
        connected(server.address) as client,
    ):
        yield taken, telemetry, client


@asynccontextmanager
async def converse(client: Client, *frames: Any, **call: Any) -> AsyncIterator[Stream]:
    """`Converse` with metadata or a deadline."""
    stream = Stream(duplex(client.channel, CONVERSATION + "Converse")(**call))
    try:
        for frame in frames:
            await stream.send(frame)
        yield stream
    finally:
        await stream.close()


async def arrived(taken: Collector, telemetry: Telemetry, *names: str) -> None:
    """Wait until spans of these names are there."""
    async with asyncio.timeout(10):
        while not all(map(taken.named, names)):
            await telemetry.flush()
            await asyncio.sleep(0.02)


def linked(one: Span, other: Span) -> bool:
    return other.id in one.links


async def test_a_turn_is_a_trace_of_its_own_with_all_that_it_waited_for() -> None:
    async with serving() as (taken, telemetry, client):
        async with converse(client, create(model="scripted/echo"), say("one two three")) as stream:
            await stream.event("turn_finished")
        await arrived(taken, telemetry, "turn", CONVERSE)
    turn, call, chat = taken.one("turn"), taken.one(CONVERSE), taken.one("chat")
    assert taken.under(turn) == [
        "turn scripted/echo",
        f"  read {CONVERSE}",
        "  queue scripted",
        "  chat echo",
        "  commit",
    ]
    assert turn.parent == ""
    assert turn.trace != call.trace
    assert turn.link_kinds == {call.id: "message"}
    assert call.link_kinds == {turn.id: "message"}
    assert chat.events == ["first_token", "finish"]
    said = chat.attributes
    assert said["gen_ai.operation.name"] == "chat"
    assert said["gen_ai.provider.name"] == "scripted"
    assert said["gen_ai.request.model"] == "echo"
    assert said["gen_ai.response.finish_reasons"] == ["stop"]
    assert said["gen_ai.usage.output_tokens"] == 3
    assert said["gen_ai.conversation.id"] == turn.attributes["gen_ai.conversation.id"]
    assert turn.attributes["backchannel.turn.ending"] == "stop"
    assert turn.attributes["backchannel.tokens.delivered"] == 3
    assert taken.resource["service.name"] == "backchannel"
    # What people and models said is nobody's business.
    everything = str([span.raw for span in taken.spans])
    assert "two" not in everything


async def test_a_turn_belongs_to_its_clients_trace() -> None:
    async with serving() as (taken, telemetry, client):
        async with converse(
            client, create(model="scripted/echo"), say("hello"), metadata=(TRACEPARENT,)
        ) as stream:
            await stream.event("turn_finished")
        await arrived(taken, telemetry, "turn", CONVERSE)
    call, turn = taken.one(CONVERSE), taken.one("turn")
    assert (call.trace, call.parent) == (TRACE, PARENT)
    assert (turn.trace, turn.parent) == (TRACE, call.id)
    assert {span.trace for span in taken.spans} == {TRACE}


async def test_an_interrupted_turn_says_so() -> None:
    async with serving() as (taken, telemetry, client):
        opening = create(model="scripted/count", engine_options={"rate": "50"})
        async with converse(client, opening, say("go")) as stream:
            started = (await stream.event("turn_started")).turn_started
            await stream.event("output_delta", 3)
            await stream.send(interrupt(started.turn_id))
            await stream.event("turn_finished")
        await arrived(taken, telemetry, "turn", CONVERSE)
    turn, chat = taken.one("turn"), taken.one("chat")
    assert taken.under(turn) == [
        "turn scripted/count ! interrupted",
        f"  read {CONVERSE}",
        "  queue scripted",
        "  chat count ! stopped",
        "  commit",
    ]
    assert turn.attributes["error.type"] == "interrupted"
    assert turn.events == ["interrupted"]
    assert chat.events == ["first_token", "stop", "stopped"]
    assert chat.attributes["gen_ai.response.finish_reasons"] == ["stopped"]
    spent = turn.attributes
    assert spent["backchannel.tokens.generated"] == (
        spent["backchannel.tokens.delivered"] + spent["backchannel.tokens.wasted"]
    )


async def test_a_tool_that_timed_out_says_so_and_its_turn_goes_on() -> None:
    tool = session_pb2.ToolSpec(name="look", idle_timeout=Duration(nanos=50_000_000))
    async with serving() as (taken, telemetry, client):
        opening = create(model="scripted/tool", tools=[tool])
        async with converse(client, opening, say("secret weather")) as stream:
            await stream.event("turn_finished")
        await arrived(taken, telemetry, "turn", CONVERSE)
    turn, waited = taken.one("turn"), taken.one("execute_tool")
    assert taken.under(turn) == [
        "turn scripted/tool",
        f"  read {CONVERSE}",
        "  queue scripted",
        "  chat tool",
        "  execute_tool look ! timed_out",
        "  queue scripted",
        "  chat tool",
        "  commit",
    ]
    assert waited.attributes["backchannel.tool.outcome"] == "timed_out"
    assert waited.attributes["gen_ai.tool.name"] == "look"
    took_ns = waited.raw.end_time_unix_nano - waited.raw.start_time_unix_nano
    assert took_ns >= 50_000_000
    assert "weather" not in str([span.raw for span in taken.spans])


async def test_a_turn_that_is_resumed_over_another_door_is_one_trace() -> None:
    async with (
        traced() as (taken, telemetry),
        site(observer=telemetry) as where,
    ):
        async with connected(where.server.address) as client:
            options = {"rate": "20"}
            opening = create(model="scripted/count", engine_options=options)
            begin = say("go", sampling=session_pb2.Sampling(max_tokens=20))
            async with converse(client, opening, begin, metadata=(TRACEPARENT,)) as stream:
                opened = (await stream.event("session_opened")).session_opened.session
                cut_at = (await stream.event("output_delta", 3)).seq
                session_id = opened.session_id
            async with (
                where.client() as http,
                events(http, session_id, f"?after_seq={cut_at}") as sse,
            ):
                await sse.until("turn_finished")
        await arrived(taken, telemetry, "turn", CONVERSE, "backchannel.v1.BrowserService")
    turn, cut = taken.one("turn"), taken.one(CONVERSE)
    browser = taken.one("backchannel.v1.BrowserService")
    assert taken.under(turn) == [
        "turn scripted/count",
        f"  read {CONVERSE} ! cut",
        "  queue scripted",
        "  chat count",
        f"  read {browser.name}",
        "  commit",
    ]
    assert turn.trace == cut.trace == TRACE
    assert cut.failed == "cancel"
    assert cut.attributes["backchannel.rpc.outcome"] == "cancel"
    again = taken.one(f"read {browser.name}")
    assert linked(again, browser)
    assert linked(turn, browser)
    assert linked(browser, turn)
    assert again.attributes["backchannel.reader.after_seq"] == cut_at


async def test_an_engine_that_fails_says_so() -> None:
    async with serving() as (taken, telemetry, client):
        async with converse(client, create(model="scripted/fail"), say("go")) as stream:
            await stream.event("turn_finished")
        await arrived(taken, telemetry, "turn", CONVERSE)
    turn, chat = taken.one("turn"), taken.one("chat")
    assert taken.under(turn) == [
        "turn scripted/fail ! error",
        f"  read {CONVERSE}",
        "  queue scripted",
        "  chat fail ! ENGINE_FAILED",
        "  commit",
    ]
    assert chat.events == ["first_token", "failed"]
    assert chat.attributes["error.type"] == "ENGINE_FAILED"
    assert turn.attributes["backchannel.tokens.delivered"] == 5
    assert turn.attributes["backchannel.turn.error"] == "ENGINE_FAILED"


async def test_a_message_that_waits_for_another_turn_shows_its_wait() -> None:
    async with serving() as (taken, telemetry, client):
        opening = create(model="scripted/count", engine_options={"rate": "20"})
        first = say("go", sampling=session_pb2.Sampling(max_tokens=8))
        async with converse(client, opening, first) as stream:
            await stream.event("turn_started")
            await stream.send(say("and on", sampling=session_pb2.Sampling(max_tokens=1)))
            await stream.event("turn_finished", 2)
        await arrived(taken, telemetry, "turn", CONVERSE)
    before, after = sorted(taken.named("turn"), key=lambda span: span.raw.start_time_unix_nano)
    wait = taken.one("wait for turn")
    assert wait.parent == after.id
    # From the middle of the one turn to the beginning of the other.
    assert before.raw.start_time_unix_nano < wait.raw.start_time_unix_nano
    assert wait.raw.start_time_unix_nano < before.raw.end_time_unix_nano
    waited_s = (wait.raw.end_time_unix_nano - wait.raw.start_time_unix_nano) / 1e9
    assert waited_s == pytest.approx(after.attributes["backchannel.turn.queued"], abs=0.01)


async def test_a_clients_deadline_says_so_and_the_turn_goes_on_without_it() -> None:
    async with serving() as (taken, telemetry, client):
        opening = create(model="scripted/count", engine_options={"rate": "20"})
        begin = say("go", sampling=session_pb2.Sampling(max_tokens=20))
        async with converse(client, opening, begin, timeout=0.3) as stream:
            end = await stream.end()
        assert end.code is grpc.StatusCode.DEADLINE_EXCEEDED
        await arrived(taken, telemetry, "turn", CONVERSE)
    call, turn = taken.one(CONVERSE), taken.one("turn")
    assert call.failed == "deadline"
    assert call.attributes["rpc.response.status_code"] == "DEADLINE_EXCEEDED"
    assert taken.under(turn) == [
        "turn scripted/count",
        f"  read {CONVERSE} ! cut",
        "  queue scripted",
        "  chat count",
        "  commit",
    ]


async def test_a_turn_that_outlives_its_process_is_found_by_its_id(tmp_path: Path) -> None:
    settings = config(log=f"sqlite:///{tmp_path / 'log.db'}")
    continues = session_pb2.DisconnectPolicy(action=session_pb2.DisconnectPolicy.ACTION_CONTINUE)
    async with traced() as (taken, telemetry):
        async with (
            Server(settings, observer=telemetry) as server,
            connected(server.address) as client,
        ):
            tool = session_pb2.ToolSpec(name="look")
            opening = create(model="scripted/tool", tools=[tool], on_disconnect=continues)
            async with converse(client, opening, say("x")) as stream:
                opened = (await stream.event("session_opened")).session_opened.session
                ready = (await stream.event("tool_call_ready")).tool_call_ready
        await arrived(taken, telemetry, "turn", "execute_tool")
        async with (
            Server(settings, observer=telemetry) as server,
            connected(server.address) as client,
        ):
            result = session_pb2.ToolResult(call_id=ready.call_id, json="1")
            await client.send(
                opened.session_id, frame_pb2.ClientFrame(frame_id="r", tool_result=result)
            )
            async with client.attach(opened.session_id) as stream:
                await stream.event("turn_finished")
            async with asyncio.timeout(10):
                while len(taken.named("turn")) < 2:
                    await telemetry.flush()
                    await asyncio.sleep(0.02)
    before, after = sorted(taken.named("turn"), key=lambda span: span.raw.start_time_unix_nano)
    assert before.failed == "DRAINING"
    assert after.failed is None
    assert before.trace != after.trace
    assert before.attributes["backchannel.turn.id"] == after.attributes["backchannel.turn.id"]
    assert "backchannel.turn.recovered" not in before.attributes
    assert after.attributes["backchannel.turn.recovered"] is True
    assert after.attributes["backchannel.turn.ending"] == "stop"


async def test_what_was_said_is_told_only_on_request() -> None:
    async with serving(content=True) as (taken, telemetry, client):
        opening = create(model="scripted/echo", system="be brief")
        async with converse(client, opening, say("one two")) as stream:
            await stream.event("turn_finished")
        await arrived(taken, telemetry, "turn")
    said = taken.one("chat").attributes
    text = {"type": "text", "content": "one two"}
    assert json.loads(said["gen_ai.system_instructions"]) == [
        {"type": "text", "content": "be brief"}
    ]
    assert json.loads(said["gen_ai.input.messages"]) == [{"role": "user", "parts": [text]}]
    assert json.loads(said["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": [text], "finish_reason": "stop"}
    ]


TEXT = session_pb2.Content(parts=[session_pb2.Part(text="12 °C, "), session_pb2.Part(text="rain")])


@pytest.mark.parametrize(
    ("given", "told", "read"),
    [
        (
            {"json": '{"celsius": [12.5, "ü"]}'},
            '{"celsius": [12.5, "ü"]}',
            {"celsius": [12.5, "ü"]},
        ),
        ({"content": TEXT}, "12 °C, rain", "12 °C, rain"),
        (
            {"error": session_pb2.ToolError(message="no such town")},
            '{"error":"no such town"}',
            {"error": "no such town"},
        ),
    ],
)
async def test_what_a_tool_takes_and_gives_is_told_as_it_was(
    given: dict[str, Any], told: str, read: object
) -> None:
    async with serving(content=True) as (taken, telemetry, client):
        opening = create(model="scripted/tool", tools=[session_pb2.ToolSpec(name="look")])
        async with converse(client, opening, say("Köln")) as stream:
            ready = (await stream.event("tool_call_ready")).tool_call_ready
            result = session_pb2.ToolResult(call_id=ready.call_id, **given)
            await stream.send(frame_pb2.ClientFrame(frame_id="r", tool_result=result))
            await stream.event("turn_finished")
        await arrived(taken, telemetry, "turn")
    tool = taken.one("execute_tool").attributes
    assert json.loads(tool["gen_ai.tool.call.arguments"]) == {"input": "Köln"}
    assert tool["gen_ai.tool.call.result"] == told
    first, second = sorted(taken.named("chat"), key=lambda span: span.raw.start_time_unix_nano)
    (answer,) = json.loads(first.attributes["gen_ai.output.messages"])
    call = {"type": "tool_call", "name": "look", "arguments": {"input": "Köln"}}
    assert answer == {"role": "assistant", "parts": [call], "finish_reason": "tool_call"}
    *_, asked, answered = json.loads(second.attributes["gen_ai.input.messages"])
    assert asked["parts"] == [{"id": ready.call_id, **call}]
    assert answered["role"] == "tool"
    assert answered["parts"] == [
        {"type": "tool_call_response", "id": ready.call_id, "response": read}
    ]


async def test_what_is_long_is_cut_and_arrives() -> None:
    long = "lang,ist,es,ü,und,ö," * 6000  # A word of it, that is a token.
    turns = 40  # Together more than a collector takes at once.
    async with serving(content=True) as (taken, telemetry, client):
        for _ in range(turns):
            opening = create(model="scripted/echo", system=long)
            async with converse(client, opening, say(long)) as stream:
                await stream.event("turn_finished")
        async with asyncio.timeout(20):
            while len(taken.named("chat")) < turns:
                await telemetry.flush()
                await asyncio.sleep(0.05)
    for chat in taken.named("chat"):
        for name in ("input.messages", "output.messages"):
            told = chat.attributes[f"gen_ai.{name}"]
            assert 0.7 * MAX_BYTES < len(told.encode()) <= MAX_BYTES
            (message,) = json.loads(told)
            assert message["parts"][0]["content"].startswith("lang,ist,es,ü")
        assert chat.attributes["gen_ai.system_instructions"].startswith('[{"type":"text","content')


# --- the five ends of a call, on each kind ----------------------------------------------------

PROBLEM = "/test.Ends/"


class Ends:
    """A service whose methods end as they are told."""

    SERVICE = "test.Ends"

    def register(self, server: grpc.aio.Server, host: object, /) -> None:
        handlers: dict[str, Any] = {
            "UnaryUnary": grpc.unary_unary_rpc_method_handler(self.one),
            "UnaryStream": grpc.unary_stream_rpc_method_handler(self.many),
            "StreamUnary": grpc.stream_unary_rpc_method_handler(self.of_many),
            "StreamStream": grpc.stream_stream_rpc_method_handler(self.many_of_many),
            "Written": grpc.stream_stream_rpc_method_handler(self.written),
        }
        generic = grpc.method_handlers_generic_handler(self.SERVICE, handlers)
        server.add_generic_rpc_handlers((generic,))

    async def _end(self, how: bytes, context: Any) -> None:
        if how == b"abort":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no")
        if how == b"exception":
            raise RuntimeError("secret")
        if how == b"wait":
            await asyncio.sleep(60)

    async def one(self, how: bytes, context: Any) -> bytes:
        await self._end(how, context)
        return b"done"

    async def many(self, how: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"begun"
        await self._end(how, context)

    async def of_many(self, how: AsyncIterator[bytes], context: Any) -> bytes:
        return await self.one(await anext(how), context)

    async def many_of_many(self, how: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for answer in self.many(await anext(how), context):
            yield answer

    async def written(self, how: Any, context: Any) -> None:
        await context.write(b"begun")
        await self._end(await anext(how), context)


def _ask(channel: Any, kind: str, how: bytes, **call: Any) -> Any:
    path = PROBLEM + kind
    if kind == "UnaryUnary":
        return channel.unary_unary(path)(how, **call)
    if kind == "UnaryStream":
        return channel.unary_stream(path)(how, **call)

    async def requests() -> AsyncIterator[bytes]:
        yield how
        await asyncio.sleep(60)

    if kind == "StreamUnary":
        return channel.stream_unary(path)(requests(), **call)
    return channel.stream_stream(path)(requests(), **call)


ENDS = {
    "ok": ("OK", None),
    "abort": ("NOT_FOUND", None),  # The client's own affair.
    "exception": ("INTERNAL", "exception"),
    "cancel": ("CANCELLED", "cancel"),
    "deadline": ("DEADLINE_EXCEEDED", "deadline"),
}


@pytest.mark.parametrize("outcome", ENDS)
@pytest.mark.parametrize(
    "kind", ["UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream", "Written"]
)
async def test_each_end_of_a_call_is_told_as_what_it_was(kind: str, outcome: str) -> None:
    async with (
        traced() as (taken, telemetry),
        Server(config(), doors=[Ends()], observer=telemetry) as server,
        connected(server.address) as client,
    ):
        how = b"wait" if outcome in ("cancel", "deadline") else outcome.encode()
        # Whoever gives up long before its deadline has given up.
        limit = {"timeout": {"deadline": 0.3, "cancel": 30}.get(outcome)}
        call = _ask(client.channel, kind, how, **limit)
        if outcome == "cancel":
            await asyncio.sleep(0.1)
            call.cancel()
        async with asyncio.timeout(5):
            await _over(call)
        await arrived(taken, telemetry, "test.Ends")
        counted = [labels for labels, _ in telemetry.figures.spread(CALLS).read()]
    span = taken.one("test.Ends")
    code, failed = ENDS[outcome]
    assert span.attributes["backchannel.rpc.outcome"] == outcome
    assert span.attributes["rpc.response.status_code"] == code
    assert span.failed == failed
    assert counted == [(f"test.Ends/{kind}", outcome, code)]


async def _over(call: Any) -> None:
    """Take all that comes, until the end."""
    with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
        if hasattr(call, "read"):
            async for _ in call:
                pass
        else:
            await call
