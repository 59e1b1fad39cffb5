from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from backchannel.errors import BackchannelError, Reason
from backchannel.host.committer import Committer
from backchannel.log.protocol import Append, AppendConflictError, Head, SessionDamagedError
from tests.support.clock import settle
from tests.support.hosting import ShakyLog, log_down


class Session:
    """Writes what it is told to, and keeps what it is told."""

    def __init__(self, name: str, committer: Committer) -> None:
        self.name, self.committer = name, committer
        self.pending: list[bytes] = []
        self.flight: list[bytes] = []
        self.written: list[bytes] = []
        self.errors: list[BackchannelError] = []

    def write(self, *events: bytes) -> None:
        if not self.pending:
            self.committer.enlist(self)
        self.pending += events
        self.committer.owe(sum(map(len, events)))

    def take(self) -> Append | None:
        if not self.pending:
            return None
        self.flight, self.pending = self.pending, []
        first = len(self.written) + 1
        head = Head(b"", active=False, expire_time_ns=1 << 62) if first == 1 else None
        return Append(self.name, first, list(self.flight), 1, head)

    def committed(self) -> None:
        self.written += self.flight
        self.committer.owe(-sum(map(len, self.flight)))

    def failed(self, error: BackchannelError) -> None:
        self.errors.append(error)
        self.committer.owe(-sum(map(len, self.flight)))


@asynccontextmanager
async def committing(
    log: ShakyLog, backlog: int = 1000, pace_s: float = 0.0
) -> AsyncIterator[Committer]:
    committer = Committer(log, max_backlog_bytes=backlog, pace_s=pace_s)
    async with log:
        task = asyncio.create_task(committer.run())
        try:
            yield committer
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def test_what_all_sessions_produce_in_a_tick_is_one_append() -> None:
    log = ShakyLog()
    async with committing(log) as committer:
        sessions = [Session(f"s{number}", committer) for number in range(5)]
        for session in sessions:
            session.write(b"one")
            session.write(b"two", b"three")
        await committer.flush()
    assert [len(batch) for batch in log.batches] == [5]
    assert all(session.written == [b"one", b"two", b"three"] for session in sessions)


async def test_appends_keep_a_distance_unless_something_hurries() -> None:
    log = ShakyLog()
    async with committing(log, pace_s=3600.0) as committer:
        one, other = Session("a", committer), Session("b", committer)
        one.write(b"1")
        await settle()
        assert len(log.batches) == 1  # The first after a silence waits for nothing.
        one.write(b"2")
        other.write(b"1")
        await settle()
        assert len(log.batches) == 1
        one.write(b"3")
        committer.hurry()
        await settle()
        assert [len(batch) for batch in log.batches] == [1, 2]
        assert (one.written, other.written) == ([b"1", b"2", b"3"], [b"1"])
        other.write(b"2")
        await settle()
        assert len(log.batches) == 2  # One hurry is for one append.
        await committer.flush()
        assert len(log.batches) == 3


async def test_while_one_append_is_under_way_the_next_gathers() -> None:
    log = ShakyLog()
    log.gate = asyncio.Event()
    async with committing(log) as committer:
        session, other = Session("a", committer), Session("b", committer)
        session.write(b"1")
        await settle()
        for number in range(2, 6):
            session.write(str(number).encode())
            other.write(str(number).encode())
            await settle()
        assert session.written == []
        log.gate.set()
        await committer.flush()
    assert [[len(append.events) for append in batch] for batch in log.batches] == [[1], [4, 4]]
    assert session.written == [b"1", b"2", b"3", b"4", b"5"]


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (AppendConflictError("bad", "somebody else wrote"), Reason.OWNER_ELSEWHERE),
        (SessionDamagedError("bad", "torn", metadata={}), Reason.LOG_CORRUPT),
    ],
)
async def test_one_session_that_does_not_fit_is_left_out(
    refusal: Exception, reason: Reason
) -> None:
    log = ShakyLog()
    log.refuse, log.refuse_if = refusal, lambda append: append.session_id == "bad"
    async with committing(log) as committer:
        good, bad, fine = (Session(name, committer) for name in ("good", "bad", "fine"))
        for session in (good, bad, fine):
            session.write(b"x")
        await committer.flush()
        assert (good.written, fine.written, bad.written) == ([b"x"], [b"x"], [])
        assert [error.reason for error in bad.errors] == [reason]
        good.write(b"y")
        await committer.flush()
    assert good.written == [b"x", b"y"]


@pytest.mark.parametrize(
    "refusal", [log_down(), ValueError("a bug"), AppendConflictError("nobody here", "?")]
)
async def test_a_refusal_reaches_all_and_the_committer_lives_on(refusal: Exception) -> None:
    log = ShakyLog()
    log.refuse = refusal
    async with committing(log) as committer:
        sessions = [Session("a", committer), Session("b", committer)]
        for session in sessions:
            session.write(b"x")
        await committer.flush()
        assert [len(session.errors) for session in sessions] == [1, 1]
        log.refuse = None
        for session in sessions:
            session.write(b"x")
        await committer.flush()
    assert [session.written for session in sessions] == [[b"x"], [b"x"]]


async def test_who_produces_faster_than_the_log_takes_waits_for_room() -> None:
    log = ShakyLog()
    log.gate = asyncio.Event()
    async with committing(log, backlog=10) as committer:
        session = Session("a", committer)
        session.write(b"x" * 10)
        await committer.room()
        session.write(b"x")
        waiting = asyncio.create_task(committer.room())
        await settle()
        assert not waiting.done()
        log.gate.set()
        async with asyncio.timeout(5):
            await waiting
        await committer.flush()
        assert committer.has_room
