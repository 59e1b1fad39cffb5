"""A collector: takes OTLP over gRPC as real ones do, and gives what it got as trees and numbers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import (
    metrics_service_pb2,
    metrics_service_pb2_grpc,
)
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.trace.v1 import trace_pb2


def _plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(one) for one in value.array_value.values]
    return getattr(value, kind) if kind else None


@dataclass
class Span:
    """A span as it arrived."""

    raw: trace_pb2.Span

    @property
    def name(self) -> str:
        return self.raw.name

    @property
    def attributes(self) -> dict[str, Any]:
        return {pair.key: _plain(pair.value) for pair in self.raw.attributes}

    @property
    def events(self) -> list[str]:
        return [event.name for event in self.raw.events]

    @property
    def failed(self) -> str | None:
        """The status's message; None for a span that did not fail."""
        error = self.raw.status.code == trace_pb2.Status.STATUS_CODE_ERROR
        return self.raw.status.message if error else None

    @property
    def trace(self) -> str:
        return self.raw.trace_id.hex()

    @property
    def id(self) -> str:
        return self.raw.span_id.hex()

    @property
    def parent(self) -> str:
        return self.raw.parent_span_id.hex()

    @property
    def link_kinds(self) -> dict[str, str]:
        """What it is linked to, and what for."""
        return {
            link.span_id.hex(): pair.value.string_value
            for link in self.raw.links
            for pair in link.attributes
            if pair.key == "backchannel.link"
        }

    @property
    def links(self) -> set[str]:
        """The ids of the spans that it is linked to."""
        return {link.span_id.hex() for link in self.raw.links}


@dataclass
class Collector:
    """What arrived."""

    address: str = ""
    spans: list[Span] = field(default_factory=list)
    metrics: dict[str, metrics_pb2.Metric] = field(default_factory=dict)
    resource: dict[str, Any] = field(default_factory=dict)
    delay_s: float = 0.0
    requests: int = 0

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the contract's name
        self.requests += 1
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if isinstance(request, trace_service_pb2.ExportTraceServiceRequest):
            for resource in request.resource_spans:
                self.resource = {
                    pair.key: _plain(pair.value) for pair in resource.resource.attributes
                }
                for scope in resource.scope_spans:
                    self.spans += map(Span, scope.spans)
            return trace_service_pb2.ExportTraceServiceResponse()
        for group in request.resource_metrics:
            for metrics in group.scope_metrics:
                self.metrics |= {metric.name: metric for metric in metrics.metrics}
        return metrics_service_pb2.ExportMetricsServiceResponse()

    def named(self, name: str) -> list[Span]:
        """All spans whose name begins so."""
        return [span for span in self.spans if span.name.startswith(name)]

    def one(self, name: str) -> Span:
        found = self.named(name)
        assert len(found) == 1, (name, [span.name for span in self.spans])
        return found[0]

    def under(self, span: Span) -> list[str]:
        """The tree below a span: names with their depth as indentation, in the order of start."""
        return list(self._under(span, 0))

    def _under(self, span: Span, depth: int) -> Iterator[str]:
        yield "  " * depth + span.name + (f" ! {span.failed}" if span.failed is not None else "")
        children = [one for one in self.spans if one.parent == span.id]
        for child in sorted(children, key=lambda one: one.raw.start_time_unix_nano):
            yield from self._under(child, depth + 1)


@asynccontextmanager
async def collector(delay_s: float = 0.0) -> AsyncIterator[Collector]:
    """A collector that listens."""
    taken = Collector(delay_s=delay_s)
    server = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(taken, server)  # type: ignore[no-untyped-call,unused-ignore]
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(taken, server)  # type: ignore[no-untyped-call,unused-ignore]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    taken.address = f"http://127.0.0.1:{port}"
    try:
        yield taken
    finally:
        await server.stop(None)
