"""What a door adds between a token's commit and its reader, and how soon a reader's leaving is
known: one door after the other, through a real Envoy.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import structlog

from tests.support import edge
from tests.support.doors import DOORS, Door
from tests.support.edge import Site, readers, site

# Longer than that is a failure, not a figure.
PATIENCE_S = 30.0
_POLL_S = 0.0002


@dataclass(frozen=True, slots=True)
class DoorFigures:
    """What one door took.

    Attributes:
        gap_errors_ms: By how much the time between two events at the reader differs from the time
            between their commits.
        ways_ms: From commit to reader.
        cancels_ms: From the reader's leaving until the service has let go of it.
    """

    gap_errors_ms: list[float]
    ways_ms: list[float]
    cancels_ms: list[float]


@asynccontextmanager
async def _streaming(running: Site, rate: float, tokens: int) -> AsyncIterator[str]:
    async with httpx.AsyncClient(base_url=running.url, timeout=PATIENCE_S) as browser:
        session_id = await edge.create(
            browser,
            model="scripted/count",
            sampling={"maxTokens": tokens},
            engineOptions={"rate": str(rate)},
        )
        yield session_id
        await browser.delete(f"/v1/sessions/{session_id}")


async def _times(running: Site, door: Door, rate: float, tokens: int) -> tuple[list[float], ...]:
    gaps_ms: list[float] = []
    ways_ms: list[float] = []
    last: tuple[float, float] | None = None
    async with (
        _streaming(running, rate, tokens) as session_id,
        running.client() as browser,
        door(running, session_id) as events,
    ):
        async for event in events:
            now_s = time.time()
            if event.HasField("session_opened"):
                await edge.say(browser, session_id, "go")
            if event.HasField("turn_finished"):
                break
            if event.HasField("output_delta"):
                committed_s = event.time.ToNanoseconds() / 1e9
                ways_ms.append(1000 * (now_s - committed_s))
                if last is not None:
                    gap_s, real_s = now_s - last[0], committed_s - last[1]
                    gaps_ms.append(1000 * abs(gap_s - real_s))
                last = now_s, committed_s
    return gaps_ms, ways_ms


async def _cancel_ms(running: Site, door: Door) -> float:
    """One reader that leaves in mid-answer."""
    async with _streaming(running, 1 / 600, 2) as session_id, running.client() as browser:
        await edge.say(browser, session_id, "go")
        gone_s = 0.0

        async def watch() -> None:
            nonlocal gone_s
            while readers(running.server, session_id):  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(_POLL_S)
            gone_s = time.perf_counter()

        async with asyncio.timeout(PATIENCE_S):
            async with door(running, session_id) as events:
                async for event in events:
                    if event.HasField("output_delta"):
                        break
                watcher = asyncio.create_task(watch())
                left_s = time.perf_counter()
            await watcher
        return 1000 * (gone_s - left_s)


async def door_figures(rate: float, tokens: int, cancels: int) -> dict[str, DoorFigures]:
    """Measure each door, one after the other."""
    # A line for each request would be in the way of what is measured.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    found = {}
    async with site() as running:
        for name, door in DOORS.items():
            await _times(running, door, 200, 50)  # Warms up.
            gaps_ms, ways_ms = await _times(running, door, rate, tokens)
            taken_ms = [await _cancel_ms(running, door) for _ in range(cancels)]
            found[name] = DoorFigures(gaps_ms, ways_ms, taken_ms)
    return found
