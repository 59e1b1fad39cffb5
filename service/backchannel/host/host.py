"""The host: all sessions of one process, and everything that runs on their behalf.

It owns every task: the committer, engine runs, loads, creations, deletions, the sweep. Calls and
streams only ever wait for them, so that a client that leaves takes nothing along.

A session is in memory at most once. Whatever puts one there or takes one away goes through `_work`,
one at a time for an id; everybody else who wants that id waits for it.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import structlog

from backchannel.engines.registry import EngineRegistry
from backchannel.errors import BackchannelError, Reason
from backchannel.host.admission import Admission
from backchannel.host.clock import SECOND_NS, Clock, SystemClock, within
from backchannel.host.committer import Committer
from backchannel.host.config import HostConfig
from backchannel.host.faults import broken_error, draining_error, moved_error, where
from backchannel.host.filtering import parse
from backchannel.host.live import LiveSession, Resources
from backchannel.host.loading import load
from backchannel.host.paging import from_token, to_token
from backchannel.host.questions import check_session
from backchannel.host.retention import checkpoint, checkpoint_before, retain, retain_at_rest
from backchannel.host.runner import Runner
from backchannel.log.protocol import (
    LIST_BYTES,
    AppendConflictError,
    Excess,
    Log,
    Survival,
    not_found,
)
from backchannel.observer import SILENT, Observer
from backchannel.session.configuration import config_digest, effective_config
from backchannel.session.forks import forked
from backchannel.session.session import Session
from backchannel.session.table import Phase
from backchannel.session.validation import check_config
from backchannel.v1 import conversation_service_pb2 as pb
from backchannel.v1 import frame_pb2, session_pb2

_logger = structlog.get_logger(__name__)

T = TypeVar("T")

DEFAULT_PAGE_SIZE: Final = 50
MAX_PAGE_SIZE: Final = 200
ID_BYTES: Final = 18
EXPIRED_AT_ONCE: Final = 100
# How much later than it was made a summary may be committed.
SWEEP_OVERLAP_NS: Final = 60 * SECOND_NS
# Ending a turn takes as long as an engine may take to confirm its stop, and a commit.
ENDING_S: Final = 2.5


def random_id(prefix: str) -> str:
    """An unguessable id of 144 random bits."""
    return f"{prefix}_{secrets.token_urlsafe(ID_BYTES)}"


@dataclass(frozen=True, slots=True)
class Created:
    """What became of a wish for a session.

    Attributes:
        live: The session.
        duplicate: It was there already, created with the same configuration.
        receipt: For the frame that asked for it.
    """

    live: LiveSession
    duplicate: bool
    receipt: frame_pb2.Receipt


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody asks for who creates a session.

    Attributes:
        config: As the client sent it.
        digest: Of all that makes two wishes the same.
        frame_id: Of the frame that asks, if one does.
        fork: Whose past it begins with.
    """

    config: session_pb2.SessionConfig
    digest: bytes
    frame_id: str
    fork: pb.Fork | None


class Host:
    """Runs sessions, as an async context manager. The log and the engines are open already.

    Args:
        log: Where events are kept.
        engines: Where tokens come from.
        config: Limits and times.
        clock: Where times come from.
        ids: Makes unguessable ids from a prefix.
        rng: For jitter.
        observer: Watches sessions and appends.
    """

    def __init__(
        self,
        *,
        log: Log,
        engines: EngineRegistry,
        config: HostConfig | None = None,
        clock: Clock | None = None,
        ids: Callable[[str], str] = random_id,
        rng: random.Random | None = None,
        observer: Observer = SILENT,
    ) -> None:
        self.engines = engines
        self._log = log
        self._config = config = config or HostConfig()
        self._clock = clock = clock or SystemClock()
        self._ids = ids
        self._committer = Committer(
            log,
            max_backlog_bytes=config.max_backlog_bytes,
            # An append to memory is a function call: nothing to save.
            pace_s=config.commit_pace_s,
            observer=observer,
        )
        self._admission = Admission(max_waiting=config.max_waiting_runs, clock=clock)
        self._resources = Resources(
            log=log,
            clock=clock,
            config=config,
            committer=self._committer,
            runner=Runner(
                engines, self._admission, clock, self._spawn, stop_limit_s=config.stop_limit_s
            ),
            spawn=self._spawn,
            ids=ids,
            rng=rng or random.Random(),  # noqa: S311 - jitter, not a secret
            gone=self._gone,
            rested=self._rested,
            observer=observer,
        )
        self._live: dict[str, LiveSession] = {}  # The longest unused first.
        self._loads: dict[str, asyncio.Future[LiveSession]] = {}
        self._busy: dict[str, asyncio.Future[Any]] = {}
        self._loading = asyncio.Semaphore(config.parallel_loads)
        self._sessions: int | None = None
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False
        self._swept_ns = 0

    async def __aenter__(self) -> Self:
        """Begin; sessions are taken up on demand, or by `recover`."""
        await self._group.__aenter__()
        self._spawn(self._committer.run(), "committer")
        self._spawn(self._sweep_for_ever(), "sweep")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """End everything: what was decided is committed, then every task is cancelled."""
        self._leave()
        try:
            if exc_type is None or not issubclass(exc_type, asyncio.CancelledError):
                flushed = asyncio.ensure_future(self._committer.flush())
                await within(self._clock, ENDING_S, [flushed])
                flushed.cancel()
        finally:
            for task in self._tasks:
                task.cancel()
            for live in self._live.values():
                live.ledger.close(draining_error())
            # Our own body's error is the caller's; only a cancel may be the group's doing.
            cancelled = exc_type is not None and issubclass(exc_type, asyncio.CancelledError)
            if cancelled:
                await self._group.__aexit__(exc_type, exc, tb)
            else:
                await self._group.__aexit__(None, None, None)

    # --- sessions ----------------------------------------------------------------------------

    async def create(
        self,
        config: session_pb2.SessionConfig,
        *,
        frame_id: str = "",
        fork: pb.Fork | None = None,
    ) -> Created:
        """A new session, or the one that was created with this very configuration and id.

        Args:
            config: As the client sent it.
            frame_id: Of the `Open` that asks, if one does.
            fork: Whose past it begins with.

        Raises:
            BackchannelError: What is wrong with the configuration; `SESSION_EXISTS`,
                `SESSION_ID_RETIRED`, `SESSIONS_FULL`, `DRAINING`, `LOG_UNAVAILABLE`.
        """
        if self._draining:
            raise draining_error()
        check_config(config)
        digest = config_digest(config, fork)
        wish = Wish(config, digest, frame_id, fork)
        if not config.session_id:
            # A guess at an id that nobody else can make needs no look into the log.
            session_id = self._ids("session")
            live = await self._work(session_id, self._create(session_id, wish))
            return _created(live, frame_id, duplicate=False)
        session_id = config.session_id
        while (under_way := self._under_way(session_id)) is not None:
            await asyncio.wait([under_way])
        known = self._live.get(session_id)
        duplicate = known is not None
        if known is None:
            live, duplicate = await self._work(session_id, self._find_or_create(session_id, wish))
        else:
            live = known
        if duplicate and not live.config_matches(digest):
            raise BackchannelError(
                Reason.SESSION_EXISTS,
                "there is a session of this id with another configuration;"
                " resume it, or choose a new id",
                field="session_id",
            )
        return _created(live, frame_id, duplicate=duplicate)

    async def _forked(
        self, config: session_pb2.SessionConfig, fork: pb.Fork
    ) -> session_pb2.SessionConfig:
        """The configuration of a session that begins with another one's past."""
        if fork.session_id == config.session_id or not fork.session_id:
            raise BackchannelError(
                Reason.FIELD_INVALID, "name another session", field="fork.session_id"
            )
        try:
            parent = await self.get(fork.session_id)
        except BackchannelError as error:
            if error.reason is Reason.SESSION_NOT_FOUND:
                raise BackchannelError(
                    Reason.SESSION_NOT_FOUND,
                    "there is no such session to fork; check the id",
                    field="fork.session_id",
                ) from error
            raise
        await parent.ledger.commit()
        core = await load(
            self._log,
            fork.session_id,
            ids=self._ids,
            chunk_events=self._config.read_events,
            last_seq=fork.at_seq,
        )
        if core is None:
            raise not_found()
        return forked(config, core.state)

    async def get(self, session_id: str) -> LiveSession:
        """The session, taken up from the log if need be.

        Raises:
            BackchannelError: `SESSION_NOT_FOUND`, `LOG_UNAVAILABLE`, `LOG_CORRUPT`,
                `SESSIONS_FULL` (all of memory is taken by sessions at work).
        """
        while (busy := self._busy.get(session_id)) is not None:
            await asyncio.wait([busy])
        live = self._live.pop(session_id, None)
        if live is not None:
            self._live[session_id] = live
            live.used_ns = self._clock.now_ns()
            return live
        loading = self._loads.get(session_id)
        if loading is None:
            loading = self._start(session_id, self._load(session_id), self._loads)
        return await asyncio.shield(loading)

    async def list(
        self,
        page_size: int,
        page_token: str,
        filter: str,  # noqa: A002 - the contract's word
    ) -> tuple[list[session_pb2.Session], str]:
        """A page of sessions, newest first, and the token of the next page (empty on the last).

        Without the histories that they were created with. May have fewer sessions than it could.

        Raises:
            BackchannelError: `FIELD_INVALID` for a bad filter or token, `FIELD_TOO_LONG`.
        """
        labels = parse(filter)
        size = min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        lines = await self._log.list(
            before=from_token(page_token), limit=size + 1, labels=labels, max_bytes=LIST_BYTES
        )
        # Large ones make a page short, and then nobody has looked whether there are more.
        full = sum(len(line.session) for line in lines) >= LIST_BYTES
        sessions = []
        for line in lines[:size]:
            view = session_pb2.Session.FromString(line.session)
            live = self._live.get(line.session_id)
            if live is not None:
                try:
                    view = await live.view(history=False)
                except BackchannelError:
                    _logger.info("listed_as_logged")  # As it was when last all was well.
            sessions.append(view)
        if len(lines) <= size and not full:
            return sessions, ""
        last = lines[:size][-1]
        return sessions, to_token(last.update_time_ns, last.session_id)

    async def delete(self, session_id: str) -> None:
        """End a session, tell its readers, and delete its log.

        Raises:
            BackchannelError: `SESSION_NOT_FOUND`, `LOG_UNAVAILABLE`.
        """
        await self._end(session_id, "DELETED")

    # --- the whole ---------------------------------------------------------------------------

    @property
    def draining(self) -> bool:
        """Whether the host is leaving."""
        return self._draining

    def figures(self) -> dict[str, dict[str, float]]:
        """What there is now, for whoever watches: by what it is called, and what it is about."""
        admission = self._admission
        return {
            "sessions": {"live": len(self._live)},
            "backlog": {"": self._committer.backlog_bytes},
            "running": {name: admission.running(name) for name in admission.engines},
            "waiting": {name: admission.waiting(name) for name in admission.engines},
            "limit": {
                name: limit for name in admission.engines if (limit := admission.limit(name))
            },
        }

    async def recover(self) -> None:
        """Take up every session that was at work when the last process ended.

        Raises:
            BackchannelError: The log cannot even tell which those are.
        """
        session_ids = await self._log.active()
        if not session_ids:
            return
        _logger.info("recovery_begins", sessions=len(session_ids))
        done = failed = 0

        async def recover_one(session_id: str) -> None:
            nonlocal done, failed
            try:
                live = await self.get(session_id)
                await live.ledger.commit()
            except BackchannelError as error:
                failed += 1
                _logger.error("recovery_failed", reason=error.reason, detail=error.message)
            done += 1
            if done % 1000 == 0:
                _logger.info("recovery_goes_on", done=done, sessions=len(session_ids))

        width = self._config.parallel_loads
        for start in range(0, len(session_ids), width):
            await asyncio.gather(*map(recover_one, session_ids[start : start + width]))
        _logger.info("recovery_is_over", sessions=done, failed=failed)

    async def drain(self, grace_s: float) -> None:
        """Leave: readers are told at once, running turns get until the time is up.

        Then turns that nobody could go on with are ended, the rest stays in the log to be resumed,
        and all readers end `DRAINING`.

        Args:
            grace_s: The whole time this may take.
        """
        if self._draining:
            return
        self._draining = True
        clock = self._clock
        end_ns = clock.now_ns() + round(grace_s * SECOND_NS)
        ending_s = min(ENDING_S, grace_s / 2)
        go_away = frame_pb2.GoAway(reason="the server is shutting down")
        # What running turns get. A client may count on it, so the time to end things is left out.
        go_away.time_left.FromNanoseconds(round((grace_s - ending_s) * SECOND_NS))
        frame = frame_pb2.ServerFrame(go_away=go_away).SerializeToString()
        for live in self._live.values():
            live.go_away(frame)
        await self._all(grace_s - ending_s, [live.rest() for live in self._live.values()])
        survives = self._log.survival is not Survival.NOTHING
        ending = [live for live in self._live.values() if live.drain(survives=survives)]
        left_s = (end_ns - clock.now_ns()) / SECOND_NS
        await self._all(left_s, [*(live.rest() for live in ending), self._committer.flush()])
        self._leave()

    async def _all(self, seconds: float, waits: Sequence[Coroutine[Any, Any, None]]) -> None:
        """Wait for all, but no longer than that."""
        tasks = [asyncio.create_task(wait) for wait in waits]
        try:
            await within(self._clock, max(0.0, seconds), tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _leave(self) -> None:
        self._draining = True
        for live in self._live.values():
            live.forget(draining_error())

    # --- work on one id ----------------------------------------------------------------------

    def _under_way(self, session_id: str) -> asyncio.Future[Any] | None:
        return self._busy.get(session_id) or self._loads.get(session_id)

    async def _work(self, session_id: str, work: Coroutine[Any, Any, T]) -> T:
        """Do something that changes whether the session is in memory; it outlives the caller."""
        return await asyncio.shield(self._start(session_id, work, self._busy))

    def _start(
        self,
        session_id: str,
        work: Coroutine[Any, Any, T],
        book: dict[str, asyncio.Future[T]] | dict[str, asyncio.Future[Any]],
    ) -> asyncio.Future[T]:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        # Whoever waits hears of an error; if all have left, nobody needs to.
        future.add_done_callback(_look)
        book[session_id] = future

        async def do() -> None:
            try:
                future.set_result(await work)
            except BackchannelError as refused:
                future.set_exception(refused)
            except Exception as broken:  # noqa: BLE001 - a bug fails this call, not the process
                _logger.error("work_broke", **where(broken))
                future.set_exception(broken_error())

        def done(_: asyncio.Task[None]) -> None:
            # Also when the task was cancelled before it had begun.
            work.close()
            if not future.done():
                future.set_exception(draining_error())
            del book[session_id]

        self._spawn(do(), "work").add_done_callback(done)
        return future

    async def _load(self, session_id: str) -> LiveSession:
        async with self._loading:
            core = await load(
                self._log, session_id, ids=self._ids, chunk_events=self._config.read_events
            )
        if core is None:
            raise not_found()
        if core.state.phase is Phase.CLOSED:
            # Its deletion was cut short.
            await self._log.delete(session_id, self._retired_until_ns())
            self._count(-1)
            raise not_found()
        if not core.active:  # One that is at work must be taken up, whatever it takes.
            self._make_room()
        live = LiveSession(core, self._resources, committed_seq=core.state.last_seq)
        self._live[session_id] = live
        live.recover()
        return live

    async def _create(self, session_id: str, wish: Wish) -> LiveSession:
        config = wish.config
        if wish.fork is not None:
            config = await self._forked(config, wish.fork)
        full_name = check_session(self.engines, config)
        if self._sessions is None:
            self._sessions = await self._log.count()
        if self._sessions >= self._config.max_sessions:
            raise BackchannelError(
                Reason.SESSIONS_FULL,
                f"this server holds {self._sessions} sessions already; delete some that are over",
            )
        self._make_room()
        core, decision = Session.create(
            effective_config(config, model=full_name, session_id=session_id),
            session_id=session_id,
            config_digest=wish.digest,
            frame_id=wish.frame_id,
            now_ns=self._clock.now_ns(),
            ids=self._ids,
            expire_after_ns=round(self._config.expire_after_s * SECOND_NS),
        )
        live = LiveSession(core, self._resources, committed_seq=0)
        self._live[session_id] = live
        self._sessions += 1
        live.open(decision)
        try:
            await live.ledger.commit()
        except BackchannelError as error:
            # It never was. Should the log have it after all, it is found there.
            self._sessions -= 1
            del self._live[session_id]
            live.forget(error)
            raise
        return live

    async def _find_or_create(self, session_id: str, wish: Wish) -> tuple[LiveSession, bool]:
        if await self._log.retired_until_ns(session_id) > self._clock.now_ns():
            raise BackchannelError(
                Reason.SESSION_ID_RETIRED,
                "a session of this id was deleted or has expired within the last day;"
                " choose a new id",
                field="session_id",
            )
        if await self._log.load(session_id) is not None:
            return await self._load(session_id), True
        return await self._create(session_id, wish), False

    async def _end(self, session_id: str, reason: str) -> None:
        while (under_way := self._under_way(session_id)) is not None:
            await asyncio.wait([under_way])
        await self._work(session_id, self._delete(session_id, reason))

    async def _delete(self, session_id: str, reason: str) -> None:
        live = self._live.get(session_id)
        if live is not None:
            try:
                await live.close(reason)
                await self._log.delete(session_id, self._retired_until_ns())
            finally:
                if live.closed_seq:
                    self._live.pop(session_id, None)
                    live.forget(not_found())
        else:
            # Nobody reads it and nothing runs, so nobody would hear of an ending.
            try:
                there = await self._log.load(session_id) is not None
            except BackchannelError as error:
                # What cannot be read can still be deleted.
                there = error.reason is Reason.LOG_CORRUPT
                if not there:
                    raise
            if not there:
                raise not_found()
            await self._log.delete(session_id, self._retired_until_ns())
        self._count(-1)

    def _count(self, change: int) -> None:
        if self._sessions is not None:
            self._sessions += change

    def _retired_until_ns(self) -> int:
        return self._clock.now_ns() + round(self._config.retired_s * SECOND_NS)

    def _make_room(self) -> None:
        """Put sessions away that have nothing to do, if memory is full.

        Raises:
            BackchannelError: `SESSIONS_FULL` if all have.
        """
        most = self._config.max_live
        if len(self._live) < most:
            return
        unused_ns = self._clock.now_ns() - round(self._config.idle_before_passive_s * SECOND_NS)
        idle = deque[LiveSession]()
        for live in self._live.values():
            if live.used_ns > unused_ns or len(idle) > most // 100:
                break
            if live.idle and live.session_id not in self._busy:
                idle.append(live)
        for live in idle:
            del self._live[live.session_id]
            live.forget(moved_error())
        if not idle:
            raise BackchannelError(
                Reason.SESSIONS_FULL, f"{most} sessions are at work here; try again later"
            )

    # --- what sessions say -------------------------------------------------------------------

    def _gone(self, live: LiveSession) -> None:
        if self._live.get(live.session_id) is live:
            del self._live[live.session_id]

    def _rested(self, live: LiveSession) -> None:
        if live.retention_due:
            # Between two turns of a busy session: now or never.
            live.retention_due = False
            record = live.checkpoint()
            if record is not None:
                retention, now_ns = self._config.retention, self._clock.now_ns()
                self._spawn(retain(live, self._log, retention, now_ns, record), "retain")
        elif live.ledger.committed_seq - live.saved_seq >= self._config.checkpoint_events:
            record = live.checkpoint()
            if record is not None:
                # Said now, so that it is not made once more while it is under way.
                live.saved_seq = record.seq
                self._spawn(checkpoint(live, self._log, record), "checkpoint")

    # --- the sweep ---------------------------------------------------------------------------

    async def _sweep_for_ever(self) -> None:
        while True:
            await self._clock.sleep(self._config.sweep_s)
            try:
                await self.sweep()
            except BackchannelError as error:
                _logger.warning("sweep_failed", reason=error.reason, detail=error.message)
            except Exception as error:  # noqa: BLE001 - the next round may do better
                _logger.error("sweep_broke", **where(error))

    async def sweep(self) -> None:
        """End what has expired, trim what is no longer kept, forget old tombstones.

        Raises:
            BackchannelError: `LOG_UNAVAILABLE`; the rest is left to the next round.
        """
        now_ns = self._clock.now_ns()
        for session_id in await self._log.expired(now_ns, EXPIRED_AT_ONCE):
            live = self._live.get(session_id)
            if live is not None and live.expire_ns > now_ns:
                continue  # The log's summary is older than what goes on.
            try:
                await self._end(session_id, "EXPIRED")
            except BackchannelError as error:
                if error.reason is not Reason.SESSION_NOT_FOUND:
                    raise
        since_ns = self._swept_ns - SWEEP_OVERLAP_NS
        for excess in await self._log.excess(self._config.retention, now_ns, since_ns):
            live = self._live.get(excess.session_id)
            if live is not None:
                await retain(live, self._log, self._config.retention, now_ns)
            else:
                await self._retain_at_rest(excess)
        self._swept_ns = now_ns
        await self._checkpoint_the_restless()
        await self._log.sweep(now_ns)

    async def _retain_at_rest(self, excess: Excess) -> None:
        while (under_way := self._under_way(excess.session_id)) is not None:
            await asyncio.wait([under_way])
        if excess.session_id in self._live:
            return  # It has a summary soon, and is told of again.
        work = retain_at_rest(
            excess, self._log, ids=self._ids, chunk_events=self._config.read_events
        )
        try:
            await self._work(excess.session_id, work)
        except (BackchannelError, AppendConflictError) as error:
            _logger.warning("retention_failed", detail=str(error))

    async def _checkpoint_the_restless(self) -> None:
        """For sessions where one turn follows the other, so that none is made at rest."""
        for live in list(self._live.values()):
            seq = live.rested_seq
            if seq - live.saved_seq >= 2 * self._config.checkpoint_events and not live.resting:
                ids, chunk_events = self._ids, self._config.read_events
                await checkpoint_before(live, self._log, seq, ids=ids, chunk_events=chunk_events)

    # --- tasks -------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = self._group.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _created(live: LiveSession, frame_id: str, *, duplicate: bool) -> Created:
    status = frame_pb2.RECEIPT_STATUS_DUPLICATE if duplicate else frame_pb2.RECEIPT_STATUS_ACCEPTED
    return Created(live, duplicate, frame_pb2.Receipt(frame_id=frame_id, status=status, seq=1))


def _look(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
