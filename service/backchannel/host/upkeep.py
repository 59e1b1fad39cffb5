"""What is done for a session's log beside writing it: checkpoints, and trimming what they replace.

A checkpoint is what a session is loaded from, so one is made now and then; and the past that is no
longer kept is trimmed, once a checkpoint stands in for it. It can only be made between turns.
"""

from __future__ import annotations

import structlog

from backchannel.errors import BackchannelError
from backchannel.host.clock import Clock
from backchannel.host.config import HostConfig
from backchannel.host.live import LiveSession
from backchannel.host.loading import Loader
from backchannel.host.runner import Spawn
from backchannel.host.saving import Record, save
from backchannel.log.protocol import AppendConflictError, Excess, Log

_logger = structlog.get_logger(__name__)


class Upkeep:
    """Keeps logs short to load, and no longer than wanted.

    Args:
        log: Where they are.
        loader: Reads sessions from it.
        clock: Tells what is old.
        config: How much is kept, and how often a checkpoint is made.
        spawn: Starts a task that the host owns.
    """

    def __init__(
        self, log: Log, loader: Loader, clock: Clock, config: HostConfig, spawn: Spawn
    ) -> None:
        self._log = log
        self._loader = loader
        self._clock = clock
        self._config = config
        self._spawn = spawn

    def rested(self, live: LiveSession) -> None:
        """The session is between two turns; if it is a busy one, it is now or never."""
        if live.retention_due:
            live.retention_due = False
            record = live.checkpoint()
            if record is not None:
                self._spawn(self._retain(live, self._clock.now_ns(), record), "retain")
        elif live.ledger.committed_seq - live.saved_seq >= self._config.checkpoint_events:
            record = live.checkpoint()
            if record is not None:
                # Said now, so that it is not made once more while it is under way.
                live.saved_seq = record.seq
                self._spawn(self._checkpoint(live, record), "checkpoint")

    async def _checkpoint(self, live: LiveSession, record: Record) -> None:
        try:
            await self._save(live, record)
        except (BackchannelError, AppendConflictError) as error:
            # It was deleted meanwhile, or the log is down: the next one is as good.
            _logger.warning("checkpoint_failed", detail=str(error))

    async def checkpoint_before_turn(self, live: LiveSession) -> None:
        """Save a checkpoint of how things stood before the running turn, if one is overdue.

        For a session that does not come to rest: one turn follows the other.
        """
        seq = live.rested_seq
        if seq - live.saved_seq < 2 * self._config.checkpoint_events or live.resting:
            return
        try:
            core = await self._loader.load(live.session_id, last_seq=seq)
            if core is not None and core.quiescent:
                await self._save(live, Record(seq, core.checkpoint_lines()))
        except (BackchannelError, AppendConflictError) as error:
            _logger.warning("checkpoint_failed", detail=str(error))

    async def retain(self, live: LiveSession, now_ns: int) -> None:
        """Trim what is not kept of a session in memory.

        If a turn is running the session remembers, and it is done with the checkpoint made in the
        very moment between two turns.
        """
        await self._retain(live, now_ns, None)

    async def _retain(self, live: LiveSession, now_ns: int, record: Record | None) -> None:
        log = self._log
        try:
            wanted_seq = await log.trimmable_seq(live.session_id, self._config.retention, now_ns)
            if not wanted_seq:
                return
            record = record or live.checkpoint()
            if record is None:
                live.retention_due = True
            else:
                await self._save(live, record)
            if live.saved_seq:
                live.trimmed(await log.trim(live.session_id, wanted_seq))
        except (BackchannelError, AppendConflictError) as error:
            # It was deleted meanwhile, or the log is down: the next round sees.
            _logger.warning("retention_failed", detail=str(error))

    async def retain_at_rest(self, excess: Excess) -> None:
        """Trim what is not kept of a session that is not in memory, and stays so meanwhile."""
        session_id = excess.session_id
        try:
            if excess.checkpoint_seq < excess.up_to_seq:
                core = await self._loader.load(session_id)
                if core is None:
                    return
                if core.quiescent:
                    record = Record(core.state.last_seq, core.checkpoint_lines())
                    await save(self._log, session_id, record)
            await self._log.trim(session_id, excess.up_to_seq)
        except (BackchannelError, AppendConflictError) as error:
            # Somebody else has the session, or the log is down: the next round sees.
            _logger.warning("retention_failed", detail=str(error))

    async def _save(self, live: LiveSession, record: Record) -> None:
        await save(self._log, live.session_id, record)
        live.saved_seq = max(live.saved_seq, record.seq)
