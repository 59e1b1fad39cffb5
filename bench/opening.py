"""How long a long session takes to open: `python -m bench.opening [EVENTS] [TOKENS_A_TURN]`.

Makes the session first, by having the scripted engine count in a host on an SQLite file, then opens
it several times, each time from a log that was just opened. Prints what it took, what whoever comes
first has to wait for after that (a message, and the next one; a snapshot), how much memory the
session takes before and after, and how long the making of a checkpoint holds up the event loop.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import structlog

from backchannel.engines.registry import EngineRegistry
from backchannel.host.host import Host
from backchannel.log.sqlite import SqliteLog
from backchannel.session.session import Session
from backchannel.session.transcript import messages
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


class Stopwatch:
    """Times of things done several times, in milliseconds."""

    def __init__(self) -> None:
        self.found: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Time this."""
        start = time.perf_counter()
        yield
        self.found[what].append((time.perf_counter() - start) * 1e3)

    def told(self) -> Iterator[str]:
        """A line for each."""
        for what, times in self.found.items():
            yield f"{what}: {statistics.median(times):.2f} ms ({max(times):.2f} at most)"


def fold(state: bytes) -> Session:
    """A session of its checkpoint alone."""
    return Session.fold(state, (), ids=str)


def weigh(state: bytes) -> Iterator[str]:
    """What a session takes in memory, but for the bytes of the protobuf runtime."""
    gc.collect()
    tracemalloc.start()
    session = fold(state)
    gc.collect()
    yield f"memory once it is open: {tracemalloc.get_traced_memory()[0] / 1e6:.1f} MB"
    messages(session.state)
    gc.collect()
    yield f"memory once a prompt was made: {tracemalloc.get_traced_memory()[0] / 1e6:.1f} MB"
    tracemalloc.stop()


async def main(events: int, tokens: int) -> None:
    """Measure, and print."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.db"
        made, turns = await make(path, events, tokens)
        stored = None
        for _ in range(TIMES):
            async with hosting(path) as (host, log):
                with watch.timing("opened"):
                    live = await host.sessions.get(NAME)
                with watch.timing("a checkpoint holds up the loop for"):
                    live.checkpoint()
                stored = await log.load(NAME)
                assert stored is not None
                assert stored.checkpoint is not None
            session = fold(stored.checkpoint.state)
            with watch.timing("the first prompt takes"):
                messages(session.state)
            with watch.timing("each further prompt"):
                messages(session.state)
            with watch.timing("a snapshot, if a prompt was made"):
                session.snapshots()
            session = fold(stored.checkpoint.state)
            with watch.timing("a snapshot, if none was"):
                session.snapshots()
        assert stored is not None
        assert stored.checkpoint is not None
        print(f"{made} events, {turns} turns, {path.stat().st_size / 1e6:.1f} MB")
        print(f"checkpoint at {stored.checkpoint.seq}, {len(stored.checkpoint.state) / 1e3:.0f} kB")
        for line in (*watch.told(), *weigh(stored.checkpoint.state)):
            print(line)


if __name__ == "__main__":
    asyncio.run(main(*map(int, (sys.argv[1:] + ["100000", "98"][len(sys.argv) - 1 :]))))
