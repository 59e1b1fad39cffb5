"""The log in one SQLite file, the default of `backchannel serve`.

What a commit survives: the death of the process, however it comes (``kill -9`` included). A crash
of the kernel or a power cut may cost the newest commits, up to some seconds of them, and never
what was committed before those; the file stays whole. One process uses the file at a time.

Three threads, each with one business: the writer commits; the reader reads, so that no long replay
delays a commit; the syncer brings the write-ahead log to the disk before the writer moves it back
into the database, so that the writer hardly waits for the disk there.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from backchannel.log.protocol import (
    LIST_BYTES,
    Append,
    Checkpoint,
    Excess,
    Listed,
    Retention,
    Stored,
    Survival,
)
from backchannel.log.sqlite_reader import Reader
from backchannel.log.sqlite_writer import Writer
from backchannel.log.worker import Worker

_logger = logging.getLogger(__name__)

# Sessions looked at for retention in one go, so that readers get their turn in between.
_EXCESS_ROWS: Final = 500
# Appends wait while what was deleted is scrubbed. So they get this many times as long after each
# part of it; deletions that come meanwhile share the next time.
_SCRUB_REST: Final = 4
_SCRUB_TRIES: Final = 5
_SCRUB_RETRY_S: Final = 0.1


class SqliteLog:
    """A `Log` in an SQLite file. Not to be opened twice.

    Args:
        path: The database file, absolute. It and its folder are made if they are not there, for
            this user alone.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_absolute():
            raise ValueError(f"the path of a log file is absolute, unlike {path}")
        self._path = path
        self._writing = Worker("log-writer", skip_abandoned=False)
        self._reading = Worker("log-reader", skip_abandoned=True)
        self._syncing = Worker("log-syncer", skip_abandoned=False)
        self._writer: Writer | None = None
        self._reader: Reader | None = None
        self._scrubbing = asyncio.Lock()
        self._rested_at = 0.0

    @property
    def survival(self) -> Survival:
        """`PROCESS`."""
        return Survival.PROCESS

    @property
    def address(self) -> str:
        """The file."""
        return str(self._path)

    async def append(self, batch: Sequence[Append]) -> None:
        """See `Log.append`."""
        await self._writing.call(self._w.append, batch)

    async def read(
        self, session_id: str, after_seq: int, *, max_events: int, max_bytes: int
    ) -> Sequence[bytes]:
        """See `Log.read`."""
        return await self._reading.call(self._r.read, session_id, after_seq, max_events, max_bytes)

    async def load(self, session_id: str) -> Stored | None:
        """See `Log.load`."""
        return await self._reading.call(self._r.load, session_id)

    async def retired_until_ns(self, session_id: str) -> int:
        """See `Log.retired_until_ns`."""
        return await self._reading.call(self._r.retired_until_ns, session_id)

    async def save_checkpoint(self, session_id: str, checkpoint: Checkpoint) -> None:
        """See `Log.save_checkpoint`."""
        await self._writing.call(self._w.save_checkpoint, session_id, checkpoint)

    async def trimmable_seq(self, session_id: str, retention: Retention, now_ns: int) -> int:
        """See `Log.trimmable_seq`."""
        return await self._reading.call(self._r.trimmable_seq, session_id, retention, now_ns)

    async def excess(self, retention: Retention, now_ns: int, since_ns: int) -> Sequence[Excess]:
        """See `Log.excess`."""
        found: list[Excess] = []
        key = 0
        while True:
            some, key = await self._reading.call(
                self._r.excess, retention, now_ns, since_ns, key, _EXCESS_ROWS
            )
            found += some
            if not key:
                return found

    async def trim(self, session_id: str, up_to_seq: int) -> int:
        """See `Log.trim`. The room is given back bit by bit, so that appends do not wait for it."""
        earliest_seq = await self._writing.call(self._w.trim, session_id, up_to_seq)
        while await self._writing.call(self._w.purge_trimmed, session_id):
            pass
        return earliest_seq

    async def delete(self, session_id: str, retired_until_ns: int) -> None:
        """See `Log.delete`. The room is given back as in `trim`; `sweep` does what a crash left."""
        if await self._writing.call(self._w.delete, session_id, retired_until_ns):
            await self._purge_deleted()
            await self._scrub()

    async def active(self) -> Sequence[str]:
        """See `Log.active`."""
        return await self._reading.call(self._r.active)

    async def expired(self, now_ns: int, limit: int) -> Sequence[str]:
        """See `Log.expired`."""
        return await self._reading.call(self._r.expired, now_ns, limit)

    async def sweep(self, now_ns: int) -> None:
        """See `Log.sweep`."""
        while await self._writing.call(self._w.sweep, now_ns):
            pass
        await self._purge_deleted()
        while await self._writing.call(self._w.purge_left_over):
            pass
        await self._scrub()

    async def list(
        self,
        *,
        before: tuple[int, str] | None,
        limit: int,
        labels: Sequence[tuple[str, str]] = (),
        max_bytes: int = LIST_BYTES,
    ) -> Sequence[Listed]:
        """See `Log.list`."""
        return await self._reading.call(self._r.list, before, limit, labels, max_bytes)

    async def count(self) -> int:
        """See `Log.count`."""
        count: int = self._w.count
        return count

    async def __aenter__(self) -> Self:
        """See `Log.__aenter__`."""
        for worker in (self._writing, self._reading, self._syncing):
            worker.start()
        try:
            await self._writing.call(self._open_writer)
            await self._reading.call(self._open_reader)
        except BaseException:
            # Perhaps cancelled while a file is being opened: closed in its thread, after that.
            self._stop()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """See `Log.__aexit__`."""
        self._stop()
        await asyncio.to_thread(self._writing.wait)

    @property
    def _w(self) -> Writer:
        if self._writer is None:
            raise RuntimeError("the log is not open")
        return self._writer

    @property
    def _r(self) -> Reader:
        if self._reader is None:
            raise RuntimeError("the log is not open")
        return self._reader

    async def _purge_deleted(self) -> None:
        while await self._writing.call(self._w.purge_deleted):
            pass

    async def _scrub(self) -> None:
        """Leave nothing to read of what was deleted."""
        loop = asyncio.get_running_loop()
        async with self._scrubbing:
            if not self._w.soiled:
                return  # Done together with somebody else's.
            page = tries = 0
            while tries < _SCRUB_TRIES:
                await asyncio.sleep(self._rested_at - loop.time())
                # The long part of it, while commits go on.
                await self._syncing.call(self._sync_wal)
                begin = loop.time()
                next_page = await self._writing.call(self._w.scrub, page)
                end = loop.time()
                self._rested_at = end + _SCRUB_REST * (end - begin)
                if not next_page:
                    return
                if next_page < 0:
                    tries += 1
                    await asyncio.sleep(_SCRUB_RETRY_S)
                else:
                    page = next_page
        _logger.warning(
            "somebody else reads %s, so what was deleted stays readable in it for now",
            self._path,
        )

    # What runs in the threads.

    def _open_writer(self) -> None:
        self._writer = Writer(self._path, self._on_wal_full)

    def _open_reader(self) -> None:
        self._reader = Reader(self._path)

    def _on_wal_full(self) -> None:
        self._syncing.post(self._sync)

    def _sync(self) -> None:
        self._sync_wal()
        self._writing.post(self._w.move_back)

    def _sync_wal(self) -> None:
        # The writer goes on writing meanwhile. What it then has left to sync is what came since.
        wal = self._path.with_name(self._path.name + "-wal")
        try:
            descriptor = os.open(wal, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            # The writer meets the same, and says so where somebody hears it.
            _logger.warning("syncing %s: %s", wal, error)

    def _stop(self) -> None:
        self._syncing.stop()
        self._reading.stop(self._close_reader)
        self._writing.stop(self._close_writer)

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()

    def _close_writer(self) -> None:
        # The last one out moves everything back into the database and puts the lock away.
        self._syncing.wait()
        self._reading.wait()
        if self._writer is not None:
            self._writer.close()
