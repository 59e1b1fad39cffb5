"""Calls that go out over gRPC: a span each, whose context the other side is told.

Unary calls are the work of opentelemetry-instrumentation-grpc, but for one thing: when whoever
waits for an answer is cancelled, its interceptor lets the call run on, and later ends the span as
if all had gone well (https://github.com/open-telemetry/opentelemetry-python-contrib/issues/3271).
That is mended here.

Streams are ours: its interceptor ends the span of a stream that was cancelled as if it had gone
well, never ends that of one which nobody iterates over, and hides the call behind a generator.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, Final, TypeAlias

import grpc
from opentelemetry.instrumentation.grpc import aio_client_interceptors
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    TracerProvider,
    get_current_span,
    get_tracer,
    set_span_in_context,
)

from backchannel.telemetry import conventions as names
from backchannel.telemetry.calls import PROPAGATOR

_SCOPE: Final = "backchannel.client"
_Details: TypeAlias = grpc.aio.ClientCallDetails
_Continuation: TypeAlias = Callable[[_Details, Any], Awaitable[Any]]


class ClientTracing:
    """Spans for calls: those of a `Client(tracing=ClientTracing())`, or of a channel of one's own.

    A span is a child of what is current where the call is made, and what the server does for the
    call belongs to the same trace. It ends when the call does, with the call's own status; every
    status but OK is an error.

    Args:
        tracer_provider: Makes the spans. Default: the global one.

    Attributes:
        interceptors: For the unary calls of a channel, whose streams they leave alone.
    """

    def __init__(self, tracer_provider: TracerProvider | None = None) -> None:
        self._tracer = get_tracer(
            _SCOPE, version("backchannel"), tracer_provider, schema_url=names.SCHEMA_URL
        )
        self.interceptors: Sequence[grpc.aio.ClientInterceptor] = (_Unary(tracer_provider),)

    def stream(self, method: str) -> StreamSpan:
        """A span for a call in which one side, or both, send a stream; begins now.

            span = tracing.stream("backchannel.v1.ConversationService/Attach")
            call = stub.Attach(request, metadata=span.metadata)
            span.follow(call)

        Args:
            method: Its full name.
        """
        span = self._tracer.start_span(method, kind=SpanKind.CLIENT, attributes=_named(method))
        return StreamSpan(span)


class StreamSpan:
    """The span of one stream.

    Args:
        span: It.

    Attributes:
        metadata: To be sent with the call: its context, by https://www.w3.org/TR/trace-context/.
    """

    def __init__(self, span: Span) -> None:
        self._span = span
        carrier: dict[str, str] = {}
        PROPAGATOR.inject(carrier, context=set_span_in_context(span))
        self.metadata = tuple(carrier.items())

    def follow(self, call: grpc.aio.Call) -> None:
        """End when the call ends. One that is dropped and not cancelled goes on, as does its span.

        Args:
            call: Just made.
        """
        call.add_done_callback(self._ended)

    def _ended(self, call: Any) -> None:
        # The status is there: nothing is waited for.
        try:
            call.code().send(None)
        except StopIteration as answer:
            _tell(self._span, answer.value)
        self._span.end()


class _Unary(grpc.aio.UnaryUnaryClientInterceptor):
    """What opentelemetry-instrumentation-grpc does, and the truth about cancelled calls."""

    def __init__(self, tracer_provider: TracerProvider | None) -> None:
        theirs = aio_client_interceptors(tracer_provider)  # type: ignore[no-untyped-call]
        (self._theirs,) = (
            one for one in theirs if isinstance(one, grpc.aio.UnaryUnaryClientInterceptor)
        )

    async def intercept_unary_unary(
        self, continuation: _Continuation, client_call_details: _Details, request: Any
    ) -> Any:
        """Make the call, in a span unless somebody suppresses instrumentation."""
        if not is_instrumentation_enabled():
            return await continuation(client_call_details, request)
        return await self._theirs.intercept_unary_unary(
            partial(_to_its_end, continuation), client_call_details, request
        )


async def _to_its_end(continuation: _Continuation, details: _Details, request: Any) -> Any:
    """The call, when it has ended. The current span is its own."""
    span = get_current_span()
    method: str | bytes = details.method  # https://github.com/grpc/grpc/issues/31092
    if isinstance(method, bytes):
        method = method.decode()
    method = method.lstrip("/")
    span.update_name(method)
    span.set_attributes(_named(method))
    call = await continuation(details, request)
    try:
        await call  # Which, unlike a wait for its status, ends the call if it is cancelled.
    except grpc.aio.AioRpcError:
        pass  # Its status is told below, and to whoever awaits the call.
    except BaseException as error:
        cancelled = isinstance(error, asyncio.CancelledError)
        if cancelled:
            _tell(span, grpc.StatusCode.CANCELLED)
        else:
            span.set_attribute(names.ERROR_TYPE, type(error).__name__)
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))
        span.end()
        raise
    _tell(span, await call.code())
    return call


def _named(method: str) -> dict[str, str]:
    return {names.RPC_SYSTEM: "grpc", names.RPC_METHOD: method}


def _tell(span: Span, code: grpc.StatusCode) -> None:
    span.set_attribute(names.RPC_STATUS, code.name)
    if code is not grpc.StatusCode.OK:
        span.set_attribute(names.ERROR_TYPE, code.name)
        span.set_status(Status(StatusCode.ERROR, code.name))
