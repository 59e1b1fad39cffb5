"""What has arrived and not been iterated yet."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """A queue between the stream and the one who iterates, bounded in bytes.

    Putting never waits; whoever fills it awaits `room` before reading on. While `hurried`, there is
    always room: somebody waits for a receipt that lies behind the events.

    Args:
        max_bytes: From here on there is no room.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._items: deque[tuple[T, int]] = deque()
        self._hurried = False
        self._ended = False
        self._error: Exception | None = None
        self._room = asyncio.Event()
        self._room.set()
        self._reader: asyncio.Future[None] | None = None

    def put(self, item: T, size: int) -> None:
        """Add an item of `size` bytes."""
        self._items.append((item, size))
        self._bytes += size
        self._update()

    def end(self, error: Exception | None) -> None:
        """Nothing comes any more: after the last item `get` raises `error`, or returns None."""
        if not self._ended:
            self._ended, self._error = True, error
            self._update()

    def hurry(self, hurried: bool) -> None:
        """Say whether reading must go on however much is here."""
        self._hurried = hurried
        self._update()

    @property
    def full(self) -> bool:
        """Whether the stream is left unread just now."""
        return not self._room.is_set()

    async def room(self) -> None:
        """Wait until there is room."""
        await self._room.wait()

    async def get(self) -> T | None:
        """The next item, or None after the last.

        Raises:
            RuntimeError: Somebody else is waiting: there is one reading position.
            Exception: What `end` was told, after the last item.
        """
        while not self._items:
            if self._ended:
                if self._error is not None:
                    raise self._error
                return None
            if self._reader is not None:
                raise RuntimeError(
                    "this conversation is already being iterated; iterate it in one place"
                )
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        item, size = self._items.popleft()
        self._bytes -= size
        self._update()
        return item

    def _update(self) -> None:
        if self._hurried or self._ended or self._bytes < self._max_bytes:
            self._room.set()
        else:
            self._room.clear()
        if (self._items or self._ended) and self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
