"""Around every call: requests are parsed, and whatever goes wrong leaves as one of our statuses.

Three facts about grpc.aio make this necessary. A deserialiser that raises ends the call with a
bare INTERNAL. An exception that escapes does so too, with its text. And a `CancelledError` of the
application's own (from awaiting a task that somebody cancelled) sends no status at all: the client
waits for ever (https://github.com/grpc/grpc/issues/29248).
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc

from backchannel.errors import BackchannelError, Reason
from backchannel.rpc import errors
from backchannel.rpc.wire import parsing

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # not generic at run time
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Behaviour: TypeAlias = Callable[[Any, Context], Any]
Parser: TypeAlias = Callable[[bytes], Any]


class Guard(grpc.aio.ServerInterceptor):
    """Wraps every handler of the server, also those of services that are not ours."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Find the handler and put the guard around it."""
        method = handler_call_details.method
        found = await continuation(handler_call_details)
        return _unknown(method) if found is None else guarded(method, found)


def guarded(method: str, handler: Handler) -> Handler:
    """The same handler, parsing its requests and telling its errors by our table."""
    parse = parsing(handler.request_deserializer) if handler.request_deserializer else None
    serialise = handler.response_serializer
    if handler.request_streaming and handler.response_streaming:
        behaviour = _streaming(method, handler.stream_stream, _each(parse))
        return grpc.stream_stream_rpc_method_handler(behaviour, None, serialise)
    if handler.request_streaming:
        behaviour = _unary(method, handler.stream_unary, _each(parse))
        return grpc.stream_unary_rpc_method_handler(behaviour, None, serialise)
    if handler.response_streaming:
        behaviour = _streaming(method, handler.unary_stream, parse)
        return grpc.unary_stream_rpc_method_handler(behaviour, None, serialise)
    behaviour = _unary(method, handler.unary_unary, parse)
    return grpc.unary_unary_rpc_method_handler(behaviour, None, serialise)


def _unary(method: str, behaviour: Any, parse: Parser | None) -> Behaviour:
    """Guard a method that answers once."""

    async def call(request: Any, context: Context) -> Any:
        try:
            return await behaviour(parse(request) if parse else request, context)
        except Exception as error:  # noqa: BLE001 - told and logged by _end
            await _end(method, context, error)
        except asyncio.CancelledError as error:
            await _end_cancelled(method, context, error)

    return call


def _streaming(method: str, behaviour: Any, parse: Parser | None) -> Behaviour:
    """Guard a method that answers with a stream, as a generator or by `context.write`.

    The generator is driven here, by the call's one task, so that a cancel which hits a write closes
    it at once instead of leaving that to the garbage collector.
    """

    async def call(request: Any, context: Context) -> None:
        try:
            responses = behaviour(parse(request) if parse else request, context)
            if not inspect.isasyncgen(responses):
                await responses
                return
            async with aclosing(responses):
                async for response in responses:
                    await context.write(response)
        except Exception as error:  # noqa: BLE001 - told and logged by _end
            await _end(method, context, error)
        except asyncio.CancelledError as error:
            await _end_cancelled(method, context, error)

    return call


async def _end(method: str, context: Context, error: Exception) -> None:
    """End the call with the status that the error stands for."""
    if isinstance(error, grpc.aio.AbortError):
        # The handler has ended the call itself.
        raise error
    if not isinstance(error, BackchannelError):
        error = errors.internal(method, error)
    await errors.abort(context, error)


async def _end_cancelled(method: str, context: Context, error: asyncio.CancelledError) -> None:
    """Let gRPC's own cancel pass; a stray one of the application's gets a status."""
    task = asyncio.current_task()
    if task is None or task.cancelling():
        raise error
    await errors.abort(context, errors.internal(method, error))


def _each(parse: Parser | None) -> Parser | None:
    """Parse every message of a request stream."""
    if parse is None:
        return None

    async def messages(stream: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for raw in stream:
            yield parse(raw)

    return messages  # type: ignore[return-value]  # the "bytes" of a stream are its iterator


def _unknown(method: str) -> Handler:
    """Answer for methods that do not exist."""

    async def refuse(_: object, context: Context) -> None:
        error = BackchannelError(
            Reason.NOT_IMPLEMENTED,
            f"there is no method {method}; reflection lists those there are",
        )
        await errors.abort(context, error)

    return grpc.stream_stream_rpc_method_handler(refuse)
