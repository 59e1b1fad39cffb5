"""The committer: one task that writes what all sessions have produced.

A session with something to write enlists. In each round the committer takes what every enlisted
session has and hands it to the log as one append. While that is under way the next round gathers,
so that a slow log gets fewer and larger appends, and a fast one an append a tick of the loop. There
is one append at a time, which is also what keeps a session's events in order.

An append has a price that does not depend on its size: a transaction, a hop to another thread and
back, and with a log in memory still the rounds of the event loop in which its sessions' readers
wake. So appends that carry nothing but output keep a small distance from each other, and
one takes what would have been several. A lone session never notices: its tokens are further apart.
Whatever somebody waits for, or could (a stop, a receipt, the beginning and end of a turn), hurries.

The task awaits `Log.append` itself: an append that does not suspend (memory) costs no thread and no
future, only the wake of this task, which all sessions of the tick share.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

import structlog

from backchannel.errors import BackchannelError, Reason
from backchannel.log.protocol import Append, AppendConflictError, Log, SessionDamagedError
from backchannel.observer import SILENT, Observer

_logger = structlog.get_logger(__name__)


class Writer(Protocol):
    """Who writes: a session in memory."""

    def take(self) -> Append | None:
        """What there is to write now; None if it has become nothing."""
        ...

    def committed(self) -> None:
        """What was taken last is in the log."""
        ...

    def failed(self, error: BackchannelError) -> None:
        """What was taken last is not in the log, and never will be by itself."""
        ...


class Committer:
    """Writes to one log, for one process. Run `run` as a task.

    Args:
        log: Where to.
        max_backlog_bytes: Above so many bytes produced and not yet committed, `room` waits.
        pace_s: The least time from the beginning of one append to that of the next, if that
            carries nothing that hurries. 0 for none.
        observer: Is told of each append.
    """

    def __init__(
        self,
        log: Log,
        *,
        max_backlog_bytes: int,
        pace_s: float = 0.0,
        observer: Observer = SILENT,
    ) -> None:
        self._log = log
        self._observer = None if observer is SILENT else observer
        self._pace_s = pace_s
        self._hurried = False
        self._pause: asyncio.Future[None] | None = None
        self._max_backlog_bytes = max_backlog_bytes
        self._enlisted: list[Writer] = []
        self._wake: asyncio.Future[None] | None = None
        self._waiting_for_room: list[asyncio.Future[None]] = []
        self._backlog_bytes = 0
        self._writing = False
        self._idle: list[asyncio.Future[None]] = []

    def enlist(self, writer: Writer) -> None:
        """Put a session on the list of the next round. It enlists once until `take` was called."""
        self._enlisted.append(writer)
        wake = self._wake
        if wake is not None:
            self._wake = None
            if not wake.done():
                wake.set_result(None)

    def hurry(self) -> None:
        """Do not keep a distance before the next append."""
        self._hurried = True
        if self._pause is not None:
            _release(self._pause)

    def owe(self, size: int) -> None:
        """Count bytes as produced (positive), or as committed or given up (negative)."""
        self._backlog_bytes += size
        if self._waiting_for_room and self._backlog_bytes <= self._max_backlog_bytes:
            waiting, self._waiting_for_room = self._waiting_for_room, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)

    @property
    def backlog_bytes(self) -> int:
        """How much was produced and is not committed yet."""
        return self._backlog_bytes

    @property
    def has_room(self) -> bool:
        """Whether the log keeps up."""
        return self._backlog_bytes <= self._max_backlog_bytes

    async def room(self) -> None:
        """Wait until the log has caught up."""
        while not self.has_room:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting_for_room.append(future)
            await future

    async def flush(self) -> None:
        """Wait until all that was enlisted is committed or refused."""
        self.hurry()
        while self._enlisted or self._writing:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle.append(future)
            await future

    async def run(self) -> None:
        """Write, until cancelled."""
        loop = asyncio.get_running_loop()
        begun_s = 0.0
        while True:
            if not self._enlisted:
                for future in self._idle:
                    if not future.done():
                        future.set_result(None)
                self._idle.clear()
                self._wake = loop.create_future()
                await self._wake
            if self._pace_s:
                await self._keep_distance(begun_s + self._pace_s)
                begun_s = loop.time()
            self._hurried = False
            writers, self._enlisted = self._enlisted, []
            taken = [(writer, append) for writer in writers if (append := writer.take())]
            self._writing = True
            try:
                await self._write(taken)
            finally:
                self._writing = False

    async def _keep_distance(self, until_s: float) -> None:
        loop = asyncio.get_running_loop()
        if self._hurried or loop.time() >= until_s:
            return
        self._pause = loop.create_future()
        timer = loop.call_at(until_s, _release, self._pause)
        try:
            await self._pause
        finally:
            self._pause = None
            timer.cancel()

    async def _write(self, taken: list[tuple[Writer, Append]]) -> None:
        """Append, leaving out one session after the other that does not fit its log."""
        while taken:
            error = await self._append([append for _, append in taken])
            if error is None:
                for writer, _ in taken:
                    writer.committed()
                return
            name = None
            if isinstance(error, AppendConflictError | SessionDamagedError):
                name = error.session_id
            refused = [pair for pair in taken if pair[1].session_id == name]
            left = [pair for pair in taken if pair[1].session_id != name]
            if not refused:  # Without a culprit there is nobody to leave out.
                refused, left = left, refused
            why = error if isinstance(error, BackchannelError) else _changed()
            for writer, _ in refused:
                writer.failed(why)
            taken = left

    async def _append(
        self, batch: Sequence[Append]
    ) -> BackchannelError | AppendConflictError | None:
        observer = self._observer
        begun_ns = time.perf_counter_ns() if observer is not None else 0
        try:
            await self._log.append(batch)
        except (BackchannelError, AppendConflictError) as error:
            reason = error.reason if isinstance(error, BackchannelError) else "conflict"
            _logger.error("append_failed", reason=reason, detail=str(error))
            if observer is not None:
                observer.append_failed(str(reason))
            return error
        except Exception as error:  # noqa: BLE001 - a backend's bug must not end the process
            _logger.error("append_broke", log=self._log.address, kind=type(error).__name__)
            if observer is not None:
                observer.append_failed("broke")
            return BackchannelError(
                Reason.LOG_UNAVAILABLE, f"the log ({self._log.address}) failed unexpectedly"
            )
        if observer is not None:
            took_ns = time.perf_counter_ns() - begun_ns
            observer.appended(took_ns, sum(len(append.events) for append in batch))
        return None


def _release(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _changed() -> BackchannelError:
    return BackchannelError(
        Reason.OWNER_ELSEWHERE, "the session's log was changed by somebody else; try again"
    )
