"""Spans on the other side of a call: of those who use the service, and of the service itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from backchannel.client import Client, StatusError
from backchannel.rpc.server import Server
from backchannel.telemetry.config import TelemetryConfig
from backchannel.telemetry.outgoing import ClientTracing
from backchannel.telemetry.telemetry import Telemetry
from backchannel.v1 import session_pb2
from tests.support.otlp import Collector, Span, collector
from tests.support.proxy import Proxy
from tests.support.server import config, connected
from tests.support.smg_peer import SmgPeer
from tests.support.stream import create, interrupt, say

CONVERSE = "backchannel.v1.ConversationService/Converse"
CREATE = "backchannel.v1.ConversationService/CreateSession"
GET = "backchannel.v1.ConversationService/GetSession"
MODELS = "backchannel.v1.ModelService/ListModels"
VLLM = "vllm.grpc.engine.VllmEngine"
CLIENT = trace_pb2.Span.SPAN_KIND_CLIENT
SERVER = trace_pb2.Span.SPAN_KIND_SERVER


@asynccontextmanager
async def client_spans(taken: Collector) -> AsyncIterator[TracerProvider]:
    """What a program that traces itself has; at the end all its spans are sent."""
    provider = TracerProvider(shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=taken.address, insecure=True)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        yield provider
    finally:
        await asyncio.to_thread(provider.shutdown)


@asynccontextmanager
async def watched(taken: Collector) -> AsyncIterator[Telemetry]:
    settings = TelemetryConfig(
        metrics_listen="off", otlp_metrics=False, otlp_endpoint=taken.address
    )
    async with Telemetry(settings) as telemetry:
        yield telemetry


def of_kind(taken: Collector, kind: int, name: str) -> list[Span]:
    return [span for span in taken.named(name) if span.raw.kind == kind]


def only(taken: Collector, kind: int, name: str) -> Span:
    (span,) = of_kind(taken, kind, name)
    return span


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


# --- programs that use the service ------------------------------------------------------------


async def test_a_program_its_calls_and_the_turn_are_one_trace() -> None:
    async with collector() as taken:
        async with (
            watched(taken) as telemetry,
            client_spans(taken) as provider,
            Server(config(model="scripted/echo"), observer=telemetry) as server,
            Client(str(server.address), tracing=ClientTracing(provider)) as client,
        ):
            with provider.get_tracer("program").start_as_current_span("question") as question:
                await client.models()
                async with client.converse() as conversation:
                    assert (await conversation.say("one two")).text == "one two"
                with pytest.raises(StatusError):
                    await client.session("there-is-no-such-session")
        trace = f"{question.get_span_context().trace_id:032x}"
    root = taken.one("question")
    assert {span.trace for span in taken.spans} == {trace}
    for method, failed in ((MODELS, None), (CONVERSE, None), (GET, "NOT_FOUND")):
        asked, served = only(taken, CLIENT, method), only(taken, SERVER, method)
        assert asked.parent == root.id
        assert served.parent == asked.id
        assert asked.attributes["rpc.response.status_code"] == (failed or "OK")
        # On the side that asked every refusal is a failure, and has the server's words.
        assert (asked.failed is None) == (failed is None)
    assert taken.one("turn").parent == only(taken, SERVER, CONVERSE).id


async def test_a_stream_that_is_cut_is_a_failed_call_and_the_next_one_goes_on() -> None:
    async with (
        collector() as taken,
        Server(config(model="scripted/count")) as server,
        Proxy(str(server.address)) as wire,
    ):
        async with (
            client_spans(taken) as provider,
            Client(wire.address, tracing=ClientTracing(provider)) as client,
        ):
            with provider.get_tracer("program").start_as_current_span("question"):
                conversation = client.converse(
                    engine_options={"rate": "50"}, sampling=session_pb2.Sampling(max_tokens=30)
                )
            async with conversation:
                pieces = 0
                async for _ in conversation.ask("go"):
                    pieces += 1
                    if pieces == 5:
                        wire.cut()
        cut, again = of_kind(taken, CLIENT, CONVERSE)
    assert cut.failed == cut.attributes["error.type"] == "UNAVAILABLE"
    assert again.failed is None
    assert again.attributes["rpc.response.status_code"] == "OK"


# --- the five ends, on each kind --------------------------------------------------------------


class Ends:
    """A service whose methods end as they are told."""

    SERVICE = "test.Ends"

    def __init__(self) -> None:
        self.running = 0
        self.traceparents: list[str] = []

    def register(self, server: grpc.aio.Server, host: object, /) -> None:
        handlers: dict[str, Any] = {
            "UnaryUnary": grpc.unary_unary_rpc_method_handler(self.one),
            "UnaryStream": grpc.unary_stream_rpc_method_handler(self.many),
            "StreamUnary": grpc.stream_unary_rpc_method_handler(self.of_many),
            "StreamStream": grpc.stream_stream_rpc_method_handler(self.many_of_many),
        }
        generic = grpc.method_handlers_generic_handler(self.SERVICE, handlers)
        server.add_generic_rpc_handlers((generic,))

    async def one(self, how: bytes, context: Any) -> bytes:
        self.traceparents.append(dict(context.invocation_metadata())["traceparent"])
        self.running += 1
        try:
            if how == b"abort":
                await context.abort(grpc.StatusCode.NOT_FOUND, "no")
            if how == b"exception":
                raise RuntimeError("secret")
            if how == b"wait":
                await asyncio.sleep(60)
        finally:
            self.running -= 1
        return b"done"

    async def many(self, how: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"begun"
        await self.one(how, context)

    async def of_many(self, how: AsyncIterator[bytes], context: Any) -> bytes:
        return await self.one(await anext(how), context)

    async def many_of_many(self, how: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for answer in self.many(await anext(how), context):
            yield answer


def ask(channel: Any, tracing: ClientTracing, kind: str, how: bytes, **call: Any) -> Any:
    method = f"{Ends.SERVICE}/{kind}"
    if kind == "UnaryUnary":
        return channel.unary_unary(f"/{method}")(how, **call)
    span = tracing.stream(method)

    async def requests() -> AsyncIterator[bytes]:
        yield how
        await asyncio.sleep(60)

    if kind == "UnaryStream":
        made = channel.unary_stream(f"/{method}")(how, metadata=span.metadata, **call)
    elif kind == "StreamUnary":
        made = channel.stream_unary(f"/{method}")(requests(), metadata=span.metadata, **call)
    else:
        made = channel.stream_stream(f"/{method}")(requests(), metadata=span.metadata, **call)
    span.follow(made)
    return made


async def take(call: Any) -> None:
    """Take all that comes, until the end."""
    if hasattr(call, "read"):
        async for _ in call:
            pass
    else:
        await call


ENDS = {
    "ok": "OK",
    "abort": "NOT_FOUND",
    "exception": "INTERNAL",
    "deadline": "DEADLINE_EXCEEDED",
    # In both ways in which one can: the call itself, and whoever waits for it.
    "cancel": "CANCELLED",
    "leave": "CANCELLED",
}


@pytest.mark.parametrize("outcome", ENDS)
@pytest.mark.parametrize("kind", ["UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream"])
async def test_each_end_of_a_call_is_told_as_what_it_was(kind: str, outcome: str) -> None:
    ends = Ends()
    async with (
        collector() as taken,
        client_spans(taken) as provider,
        Server(config(), doors=[ends]) as server,
    ):
        tracing = ClientTracing(provider)
        async with grpc.aio.insecure_channel(
            str(server.address), interceptors=tracing.interceptors
        ) as channel:
            waits = outcome in ("cancel", "leave", "deadline")
            limit = {"timeout": 0.3} if outcome == "deadline" else {}
            how = b"wait" if waits else outcome.encode()
            call = ask(channel, tracing, kind, how, **limit)
            waiting = asyncio.create_task(take(call))
            async with asyncio.timeout(10):
                if waits:
                    await until(lambda: ends.running == 1)
                if outcome == "cancel":
                    call.cancel()
                elif outcome == "leave":
                    waiting.cancel()
                await asyncio.wait([waiting])
                # Whoever gives up a call has ended it: nobody works on it any more.
                await until(lambda: ends.running == 0)
            with suppress(asyncio.CancelledError):
                assert isinstance(waiting.exception(), grpc.aio.AioRpcError | None)
    span = only(taken, CLIENT, "test.Ends")
    code = ENDS[outcome]
    assert span.name == span.attributes["rpc.method"] == f"test.Ends/{kind}"
    assert span.attributes["rpc.response.status_code"] == code
    assert (span.failed is None) == (code == "OK")
    assert span.attributes.get("error.type") == (None if code == "OK" else code)
    (sent,) = ends.traceparents
    assert sent.startswith(f"00-{span.trace}-{span.id}-")
    # Not the moment at which somebody looked, but that at which it ended.
    assert span.raw.end_time_unix_nano - span.raw.start_time_unix_nano < 5e9


async def test_nothing_is_traced_where_somebody_suppresses_it() -> None:
    async with (
        collector() as taken,
        client_spans(taken) as provider,
        Server(config()) as server,
        Client(str(server.address), tracing=ClientTracing(provider)) as client,
    ):
        with provider.get_tracer("program").start_as_current_span("question"):
            with suppress_instrumentation():
                await client.models()
            await client.models()
    assert len(taken.named(MODELS)) == 1
    assert taken.one("question").failed is None


# --- the service itself -----------------------------------------------------------------------


async def test_what_an_engine_asks_of_its_server_has_spans_too() -> None:
    async with collector() as taken, SmgPeer(step_s=0.01).serve() as peer:
        settings = config(
            engine=("up",), engine_options={"up": {"adapter": "smg", "target": peer.target}}
        )
        async with (
            watched(taken) as telemetry,
            Server(settings, observer=telemetry) as server,
            connected(server.address) as client,
            client.converse(create(), say('{"count": 500}')) as stream,
        ):
            started = (await stream.event("turn_started")).turn_started
            await stream.event("output_delta", 3)
            await stream.send(interrupt(started.turn_id))
            await stream.event("turn_finished")
    for method in ("GetModelInfo", "GetServerInfo"):
        span = only(taken, CLIENT, f"{VLLM}/{method}")
        assert span.failed is None
        assert span.parent == ""
        assert span.attributes["rpc.response.status_code"] == "OK"
    turn, chat = taken.one("turn"), taken.one("chat")
    # The stop came with a call of the client's, and is the answer's affair.
    abort = of_kind(taken, CLIENT, f"{VLLM}/Abort")[0]
    assert abort.trace == turn.trace
    assert abort.parent == chat.id
    # The answer itself has its one span already.
    assert taken.named(f"{VLLM}/Generate") == []


async def test_an_engine_whose_server_went_away_says_so() -> None:
    async with collector() as taken, watched(taken) as telemetry, SmgPeer().serve() as peer:
        options = {"adapter": "smg", "target": peer.target, "refresh_s": 0.1}
        settings = config(engine=("up",), engine_options={"up": options})
        async with Server(settings, observer=telemetry):
            peer.healthy = False
            async with asyncio.timeout(10):
                while not taken.named(f"{VLLM}/HealthCheck"):
                    await telemetry.flush()
                    await asyncio.sleep(0.02)
            peer.key = "another"
            async with asyncio.timeout(10):
                while not any(span.failed for span in taken.named(VLLM)):
                    await telemetry.flush()
                    await asyncio.sleep(0.02)
    refused = [span for span in taken.named(f"{VLLM}/HealthCheck") if span.failed]
    assert refused[0].attributes["rpc.response.status_code"] == "UNAUTHENTICATED"
