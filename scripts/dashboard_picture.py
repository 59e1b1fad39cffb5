"""A dashboard of Grafana's drawn without Grafana: its panels, in its layout, as one SVG.

What is drawn is what `query_range` answered to the dashboard's own queries. It reads on white and
on black.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

_UNIT_WIDTH: Final = 54
_UNIT_HEIGHT: Final = 30
_WIDTH: Final = 24 * _UNIT_WIDTH
_GAP: Final = 8
_HEAD: Final = 64
_FONT: Final = 13
# A letter's mean width, as a part of its height, in the wider of the fonts that systems have.
_LETTER: Final = 0.58
_CAPITAL: Final = 0.72
_LEGEND_STEP: Final = 18
_TICKS: Final = 4
# For white and for black; distinguishable for most who see colours differently, too.
_COLOURS: Final = (
    ("#1a7f37", "#56d364"),
    ("#bf8700", "#e3b341"),
    ("#0969da", "#58a6ff"),
    ("#bc4c00", "#f0883e"),
    ("#8250df", "#bc8cff"),
    ("#bf3989", "#f778ba"),
    ("#1b7c83", "#39c5cf"),
    ("#57606a", "#8b949e"),
)


@dataclass(frozen=True, slots=True)
class Curve:
    """One series.

    Attributes:
        name: As the legend has it.
        points: Seconds since the epoch and a value, in order of time; none where there is none.
    """

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Drawing:
    """What a dashboard showed.

    Attributes:
        dashboard: Grafana's JSON.
        curves: By a panel's id.
        start_s: Where the time axis begins, since the epoch.
        end_s: Where it ends.
        step_s: Between two points; where more is missing, a curve has a gap.
        caption: Below the title.
    """

    dashboard: Mapping[str, Any]
    curves: Mapping[int, Sequence[Curve]]
    start_s: float
    end_s: float
    step_s: float
    caption: str

    def svg(self) -> str:
        """The picture."""
        panels = [panel for panel in self.dashboard["panels"] if panel["type"] != "text"]
        top = min(panel["gridPos"]["y"] for panel in panels)
        bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
        height = _HEAD + (bottom - top) * _UNIT_HEIGHT + _GAP
        title = str(self.dashboard["title"])
        body = [
            f'<text x="{_GAP * 2}" y="30" font-size="20" font-weight="600">{escape(title)}</text>',
            f'<text class="soft" x="{_GAP * 2}" y="50">{escape(self.caption)}</text>',
        ]
        for panel in panels:
            at = panel["gridPos"]
            x, y = at["x"] * _UNIT_WIDTH, _HEAD + (at["y"] - top) * _UNIT_HEIGHT
            body.append(f'<g transform="translate({x},{y})">')
            box = (at["w"] * _UNIT_WIDTH, at["h"] * _UNIT_HEIGHT)
            body += _Panel(self, panel, *box).drawn()
            body.append("</g>")
        return "\n".join([*_opening(title, height), *body, "</svg>\n"])


def _opening(title: str, height: int) -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'font-family="system-ui, sans-serif" font-size="{_FONT}" role="img" '
        f'aria-label="{escape(title)}">'
    )
    yield "<style>"
    yield "path { fill: none; stroke-linejoin: round } text { fill: #24292f }"
    yield ".page { fill: #f6f8fa } .card { fill: #ffffff; stroke: #d0d7de } .soft { fill: #57606a }"
    yield ".limit { stroke: #cf222e; stroke-width: 1.2; stroke-dasharray: 7 5 }"
    yield ".grid { stroke: #d8dee4; stroke-width: .7 }"
    yield "path.good { fill: #1a7f37; opacity: .15 } path.bad { fill: #cf222e; opacity: .15 }"
    yield "text.good { fill: #1a7f37 } text.bad { fill: #cf222e }"
    for number, (light, _) in enumerate(_COLOURS):
        yield f".l{number} {{ stroke: {light}; stroke-width: 1.6 }} .a{number} {{ fill: {light} }}"
    yield "@media (prefers-color-scheme: dark) {"
    yield ".page { fill: #0d1117 } .card { fill: #161b22; stroke: #30363d }"
    yield ".limit { stroke: #ff7b72 }"
    yield "text { fill: #e6edf3 } .soft { fill: #8b949e } .grid { stroke: #30363d }"
    yield "path.good { fill: #56d364 } path.bad { fill: #ff7b72 }"
    yield "text.good { fill: #56d364 } text.bad { fill: #ff7b72 }"
    for number, (_, dark) in enumerate(_COLOURS):
        yield f".l{number} {{ stroke: {dark} }} .a{number} {{ fill: {dark} }}"
    yield "}"
    yield "</style>"
    yield f'<rect class="page" width="{_WIDTH}" height="{height}"/>'


# --- values -----------------------------------------------------------------------------------


def spelled(value: float, unit: str) -> str:
    """A value as a person would say it, in Grafana's units.

    Raises:
        ValueError: The unit is not one that the dashboard uses.
    """
    if unit == "s":
        return _duration(value)
    if unit == "percentunit":
        return f"{_short(value * 100)}%"
    if unit == "bytes":
        power = min(2, int(math.log(value, 1024))) if value >= 1 else 0
        return f"{_short(value / 1024**power)} {('B', 'KiB', 'MiB')[power]}"
    if unit == "short":
        return _thousands(value)
    if unit.startswith("suffix:"):
        return f"{_short(value)} {unit.removeprefix('suffix:')}"
    raise ValueError(f"unit {unit}: there is no spelling for it here")


def _duration(value: float) -> str:
    if value == 0:
        return "0 s"
    if abs(value) < 1e-3:
        return f"{_short(value * 1e6)} µs"
    if abs(value) < 1:
        return f"{_short(value * 1e3)} ms"
    return f"{_short(value)} s" if abs(value) < 120 else f"{_short(value / 60)} min"


def _thousands(value: float) -> str:
    return f"{_short(value / 1000)} K" if abs(value) >= 1000 else _short(value)


def _short(value: float) -> str:
    """Three digits that tell something."""
    digits = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{min(digits, 3)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _ticks(most: float, unit: str) -> list[float]:
    """Round values from nothing to a little more than the most."""
    # Seconds of a minute and more, and bytes, are round in other numbers than ten.
    base = 1024.0 ** int(math.log(most, 1024)) if unit == "bytes" and most >= 1 else 1.0
    rough = most / base / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = base * power * next(nice for nice in (1, 2, 2.5, 5, 10) if nice * power >= rough * 0.999)
    if unit == "short":
        step = max(step, 1.0)
    return [step * number for number in range(math.ceil(most / step - 1e-9) + 1)]


def _wide(text: str) -> float:
    """How much room a small text takes."""
    return 12 * sum(_CAPITAL if letter.isupper() else _LETTER for letter in text)


# --- a panel ----------------------------------------------------------------------------------


class _Panel:
    def __init__(self, drawing: Drawing, panel: Mapping[str, Any], width: int, height: int) -> None:
        self._drawing = drawing
        self._panel = panel
        self._width, self._height = width, height
        self._curves = drawing.curves.get(panel["id"], ())

    def drawn(self) -> list[str]:
        title = escape(self._panel["title"])
        if self._panel["type"] == "row":
            return [f'<text x="{_GAP * 2}" y="22" font-size="16" font-weight="600">{title}</text>']
        half = _GAP / 2
        return [
            (
                f'<rect class="card" x="{half}" y="{half}" width="{self._width - _GAP}" '
                f'height="{self._height - _GAP}" rx="4"/>'
            ),
            f'<text x="{_GAP * 2}" y="26" font-weight="600">{title}</text>',
            *(self._number() if self._panel["type"] == "stat" else self._plot()),
        ]

    @property
    def _field(self) -> Mapping[str, Any]:
        field: Mapping[str, Any] = self._panel["fieldConfig"]["defaults"]
        return field

    @property
    def _limit(self) -> float | None:
        return next((step["value"] for step in self._field["thresholds"]["steps"][1:]), None)

    def _across(self, when_s: float, left: float, right: float) -> float:
        drawing = self._drawing
        share = (when_s - drawing.start_s) / (drawing.end_s - drawing.start_s)
        return left + share * (right - left)

    def _number(self) -> Iterator[str]:
        """The last value, and how it came to it."""
        points = self._curves[0].points
        last = points[-1][1]
        good = "bad" if self._limit is not None and last >= self._limit else "good"
        most = max(value for _, value in points) or 1.0
        low, room = self._height - _GAP / 2, self._height * 0.4
        left, right = _GAP / 2, self._width - _GAP / 2
        line = " L".join(
            f"{self._across(when, left, right):.1f},{low - room * value / most:.1f}"
            for when, value in points
        )
        first, final = (self._across(points[place][0], left, right) for place in (0, -1))
        yield f'<path class="{good}" d="M{first:.1f},{low} L{line} L{final:.1f},{low} Z"/>'
        yield (
            f'<text class="{good}" x="{_GAP * 2}" y="{self._height * 0.62:.0f}" font-size="24" '
            f'font-weight="600">{escape(spelled(last, self._field["unit"]))}</text>'
        )

    def _plot(self) -> Iterator[str]:
        entries = list(self._legend())
        rows = entries[-1][2] + 1 if entries else 0
        top, bottom = 42, self._height - 34 - rows * _LEGEND_STEP
        unit = self._field["unit"]
        layers = list(self._layers())
        most = max((value for layer in layers for _, _, value in layer), default=0.0)
        limit = self._limit
        # A line far above all that happened would flatten it.
        if limit is not None and most < limit <= 4 * most:
            most = limit
        ticks = _ticks(most or 1.0, unit)
        left = _GAP * 3 + max(_wide(spelled(tick, unit)) for tick in ticks)
        right = self._width - 28

        def up(value: float) -> float:
            return bottom - (bottom - top) * value / ticks[-1]

        for tick in ticks:
            yield f'<path class="grid" d="M{left:.0f},{up(tick):.1f} H{right}"/>'
            yield (
                f'<text class="soft" x="{left - 6:.0f}" y="{up(tick) + 4:.1f}" text-anchor="end" '
                f'font-size="12">{escape(spelled(tick, unit))}</text>'
            )
        for minute in range(math.floor((self._drawing.end_s - self._drawing.start_s) / 60) + 1):
            x = self._across(self._drawing.start_s + 60 * minute, left, right)
            yield f'<path class="grid" d="M{x:.1f},{top} V{bottom}"/>'
            yield (
                f'<text class="soft" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle" '
                f'font-size="12">{minute} min</text>'
            )
        style = self._field["custom"]
        for number, layer in reversed(list(enumerate(layers))):
            for run in self._runs(layer):
                xs = [self._across(when, left, right) for when, _, _ in run]
                tops = [
                    f"{x:.1f},{up(value):.1f}" for x, (_, _, value) in zip(xs, run, strict=True)
                ]
                lows = [f"{x:.1f},{up(low):.1f}" for x, (_, low, _) in zip(xs, run, strict=True)]
                colour = number % len(_COLOURS)
                area = " L".join([*tops, *reversed(lows)])
                opacity = style["fillOpacity"] / 100
                yield f'<path class="a{colour}" style="opacity:{opacity}" d="M{area} Z"/>'
                if len(run) == 1:
                    tops *= 2
                yield f'<path class="l{colour}" d="M{" L".join(tops)}"/>'
        if limit is not None and limit <= ticks[-1]:
            yield f'<path class="limit" d="M{left:.0f},{up(limit):.1f} H{right}"/>'
        for number, x, row, name in entries:
            y = self._height - 12 - (rows - 1 - row) * _LEGEND_STEP
            yield f'<path class="l{number % len(_COLOURS)}" d="M{x:.0f},{y - 4} h14" />'
            yield f'<text x="{x + 19:.0f}" y="{y}" font-size="12">{escape(name)}</text>'

    def _layers(self) -> Iterator[list[tuple[float, float, float]]]:
        """For each curve its times, where its area begins, and where it ends."""
        stacked = self._field["custom"]["stacking"]["mode"] == "normal"
        below: dict[float, float] = {}
        for curve in self._curves:
            layer = []
            for when, value in curve.points:
                low = below.get(when, 0.0) if stacked else 0.0
                below[when] = low + value
                layer.append((when, low, low + value))
            yield layer

    def _runs(
        self, layer: Sequence[tuple[float, float, float]]
    ) -> Iterator[list[tuple[float, float, float]]]:
        """The parts of a curve between its gaps."""
        run: list[tuple[float, float, float]] = []
        for point in layer:
            if run and point[0] - run[-1][0] > 1.5 * self._drawing.step_s:
                yield run
                run = []
            run.append(point)
        if run:
            yield run

    def _legend(self) -> Iterator[tuple[int, float, int, str]]:
        """For each curve its number, where its name goes, in which line, and the name."""
        x, row = float(_GAP * 2), 0
        for number, curve in enumerate(self._curves):
            wide = 19 + _wide(curve.name) + 14
            if x + wide > self._width - _GAP and x > _GAP * 2:
                x, row = float(_GAP * 2), row + 1
            yield number, x, row, curve.name
            x += wide
