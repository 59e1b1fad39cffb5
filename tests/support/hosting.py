"""A host to test against, and what reads and breaks it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from backchannel.engines.registry import EngineRegistry
from backchannel.errors import BackchannelError, Reason
from backchannel.host.config import HostConfig
from backchannel.host.host import Host
from backchannel.host.live import LiveSession
from backchannel.host.reader import Reader
from backchannel.host.sessions import Created
from backchannel.log.memory import MemoryLog
from backchannel.log.protocol import Append, Log
from backchannel.v1 import event_pb2, frame_pb2, session_pb2
from tests.support.clock import ManualClock

PATIENCE_S = 20.0


class ShakyLog(MemoryLog):
    """A memory log that can be made to refuse, to hang and to remember what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.refuse: BaseException | None = None
        self.refuse_if: Callable[[Append], bool] = lambda _: True
        self.gate: asyncio.Event | None = None
        self.batches: list[Sequence[Append]] = []

    async def append(self, batch: Sequence[Append]) -> None:
        self.batches.append(batch)
        if self.gate is not None:
            await self.gate.wait()
        if self.refuse is not None and any(map(self.refuse_if, batch)):
            raise self.refuse
        await super().append(batch)


def log_down() -> BackchannelError:
    return BackchannelError(Reason.LOG_UNAVAILABLE, "the disk is full")


@dataclass
class Running:
    """A host with its surroundings."""

    host: Host
    log: Log
    clock: ManualClock
    engines: EngineRegistry

    async def create(self, model: str = "scripted/count", **fields: Any) -> Created:
        return await self.host.sessions.create(config(model, **fields))


@asynccontextmanager
async def hosting(
    log: Log | None = None,
    *,
    clock: ManualClock | None = None,
    settings: HostConfig | None = None,
    registry: EngineRegistry | None = None,
) -> AsyncIterator[Running]:
    """A host on a log (memory, unless another is given) with the scripted engine, or others."""
    clock = clock or ManualClock()
    async with (
        log or ShakyLog() as opened,
        registry or EngineRegistry({"scripted": {}}, plugins=()) as engines,
        Host(
            log=opened, engines=engines, config=settings, clock=clock, rng=random.Random(7)
        ) as host,
    ):
        yield Running(host, opened, clock, engines)


def config(
    model: str = "scripted/count",
    *,
    session_id: str = "",
    max_tokens: int = 0,
    tools: Sequence[str] = (),
    action: session_pb2.DisconnectPolicy.Action.ValueType | None = None,
    grace_s: int | None = None,
    **options: str,
) -> session_pb2.SessionConfig:
    """A configuration; further arguments are engine options."""
    made = session_pb2.SessionConfig(model=model, engine_options=options)
    if session_id:
        made.session_id = session_id
    if max_tokens:
        made.sampling.max_tokens = max_tokens
    made.tools.extend(session_pb2.ToolSpec(name=name) for name in tools)
    if action:
        made.on_disconnect.action = action
    if grace_s is not None:
        made.on_disconnect.grace.seconds = grace_s
    return made


def say(text: str = "go", frame_id: str = "") -> frame_pb2.ClientFrame:
    frame = frame_pb2.ClientFrame(frame_id=frame_id)
    frame.message.parts.add(text=text)
    return frame


def interrupt(turn_id: str, frame_id: str = "stop") -> frame_pb2.ClientFrame:
    frame = frame_pb2.ClientFrame(frame_id=frame_id)
    frame.interrupt.turn_id = turn_id
    return frame


def kind(event: event_pb2.Event) -> str:
    return event.WhichOneof("kind") or ""


class Stream:
    """What one reader has been handed, frame by frame."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.frames: list[frame_pb2.ServerFrame] = []
        self.events: list[event_pb2.Event] = []
        self.receipts: list[frame_pb2.Receipt] = []
        self.heartbeats: list[frame_pb2.Heartbeat] = []
        self.snapshots: list[frame_pb2.Snapshot] = []
        self.ended = False

    async def next(self) -> frame_pb2.ServerFrame | None:
        """The next frame; None at the end."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                frame = frame_pb2.ServerFrame.FromString(await anext(self.reader))
            except StopAsyncIteration:
                self.ended = True
                return None
        self.frames.append(frame)
        self.events.extend(frame.events)
        if frame.HasField("receipt"):
            self.receipts.append(frame.receipt)
        if frame.HasField("heartbeat"):
            self.heartbeats.append(frame.heartbeat)
        if frame.HasField("snapshot"):
            self.snapshots.append(frame.snapshot)
        return frame

    async def until(self, wanted: str | Callable[[Stream], bool]) -> Stream:
        """Read until an event of that kind has come, or until the stream looks so."""
        while not (
            wanted(self)
            if callable(wanted)
            else any(kind(event) == wanted for event in self.events)
        ):
            assert await self.next() is not None, f"ended before {wanted}: {self.kinds}"
        return self

    async def to_end(self) -> Stream:
        """Read until it ends."""
        while await self.next() is not None:
            pass
        return self

    @property
    def kinds(self) -> list[str]:
        return [kind(event) for event in self.events]

    @property
    def seqs(self) -> list[int]:
        return [event.seq for event in self.events]

    @property
    def text(self) -> str:
        return "".join(event.output_delta.text for event in self.events)

    @property
    def turn_id(self) -> str:
        return next(e.turn_started.turn_id for e in self.events if kind(e) == "turn_started")

    def close(self) -> None:
        self.reader.close()


def attach(
    live: LiveSession, after_seq: int = 0, *, snapshot: bool = False, max_lag_events: int = 0
) -> Stream:
    return Stream(live.attach(after_seq, snapshot=snapshot, max_lag_events=max_lag_events))
