"""The pulse: how late the event loop is, and what there is to count from time to time."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from backchannel.observer import Viewed
from backchannel.telemetry import table

if TYPE_CHECKING:
    from backchannel.telemetry.telemetry import Telemetry

BEAT_S: Final = 0.1
_BEATS_A_LOOK: Final = 10
# Readers looked at without giving way to others.
_SLICE: Final = 500


async def beat(telemetry: Telemetry, host: Viewed) -> None:
    """Measure, until cancelled."""
    loop = asyncio.get_running_loop()
    lag = telemetry.figures.spread(table.LOOP_LAG).of()
    beats = 0
    while True:
        due_s = loop.time() + BEAT_S
        await asyncio.sleep(BEAT_S)
        lag.add(max(0.0, loop.time() - due_s))
        beats += 1
        if beats % _BEATS_A_LOOK == 0:
            await look(telemetry, host)


async def look(telemetry: Telemetry, host: Viewed) -> None:
    """Set the gauges."""
    figures = telemetry.figures
    seen = host.figures()
    for name, metric in (
        ("sessions", table.SESSIONS),
        ("backlog", table.BACKLOG),
        ("running", table.ENGINE_RUNNING),
        ("waiting", table.ENGINE_WAITING),
        ("limit", table.ENGINE_LIMIT),
    ):
        values = seen[name]
        labelled: dict[tuple[str, ...], float] = {
            (key,) if metric.labels else (): value for key, value in values.items()
        }
        figures.number(metric).replace(labelled)
    open_calls = telemetry.open_calls
    oldest_ns = next(iter(open_calls.values()), None)
    waited_s = 0.0 if oldest_ns is None else (time.monotonic_ns() - oldest_ns) / 1e9
    figures.number(table.TOOLS_OPEN).replace({(): len(open_calls)})
    figures.number(table.TOOLS_OLDEST).replace({(): waited_s})
    doors: dict[tuple[str, ...], float] = {}
    slowest = 0
    for place, trace in enumerate(list(telemetry.readers)):
        if place % _SLICE == _SLICE - 1:
            await asyncio.sleep(0)
        doors[trace.door,] = doors.get((trace.door,), 0) + 1
        slowest = max(slowest, trace.reader.lag)
    figures.number(table.READERS).replace(doors)
    figures.number(table.READER_LAG).replace({(): slowest})
