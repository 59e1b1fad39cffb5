"""Time, and when to try again.

Source of the jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter
("full jitter").
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Protocol

from backchannel.client.config import ClientConfig


class Time(Protocol):
    """A monotonic clock that one can wait by."""

    def now_s(self) -> float:
        """Seconds since some fixed moment."""

    async def sleep(self, delay_s: float) -> None:
        """Wait."""


class LoopTime:
    """The event loop's own time."""

    def now_s(self) -> float:
        """Seconds on the loop's clock."""
        return asyncio.get_running_loop().time()

    async def sleep(self, delay_s: float) -> None:
        """Wait."""
        await asyncio.sleep(delay_s)


class Backoff:
    """How long to wait before each attempt, and when to give up.

    Args:
        config: Its `backoff_*` fields.
        time: The clock.
        uniform: ``uniform(a, b)``: a random number between the two.
    """

    def __init__(
        self,
        config: ClientConfig,
        time: Time,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._config = config
        self._time = time
        self._uniform = uniform
        self._longest_s = config.backoff_initial_s
        self._since_s: float | None = None

    def reset(self) -> None:
        """It works again."""
        self._longest_s = self._config.backoff_initial_s
        self._since_s = None

    def next_s(self, patience_s: float | None, retry_after_s: float | None) -> float | None:
        """The wait before the next attempt, in seconds; None when it is time to give up.

        Args:
            patience_s: How long after the first failure an attempt may still start. None: for
                ever.
            retry_after_s: What the server asked for: never less than this.
        """
        now_s = self._time.now_s()
        if self._since_s is None:
            self._since_s = now_s
        # Half of it is certain: clients that were cut together come back spread out, not at once.
        delay_s = self._uniform(self._longest_s / 2, self._longest_s)
        self._longest_s = min(self._longest_s * 2, self._config.backoff_max_s)
        if retry_after_s is not None:
            delay_s += retry_after_s
        if patience_s is not None and now_s + delay_s - self._since_s > patience_s:
            return None
        return delay_s
