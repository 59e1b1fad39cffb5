"""What goes on beside an engine's answers for as long as it is open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager


@asynccontextmanager
async def upkeep(work: Coroutine[object, object, None], name: str) -> AsyncIterator[None]:
    """Run what never ends by itself in a task of its own until the block ends.

    Args:
        work: What to run.
        name: The task's.

    Raises:
        Exception: At the end of the block: what it has failed with, which is our bug.
    """
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()
