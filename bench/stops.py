"""How fast a stop takes hold, as a client sees it, and what the engine computes after it.

Each sample sends an Interrupt on a running turn at a random moment and takes the time from the
write until `TurnInterrupted` has been read back: the way to the server, the decision, the commit,
and the way back. Waste is the engine's own count of tokens computed after it was told.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from backchannel.v1 import conversation_service_pb2_grpc as service_grpc
from backchannel.v1 import event_pb2, frame_pb2, session_pb2
from bench.servers import Target


@dataclass(frozen=True, slots=True)
class Stop:
    """One stop.

    Attributes:
        interrupted_ms: From writing the frame until `TurnInterrupted` was read.
        finished_ms: Until `TurnFinished` was read: the engine has confirmed.
        wasted_tokens: Computed but never in the log.
        balanced: Whether generated = delivered + wasted.
    """

    interrupted_ms: float
    finished_ms: float
    wasted_tokens: int
    balanced: bool


@dataclass(frozen=True, slots=True)
class Case:
    """What is stopped.

    Attributes:
        model: `engine/name`.
        prompt: What the user says.
        options: Engine options.
        background: Other turns that run at the same time.
        longest_wait_s: The stop comes at a random moment up to so long after the first token.
    """

    model: str
    prompt: str
    options: dict[str, str]
    background: int
    longest_wait_s: float


class _Stream:
    """One Converse."""

    def __init__(self, channel: grpc.aio.Channel, case: Case) -> None:
        self._case = case
        self._call = service_grpc.ConversationServiceStub(channel).Converse()
        self._frames = 0
        self._pending: deque[event_pb2.Event] = deque()

    async def send(self, **kind: object) -> None:
        """Write one frame."""
        self._frames += 1
        frame = frame_pb2.ClientFrame(frame_id=f"f{self._frames}", **kind)  # type: ignore[arg-type]
        await self._call.write(frame)

    async def create(self) -> None:
        """Create the session."""
        config = session_pb2.SessionConfig(
            model=self._case.model, engine_options=self._case.options
        )
        await self.send(open=frame_pb2.Open(create=config))

    async def say(self) -> None:
        """Start a turn."""
        parts = [session_pb2.Part(text=self._case.prompt)]
        await self.send(message=session_pb2.UserMessage(parts=parts))

    async def until(self, *kinds: str) -> event_pb2.Event:
        """Read up to the next event of one of these kinds."""
        while True:
            while self._pending:
                event = self._pending.popleft()
                if event.WhichOneof("kind") in kinds:
                    return event
            frame = await self._call.read()
            if isinstance(frame, frame_pb2.ServerFrame):
                self._pending.extend(frame.events)
            else:
                raise RuntimeError(f"the stream ended: {await self._call.details()}")

    def cancel(self) -> None:
        """Leave."""
        self._call.cancel()


@asynccontextmanager
async def _opened(channel: grpc.aio.Channel, case: Case) -> AsyncIterator[_Stream]:
    stream = _Stream(channel, case)
    try:
        await stream.create()
        yield stream
    finally:
        stream.cancel()


async def _run_on(channel: grpc.aio.Channel, case: Case) -> None:
    """Keep turns running, for company; each in a session of its own, so that none grows."""
    while True:
        async with _opened(channel, case) as stream:
            await stream.say()
            await stream.until("turn_finished")


async def _one(stream: _Stream, case: Case, rng: random.Random) -> Stop | None:
    await stream.say()
    started = await stream.until("turn_started")
    turn_id = started.turn_started.turn_id
    delta = await stream.until("output_delta", "turn_finished")
    if delta.HasField("turn_finished"):
        raise RuntimeError(f"a turn ended without a token: {delta.turn_finished.error.message}")
    await asyncio.sleep(rng.uniform(0, case.longest_wait_s))
    begin = time.perf_counter()
    interrupt = frame_pb2.Interrupt(turn_id=turn_id, displayed_seq=delta.seq)
    await stream.send(interrupt=interrupt)
    event = await stream.until("turn_interrupted", "turn_finished")
    interrupted_ms = (time.perf_counter() - begin) * 1e3
    if event.HasField("turn_finished"):
        return None  # The turn had ended before the stop came.
    usage = (await stream.until("turn_finished")).turn_finished.usage
    return Stop(
        interrupted_ms,
        (time.perf_counter() - begin) * 1e3,
        usage.wasted_tokens,
        usage.generated_tokens == usage.delivered_tokens + usage.wasted_tokens,
    )


async def stops(target: Target, case: Case, count: int, seed: int) -> list[Stop]:
    """Take `count` samples."""
    rng = random.Random(seed)
    taken: list[Stop] = []
    async with grpc.aio.insecure_channel(target.address) as channel, asyncio.TaskGroup() as group:
        company = [group.create_task(_run_on(channel, case)) for _ in range(case.background)]
        while len(taken) < count:
            async with _opened(channel, case) as stream:
                stop = await _one(stream, case, rng)
            if stop is not None:
                taken.append(stop)
        for task in company:
            task.cancel()
    return taken
