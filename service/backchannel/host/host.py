"""The host: what makes the sessions of one process run, from its beginning to its end.

It owns every task: the committer, engine runs, loads, creations, deletions, the sweep. Calls and
streams only ever wait for them, so that a client that leaves takes nothing along.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Final, Self

import structlog

from backchannel.engines.registry import EngineRegistry
from backchannel.errors import BackchannelError
from backchannel.host.admission import Admission
from backchannel.host.clock import SECOND_NS, Clock, SystemClock, within
from backchannel.host.committer import Committer
from backchannel.host.config import HostConfig
from backchannel.host.faults import draining_error
from backchannel.host.live import Resources
from backchannel.host.loading import Loader
from backchannel.host.residents import Residents
from backchannel.host.runner import Runner
from backchannel.host.sessions import Sessions
from backchannel.host.sweep import Sweep
from backchannel.host.upkeep import Upkeep
from backchannel.log.protocol import Log, Survival
from backchannel.observer import SILENT, Observer
from backchannel.v1 import frame_pb2

_logger = structlog.get_logger(__name__)

ID_BYTES: Final = 18
# Ending a turn takes as long as an engine may take to confirm its stop, and a commit.
ENDING_S: Final = 2.5


def random_id(prefix: str) -> str:
    """An unguessable id of 144 random bits."""
    return f"{prefix}_{secrets.token_urlsafe(ID_BYTES)}"


class Host:
    """Runs sessions, as an async context manager. The log and the engines are open already.

    Attributes:
        engines: Where tokens come from.
        residents: Which sessions are in memory.
        sessions: All that there are; what doors speak to.
        sweep: What time brings about.

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
        config, clock = config or HostConfig(), clock or SystemClock()
        self.engines = engines
        self._log = log
        self._config = config
        self._clock = clock
        self._committer = Committer(
            log,
            max_backlog_bytes=config.max_backlog_bytes,
            # An append to memory is a function call: nothing to save.
            pace_s=config.commit_pace_s,
            observer=observer,
        )
        self._admission = Admission(max_waiting=config.max_waiting_runs, clock=clock)
        self.residents = Residents(clock, config, self._spawn)
        loader = Loader(log, ids, chunk_events=config.read_events)
        upkeep = Upkeep(log, loader, clock, config, self._spawn)
        resources = Resources(
            log=log,
            clock=clock,
            config=config,
            committer=self._committer,
            runner=Runner(
                engines, self._admission, clock, self._spawn, stop_limit_s=config.stop_limit_s
            ),
            loader=loader,
            spawn=self._spawn,
            rng=rng or random.Random(),  # noqa: S311 - jitter, not a secret
            gone=self.residents.remove,
            rested=upkeep.rested,
            observer=observer,
        )
        self.sessions = Sessions(self.residents, resources, ids)
        self.sweep = Sweep(log, self.sessions, self.residents, upkeep, clock, config)
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Begin; sessions are taken up on demand, or by `recover`."""
        await self._group.__aenter__()
        self._spawn(self._committer.run(), "committer")
        self._spawn(self.sweep.run(), "sweep")
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
            for live in self.residents:
                live.ledger.close(draining_error())
            # Our own body's error is the caller's; only a cancel may be the group's doing.
            cancelled = exc_type is not None and issubclass(exc_type, asyncio.CancelledError)
            if cancelled:
                await self._group.__aexit__(exc_type, exc, tb)
            else:
                await self._group.__aexit__(None, None, None)

    def figures(self) -> dict[str, dict[str, float]]:
        """What there is now, for whoever watches: by what it is called, and what it is about."""
        admission = self._admission
        return {
            "sessions": {"live": len(self.residents)},
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
                live = await self.sessions.get(session_id)
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
        if self.sessions.leaving:
            return
        self.sessions.leaving = True
        clock = self._clock
        end_ns = clock.now_ns() + round(grace_s * SECOND_NS)
        ending_s = min(ENDING_S, grace_s / 2)
        go_away = frame_pb2.GoAway(reason="the server is shutting down")
        # What running turns get. A client may count on it, so the time to end things is left out.
        go_away.time_left.FromNanoseconds(round((grace_s - ending_s) * SECOND_NS))
        frame = frame_pb2.ServerFrame(go_away=go_away).SerializeToString()
        for live in self.residents:
            live.go_away(frame)
        await self._all(grace_s - ending_s, [live.rest() for live in self.residents])
        survives = self._log.survival is not Survival.NOTHING
        ending = [live for live in self.residents if live.drain(survives=survives)]
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
        self.sessions.leaving = True
        for live in self.residents:
            live.forget(draining_error())

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = self._group.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
