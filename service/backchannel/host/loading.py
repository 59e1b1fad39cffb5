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


class Loader:
    """Folds sessions from one log.

    Args:
        log: Where they are.
        ids: Makes unguessable ids from a prefix.
        chunk_events: After so many events other tasks get their turn, so that a long past blocks
            nobody.
    """

    def __init__(self, log: Log, ids: Callable[[str], str], *, chunk_events: int) -> None:
        self._log = log
        self._ids = ids
        self._chunk_events = chunk_events

    async def load(self, session_id: str, last_seq: int | None = None) -> Session | None:
        """Fold a session's log: its checkpoint, and the events after it.

        Args:
            session_id: Which.
            last_seq: Fold no further than this event.

        Returns:
            The session as after that event, or its newest; None if there is no such session.

        Raises:
            BackchannelError: What the log says; `LOG_CORRUPT` if its events make no session;
                `CURSOR_BEYOND_END` and `CURSOR_TRIMMED` for a `last_seq` that is not there.
        """
        stored = await self._log.load(session_id)
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
        core = Session(await _folded(kept), self._ids)
        core.saved_seq = seq = kept.seq if kept else 0
        while seq < end:
            raw = await self._log.read(
                session_id,
                seq,
                max_events=min(self._chunk_events, end - seq),
                max_bytes=MAX_CHUNK_BYTES,
            )
            if not raw:
                raise self._corrupt(f"ends at event {seq}, but should go to {stored.last_seq}")
            try:
                for event in map(event_pb2.Event.FromString, raw):
                    core.apply(event)
            except DecodeError:
                raise self._corrupt(f"has an unreadable event soon after event {seq}") from None
            seq += len(raw)
            await asyncio.sleep(0)
        core.earliest_seq = stored.earliest_seq
        return core

    def _corrupt(self, what: str) -> BackchannelError:
        return BackchannelError(
            Reason.LOG_CORRUPT, f"the log of this session ({self._log.address}) {what}"
        )


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
