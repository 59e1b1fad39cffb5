"""What is the memory log's own: its bounds."""

from __future__ import annotations

import pytest

from backchannel.errors import BackchannelError, Reason
from backchannel.log.memory import MemoryLog
from backchannel.log.protocol import Checkpoint, Survival
from tests.unit.log.backends import OTHER, SESSION, T0, S, create, events, more, read_all


async def test_it_survives_nothing_and_says_so() -> None:
    async with MemoryLog() as log:
        assert (log.survival, log.address) == (Survival.NOTHING, "memory")


async def test_it_refuses_what_goes_beyond_its_bytes_and_goes_on_when_there_is_room() -> None:
    async with MemoryLog(max_bytes=20_000) as log:
        await log.append([create(size=8_000), create(OTHER)])
        with pytest.raises(BackchannelError) as caught:
            await log.append([more(2, session_id=OTHER), more(2, size=12_000)])
        assert caught.value.reason is Reason.LOG_UNAVAILABLE
        assert "sqlite" in caught.value.message
        assert await read_all(log, OTHER) == events(1, 1)
        await log.save_checkpoint(SESSION, Checkpoint(1, b""))
        await log.trim(SESSION, 1)
        await log.append([more(2, session_id=OTHER), more(2, size=12_000)])
        await log.delete(SESSION, T0)
        await log.append([more(3, size=14_000, session_id=OTHER)])


async def test_it_forgets_nothing_of_its_account_of_bytes() -> None:
    async with MemoryLog(max_bytes=50_000) as log:
        for n in range(1000):
            session_id = f"session-{n:016}"
            await log.append([create(session_id, 10, size=500)])
            await log.append([more(11, 10, session_id, size=500)])
            await log.save_checkpoint(session_id, Checkpoint(11, b"x" * 100))
            await log.trim(session_id, 5)
            await log.delete(session_id, T0)
        assert await log.count() == 0


async def test_it_remembers_a_bounded_number_of_tombstones() -> None:
    async with MemoryLog(max_tombstones=3) as log:
        ids = [f"session-{n:016}" for n in range(5)]
        for n, session_id in enumerate(ids):
            await log.append([create(session_id)])
            await log.delete(session_id, T0 + (10 - n) * S)
        kept = [session_id for session_id in ids if await log.retired_until_ns(session_id)]
        # The one whose time ends first has gone each time.
        assert len(kept) == 3
        assert ids[0] in kept
        assert ids[4] not in kept
