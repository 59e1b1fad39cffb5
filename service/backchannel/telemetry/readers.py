"""How figures get into OpenTelemetry, and out of it to Prometheus and over OTLP.

Counters and gauges are observable instruments. OpenTelemetry has no observable histogram, so these
are laid beside what a reader has collected, in the SDK's own form, before it goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    PeriodicExportingMetricReader,
)
from prometheus_client import CollectorRegistry

from backchannel.telemetry.figures import Figures, Numbers, Spread, Spreads
from backchannel.telemetry.table import Kind

SCOPE: Final = "backchannel"


def instruments(meter: Meter, figures: Figures) -> None:
    """Make an observable instrument of each counter and gauge."""
    for numbers in figures.numbers():
        metric = numbers.metric
        make: Callable[..., object] = (
            meter.create_observable_counter
            if metric.kind is Kind.COUNTER
            else meter.create_observable_gauge
        )
        make(
            metric.name,
            callbacks=[_observed(numbers)],
            unit=metric.unit,
            description=metric.meaning,
        )


def _observed(numbers: Numbers) -> Callable[[CallbackOptions], Iterable[Observation]]:
    labels = numbers.metric.labels

    def observe(_: CallbackOptions) -> Iterable[Observation]:
        for values, number in numbers.read():
            yield Observation(number, dict(zip(labels, values, strict=True)))

    return observe


class WithHistograms:
    """Lays the histograms beside what the SDK has collected.

    Args:
        figures: Where they are.
    """

    def __init__(self, figures: Figures) -> None:
        self._figures = figures
        self._since_ns = time.time_ns()

    def __call__(self, data: MetricsData) -> MetricsData:
        """The same, and the histograms."""
        now_ns = time.time_ns()
        ours = [self._metric(spreads, now_ns) for spreads in self._figures.spreads()]
        resources = list(data.resource_metrics)
        for place, resource in enumerate(resources):
            scopes = [
                replace(scope, metrics=[*scope.metrics, *ours])
                if scope.scope.name == SCOPE
                else scope
                for scope in resource.scope_metrics
            ]
            resources[place] = replace(resource, scope_metrics=scopes)
        return MetricsData(resource_metrics=resources)

    def _metric(self, spreads: Spreads, now_ns: int) -> Metric:
        metric = spreads.metric
        points = [
            self._point(dict(zip(metric.labels, labels, strict=True)), spread, now_ns)
            for labels, spread in spreads.read()
        ]
        return Metric(
            name=metric.name,
            description=metric.meaning,
            unit=metric.unit,
            data=Histogram(
                data_points=points, aggregation_temporality=AggregationTemporality.CUMULATIVE
            ),
        )

    def _point(self, attributes: dict[str, Any], spread: Spread, now_ns: int) -> HistogramDataPoint:
        counts = list(spread.counts)
        count = sum(counts)
        return HistogramDataPoint(
            attributes=attributes,
            start_time_unix_nano=self._since_ns,
            time_unix_nano=now_ns,
            count=count,
            sum=spread.total,
            bucket_counts=counts,
            explicit_bounds=spread.bounds,
            min=spread.least if count else 0.0,
            max=spread.most if count else 0.0,
        )


class PrometheusReader(PrometheusMetricReader):
    """What Prometheus scrapes."""

    def __init__(self, registry: CollectorRegistry, histograms: WithHistograms) -> None:
        super().__init__(registry=registry, scope_info_enabled=False)
        self._histograms = histograms

    def _receive_metrics(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> None:
        super()._receive_metrics(self._histograms(metrics_data), timeout_millis, **kwargs)


class OtlpReader(PeriodicExportingMetricReader):
    """What is sent to a collector from time to time."""

    def __init__(self, exporter: Any, interval_s: float, histograms: WithHistograms) -> None:
        self._histograms = histograms
        super().__init__(exporter, export_interval_millis=interval_s * 1000)

    def _receive_metrics(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> None:
        super()._receive_metrics(self._histograms(metrics_data), timeout_millis, **kwargs)
