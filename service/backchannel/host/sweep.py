"""The sweep: now and then a look at all sessions, for what only time brings about."""

from __future__ import annotations

from typing import Final

import structlog

from backchannel.errors import BackchannelError, Reason
from backchannel.host.clock import SECOND_NS, Clock
from backchannel.host.config import HostConfig
from backchannel.host.faults import where
from backchannel.host.residents import Residents
from backchannel.host.sessions import Sessions
from backchannel.host.upkeep import Upkeep
from backchannel.log.protocol import Excess, Log

_logger = structlog.get_logger(__name__)

EXPIRED_AT_ONCE: Final = 100
# How much later than it was made a summary may be committed.
OVERLAP_NS: Final = 60 * SECOND_NS


class Sweep:
    """Ends what has expired, trims what is no longer kept, forgets old tombstones.

    Args:
        log: Knows what is due.
        sessions: Which there are.
        residents: Which of them are in memory.
        upkeep: Trims them, and makes checkpoints.
        clock: Tells what is due.
        config: How often, and how much is kept.
    """

    def __init__(
        self,
        log: Log,
        sessions: Sessions,
        residents: Residents,
        upkeep: Upkeep,
        clock: Clock,
        config: HostConfig,
    ) -> None:
        self._log = log
        self._sessions = sessions
        self._residents = residents
        self._upkeep = upkeep
        self._clock = clock
        self._config = config
        self._swept_ns = 0

    async def run(self) -> None:
        """A round now and then, until cancelled."""
        while True:
            await self._clock.sleep(self._config.sweep_s)
            try:
                await self.round()
            except BackchannelError as error:
                _logger.warning("sweep_failed", reason=error.reason, detail=error.message)
            except Exception as error:  # noqa: BLE001 - the next round may do better
                _logger.error("sweep_broke", **where(error))

    async def round(self) -> None:
        """Do all that is due now.

        Raises:
            BackchannelError: `LOG_UNAVAILABLE`; the rest is left to the next round.
        """
        now_ns = self._clock.now_ns()
        for session_id in await self._log.expired(now_ns, EXPIRED_AT_ONCE):
            live = self._residents.find(session_id)
            if live is not None and live.expire_ns > now_ns:
                continue  # The log's summary is older than what goes on.
            try:
                await self._sessions.delete(session_id, "EXPIRED")
            except BackchannelError as error:
                if error.reason is not Reason.SESSION_NOT_FOUND:
                    raise
        since_ns = self._swept_ns - OVERLAP_NS
        for excess in await self._log.excess(self._config.retention, now_ns, since_ns):
            live = self._residents.find(excess.session_id)
            if live is not None:
                await self._upkeep.retain(live, now_ns)
            else:
                await self._retain_at_rest(excess)
        self._swept_ns = now_ns
        for live in list(self._residents):
            await self._upkeep.checkpoint_before_turn(live)
        await self._log.sweep(now_ns)

    async def _retain_at_rest(self, excess: Excess) -> None:
        session_id = excess.session_id
        await self._residents.quiet(session_id)
        if self._residents.find(session_id) is not None:
            return  # It has a summary soon, and is told of again.
        try:
            await self._residents.work(session_id, self._upkeep.retain_at_rest(excess))
        except BackchannelError as error:
            # A bug, of which the log tells more: it must not keep the others from their turn.
            _logger.warning("retention_failed", detail=error.message)
