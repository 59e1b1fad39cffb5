"""How much to measure, and what the doors have in common."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

PATIENCE_S: Final = 5.0
"""How long to wait for what should take no time."""

CANCEL_WAIT_S: Final = 3.0
"""How long the server may take to see that a reader has left."""

_POLL_S: Final = 0.05

Tell: TypeAlias = Callable[[str, float, float], None]
"""Called with what is measured, how much is done, and how much there is."""


class UnreachableError(Exception):
    """Nothing answers that could be measured.

    Attributes:
        fix: What to do about it.
    """

    def __init__(self, text: str, fix: str) -> None:
        super().__init__(text)
        self.fix = fix


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to measure.

    Attributes:
        frames: How many; 2 to 10,000.
        interval_s: Between two of them.
        idle_s: How long a silent stream is to survive; 0: not measured.
    """

    frames: int = 40
    interval_s: float = 0.1
    idle_s: float = 16.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.interval_s) and math.isfinite(self.idle_s)):
            raise ValueError("--interval and --idle are numbers of seconds")

    @property
    def deadline_s(self) -> float:
        """When the last frame should have arrived in any case."""
        return self.frames * self.interval_s + PATIENCE_S

    @contextlib.asynccontextmanager
    async def watching(self, what: str, tell: Tell) -> AsyncIterator[None]:
        """Tell how a silence goes on."""

        async def count() -> None:
            began_s = time.monotonic()
            while True:
                tell(what, min(time.monotonic() - began_s, self.idle_s), self.idle_s)
                await asyncio.sleep(0.2)

        counting = asyncio.create_task(count())
        try:
            yield
        finally:
            counting.cancel()
            tell(what, self.idle_s, self.idle_s)


async def leaves(
    running: Callable[[], Awaitable[bool]], leave: Callable[[], Awaitable[None]]
) -> float | None:
    """Wait for an answer to run, leave it, and see when it stops.

    Returns:
        After how many seconds; None if it went on.

    Raises:
        TimeoutError: It never ran, so nothing was measured.
    """
    began_s = time.monotonic()
    while not await running():
        if time.monotonic() - began_s > PATIENCE_S:
            raise TimeoutError("the answer did not begin")
        await asyncio.sleep(_POLL_S)
    await leave()
    left_s = time.monotonic()
    while time.monotonic() - left_s < CANCEL_WAIT_S:
        if not await running():
            return time.monotonic() - left_s
        await asyncio.sleep(_POLL_S)
    return None
