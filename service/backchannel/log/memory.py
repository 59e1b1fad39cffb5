"""The log in memory: it survives nothing, and is as fast as it gets.

For tests, for trying things out, and for services whose conversations may end with the process.
"""

from __future__ import annotations

import asyncio
import heapq
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from backchannel.errors import BackchannelError, Reason
from backchannel.log.protocol import (
    LIST_BYTES,
    Append,
    AppendConflictError,
    Checkpoint,
    Excess,
    Head,
    Listed,
    Origin,
    Retention,
    Stored,
    Survival,
    not_found,
    trimmed,
)

MAX_BYTES: Final = 1024 * 1024 * 1024
MAX_TOMBSTONES: Final = 100_000

# What a session and an event cost beside their bytes, roughly, in CPython.
_SESSION_BYTES: Final = 1024
_EVENT_BYTES: Final = 80
# Sessions looked at by `excess` before others get their turn.
_SLICE: Final = 1000


@dataclass(slots=True)
class _Session:
    head: Head
    update_time_ns: int
    origin: Origin
    events: list[bytes] = field(default_factory=list)
    times_ns: list[int] = field(default_factory=list)
    trimmed_seq: int = 0
    checkpoint: Checkpoint | None = None
    event_bytes: int = 0

    @property
    def last_seq(self) -> int:
        return self.trimmed_seq + len(self.events)

    @property
    def bytes(self) -> int:
        state = len(self.checkpoint.state) if self.checkpoint is not None else 0
        return (
            _SESSION_BYTES
            + len(self.head.session)
            + len(self.origin.session)
            + state
            + self.event_bytes
            + _EVENT_BYTES * len(self.events)
        )


class MemoryLog:
    """A `Log` that is gone with the process.

    Args:
        max_bytes: How much memory all sessions may take, roughly; appends beyond are refused with
            `LOG_UNAVAILABLE`.
        max_tombstones: How many retired ids are remembered; beyond, those whose time is over first
            are forgotten early.
    """

    def __init__(self, *, max_bytes: int = MAX_BYTES, max_tombstones: int = MAX_TOMBSTONES) -> None:
        self._max_bytes = max_bytes
        self._max_tombstones = max_tombstones
        self._bytes = 0
        self._sessions: dict[str, _Session] = {}
        self._tombstones: dict[str, int] = {}

    @property
    def survival(self) -> Survival:
        """`NOTHING`."""
        return Survival.NOTHING

    @property
    def address(self) -> str:
        """`memory`."""
        return "memory"

    async def append(self, batch: Sequence[Append]) -> None:
        """See `Log.append`."""
        self._check(batch)
        for append in batch:
            session = self._sessions.get(append.session_id)
            if session is None:
                # `_check` has seen to it that there is a head.
                assert append.head is not None  # noqa: S101 - for the type checker
                session = _Session(append.head, append.time_ns, append.origin or Origin())
                self._sessions[append.session_id] = session
                self._tombstones.pop(append.session_id, None)
                self._bytes += session.bytes
            elif append.head is not None:
                self._bytes += len(append.head.session) - len(session.head.session)
                session.head = append.head
                session.update_time_ns = append.time_ns
            session.events.extend(append.events)
            session.times_ns.extend([append.time_ns] * len(append.events))
            size = sum(map(len, append.events))
            session.event_bytes += size
            self._bytes += size + _EVENT_BYTES * len(append.events)

    def _check(self, batch: Sequence[Append]) -> None:
        last_seqs: dict[str, int] = {}
        size = self._bytes
        for append in batch:
            session_id = append.session_id
            if not append.events:
                raise ValueError("an append needs at least one event")
            last_seq = last_seqs.get(session_id)
            if last_seq is None:
                session = self._sessions.get(session_id)
                last_seq = session.last_seq if session is not None else None
            if append.first_seq == 1:
                if append.head is None:
                    raise ValueError("the append that creates a session needs a head")
                if last_seq is not None:
                    raise AppendConflictError(session_id, "the session exists already")
                if self._tombstones.get(session_id, 0) > append.time_ns:
                    raise AppendConflictError(session_id, "the session's id is retired")
                size += _SESSION_BYTES + len(append.origin.session if append.origin else b"")
            elif last_seq is None:
                raise AppendConflictError(session_id, "there is no such session")
            elif append.first_seq != last_seq + 1:
                raise AppendConflictError(
                    session_id,
                    f"the session is at seq {last_seq}, and the append begins at "
                    f"{append.first_seq}",
                )
            last_seqs[session_id] = append.first_seq - 1 + len(append.events)
            size += sum(map(len, append.events)) + _EVENT_BYTES * len(append.events)
            if append.head is not None:
                size += len(append.head.session)
        if batch and size > self._max_bytes:
            raise BackchannelError(
                Reason.LOG_UNAVAILABLE,
                f"the log in memory is full ({self._max_bytes} bytes): delete sessions, keep less "
                "of them, or use sqlite:///…",
                metadata={"file": self.address},
            )

    async def read(
        self, session_id: str, after_seq: int, *, max_events: int, max_bytes: int
    ) -> Sequence[bytes]:
        """See `Log.read`."""
        session = self._session(session_id)
        if after_seq < session.trimmed_seq:
            raise trimmed(session.trimmed_seq + 1)
        start = after_seq - session.trimmed_seq
        events = session.events[start : start + max(1, max_events)]
        size = 0
        for index, event in enumerate(events):
            size += len(event)
            if index and size > max_bytes:
                return events[:index]
        return events

    async def load(self, session_id: str) -> Stored | None:
        """See `Log.load`."""
        session = self._sessions.get(session_id)
        if session is None:
            return None
        return Stored(
            earliest_seq=session.trimmed_seq + 1,
            last_seq=session.last_seq,
            checkpoint=session.checkpoint,
            head=session.head,
        )

    async def retired_until_ns(self, session_id: str) -> int:
        """See `Log.retired_until_ns`."""
        return self._tombstones.get(session_id, 0)

    async def save_checkpoint(self, session_id: str, checkpoint: Checkpoint) -> None:
        """See `Log.save_checkpoint`."""
        session = self._session(session_id)
        if checkpoint.seq > session.last_seq:
            raise AppendConflictError(
                session_id,
                f"the checkpoint is at seq {checkpoint.seq}, and the session ends at "
                f"{session.last_seq}",
            )
        if session.checkpoint is not None and checkpoint.seq < session.checkpoint.seq:
            raise AppendConflictError(session_id, "the session has a newer checkpoint")
        before = session.bytes
        session.checkpoint = checkpoint
        self._bytes += session.bytes - before

    async def trimmable_seq(self, session_id: str, retention: Retention, now_ns: int) -> int:
        """See `Log.trimmable_seq`."""
        return self._trimmable_seq(self._session(session_id), retention, now_ns)

    def _trimmable_seq(self, session: _Session, retention: Retention, now_ns: int) -> int:
        oldest_ns = now_ns - round(retention.max_age_s * 1e9)
        gone = max(
            bisect_left(session.times_ns, oldest_ns), len(session.events) - retention.max_events
        )
        kept_bytes = session.event_bytes
        for index, event in enumerate(session.events):
            if kept_bytes <= retention.max_bytes:
                break
            kept_bytes -= len(event)
            gone = max(gone, index + 1)
        return session.trimmed_seq + gone if gone > 0 else 0

    async def excess(self, retention: Retention, now_ns: int, since_ns: int) -> Sequence[Excess]:
        """See `Log.excess`."""
        found = []
        for place, (session_id, session) in enumerate(list(self._sessions.items())):
            if place % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
            seq = self._trimmable_seq(session, retention, now_ns)
            if seq:
                saved = session.checkpoint.seq if session.checkpoint is not None else 0
                found.append(Excess(session_id, seq, saved))
        return found

    async def trim(self, session_id: str, up_to_seq: int) -> int:
        """See `Log.trim`."""
        session = self._session(session_id)
        limit = session.checkpoint.seq if session.checkpoint is not None else 0
        gone = min(up_to_seq, limit) - session.trimmed_seq
        if gone > 0:
            before = session.bytes
            session.event_bytes -= sum(map(len, session.events[:gone]))
            del session.events[:gone]
            del session.times_ns[:gone]
            session.trimmed_seq += gone
            self._bytes += session.bytes - before
        return session.trimmed_seq + 1

    async def delete(self, session_id: str, retired_until_ns: int) -> None:
        """See `Log.delete`."""
        session = self._sessions.pop(session_id, None)
        if session is None:
            return
        self._bytes -= session.bytes
        self._tombstones[session_id] = retired_until_ns
        if len(self._tombstones) > self._max_tombstones:
            del self._tombstones[min(self._tombstones, key=self._tombstones.__getitem__)]

    async def active(self) -> Sequence[str]:
        """See `Log.active`."""
        return sorted(
            session_id for session_id, session in self._sessions.items() if session.head.active
        )

    async def expired(self, now_ns: int, limit: int) -> Sequence[str]:
        """See `Log.expired`."""
        ends = (
            (session.head.expire_time_ns, session_id)
            for session_id, session in self._sessions.items()
            if session.head.expire_time_ns <= now_ns
        )
        return [session_id for _, session_id in heapq.nsmallest(limit, ends)]

    async def sweep(self, now_ns: int) -> None:
        """See `Log.sweep`."""
        self._tombstones = {
            session_id: until_ns
            for session_id, until_ns in self._tombstones.items()
            if until_ns > now_ns
        }

    async def list(
        self,
        *,
        before: tuple[int, str] | None,
        limit: int,
        labels: Sequence[tuple[str, str]] = (),
        max_bytes: int = LIST_BYTES,
    ) -> Sequence[Listed]:
        """See `Log.list`."""
        places = (
            (session.update_time_ns, session_id)
            for session_id, session in self._sessions.items()
            if (before is None or (session.update_time_ns, session_id) < before)
            and all(session.origin.labels.get(key) == value for key, value in labels)
        )
        lines: list[Listed] = []
        size = 0
        for update_time_ns, session_id in heapq.nlargest(limit, places):
            session = self._sessions[session_id]
            whole = session.origin.session + session.head.session
            lines.append(Listed(session_id, update_time_ns, session.head, whole))
            size += len(whole)
            if size >= max_bytes:
                break
        return lines

    async def count(self) -> int:
        """See `Log.count`."""
        return len(self._sessions)

    async def __aenter__(self) -> Self:
        """Nothing is to open."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Nothing is kept."""

    def _session(self, session_id: str) -> _Session:
        session = self._sessions.get(session_id)
        if session is None:
            raise not_found()
        return session
