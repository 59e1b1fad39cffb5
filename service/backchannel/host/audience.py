"""The readers of one session, and how many of them count as somebody who reads."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from backchannel.errors import BackchannelError, Reason
from backchannel.host.clock import Clock
from backchannel.host.config import HostConfig
from backchannel.host.faults import draining_error
from backchannel.host.reader import Lag, Readable, Reader
from backchannel.log.protocol import Log, trimmed
from backchannel.observer import SessionWatch


class Attended(Readable, Protocol):
    """What is read, and wants to know by how many: the session."""

    @property
    def earliest_seq(self) -> int:
        """The oldest event that the log has."""
        ...

    def readers_changed(self, count: int) -> None:
        """So many read now."""
        ...

    def snapshot(self) -> Sequence[bytes]:
        """How things stand as of the newest decision, in serialised frames."""
        ...


class Audience:
    """All readers of one session.

    Attributes:
        readers: Those that are attached.
        leaving: They were told to go elsewhere, and nobody is let in any more.

    Args:
        session: What they read.
        log: Where older events are.
        clock: For heartbeats.
        config: How many there may be.
        watch: Watches them; None if nobody does.
    """

    __slots__ = (
        *("_clock", "_config", "_count", "_log", "_session", "_watch"),
        *("leaving", "readers"),
    )

    def __init__(
        self,
        session: Attended,
        log: Log,
        clock: Clock,
        config: HostConfig,
        watch: SessionWatch | None,
    ) -> None:
        self._session = session
        self._log = log
        self._clock = clock
        self._config = config
        self._watch = watch
        self._count = 0
        self.readers: set[Reader] = set()
        self.leaving = False

    def admit(self, after_seq: int, *, snapshot: bool, max_lag_events: int) -> Reader:
        """Let a reader in; see `LiveSession.attach`.

        Raises:
            BackchannelError: `CURSOR_BEYOND_END`, `CURSOR_TRIMMED`, `READERS_FULL`, `DRAINING`.
        """
        if self.leaving:
            raise draining_error()
        config = self._config
        if len(self.readers) >= config.max_readers:
            raise BackchannelError(
                Reason.READERS_FULL,
                f"{config.max_readers} readers are attached to this session already; close one",
            )
        if not snapshot:
            self._check_cursor(after_seq)
        cursor = None if snapshot else after_seq
        lag = Lag(max_lag_events, snapshot)
        reader = Reader(self._session, self, cursor, self._log, self._clock, config, lag)
        if self._watch is not None:
            last_seq = self._session.ledger.committed_seq
            reader.watch = self._watch.reader(
                reader, after_seq=after_seq, last_seq=last_seq, snapshot=snapshot
            )
        self.readers.add(reader)
        self._recount()
        if snapshot:
            self.offer_snapshots()
        return reader

    def _check_cursor(self, after_seq: int) -> None:
        last_seq = self._session.ledger.committed_seq
        if after_seq > last_seq:
            raise BackchannelError(
                Reason.CURSOR_BEYOND_END,
                f"the newest event is {last_seq}; name it or an earlier one",
                field="after_seq",
                metadata={"last_seq": str(last_seq)},
            )
        earliest_seq = self._session.earliest_seq
        if after_seq + 1 < earliest_seq:
            raise trimmed(earliest_seq)

    # --- for the readers ---------------------------------------------------------------------

    def changed(self, reader: Reader) -> None:
        """The reader was closed or half-closed."""
        if reader.is_closed:
            self.readers.discard(reader)
        self._recount()

    def offer_snapshots(self) -> None:
        """Give a snapshot to each reader that wants one and has none."""
        if any(reader.wants_snapshot for reader in self.readers):
            parts = self._session.snapshot()
            for reader in self.readers:
                if reader.wants_snapshot and not reader.has_snapshot:
                    reader.offer_snapshot(parts, self._session.ledger.decided_seq)

    def _recount(self) -> None:
        count = sum(reader.counts for reader in self.readers)
        if self.leaving and count < self._count:
            return  # They leave because they were told to; that is no disconnect.
        if count != self._count:
            self._count = count
            self._session.readers_changed(count)

    # --- for the session ---------------------------------------------------------------------

    def withdraw_snapshots(self) -> None:
        """What they showed will never be committed."""
        for reader in self.readers:
            reader.withdraw_snapshot()

    def resume(self) -> None:
        """The session was read from its log again, and knows nothing of its readers."""
        self._count = 0
        self._recount()
        self.offer_snapshots()
        for reader in self.readers:
            reader.wake()

    def go_away(self, frame: bytes) -> None:
        """Tell all to go elsewhere."""
        self.leaving = True
        for reader in self.readers:
            reader.go_away(frame)

    def fail(self, error: BackchannelError) -> None:
        """End all streams with an error."""
        for reader in self.readers:
            reader.fail(error)

    def gone(self) -> list[asyncio.Future[None]]:
        """Done when they are gone, one by one."""
        return [reader.gone() for reader in self.readers]
