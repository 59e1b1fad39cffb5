"""Plain numbers: what is counted is what is read."""

from __future__ import annotations

import re
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricsData

from backchannel.telemetry import table
from backchannel.telemetry.config import TelemetryConfig
from backchannel.telemetry.figures import MAX_SERIES, OTHER, Figures, Spread
from backchannel.telemetry.readers import SCOPE, WithHistograms, instruments
from backchannel.telemetry.table import METRICS, Kind
from scripts import metrics


def test_a_value_is_counted_in_the_bucket_whose_upper_bound_it_does_not_exceed() -> None:
    spread = Spread((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 99.0):
        spread.add(value)
    assert spread.counts == [2, 2, 1]
    assert (spread.total, spread.least, spread.most) == (104.0, 0.5, 99.0)


def test_series_without_end_are_counted_together() -> None:
    figures = Figures()
    tokens, gaps = figures.number(table.TOKENS), figures.spread(table.GAP)
    for number in range(MAX_SERIES + 10):
        tokens.add(1, "kept", f"m{number}")
        gaps.add(0.1, f"m{number}")
    assert len(tokens.read()) == MAX_SERIES + 1
    assert dict(tokens.read())[OTHER, OTHER] == 10
    assert sum(dict(gaps.read())[OTHER,].counts) == 10


def test_a_gauge_that_is_not_there_any_more_is_zero() -> None:
    readers = Figures().number(table.READERS)
    readers.replace({("a",): 2, ("b",): 1})
    readers.replace({("b",): 3})
    assert dict(readers.read()) == {("a",): 0, ("b",): 3}


def test_what_is_counted_reaches_opentelemetry_whole() -> None:
    figures, reader = Figures(), InMemoryMetricReader()
    instruments(MeterProvider([reader]).get_meter(SCOPE), figures)
    figures.number(table.TURNS).add(3, "stop", "e/m")
    figures.number(table.BACKLOG).replace({(): 7.0})
    for value in (0.002, 0.3, 60.0):
        figures.spread(table.GAP).add(value, "e/m")
    plain = reader.get_metrics_data()
    assert plain is not None
    found = _by_name(WithHistograms(figures)(plain))
    (turns,) = found["backchannel.turns"].data.data_points
    assert (turns.value, turns.attributes) == (3, {"ending": "stop", "model": "e/m"})
    (backlog,) = found["backchannel.commit.backlog"].data.data_points
    assert backlog.value == 7
    (gap,) = found["backchannel.output.gap"].data.data_points
    assert (gap.count, gap.min, gap.max) == (3, 0.002, 60.0)
    assert gap.sum == pytest.approx(60.302)
    assert len(gap.bucket_counts) == len(gap.explicit_bounds) + 1
    assert gap.bucket_counts[-1] == 1
    assert found["backchannel.output.gap"].unit == "s"


def _by_name(data: MetricsData) -> dict[str, Any]:
    (resource,) = data.resource_metrics
    (scope,) = resource.scope_metrics
    return {metric.name: metric for metric in scope.metrics}


# --- the table --------------------------------------------------------------------------------


def test_the_page_is_made_from_the_table() -> None:
    assert metrics.PAGE.read_text(encoding="utf-8") == metrics.page(), (
        "run python scripts/metrics.py"
    )


def test_names_and_buckets_are_as_opentelemetry_wants_them() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)+", metric.name)
        assert (metric.kind is Kind.HISTOGRAM) == bool(metric.buckets)
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert all(len(labels) == len(metric.labels) for labels in metric.known)


def test_no_label_holds_an_id() -> None:
    labels = {label for metric in METRICS for label in metric.labels}
    assert not [label for label in labels if re.search(r"\bid\b|session|turn|user|tool", label)]


# --- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sample_ratio": 1.5}, "sample_ratio must be between 0 and 1"),
        ({"otlp_interval_s": 0.0}, "otlp_interval_s must be at least"),
        ({"otlp_endpoint": "localhost:4317"}, "otlp_endpoint: write http://host:4317"),
        ({"metrics_listen": "unix:/tmp/x"}, "metrics_listen: Prometheus cannot reach"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TelemetryConfig(**wrong)  # type: ignore[arg-type]  # that is the point


def test_the_usual_variable_names_the_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317")
    assert TelemetryConfig().otlp_endpoint == "http://collector:4317"
    assert TelemetryConfig().wanted
