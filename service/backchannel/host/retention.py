"""Retention: the past that is no longer kept is trimmed, once a checkpoint stands in for it."""

from __future__ import annotations

import structlog

from backchannel.errors import BackchannelError
from backchannel.host.live import LiveSession
from backchannel.log.protocol import AppendConflictError, Checkpoint, Log, Retention

_logger = structlog.get_logger(__name__)


async def retain(
    session: LiveSession,
    log: Log,
    retention: Retention,
    now_ns: int,
    checkpoint: Checkpoint | None = None,
) -> None:
    """Trim what retention wants gone.

    A checkpoint can only be made between turns. If one is running the session remembers, and this
    is called again, with the checkpoint made in the very moment between two turns.

    Args:
        session: Whose log.
        log: Where it is.
        retention: How much is kept.
        now_ns: The time.
        checkpoint: Of the session, if one was made already.
    """
    try:
        wanted_seq = await log.trimmable_seq(session.session_id, retention, now_ns)
        if not wanted_seq:
            return
        checkpoint = checkpoint or session.checkpoint()
        if checkpoint is None:
            session.retention_due = True
            return
        await log.save_checkpoint(session.session_id, checkpoint)
        earliest_seq = await log.trim(session.session_id, min(wanted_seq, checkpoint.seq))
        session.trimmed(earliest_seq)
    except (BackchannelError, AppendConflictError) as error:
        # It was deleted meanwhile, or the log is down: the next round sees.
        _logger.warning("retention_failed", detail=str(error))
