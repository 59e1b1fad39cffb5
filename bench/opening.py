"""How long a long session takes to open: `python -m bench.opening [EVENTS] [TOKENS_A_TURN]`.

Makes the session first, by having the scripted engine count in a host on an SQLite file, then opens
it several times, each time from a log that was just opened. Prints what it took, what of it was the
session's newest checkpoint, and how long the making of a checkpoint held up the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import structlog

from backchannel.engines.registry import EngineRegistry
from backchannel.host.host import Host
from backchannel.log.sqlite import SqliteLog
from backchannel.v1 import frame_pb2, session_pb2

NAME: Final = "a-session-id-of-some-length"
TIMES: Final = 9


@asynccontextmanager
async def hosting(path: Path) -> AsyncIterator[tuple[Host, SqliteLog]]:
    """A host on the log."""
    async with (
        SqliteLog(path) as log,
        EngineRegistry({"scripted": {}}, plugins=()) as engines,
        Host(log=log, engines=engines) as host,
    ):
        yield host, log


async def make(path: Path, events: int, tokens: int) -> tuple[int, int]:
    """A session of at least so many events; how many there are, in how many turns."""
    async with hosting(path) as (host, _):
        config = session_pb2.SessionConfig(session_id=NAME, model="scripted/count")
        config.sampling.max_tokens = tokens
        live = (await host.sessions.create(config)).live
        turns = 0
        while live.ledger.committed_seq < events:
            turns += 1
            frame = frame_pb2.ClientFrame(frame_id=f"frame-{turns}")
            frame.message.parts.add(text=f"message {turns}")
            await live.send(frame)
            await live.rest()
        return live.ledger.committed_seq, turns


async def main(events: int, tokens: int) -> None:
    """Measure, and print."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.db"
        made, turns = await make(path, events, tokens)
        opened_ms, saved_ms = [], []
        record = stored = None
        for _ in range(TIMES):
            async with hosting(path) as (host, log):
                start = time.perf_counter()
                live = await host.sessions.get(NAME)
                opened_ms.append((time.perf_counter() - start) * 1e3)
                start = time.perf_counter()
                record = live.checkpoint()
                saved_ms.append((time.perf_counter() - start) * 1e3)
                stored = await log.load(NAME)
        assert record is not None
        assert stored is not None
        assert stored.checkpoint is not None
        print(f"{made} events, {turns} turns, {path.stat().st_size / 1e6:.1f} MB")
        print(f"checkpoint at {stored.checkpoint.seq}, {len(stored.checkpoint.state) / 1e3:.0f} kB")
        print(f"opened in {statistics.median(opened_ms):.1f} ms ({max(opened_ms):.1f} at most)")
        print(f"a checkpoint holds up the loop for {statistics.median(saved_ms):.2f} ms")


if __name__ == "__main__":
    asyncio.run(main(*map(int, (sys.argv[1:] + ["100000", "98"][len(sys.argv) - 1 :]))))
