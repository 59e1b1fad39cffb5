"""Time, as a parameter: what tells it, and what waits for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

SECOND_NS: Final = 1_000_000_000


class Timer(Protocol):
    """Something that will be called later."""

    def cancel(self) -> None:
        """Do not call it. Idempotent, also after it was called."""
        ...


class Clock(Protocol):
    """Where all times of the host come from."""

    def now_ns(self) -> int:
        """Unix time in nanoseconds; never goes back while the process lives."""
        ...

    def call_at(self, when_ns: int, callback: Callable[[], None]) -> Timer:
        """Call back on the event loop at that Unix time, or soon if it has passed."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class SystemClock:
    """The wall clock, read once and then carried on by the monotonic one.

    An operator who sets the machine's clock moves no deadline, and no event is ever older than the
    one before it.
    """

    def __init__(self) -> None:
        self._offset_ns: Final = time.time_ns() - time.monotonic_ns()

    def now_ns(self) -> int:
        """Unix time in nanoseconds."""
        return time.monotonic_ns() + self._offset_ns

    def call_at(self, when_ns: int, callback: Callable[[], None]) -> Timer:
        """Call back on the running loop."""
        delay_s = max(0, when_ns - self.now_ns()) / SECOND_NS
        return asyncio.get_running_loop().call_later(delay_s, callback)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


async def within(clock: Clock, seconds: float, futures: Sequence[asyncio.Future[None]]) -> bool:
    """Wait until all the futures are done, but no longer than so many seconds.

    Returns:
        Whether they are. Nothing is cancelled, and how they ended does not matter.
    """
    left = sum(not future.done() for future in futures)
    if not left:
        return True
    verdict: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def one_done(future: asyncio.Future[None]) -> None:
        nonlocal left
        left -= 1
        if not future.cancelled():
            future.exception()  # It is somebody else's to handle; here it is just an end.
        if not left and not verdict.done():
            verdict.set_result(True)

    def expire() -> None:
        if not verdict.done():
            verdict.set_result(False)

    waiting = [future for future in futures if not future.done()]
    for future in waiting:
        future.add_done_callback(one_done)
    timer = clock.call_at(clock.now_ns() + round(seconds * SECOND_NS), expire)
    try:
        return await verdict
    finally:
        timer.cancel()
        for future in waiting:
            future.remove_done_callback(one_done)
