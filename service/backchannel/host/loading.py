"""Bringing a session back from its log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from google.protobuf.message import DecodeError

from backchannel.errors import BackchannelError, Reason
from backchannel.log.protocol import Checkpoint, Log, trimmed
from backchannel.session.checkpoint import loading
from backchannel.session.session import Session
from backchannel.session.state import SessionState
from backchannel.v1 import event_pb2

MAX_CHUNK_BYTES: Final = 1024 * 1024


async def load(
    log: Log,
    session_id: str,
    *,
    ids: Callable[[str], str],
    chunk_events: int,
    last_seq: int | None = None,
) -> Session | None:
    """Fold a session's log: its checkpoint, and the events after it.

    Lets other tasks run after every `chunk_events` events, so that a long past blocks nobody.

    Args:
        log: Where it is.
        session_id: Which.
        ids: Makes unguessable ids from a prefix.
        chunk_events: How many events are read at once.
        last_seq: Fold no further than this event.

    Returns:
        The session as after that event, or its newest; None if there is no such session.

    Raises:
        BackchannelError: What the log says; `LOG_CORRUPT` if its events make no session;
            `CURSOR_BEYOND_END` and `CURSOR_TRIMMED` for a `last_seq` that is not there.
    """
    stored = await log.load(session_id)
    if stored is None:
        return None
    end = stored.last_seq if last_seq is None else last_seq
    kept = stored.checkpoint
    if kept is not None and kept.seq > end:
        kept = None  # It knows too much. Perhaps the log still has all that led to it.
        if stored.earliest_seq > 1:
            raise trimmed(stored.earliest_seq)
    if not 1 <= end <= stored.last_seq:
        raise BackchannelError(
            Reason.CURSOR_BEYOND_END,
            f"name an event from 1 to {stored.last_seq}, the newest",
            field="fork.at_seq",
            metadata={"last_seq": str(stored.last_seq)},
        )
    core = Session(await _folded(kept), ids)
    core.saved_seq = seq = kept.seq if kept else 0
    while seq < end:
        raw = await log.read(
            session_id,
            seq,
            max_events=min(chunk_events, end - seq),
            max_bytes=MAX_CHUNK_BYTES,
        )
        if not raw:
            raise _corrupt(log, f"ends at event {seq}, but should go to {stored.last_seq}")
        try:
            for event in map(event_pb2.Event.FromString, raw):
                core.apply(event)
        except DecodeError:
            raise _corrupt(log, f"has an unreadable event soon after event {seq}") from None
        seq += len(raw)
        await asyncio.sleep(0)
    core.earliest_seq = stored.earliest_seq
    return core


async def _folded(kept: Checkpoint | None) -> SessionState:
    if kept is None:
        return SessionState()
    steps = loading(kept.state)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            state: SessionState = end.value
            return state
        await asyncio.sleep(0)


def _corrupt(log: Log, what: str) -> BackchannelError:
    return BackchannelError(Reason.LOG_CORRUPT, f"the log of this session ({log.address}) {what}")
