"""A session's way back from a log that refused it: read again, as soon as the log answers."""

from __future__ import annotations

import random

import structlog

from backchannel.errors import BackchannelError, Reason
from backchannel.host.clock import Clock
from backchannel.host.config import HostConfig
from backchannel.host.faults import where
from backchannel.host.loading import Loader
from backchannel.session.session import Session

_logger = structlog.get_logger(__name__)


class Comeback:
    """Tries until it is there, with longer and longer pauses.

    It stands until the log takes something again: who falls once more waits longer still.

    Args:
        session_id: Who comes back.
        loader: Reads it.
        clock: For the pauses.
        config: How long they are.
        rng: For their jitter.
    """

    def __init__(
        self,
        session_id: str,
        loader: Loader,
        clock: Clock,
        config: HostConfig,
        rng: random.Random,
    ) -> None:
        self._session_id = session_id
        self._loader = loader
        self._clock = clock
        self._config = config
        self._rng = rng
        self._attempts = 0

    async def core(self) -> Session | None:
        """The session as its log tells it; None if there is none any more.

        Raises:
            BackchannelError: `LOG_CORRUPT`; everything else may be over soon, and is waited for.
        """
        while True:
            await self._clock.sleep(self._pause_s())
            try:
                return await self._loader.load(self._session_id)
            except BackchannelError as error:
                if error.reason is Reason.LOG_CORRUPT:
                    raise
                _logger.warning("session_waits_for_log", reason=error.reason)
            except Exception as error:  # noqa: BLE001 - a backend's bug must not end the process
                _logger.error("session_reload_broke", **where(error))

    def _pause_s(self) -> float:
        """Doubling with each attempt, and jittered so that sessions do not come back as one."""
        config = self._config
        longest = min(config.retry_most_s, config.retry_first_s * 2.0 ** min(self._attempts, 30))
        self._attempts += 1
        return longest * self._rng.uniform(0.5, 1.0)
