"""Retention: the past that is no longer kept is trimmed, once a checkpoint stands in for it.

A checkpoint is also what a session is loaded from, so one is made now and then whether something
is to be trimmed or not. It can only be made between turns.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from backchannel.errors import BackchannelError
from backchannel.host.live import LiveSession
from backchannel.host.loading import load
from backchannel.host.saving import Record, save
from backchannel.log.protocol import AppendConflictError, Excess, Log, Retention

_logger = structlog.get_logger(__name__)


async def checkpoint(session: LiveSession, log: Log, record: Record) -> None:
    """Save a checkpoint, so that loading the session begins there."""
    try:
        await save(log, session.session_id, record)
        session.saved_seq = max(session.saved_seq, record.seq)
    except (BackchannelError, AppendConflictError) as error:
        # It was deleted meanwhile, or the log is down: the next one is as good.
        _logger.warning("checkpoint_failed", detail=str(error))


async def retain(
    session: LiveSession,
    log: Log,
    retention: Retention,
    now_ns: int,
    record: Record | None = None,
) -> None:
    """Trim what retention wants gone of a session in memory.

    If a turn is running the session remembers, and this is called again, with the checkpoint made
    in the very moment between two turns.

    Args:
        session: Whose log.
        log: Where it is.
        retention: How much is kept.
        now_ns: The time.
        record: Of the session, if one was made already.
    """
    try:
        wanted_seq = await log.trimmable_seq(session.session_id, retention, now_ns)
        if not wanted_seq:
            return
        record = record or session.checkpoint()
        if record is None:
            session.retention_due = True
        else:
            await save(log, session.session_id, record)
            session.saved_seq = max(session.saved_seq, record.seq)
        if session.saved_seq:
            session.trimmed(await log.trim(session.session_id, wanted_seq))
    except (BackchannelError, AppendConflictError) as error:
        # It was deleted meanwhile, or the log is down: the next round sees.
        _logger.warning("retention_failed", detail=str(error))


async def retain_at_rest(
    excess: Excess, log: Log, *, ids: Callable[[str], str], chunk_events: int
) -> None:
    """Trim what retention wants gone of a session that is not in memory, and stays so meanwhile.

    Args:
        excess: Which session, and what of it.
        log: Where it is.
        ids: Makes unguessable ids from a prefix.
        chunk_events: How many events are read at once.

    Raises:
        AppendConflictError: Somebody else has the session.
        BackchannelError: What the log says.
    """
    if excess.checkpoint_seq < excess.up_to_seq:
        core = await load(log, excess.session_id, ids=ids, chunk_events=chunk_events)
        if core is None:
            return
        if core.quiescent:
            record = Record(core.state.last_seq, core.checkpoint_lines())
            await save(log, excess.session_id, record)
    await log.trim(excess.session_id, excess.up_to_seq)


async def checkpoint_before(
    session: LiveSession, log: Log, seq: int, *, ids: Callable[[str], str], chunk_events: int
) -> None:
    """Save a checkpoint of how things stood after an event of the past.

    For a session that does not come to rest: one turn follows the other.
    """
    try:
        core = await load(log, session.session_id, ids=ids, chunk_events=chunk_events, last_seq=seq)
        if core is not None and core.quiescent:
            await save(log, session.session_id, Record(seq, core.checkpoint_lines()))
            session.saved_seq = max(session.saved_seq, seq)
    except (BackchannelError, AppendConflictError) as error:
        _logger.warning("checkpoint_failed", detail=str(error))
