"""A clock that stands still until a test moves it."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable

SECOND_NS = 1_000_000_000
START_NS = 1_800_000_000 * SECOND_NS


class ManualTimer:
    """A call to come."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


async def settle(rounds: int = 50) -> None:
    """Let everything happen that can happen without time passing."""
    for _ in range(rounds):
        await asyncio.sleep(0)


class ManualClock:
    """A `Clock` whose time passes only in `advance`."""

    def __init__(self, now_ns: int = START_NS) -> None:
        self._now_ns = now_ns
        self._timers: list[tuple[int, int, ManualTimer]] = []
        self._order = itertools.count()

    def now_ns(self) -> int:
        return self._now_ns

    def call_at(self, when_ns: int, callback: Callable[[], None]) -> ManualTimer:
        timer = ManualTimer(callback)
        heapq.heappush(self._timers, (when_ns, next(self._order), timer))
        return timer

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self.call_at(
            self._now_ns + round(seconds * SECOND_NS),
            lambda: None if future.done() else future.set_result(None),
        )
        try:
            await future
        finally:
            timer.cancel()

    async def advance(self, seconds: float) -> None:
        """Let time pass: every timer that is due goes off at its own time, in order."""
        end_ns = self._now_ns + round(seconds * SECOND_NS)
        await settle()
        while self._timers and self._timers[0][0] <= end_ns:
            when_ns, _, timer = heapq.heappop(self._timers)
            if timer.callback is None:
                continue
            self._now_ns = max(self._now_ns, when_ns)
            callback, timer.callback = timer.callback, None
            callback()
            await settle()
        self._now_ns = end_ns
        await settle()

    @property
    def pending(self) -> int:
        """How many timers wait."""
        return sum(timer.callback is not None for _, _, timer in self._timers)
