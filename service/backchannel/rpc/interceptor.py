"""Around every call: requests are parsed, and whatever goes wrong leaves as one of our statuses.

Three facts about grpc.aio make this necessary. A deserialiser that raises ends the call with a
bare INTERNAL. An exception that escapes does so too, with its text. And a `CancelledError` of the
application's own (from awaiting a task that somebody cancelled) sends no status at all: the client
waits for ever (https://github.com/grpc/grpc/issues/29248).

How each call really ended is told to an observer: this is the one place that sees it for every
kind of handler. The interceptor of opentelemetry-instrumentation-grpc does not: it fails on
handlers that read and write by their context, and calls OK what was cancelled or broke
(https://github.com/open-telemetry/opentelemetry-python-contrib/issues/3066, 3271, 4259).
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc

from backchannel.errors import BackchannelError, Reason
from backchannel.observer import SILENT, CallWatch, Observer, Outcome
from backchannel.rpc import errors
from backchannel.rpc.wire import parsing

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # not generic at run time
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Behaviour: TypeAlias = Callable[[Any, Context], Any]
Parser: TypeAlias = Callable[[bytes], Any]

_UNKNOWN = grpc.StatusCode.UNKNOWN
# How much later than the client's a call's deadline may be here: by its way, by what was rounded.
_TRANSIT_S = 0.1
_ROUNDED = 0.01


class Guard(grpc.aio.ServerInterceptor):
    """Wraps every handler of the server, also those of services that are not ours.

    Args:
        observer: Is told of every call and its end.
    """

    def __init__(self, observer: Observer = SILENT) -> None:
        self._observer = observer

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Find the handler and put the guard around it."""
        method = handler_call_details.method
        found = await continuation(handler_call_details)
        return _unknown(method) if found is None else guarded(method, found, self._observer)


def guarded(method: str, handler: Handler, observer: Observer = SILENT) -> Handler:
    """The same handler, parsing its requests and telling its errors by our table."""
    parse = parsing(handler.request_deserializer) if handler.request_deserializer else None
    serialise = handler.response_serializer
    if handler.request_streaming and handler.response_streaming:
        behaviour = _streaming(method, observer, handler.stream_stream, _each(parse))
        return grpc.stream_stream_rpc_method_handler(behaviour, None, serialise)
    if handler.request_streaming:
        behaviour = _unary(method, observer, handler.stream_unary, _each(parse))
        return grpc.stream_unary_rpc_method_handler(behaviour, None, serialise)
    if handler.response_streaming:
        behaviour = _streaming(method, observer, handler.unary_stream, parse)
        return grpc.unary_stream_rpc_method_handler(behaviour, None, serialise)
    behaviour = _unary(method, observer, handler.unary_unary, parse)
    return grpc.unary_unary_rpc_method_handler(behaviour, None, serialise)


def _unary(method: str, observer: Observer, behaviour: Any, parse: Parser | None) -> Behaviour:
    """Guard a method that answers once."""

    async def call(request: Any, context: Context) -> Any:
        watch = _watch(observer, method, context)
        try:
            response = await behaviour(parse(request) if parse else request, context)
        except Exception as error:  # noqa: BLE001 - told and logged by _end
            await _end(method, context, error, watch)
        except asyncio.CancelledError as error:
            await _end_cancelled(method, context, error, watch)
        else:
            _returned(context, watch)
            return response

    return call


def _streaming(method: str, observer: Observer, behaviour: Any, parse: Parser | None) -> Behaviour:
    """Guard a method that answers with a stream, as a generator or by `context.write`.

    The generator is driven here, by the call's one task, so that a cancel which hits a write closes
    it at once instead of leaving that to the garbage collector.
    """

    async def call(request: Any, context: Context) -> None:
        watch = _watch(observer, method, context)
        try:
            responses = behaviour(parse(request) if parse else request, context)
            if not inspect.isasyncgen(responses):
                await responses
            else:
                await _written(responses, context)
        except Exception as error:  # noqa: BLE001 - told and logged by _end
            await _end(method, context, error, watch)
        except asyncio.CancelledError as error:
            await _end_cancelled(method, context, error, watch)
        else:
            _returned(context, watch)

    return call


async def _written(responses: AsyncGenerator[Any, Any], context: Context) -> None:
    async with aclosing(responses):
        async for response in responses:
            await context.write(response)


class _Watch:
    """A call's watch, and how long the client was going to wait; None for as long as it takes."""

    def __init__(self, watch: CallWatch, context: Context) -> None:
        self.ended = watch.ended
        self._context = context
        self._patience_s: float | None = context.time_remaining()

    def gave_up(self) -> None:
        """The client's side ended the call: its patience, or its deadline.

        A client cancels at its deadline by itself, and by its own clock, which began when it sent
        the call and not when that arrived. And a deadline is sent with two or three digits.
        """
        patience_s = self._patience_s
        slack_s = min(_TRANSIT_S + _ROUNDED * patience_s, patience_s / 2) if patience_s else 0.0
        if patience_s is not None and self._context.time_remaining() <= slack_s:
            self.ended(Outcome.DEADLINE, grpc.StatusCode.DEADLINE_EXCEEDED.name)
        else:
            self.ended(Outcome.CANCEL, grpc.StatusCode.CANCELLED.name)


def _watch(observer: Observer, method: str, context: Context) -> _Watch | None:
    if observer is SILENT:
        return None
    watch = observer.call(method, tuple(context.invocation_metadata() or ()))
    return None if watch is None else _Watch(watch, context)


def _returned(context: Context, watch: _Watch | None) -> None:
    """The handler has returned; that alone is no good end."""
    if watch is None:
        return
    code = _code(context)
    if context.cancelled():
        watch.gave_up()
    elif code is grpc.StatusCode.OK:
        watch.ended(Outcome.OK, code.name)
    else:
        watch.ended(Outcome.ABORT, code.name)


async def _end(method: str, context: Context, error: Exception, watch: _Watch | None) -> None:
    """End the call with the status that the error stands for."""
    if isinstance(error, grpc.aio.AbortError):
        # The handler has ended the call itself.
        if watch is not None:
            watch.ended(Outcome.ABORT, _code(context).name)
        raise error
    outcome = Outcome.ABORT
    if not isinstance(error, BackchannelError):
        outcome = Outcome.EXCEPTION
        error = errors.internal(method, error)
    await _abort(context, error, outcome, watch)


async def _end_cancelled(
    method: str, context: Context, error: asyncio.CancelledError, watch: _Watch | None
) -> None:
    """Let gRPC's own cancel pass; a stray one of the application's gets a status."""
    task = asyncio.current_task()
    if task is None or task.cancelling():
        if watch is not None:
            watch.gave_up()
        raise error
    await _abort(context, errors.internal(method, error), Outcome.EXCEPTION, watch)


async def _abort(
    context: Context, error: BackchannelError, outcome: Outcome, watch: _Watch | None
) -> None:
    if watch is None:
        await errors.abort(context, error)
    elif context.cancelled():
        watch.gave_up()  # Nobody hears of the error any more.
        await errors.abort(context, error)
    else:
        try:
            await errors.abort(context, error)
        finally:
            watch.ended(outcome, _code(context).name)


def _code(context: Context) -> grpc.StatusCode:
    """The status that was set, as a member of the enumeration or by its number; at first None."""
    code: grpc.StatusCode | int | None = context.code()
    if isinstance(code, grpc.StatusCode):
        return code
    number = code or 0
    return next((known for known in grpc.StatusCode if known.value[0] == number), _UNKNOWN)


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
