"""Figures: plain numbers in memory, which are added to at the price of a dictionary's look-up.

One record of an OpenTelemetry histogram costs about as much as a seventh of a whole token's way.
So what happens often is counted here, and read when somebody collects (`readers`). Figures are
written on the event loop alone; a collector's thread reads them, perhaps amid a change of the last
one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from backchannel.telemetry import table
from backchannel.telemetry.table import Kind, Metric

MAX_SERIES: Final = 500
"""Of one metric; what comes beyond is counted together as `other`."""
OTHER: Final = "other"

Labels = tuple[str, ...]


@dataclass(slots=True)
class Spread:
    """One series of a histogram.

    Attributes:
        bounds: Upper bounds, inclusive.
        counts: Of each bucket; the last one is for all beyond.
        total: The sum of all values.
        least: The least value.
        most: The greatest.
    """

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0
    least: float = float("inf")
    most: float = float("-inf")

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value
        if value < self.least:
            self.least = value
        if value > self.most:
            self.most = value


class Numbers:
    """The series of a counter or gauge.

    Args:
        metric: What it is.
    """

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self._series: dict[Labels, float] = {}

    def add(self, number: float, *labels: str) -> None:
        """Change a series."""
        series = self._series
        if labels not in series and len(series) >= MAX_SERIES:
            labels = (OTHER,) * len(labels)
        series[labels] = series.get(labels, 0) + number

    def replace(self, values: Mapping[Labels, float]) -> None:
        """Set all series of a gauge anew; one that is missing is 0 from now on."""
        self._series = dict.fromkeys(self._series, 0.0) | dict(values)

    def read(self) -> list[tuple[Labels, float]]:
        """All series."""
        return list(self._series.items())


class Spreads:
    """The series of a histogram.

    Args:
        metric: What it is.
    """

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self._series: dict[Labels, Spread] = {}

    def of(self, *labels: str) -> Spread:
        """A series, to be added to."""
        spread = self._series.get(labels)
        if spread is None:
            if len(self._series) >= MAX_SERIES:
                labels = (OTHER,) * len(labels)
            spread = self._series.setdefault(labels, Spread(self.metric.buckets))
        return spread

    def add(self, value: float, *labels: str) -> None:
        """Count a value."""
        self.of(*labels).add(value)

    def read(self) -> list[tuple[Labels, Spread]]:
        """All series."""
        return list(self._series.items())


class Figures:
    """All of the table."""

    def __init__(self) -> None:
        self._numbers = {
            metric.name: Numbers(metric)
            for metric in table.METRICS
            if metric.kind is not Kind.HISTOGRAM
        }
        self._spreads = {
            metric.name: Spreads(metric)
            for metric in table.METRICS
            if metric.kind is Kind.HISTOGRAM
        }
        # What has no labels is there from the beginning, and what is known of the others.
        for metric in table.METRICS:
            for labels in metric.known if metric.labels else ((),):
                if metric.kind is Kind.HISTOGRAM:
                    self._spreads[metric.name].of(*labels)
                else:
                    self._numbers[metric.name].add(0, *labels)

    def number(self, metric: Metric) -> Numbers:
        """A counter or gauge."""
        return self._numbers[metric.name]

    def spread(self, metric: Metric) -> Spreads:
        """A histogram."""
        return self._spreads[metric.name]

    def numbers(self) -> Iterator[Numbers]:
        """All counters and gauges."""
        return iter(self._numbers.values())

    def spreads(self) -> Iterator[Spreads]:
        """All histograms."""
        return iter(self._spreads.values())
