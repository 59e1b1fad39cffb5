"""RPCs: one span each, whose end says how the call really ended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Final

from opentelemetry import context as otel_context
from opentelemetry.trace import (
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from backchannel.observer import Outcome
from backchannel.telemetry import conventions as names
from backchannel.telemetry import table
from backchannel.telemetry.figures import Figures

PROPAGATOR: Final = TraceContextTextMapPropagator()
_PROPAGATED: Final = frozenset(("traceparent", "tracestate"))
# Of the refusals, what the server is to blame for
# (https://opentelemetry.io/docs/specs/semconv/rpc/grpc/); the others are the client's affair.
_BLAME: Final = frozenset(
    {
        "UNKNOWN",
        "DEADLINE_EXCEEDED",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
    }
)

CALL: Final[ContextVar[Call | None]] = ContextVar("call", default=None)
"""The RPC on whose behalf the present task works."""


class Call:
    """One RPC.

    Args:
        tracer: Makes its span.
        figures: Count it.
        method: Its full name.
        metadata: What the client sent along.
    """

    def __init__(
        self,
        tracer: Tracer,
        figures: Figures,
        method: str,
        metadata: Sequence[tuple[str, str | bytes]],
    ) -> None:
        self.method = method.lstrip("/")
        self._figures = figures
        self._since_ns = time.perf_counter_ns()
        carrier = {
            key: value for key, value in metadata if key in _PROPAGATED and isinstance(value, str)
        }
        parent = PROPAGATOR.extract(carrier, context=otel_context.Context())
        self.remote: bool = get_current_span(parent).get_span_context().is_valid
        """Whether the client works in a trace of its own, which this call belongs to."""
        self.span: Span = tracer.start_span(
            self.method,
            context=parent,
            kind=SpanKind.SERVER,
            attributes={names.RPC_SYSTEM: "grpc", names.RPC_METHOD: self.method},
        )
        CALL.set(self)
        self._token = otel_context.attach(set_span_in_context(self.span))

    @property
    def context(self) -> SpanContext:
        """What others link to."""
        return self.span.get_span_context()

    def ended(self, outcome: Outcome, code: str) -> None:
        """The end: how, and with which status."""
        took_s = (time.perf_counter_ns() - self._since_ns) / 1e9
        self._figures.spread(table.CALLS).add(took_s, self.method, outcome.value, code)
        span = self.span
        span.set_attributes({names.RPC_OUTCOME: outcome.value, names.RPC_STATUS: code})
        if outcome is not Outcome.OK:
            span.set_attribute(names.ERROR_TYPE, code)
            if outcome is not Outcome.ABORT or code in _BLAME:
                span.set_status(Status(StatusCode.ERROR, outcome.value))
        span.end()
        CALL.set(None)
        otel_context.detach(self._token)
