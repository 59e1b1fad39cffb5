"""What the guard around every handler promises, whatever a handler does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from backchannel import errors
from backchannel.errors import BackchannelError, Reason
from backchannel.rpc.interceptor import Guard
from tests.support.stream import PATIENCE_S, Call, Ending, Refused, duplex, unary

SECRET = "what the person said"


class Handlers:
    """One badly behaved service."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def ok(self, request: StringValue, context: Any) -> StringValue:
        return StringValue(value=request.value.upper())

    async def refuse(self, request: StringValue, context: Any) -> StringValue:
        raise BackchannelError(Reason.QUEUE_FULL, "come back later", metadata={"size": "16"})

    async def long(self, request: StringValue, context: Any) -> StringValue:
        raise BackchannelError(Reason.FIELD_INVALID, "ü" * 100_000, field="parts")

    async def fail(self, request: StringValue, context: Any) -> StringValue:
        prompt = request.value
        raise ValueError(f"cannot do {prompt}")

    async def abort(self, request: StringValue, context: Any) -> StringValue:
        await context.abort(grpc.StatusCode.DATA_LOSS, "by itself")
        raise AssertionError

    async def stray(self, request: StringValue, context: Any) -> StringValue:
        task = asyncio.create_task(asyncio.sleep(60))
        task.cancel()
        await task
        raise AssertionError

    async def stray_stream(self, requests: AsyncIterator[Any], context: Any) -> None:
        await context.write(StringValue(value="first").SerializeToString())
        task = asyncio.create_task(asyncio.sleep(60))
        task.cancel()
        await task

    async def fail_stream(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        yield StringValue(value="first").SerializeToString()
        raise ValueError(SECRET)

    async def flood(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(60_000)
        finally:
            self.closed.set()

    async def sleep(self, request: StringValue, context: Any) -> StringValue:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        raise AssertionError

    async def echo(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield request


def register(server: grpc.aio.Server, handlers: Handlers) -> None:
    parse, serialise = StringValue.FromString, StringValue.SerializeToString
    unary = {
        name: grpc.unary_unary_rpc_method_handler(getattr(handlers, name), parse, serialise)
        for name in ("ok", "refuse", "long", "fail", "abort", "stray", "sleep")
    }
    streams: dict[str, Call] = {
        name: grpc.stream_stream_rpc_method_handler(getattr(handlers, name))
        for name in ("stray_stream", "fail_stream", "flood")
    }
    echo = grpc.stream_stream_rpc_method_handler(handlers.echo, parse, serialise)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("t.T", {**unary, **streams, "echo": echo}),)
    )


@asynccontextmanager
async def serving(handlers: Handlers) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server(interceptors=(Guard(),), options=(("grpc.so_reuseport", 0),))
    register(server, handlers)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(0)


@pytest.fixture
async def handlers() -> Handlers:
    return Handlers()


@pytest.fixture
async def channel(handlers: Handlers) -> AsyncIterator[grpc.aio.Channel]:
    async with serving(handlers) as channel:
        yield channel


async def outcome(channel: grpc.aio.Channel, name: str, request: bytes) -> Ending:
    with Refused() as refused:
        await unary(channel, f"/t.T/{name}")(request, timeout=PATIENCE_S)
    assert refused.ending is not None, "it was not refused"
    return refused.ending


async def stream_outcome(channel: grpc.aio.Channel, name: str) -> tuple[list[bytes], Ending]:
    call = duplex(channel, f"/t.T/{name}")(timeout=PATIENCE_S)
    got = []
    with Refused() as refused:
        async for message in call:
            got.append(message)  # noqa: PERF401 - what came before the error counts
    call.cancel()
    assert refused.ending is not None, "it was not refused"
    return got, refused.ending


async def test_a_call_that_goes_well(channel: grpc.aio.Channel) -> None:
    request = StringValue(value="a").SerializeToString()
    answer = await unary(channel, "/t.T/ok")(request, timeout=PATIENCE_S)
    assert StringValue.FromString(answer).value == "A"


async def test_an_error_of_ours_keeps_all_it_says(channel: grpc.aio.Channel) -> None:
    end = await outcome(channel, "refuse", b"")
    assert (end.code, end.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert errors.retry_after_s(end.status) == 1.0
    info = errors.error_info(end.status)
    assert info is not None
    assert dict(info.metadata) == {"size": "16"}


async def test_a_long_message_does_not_burst_the_headers(channel: grpc.aio.Channel) -> None:
    end = await outcome(channel, "long", b"")
    assert (end.code, end.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")


async def test_unreadable_bytes(channel: grpc.aio.Channel) -> None:
    end = await outcome(channel, "ok", b"\xff\xff\xff")
    assert (end.code, end.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNREADABLE_MESSAGE")


async def test_unreadable_bytes_in_a_stream(channel: grpc.aio.Channel) -> None:
    call = duplex(channel, "/t.T/echo")()
    good = StringValue(value="a").SerializeToString()
    await call.write(good)
    assert await call.read() == good
    await call.write(b"\xff\xff\xff")
    with Refused() as refused:
        await call.read()
    call.cancel()
    assert refused.ending is not None
    assert refused.ending.reason == "UNREADABLE_MESSAGE"


async def test_an_unknown_method(channel: grpc.aio.Channel) -> None:
    end = await outcome(channel, "nothing", b"")
    assert (end.code, end.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED")


async def test_what_a_handler_says_itself_stays(channel: grpc.aio.Channel) -> None:
    end = await outcome(channel, "abort", b"")
    assert (end.code, end.message) == (grpc.StatusCode.DATA_LOSS, "by itself")


async def test_a_fault_of_ours_is_logged_without_anybodys_words(
    channel: grpc.aio.Channel, capsys: pytest.CaptureFixture[str]
) -> None:
    from backchannel import logging

    logging.configure(log_format=logging.LogFormat.JSON)
    end = await outcome(channel, "fail", StringValue(value=SECRET).SerializeToString())
    assert (end.code, end.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert SECRET not in end.message
    [line] = capsys.readouterr().err.splitlines()
    assert SECRET not in line
    logged = json.loads(line)
    info = errors.error_info(end.status)
    assert info is not None
    assert logged["incident"] == info.metadata["incident"]
    assert logged["method"] == "/t.T/fail"
    assert "builtins.ValueError" in logged["exception"]
    assert "in fail" in logged["exception"]


async def test_a_stream_that_fails_late(channel: grpc.aio.Channel) -> None:
    got, end = await stream_outcome(channel, "fail_stream")
    assert got == [StringValue(value="first").SerializeToString()]
    assert (end.code, end.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")


@pytest.mark.parametrize("name", ["stray", "stray_stream"])
async def test_a_stray_cancel_still_gets_a_status(channel: grpc.aio.Channel, name: str) -> None:
    if name == "stray":
        end = await outcome(channel, name, b"")
    else:
        got, end = await stream_outcome(channel, name)
        assert len(got) == 1
    assert (end.code, end.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")


async def test_a_clients_cancel_closes_a_stream_that_is_stuck_in_a_write(
    channel: grpc.aio.Channel, handlers: Handlers
) -> None:
    call = duplex(channel, "/t.T/flood")()
    await call.read()
    call.cancel()
    async with asyncio.timeout(PATIENCE_S):
        await handlers.closed.wait()


async def test_a_clients_deadline_reaches_the_handler(
    channel: grpc.aio.Channel, handlers: Handlers
) -> None:
    with Refused() as refused:
        await unary(channel, "/t.T/sleep")(b"", timeout=0.05)
    assert refused.ending is not None
    assert refused.ending.code is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(PATIENCE_S):
        await handlers.cancelled.wait()
