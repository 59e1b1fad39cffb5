"""Checkpoints on their way into the log."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple

from backchannel.log.protocol import Checkpoint, Log
from backchannel.session.checkpoint import packed

# Below that a thread would take longer than what it takes off the event loop.
_LARGE_BYTES: Final = 1024 * 1024


class Record(NamedTuple):
    """A session's state after event `seq`, in lines that are still to be put together."""

    seq: int
    lines: Sequence[bytes]


async def save(log: Log, session_id: str, record: Record) -> None:
    """Make it the session's checkpoint.

    Raises:
        AppendConflictError: There is a newer one.
        BackchannelError: `SESSION_NOT_FOUND`, `LOG_UNAVAILABLE`.
    """
    if sum(map(len, record.lines)) < _LARGE_BYTES:
        state = packed(record.lines)
    else:
        state = await asyncio.to_thread(packed, record.lines)
    await log.save_checkpoint(session_id, Checkpoint(record.seq, state))
