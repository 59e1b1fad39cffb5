"""Pictures of figures, as SVG that can be read on white and on black."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

_WIDTH: Final = 880
_LEFT: Final = 60
_RIGHT: Final = 20
_TOP: Final = 44
# Distinguishable also without colours: each line has marks of its own in the legend's order, and
# yardsticks are dashed.
_COLOURS: Final = (
    ("#57606a", "#8b949e"),
    ("#0969da", "#58a6ff"),
    ("#1a7f37", "#3fb950"),
    ("#8250df", "#bc8cff"),
    ("#9a6700", "#d29922"),
    ("#cf222e", "#ff7b72"),
)


def _document(height: int, title: str, body: Sequence[str]) -> str:
    light = "".join(
        f".l{n} {{ stroke: {c}; fill: none; stroke-width: 2 }} .f{n} {{ fill: {c} }} "
        for n, (c, _) in enumerate(_COLOURS)
    )
    dark = "".join(
        f".l{n} {{ stroke: {c} }} .f{n} {{ fill: {c} }} " for n, (_, c) in enumerate(_COLOURS)
    )
    return "\n".join(
        [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
                f'font-family="system-ui, sans-serif" font-size="13" role="img" '
                f'aria-label="{escape(title)}">'
            ),
            "<style>",
            ".page { fill: #ffffff } text { fill: #24292f } .soft { fill: #57606a }",
            ".grid { stroke: #d0d7de } .bare { stroke-dasharray: 6 4 }",
            ".whisker { stroke: #24292f }",
            light,
            "@media (prefers-color-scheme: dark) {",
            ".page { fill: #0d1117 } text { fill: #e6edf3 } .soft { fill: #8b949e }",
            ".grid { stroke: #30363d } .whisker { stroke: #e6edf3 }",
            dark,
            "}",
            "</style>",
            f'<rect class="page" width="{_WIDTH}" height="{height}" rx="6"/>',
            f'<text x="{_LEFT}" y="26" font-size="15" font-weight="600">{escape(title)}</text>',
            *body,
            "</svg>\n",
        ]
    )


def bars(title: str, unit: str, rows: Sequence[tuple[str, float, float, float]]) -> str:
    """A bar each, with the range that was seen.

    Args:
        title: Above it.
        unit: Of the values.
        rows: Name, value, least and most.
    """
    step, left = 34, 330
    height = _TOP + step * len(rows) + 16
    scale = (_WIDTH - left - 90) / max(most for _, _, _, most in rows)
    body = []
    for number, (name, value, least, most) in enumerate(rows):
        y = _TOP + step * number
        middle = y + 12
        body += [
            f'<text x="{left - 10}" y="{y + 17}" text-anchor="end">{escape(name)}</text>',
            (
                f'<rect class="f{number % len(_COLOURS)}" x="{left}" y="{y}" '
                f'width="{max(1.0, value * scale):.1f}" height="24" rx="3"/>'
            ),
        ]
        if most > least:
            a, b = left + least * scale, left + most * scale
            body.append(
                f'<path class="whisker" d="M{a:.1f},{middle} H{b:.1f} '
                f'M{a:.1f},{middle - 5} v10 M{b:.1f},{middle - 5} v10"/>'
            )
        end = left + max(value, most) * scale + 8
        label = f"{value:.0f}" if value >= 10 else f"{value:.1f}"
        body.append(f'<text x="{end:.1f}" y="{y + 17}">{label} {escape(unit)}</text>')
    return _document(height, title, body)


def curves(
    title: str, lines: Mapping[str, Sequence[tuple[float, float]]], dashed: Sequence[str]
) -> str:
    """Latencies over percentiles, both axes logarithmic, so that the tail has room.

    Args:
        title: Above it.
        lines: By a name pairs of a percentile below 100 and milliseconds.
        dashed: The names of yardsticks.
    """
    plot = 320
    legend = 20 * math.ceil(len(lines) / 2)
    height = _TOP + plot + 50 + legend
    values = [ms for points in lines.values() for _, ms in points]
    low = math.floor(math.log10(max(min(values), 0.01)))
    high = max(low + 1, math.ceil(math.log10(max(values))))
    most_nines = max(_nines(percent) for points in lines.values() for percent, _ in points)
    width = _WIDTH - _LEFT - _RIGHT

    def place(percent: float, ms: float) -> tuple[float, float]:
        across = _nines(percent) / most_nines
        up = (math.log10(max(ms, 10.0**low)) - low) / (high - low)
        return _LEFT + width * across, _TOP + plot * (1 - up)

    body = []
    for power in range(low, high + 1):
        for factor in (1, 2, 5) if power < high else (1,):
            ms = factor * 10.0**power
            _, y = place(50, ms)
            body.append(f'<path class="grid" d="M{_LEFT},{y:.1f} H{_LEFT + width}"/>')
            body.append(
                f'<text class="soft" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">'
                f"{ms:g}</text>"
            )
    for percent in (0, 50, 90, 99, 99.9, 99.99):
        if _nines(percent) <= most_nines + 1e-9:
            x, _ = place(percent, 1)
            body.append(f'<path class="grid" d="M{x:.1f},{_TOP} V{_TOP + plot}"/>')
            body.append(
                f'<text class="soft" x="{x:.1f}" y="{_TOP + plot + 18}" text-anchor="middle">'
                f"{percent:g}%</text>"
            )
    foot = _TOP + plot + 36
    body.append(
        f'<text class="soft" x="{_LEFT}" y="{foot}">milliseconds, for so large a share of all'
        " tokens no more</text>"
    )
    for number, (name, points) in enumerate(lines.items()):
        kind = f"l{number % len(_COLOURS)}" + (" bare" if name in dashed else "")
        path = " L".join("{:.1f},{:.1f}".format(*place(*point)) for point in points)
        body.append(f'<path class="{kind}" d="M{path}"/>')
        x = _LEFT + (number % 2) * width / 2
        y = foot + 22 + 20 * (number // 2)
        body.append(f'<path class="{kind}" d="M{x:.1f},{y - 4} h28"/>')
        body.append(f'<text x="{x + 36:.1f}" y="{y}">{escape(name)}</text>')
    return _document(height, title, body)


def _nines(percent: float) -> float:
    """How many nines a percentile has: 90 has one, 99.9 three."""
    return -math.log10(1 - percent / 100)
