"""What a server's metrics say, in the text that Prometheus reads.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

_SAMPLE: Final = re.compile(
    r"(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})?[ \t]+(?P<value>\S+)(?:[ \t]+-?\d+)?[ \t]*"
)
_LABEL: Final = re.compile(
    r'[ \t,]*(?P<name>[a-zA-Z_]\w*)[ \t]*=[ \t]*"(?P<value>(?:[^"\\]|\\.)*)"'
)
_ESCAPED: Final = re.compile(r"\\(.)")
_ESCAPES: Final = {"n": "\n", '"': '"', "\\": "\\"}

Labels = frozenset[tuple[str, str]]
Wanted = Callable[[Mapping[str, str]], bool]


def _any(labels: Mapping[str, str]) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Scrape:
    """All values at one moment.

    Attributes:
        time_s: When, by a clock that only goes forward.
        values: By their names and labels.
    """

    time_s: float
    values: Mapping[str, Mapping[Labels, float]]

    @classmethod
    def of(cls, text: str, time_s: float) -> Scrape:
        """Read what a server answered.

        Raises:
            ValueError: It is something else.
        """
        values: dict[str, dict[Labels, float]] = {}
        for line in text.split("\n"):  # And at nothing else: labels may have all other ends.
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            found = _SAMPLE.fullmatch(line)
            if found is None:
                raise ValueError(f"this is no line of metrics: {line[:80]!r}")
            labels = frozenset(_labels(found["labels"] or ""))
            values.setdefault(found["name"], {})[labels] = float(found["value"])
        return cls(time_s, values)

    def series(self, name: str, wanted: Wanted = _any) -> Iterator[tuple[Labels, float]]:
        """The values of that name whose labels are wanted."""
        for labels, value in self.values.get(name, {}).items():
            if wanted(dict(labels)):
                yield labels, value


def _labels(text: str) -> Iterator[tuple[str, str]]:
    for found in _LABEL.finditer(text):
        yield found["name"], _ESCAPED.sub(lambda one: _ESCAPES.get(one[1], one[0]), found["value"])


@dataclass(frozen=True, slots=True)
class Window:
    """What changed between two looks at one server.

    Attributes:
        first: The earlier one; None if there was only one.
        last: The later one.
    """

    first: Scrape | None
    last: Scrape

    @property
    def length_s(self) -> float:
        """How long it was; 0 if there was only one look."""
        return 0.0 if self.first is None else self.last.time_s - self.first.time_s

    def now(self, name: str, wanted: Wanted = _any) -> float | None:
        """A gauge's value, over all its labels; None if the server does not tell it."""
        found = [value for _, value in self.last.series(name, wanted)]
        return sum(found) if found else None

    def grew(self, name: str, wanted: Wanted = _any) -> float | None:
        """By how much a counter grew, over all its labels; None if that cannot be known."""
        found = list(self.growth(name, wanted).values())
        return sum(found) if found else None

    def growth(self, name: str, wanted: Wanted = _any) -> dict[Labels, float]:
        """By how much each series of a counter grew.

        One that has fallen began anew, with its process; one that is new began at zero.
        """
        if self.first is None:
            return {}
        before = self.first.values.get(name, {})
        grown = {}
        for labels, value in self.last.series(name, wanted):
            change = value - before.get(labels, 0.0)
            grown[labels] = value if change < 0 else change
        return grown

    def buckets(self, name: str, wanted: Wanted = _any) -> dict[float, float]:
        """How many more values a histogram has up to each of its bounds."""
        counts: dict[float, float] = {}
        for labels, grown in self.growth(f"{name}_bucket", wanted).items():
            bound = float(dict(labels)["le"])
            counts[bound] = counts.get(bound, 0.0) + grown
        return counts


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """The value that this share of all values does not exceed; None if there are none.

    Within a bucket values are taken to be spread evenly. Beyond the last bound it is infinite: how
    far beyond nobody knows.

    Args:
        buckets: How many values there are up to each bound, the last being infinite.
        share: 0 to 1.
    """
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return None
    rank = share * total
    below, lower = 0.0, 0.0
    for bound in bounds:
        count = buckets[bound]
        if count >= rank and count > below:
            if bound == float("inf"):
                return bound
            return lower + (bound - lower) * (rank - below) / (count - below)
        below, lower = max(below, count), bound
    return bounds[-1]
