"""The observer that listens, and what it is set up with: providers, exporters, a port."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version
from types import TracebackType
from typing import Any, Final, Self
from wsgiref.simple_server import WSGIServer

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, TraceIdRatioBased
from opentelemetry.trace import NoOpTracer, Tracer
from prometheus_client import CollectorRegistry, start_http_server

from backchannel.listen import Address
from backchannel.observer import CallWatch, Observer, SessionWatch, Viewed
from backchannel.telemetry import conventions, table
from backchannel.telemetry.calls import Call
from backchannel.telemetry.config import TelemetryConfig
from backchannel.telemetry.figures import Figures
from backchannel.telemetry.outgoing import ClientTracing
from backchannel.telemetry.pulse import beat
from backchannel.telemetry.readers import (
    SCOPE,
    OtlpReader,
    PrometheusReader,
    WithHistograms,
    instruments,
)
from backchannel.telemetry.sessions import ReaderTrace, SessionTrace

# Probes of the machinery, which would drown everything else.
_UNWATCHED: Final = "/grpc."
# A collector that does not answer costs so much time at the end, and this much memory until then.
CLOSE_S: Final = 2.0
_EXPORT_TIMEOUT_S: Final = 5.0
_MAX_SPANS: Final = 8192
# With content a span has 192 KiB at most: a batch stays below the 4 MiB that a gRPC server takes
# unless told otherwise, and 100 MB wait.
_MAX_SPANS_WITH_CONTENT: Final = 512
_BATCH_WITH_CONTENT: Final = 16
_SPAN_DELAY_S: Final = 1.0


class MetricsPortError(Exception):
    """Prometheus's port cannot be had; the message says why and what to do."""


class Telemetry(Observer):
    """Listens to the service. An async context manager: inside the block it exports.

    Args:
        config: Where to.
        span_exporter: Takes the spans in place of a collector.
        metric_readers: Read the metrics beside what `config` names.

    Attributes:
        figures: The metrics.
        tracer: Makes spans; of a kind that does nothing where nobody takes them.
        open_calls: Since when each tool call waits, the oldest first.
        readers: Who is attached.
        address: Where Prometheus finds the metrics; None for nowhere.
    """

    def __init__(
        self,
        config: TelemetryConfig,
        *,
        span_exporter: SpanExporter | None = None,
        metric_readers: Sequence[MetricReader] = (),
    ) -> None:
        self.config = config
        self.figures = Figures()
        self.tracer: Tracer = NoOpTracer()
        self.open_calls: dict[tuple[str, str], int] = {}
        self.readers: dict[ReaderTrace, None] = {}
        self.address: Address | None = None
        self._span_exporter = span_exporter
        self._metric_readers = list(metric_readers)
        self._spans: TracerProvider | None = None
        self._meters: MeterProvider | None = None
        self._http: tuple[WSGIServer, threading.Thread] | None = None

    async def __aenter__(self) -> Self:
        """Take the port, begin to export.

        Raises:
            MetricsPortError: Prometheus's port is taken, or not this machine's.
        """
        config = self.config
        resource = Resource.create(
            {
                "service.name": config.service_name,
                "service.version": version("backchannel"),
                "service.instance.id": config.node_id or secrets.token_hex(8),
                "gen_ai.semconv.version": conventions.GEN_AI_VERSION,
            }
        )
        registry = CollectorRegistry()
        self._listen(registry)
        self._export_metrics(resource, registry)
        self._export_spans(resource)
        return self

    def _listen(self, registry: CollectorRegistry) -> None:
        address = self.config.metrics_address
        if address is None or address.port is None:
            return
        try:
            server, thread = start_http_server(address.port, address.host, registry)
        except OSError as error:
            raise MetricsPortError(
                f"metrics cannot be had at {address}: {error.strerror or error}; choose another"
                " address with --metrics-listen, or say off"
            ) from None
        self._http = server, thread
        self.address = address.with_port(server.server_port)
        self.metrics_url = f"http://{self.address.from_here}/metrics"

    def _export_metrics(self, resource: Resource, registry: CollectorRegistry) -> None:
        config, histograms = self.config, WithHistograms(self.figures)
        readers: list[MetricReader] = [*self._metric_readers]
        if self._http is not None:
            readers.append(PrometheusReader(registry, histograms))
        if config.otlp_endpoint and config.otlp_metrics:
            exporter = OTLPMetricExporter(**_collector(config))
            readers.append(OtlpReader(exporter, config.otlp_interval_s, histograms))
        if readers:
            self._meters = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
            instruments(self._meters.get_meter(SCOPE, version("backchannel")), self.figures)

    def _export_spans(self, resource: Resource) -> None:
        config, exporter = self.config, self._span_exporter
        if exporter is None and config.otlp_endpoint:
            exporter = OTLPSpanExporter(**_collector(config))
        if exporter is None:
            return
        some = TraceIdRatioBased(config.sample_ratio)
        sampler = ParentBased(ALWAYS_ON if config.sample_ratio == 1 else some)
        self._spans = TracerProvider(sampler, resource, shutdown_on_exit=False)
        self._spans.add_span_processor(
            BatchSpanProcessor(
                exporter,
                max_queue_size=_MAX_SPANS_WITH_CONTENT if config.content else _MAX_SPANS,
                max_export_batch_size=_BATCH_WITH_CONTENT if config.content else None,
                schedule_delay_millis=_SPAN_DELAY_S * 1000,
                export_timeout_millis=_EXPORT_TIMEOUT_S * 1000,
            )
        )
        self.tracer = self._spans.get_tracer(
            SCOPE, version("backchannel"), schema_url=conventions.SCHEMA_URL
        )

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Send what is left, but do not wait long for a collector that does not answer."""
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def close() -> None:
            self._close()
            if not loop.is_closed():
                loop.call_soon_threadsafe(done.set)

        # A thread that the interpreter does not wait for, unlike those of an executor.
        threading.Thread(target=close, name="telemetry ends", daemon=True).start()
        try:
            async with asyncio.timeout(CLOSE_S):
                await done.wait()
        except TimeoutError:
            pass

    def _close(self) -> None:
        if self._http is not None:
            server, thread = self._http
            server.shutdown()
            server.server_close()
            thread.join()
        if self._spans is not None:
            self._spans.shutdown()
        if self._meters is not None:
            self._meters.shutdown(timeout_millis=CLOSE_S * 1000)

    async def flush(self) -> None:
        """Send what there is, now."""

        def send() -> None:
            if self._spans is not None:
                self._spans.force_flush()
            if self._meters is not None:
                self._meters.force_flush()

        await asyncio.to_thread(send)

    # --- what the service tells --------------------------------------------------------------

    def call(self, method: str, metadata: Sequence[tuple[str, str | bytes]]) -> CallWatch | None:
        """An RPC begins."""
        if method.startswith(_UNWATCHED):
            return None
        return Call(self.tracer, self.figures, method, metadata)

    def session(self, session_id: str) -> SessionWatch:
        """A session is in memory."""
        return SessionTrace(self, session_id)

    def appended(self, took_ns: int, events: int) -> None:
        """The log took an append."""
        self.figures.spread(table.COMMIT).add(took_ns * 1e-9)
        self.figures.spread(table.COMMIT_EVENTS).add(events)

    def append_failed(self, reason: str) -> None:
        """The log refused one."""
        self.figures.number(table.COMMIT_ERRORS).add(1, reason)

    def channel_interceptors(self) -> Sequence[Any]:
        """For the unary calls of engines."""
        return () if self._spans is None else ClientTracing(self._spans).interceptors

    def watching(self, host: Viewed) -> AbstractAsyncContextManager[object]:
        """Look at the host from time to time."""
        return _beating(self, host)


@asynccontextmanager
async def _beating(telemetry: Telemetry, host: Viewed) -> AsyncIterator[None]:
    pulse = asyncio.create_task(beat(telemetry, host), name="telemetry")
    try:
        yield
    finally:
        pulse.cancel()
        await asyncio.wait([pulse])


def _collector(config: TelemetryConfig) -> dict[str, Any]:
    return {
        "endpoint": config.otlp_endpoint,
        "insecure": config.otlp_endpoint.startswith("http:"),
        "timeout": _EXPORT_TIMEOUT_S,
    }
