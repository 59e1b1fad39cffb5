"""A host whose log hangs and refuses, and whose process is lost at any await: what the log has.

Frames are sent and sent again, readers come and go, time passes a few steps of the event loop at
a time. A lost process writes nothing any more, not even what its log had in hand, or that just
yet; the next one takes the same log over. In the end the log is read as a client would read it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from backchannel.engines.registry import EngineRegistry
from backchannel.errors import BackchannelError
from backchannel.host.host import Host
from backchannel.log.memory import MemoryLog
from backchannel.log.protocol import Append
from backchannel.v1 import event_pb2, frame_pb2, session_pb2
from tests.scale import scale
from tests.support.clock import ManualClock, settle
from tests.support.hosting import Stream, attach, config, kind, log_down
from tests.unit.session.promises import Reading

# Random, and so as long as the machine lets it be.
pytestmark = pytest.mark.timeout(scale(300, 3600))

NAME = "a-session-id-of-some-length"
STEPS = (
    *("say", "say", "steer", "cut", "stop", "result", "again", "again", "wait", "wait", "read"),
    *("read", "leave", "hang", "hang", "refuse", "let", "let", "let", "lose"),
)


class Disk(MemoryLog):
    """What outlives a process. It may hang before it writes, or after, and refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.refuses = False
        self.before, self.after = asyncio.Event(), asyncio.Event()
        self.let()

    def let(self) -> None:
        """Go on."""
        self.refuses = False
        self.before.set()
        self.after.set()

    async def append(self, batch: Sequence[Append]) -> None:
        await self.before.wait()
        if self.refuses:
            raise log_down()
        await super().append(batch)
        await self.after.wait()

    async def all(self) -> list[event_pb2.Event]:
        raw = await self.read(NAME, 0, max_events=100_000, max_bytes=1 << 30)
        return [event_pb2.Event.FromString(one) for one in raw]


class Story:
    """One session, through the lives of several processes."""

    def __init__(self, engines: EngineRegistry, seed: int) -> None:
        self.engines, self.rng = engines, random.Random(seed)
        self.disk, self.clock = Disk(), ManualClock()
        self.frames: dict[str, frame_pb2.ClientFrame] = {}
        self.receipts: dict[str, frame_pb2.Receipt] = {}
        self.accepted: set[str] = set()
        self.read: dict[int, event_pb2.Event] = {}
        self.lost_at: list[int] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.host: Host
        self.process: asyncio.Task[None] | None = None

    # --- processes ------------------------------------------------------------------------------

    async def live(self, born: asyncio.Event) -> None:
        async with Host(
            log=self.disk, engines=self.engines, clock=self.clock, rng=random.Random(7)
        ) as self.host:
            born.set()
            await asyncio.Event().wait()

    async def begin(self) -> None:
        """Another process takes the log over."""
        born = asyncio.Event()
        self.process = asyncio.create_task(self.live(born))
        await born.wait()
        self.tasks.append(asyncio.create_task(self.host.recover()))

    async def lose(self) -> None:
        """Wherever its tasks are: nothing of it is left."""
        assert self.process is not None
        for task in [self.process, *self.tasks]:
            task.cancel()
        await asyncio.gather(self.process, *self.tasks, return_exceptions=True)
        self.tasks = []
        self.disk.let()
        self.lost_at.append(len(await self.disk.all()))

    # --- what people do -------------------------------------------------------------------------

    def send(self, frame: frame_pb2.ClientFrame) -> None:
        self.frames[frame.frame_id] = frame

        async def sending() -> None:
            with contextlib.suppress(BackchannelError):
                receipt = await (await self.host.sessions.get(NAME)).send(frame)
                self.note(receipt)

        self.tasks.append(asyncio.create_task(sending()))

    def note(self, receipt: frame_pb2.Receipt) -> None:
        """A frame that has caused an event is answered the same for ever."""
        if receipt.status == frame_pb2.RECEIPT_STATUS_REJECTED or not receipt.seq:
            return
        first = self.receipts.setdefault(receipt.frame_id, receipt)
        assert (receipt.seq, receipt.turn_id) == (first.seq, first.turn_id)
        if receipt.status == frame_pb2.RECEIPT_STATUS_ACCEPTED:
            assert receipt.frame_id not in self.accepted, "a frame was accepted twice"
            self.accepted.add(receipt.frame_id)

    def attach(self) -> None:
        async def reading() -> None:
            with contextlib.suppress(BackchannelError):
                after = max(self.read, default=0) if self.rng.random() < 0.5 else 0
                stream = attach(await self.host.sessions.get(NAME), after)
                try:
                    await self.follow(stream, after)
                finally:
                    stream.close()

        self.tasks.append(asyncio.create_task(reading()))

    async def follow(self, stream: Stream, after: int) -> None:
        """Every event is in the log before it is seen, and is the next, and is never another."""
        while True:
            frame = frame_pb2.ServerFrame.FromString(await anext(stream.reader))
            last = len(await self.disk.all())
            for event in frame.events:
                after += 1
                assert event.seq == after, "a reader misses something"
                assert event.seq <= last, "delivered before it was durable"
                assert self.read.setdefault(event.seq, event) == event, "the past has changed"

    async def step(self, number: int, what: str) -> None:
        frame = frame_pb2.ClientFrame(frame_id=f"f{number}")
        events = await self.disk.all()
        match what:
            case "say" | "steer" | "cut":
                deliveries = session_pb2.Delivery
                delivery = {"say": "QUEUE", "steer": "STEER", "cut": "INTERRUPT"}[what]
                frame.message.parts.add(text="go")
                frame.message.delivery = deliveries.Value(f"DELIVERY_{delivery}")
                self.send(frame)
            case "stop":
                turns = [one.turn_started.turn_id for one in events if kind(one) == "turn_started"]
                frame.interrupt.turn_id = turns[-1] if turns else "none"
                self.send(frame)
            case "result":
                calls = [one for one in events if kind(one) == "tool_call_ready"]
                if calls:
                    frame.tool_result.call_id = calls[-1].tool_call_ready.call_id
                    frame.tool_result.json = "1"
                    self.send(frame)
            case "again" if self.frames:
                self.send(self.frames[self.rng.choice(list(self.frames))])
            case "wait":
                await self.clock.advance(self.rng.choice([0.05, 0.3, 3.0, 31.0]))
            case "read":
                self.attach()
            case "leave" if self.tasks:
                self.rng.choice(self.tasks).cancel()
            case "hang":
                self.rng.choice([self.disk.before, self.disk.after]).clear()
            case "refuse":
                self.disk.refuses = True
            case "let":
                self.disk.let()
            case "lose":
                await self.lose()
                await self.begin()
        await settle(self.rng.choice([0, 1, 2, 3, 5, 8, 13, 50]))
        for task in [one for one in self.tasks if one.done() and not one.cancelled()]:
            self.tasks.remove(task)
            task.result()

    async def end(self) -> None:
        """Another process finds it, and everybody is patient."""
        await self.lose()
        await self.begin()
        self.attach()
        for number in range(60):
            await self.clock.advance(1)
            # A stalled engine ends for no other reason so soon.
            await self.step(1_000 + number, "stop" if number % 3 == 2 else "result")
        events = await self.disk.all()
        reading = Reading(events, self.lost_at)
        assert reading.running is None, "a turn never ends"
        assert not reading.waiting, "a message was never answered"
        starts = [one.turn_started.turn_id for one in events if kind(one) == "turn_started"]
        ends = [one.turn_finished.turn_id for one in events if kind(one) == "turn_finished"]
        assert starts == ends
        for seq, event in self.read.items():
            assert events[seq - 1] == event, "what was read is not in the log"
        assert len(self.read) == len(events)
        for frame_id, receipt in self.receipts.items():
            assert events[receipt.seq - 1].frame_id == frame_id, "a receipt for nothing"
        own: dict[str, list[str]] = {}
        for event in events:
            if event.frame_id and kind(event) == "input_accepted":
                own.setdefault(event.frame_id, []).append(kind(event))
        assert all(len(kinds) == 1 for kinds in own.values()), "a frame was applied twice"
        await self.lose()


async def tell(model: str, seed: int, steps: Sequence[str]) -> None:
    async with EngineRegistry({"scripted": {}}, plugins=()) as engines:
        story = Story(engines, seed)
        await story.begin()
        await story.host.sessions.create(
            config(model, session_id=NAME, max_tokens=12, tools=["look"], action=None)
        )
        for number, what in enumerate(steps):
            note(what)
            await story.step(number, what)
        await story.end()


@settings(max_examples=scale(60, 2_000))
@given(
    st.sampled_from(["scripted/count", "scripted/tool", "scripted/stall", "scripted/fail"]),
    st.integers(0, 1 << 16),
    st.lists(st.sampled_from(STEPS), min_size=20, max_size=30),
)
def test_whatever_is_lost_the_promises_hold(model: str, seed: int, steps: list[str]) -> None:
    asyncio.run(tell(model, seed, steps))
