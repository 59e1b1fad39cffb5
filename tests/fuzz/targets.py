"""What is fuzzed, and what must hold whatever comes: only errors of the table are raised."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Final, TypeVar, cast
from zlib import crc32

from google.protobuf.message import DecodeError

from backchannel.errors import BackchannelError, Reason, reason_of
from backchannel.host.live import LiveSession
from backchannel.host.loading import Loader
from backchannel.host.paging import from_token
from backchannel.host.reader import Reader
from backchannel.log.protocol import Checkpoint, Log
from backchannel.rpc import conversation
from backchannel.rpc.wire import client_frame, parsing
from backchannel.session import checkpoint as checkpoints
from backchannel.session.session import Session
from backchannel.session.table import Phase
from backchannel.session.transcript import messages, past
from backchannel.v1 import browser_service_pb2, event_pb2, frame_pb2, session_pb2
from backchannel.v1 import conversation_service_pb2 as pb
from backchannel_gateway import doors
from tests.fuzz.fuzzing import Bender, Report, corpus, fuzz
from tests.support.hosting import hosting
from tests.unit.session.driver import Driver, durable, kind_of, tool
from tests.unit.session.golden_files import recorded
from tests.unit.session.histories import HISTORIES

IDS: Final = [
    *(f"{kind}-{number}" for kind in ("turn", "call", "frame") for number in range(1, 9)),
    *("m1", "m2", "i1", "r1", "r2", "s1", "p1", "look", "later"),
]
T = TypeVar("T")


def reason(error: BackchannelError, *allowed: Reason) -> str:
    """Its row in the table; a status can be made of it, and it is nobody's bug."""
    assert error.reason is not Reason.INTERNAL
    assert not allowed or error.reason in allowed, error.reason
    status = error.to_status()
    assert reason_of(status) == error.reason.name
    return f"{error.reason.name} {error.field}"


# --- frames --------------------------------------------------------------------------------------


def _waiting() -> Driver:
    driver = Driver(tools=[tool(), tool("later", blocking=False)])
    driver.say("one", "m1")
    driver.text("I will")
    driver.call("later")
    driver.call()
    driver.finish("tool_calls")
    return driver


def _speaking() -> Driver:
    driver = Driver(tools=[tool(), tool("later", blocking=False)])
    driver.answer("Hello", " there.")
    driver.say("go on", "m1")
    driver.say("and then", "m2")
    driver.text("I", " am")
    return driver


class Frames:
    """A client's frames as bytes, against sessions that are in the middle of something."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.bender = Bender(rng, IDS, frame_pb2.ClientFrame)
        busy: list[Callable[[], Driver]] = [_waiting, _speaking]
        self.bases = [*busy * 4, *HISTORIES.values()]
        self.numbers = itertools.count(1)
        self.driver = Driver()

    def bend(self, data: bytes, other: bytes) -> bytes:
        """Bend it, and most often aim it at something that there is in this conversation."""
        data = self.bender.bend(data, other)
        if self.rng.random() < 0.4:
            return data
        frame = frame_pb2.ClientFrame()
        try:
            frame.ParseFromString(data)
        except DecodeError:
            return data
        state = self.driver.state
        frame.frame_id = f"aimed-{next(self.numbers)}"
        kind = frame.WhichOneof("frame")
        if kind in ("tool_result", "tool_progress") and state.calls:
            calls = list(state.open) if state.open else list(state.calls)
            getattr(frame, kind).call_id = self.rng.choice(calls)
        elif kind == "interrupt" and state.turns and not frame.interrupt.target_frame_id:
            frame.interrupt.turn_id = state.turns[-1].turn_id
        return frame.SerializeToString()

    def again(self) -> None:
        """See that whoever reads the log knows the same, and begin another conversation."""
        driver = self.driver
        assert durable(driver.folded().state) == durable(driver.state)
        driver.session.snapshots(max_bytes=2_000)
        past(driver.state)
        if driver.session.quiescent:
            assert checkpoints.load(driver.session.checkpoint()).last_seq == len(driver.events)
        self.driver = self.rng.choice(self.bases)()

    def execute(self, data: bytes) -> object:
        """Decode and accept it, and let something else happen at times."""
        driver = self.driver
        try:
            frame = client_frame(data)
        except BackchannelError as error:
            return reason(error)
        before = len(driver.events)
        receipt = driver.send(frame)
        said = reason_of(receipt.error)
        if receipt.status == frame_pb2.RECEIPT_STATUS_REJECTED:
            assert said in Reason.__members__, said
            assert said not in ("INTERNAL", "LOG_CORRUPT")
            assert len(driver.events) == before, "a refused frame changed something"
        else:
            assert not receipt.HasField("error")
        kinds = tuple(driver.kinds(before))
        if self.rng.random() < 0.2:
            self._stir()
        return frame.WhichOneof("frame"), receipt.status, said, receipt.delivery, kinds

    def _stir(self) -> None:
        """Something that is no frame: the engine, the clock, the readers."""
        driver, rng = self.driver, self.rng
        match rng.randrange(7):
            case 0:
                driver.advance(rng.choice((0.1, 2, 61)))
            case 1:
                driver.attach(rng.choice((0, 1)))
            case 2:
                driver.lose(engine_continues=rng.random() < 0.5)
                driver.attach()
            case _ if driver.live is None:
                driver.attach()
            case 3 if not driver.live.stopped:
                driver.end_call(driver.begin_call(rng.choice(("look", "later", "none"))))
            case 4 | 5:
                driver.text(rng.choice((" word", "end. ", "\n", "\U0001f600")))
            case _:
                driver.finish(rng.choice(("stop", "tool_calls", "length")))


# --- logs ----------------------------------------------------------------------------------------


class Records:
    """A log that holds these bytes, as far as folding them needs one."""

    address = "the records of a test"

    def __init__(self, checkpoint: bytes, records: Sequence[bytes]) -> None:
        self.records = records
        kept = None
        if checkpoint:
            kept = Checkpoint(seq=0, state=checkpoint)
        self.stored = SimpleNamespace(earliest_seq=1, last_seq=len(records), checkpoint=kept)

    async def load(self, session_id: str) -> Any:
        return self.stored

    async def read(
        self, session_id: str, after_seq: int, *, max_events: int, max_bytes: int
    ) -> Sequence[bytes]:
        return self.records[after_seq : after_seq + max_events]


def at_once(steps: Coroutine[Any, Any, T]) -> T:
    """Run something that waits for nothing."""
    try:
        while True:
            steps.send(None)
    except StopIteration as done:
        return cast(T, done.value)


class Logs:
    """Records of a log as bytes: some are broken, lost, doubled or in another order.

    An input is the records, each after its length in four bytes.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.bender = Bender(rng, IDS, event_pb2.Event)

    @staticmethod
    def seeds() -> list[bytes]:
        """Every recorded log, and what was found."""
        logs = [[one.SerializeToString() for one in golden.events] for golden in recorded()]
        return [*map(joined, logs), *corpus("logs")]

    def bend(self, data: bytes, other: bytes) -> bytes:
        """A log with something wrong in it."""
        rng, log = self.rng, parted(data)
        for _ in range(1 + int(rng.expovariate(1.5))):
            if not log:
                break
            at = rng.randrange(len(log))
            match rng.randrange(10):
                case 0:
                    del log[at]
                case 1:
                    log.insert(at, rng.choice(parted(other) or [b""]))
                case 2:
                    place = rng.randrange(len(log))
                    log[at], log[place] = log[place], log[at]
                case _:
                    log[at] = self.bender.bend(log[at], rng.choice(log))
            # What comes long after the damage seldom matters.
            del log[at + rng.choice((1, 2, 4, 1000)) :]
        return joined(_numbered(log) if rng.random() < 0.7 else log)

    def execute(self, data: bytes) -> object:
        """Fold it as a server does at its start, and go on with what comes out."""
        records = parted(data)
        log = cast(Log, Records(b"", records))
        numbers = itertools.count(1)
        ids: Callable[[str], str] = lambda prefix: f"new-{prefix}-{next(numbers)}"  # noqa: E731
        try:
            session = at_once(Loader(log, ids, chunk_events=7).load("a-session"))
            if session is None:
                return "none"
        except BackchannelError as error:
            said = reason(error, Reason.LOG_CORRUPT, Reason.CURSOR_BEYOND_END)
            # Which event it was says little; what was wrong with it does.
            return said, re.sub(r"\d+", "", error.message)
        try:
            return self._go_on(session, records)
        except BackchannelError as error:
            return reason(error, Reason.LOG_CORRUPT), "later"

    def _go_on(self, session: Session, records: Sequence[bytes]) -> object:
        state = session.state
        now_ns = state.update_ns + 1
        session.view().SerializeToString()
        for part in session.snapshots(max_bytes=2_000):
            part.SerializeToString()
        past(state)
        if session.quiescent:
            checkpoints.load(session.checkpoint())
        before = state.phase
        decisions = [
            session.recover(now_ns, engine_continues=self.rng.random() < 0.5),
            session.readers_changed(1, now_ns),
            session.accept(HELLO, now_ns),
            session.tick(now_ns + 10**12),
            session.close("DELETED", now_ns),
        ]
        written = [event for one in decisions for event in one.events]
        events = [*map(event_pb2.Event.FromString, records), *written]
        whole = Session.fold(None, events, ids=str)
        assert whole.state.phase is Phase.CLOSED
        return before, tuple(map(kind_of, written))


HELLO: Final = frame_pb2.ClientFrame(
    frame_id="fuzz", message=session_pb2.UserMessage(parts=[session_pb2.Part(text="hello")])
)


def _numbered(log: list[bytes]) -> list[bytes]:
    """The numbers mended, so that the fold gets further."""
    mended = []
    for seq, raw in enumerate(log, 1):
        try:
            event = event_pb2.Event.FromString(raw)
        except DecodeError:
            mended.append(raw)
            continue
        event.seq = seq
        mended.append(event.SerializeToString())
    return mended


def joined(records: Sequence[bytes]) -> bytes:
    """Records as one input."""
    return b"".join(len(one).to_bytes(4, "big") + one for one in records)


def parted(data: bytes) -> list[bytes]:
    """The records of an input."""
    records = []
    while len(data) >= 4:
        size = int.from_bytes(data[:4], "big")
        records.append(data[4 : 4 + size])
        data = data[4 + size :]
    return records


# --- checkpoints ---------------------------------------------------------------------------------


class Checkpoints:
    """Checkpoints as bytes, or as lines of JSON whose seal is mended."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.bender = Bender(rng, IDS)

    @staticmethod
    def seeds() -> list[bytes]:
        """Recorded ones of all versions."""
        return [
            golden.checkpoint_file.read_bytes()
            for golden in recorded()
            if golden.checkpoint_file.exists()
        ]

    def bend(self, data: bytes, other: bytes) -> bytes:
        """Break the bytes, or one value."""
        if self.rng.random() < 0.2:
            return self.bender.bend(data, other)
        lines = data[8:].split(b"\n")
        place = self.rng.randrange(len(lines))
        try:
            record = json.loads(lines[place])
        except ValueError:
            lines[place] = self.bender.bend(lines[place], other)
        else:
            self._change(record)
            lines[place] = json.dumps(record).encode()
        return sealed(b"\n".join(lines))

    def _change(self, value: Any) -> None:
        """Replace, remove or repeat something somewhere in it."""
        rng = self.rng
        while isinstance(value, (dict, list)) and value:
            key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
            inner = value[key]
            if isinstance(inner, (dict, list)) and inner and rng.random() < 0.8:
                value = inner
                continue
            match rng.randrange(6):
                case 0:
                    del value[key]
                case 1 if isinstance(value, list):
                    value.insert(key, inner)
                case 2 if isinstance(inner, str):
                    value[key] = self.bender.bend(inner.encode(errors="ignore"), b"AAAA").decode(
                        errors="ignore"
                    )
                case 3 if isinstance(inner, int):
                    value[key] = inner + rng.choice((-(2**63), -1, 1, 2**31, 2**64))
                case _:
                    value[key] = rng.choice(ODD)
            return

    def execute(self, data: bytes) -> object:
        """Decode it."""
        try:
            state = checkpoints.load(data)
            # Turns and frames are read when they are asked for.
            found = len(list(state.turns)), len(state.queue), len(list(state.calls.values()))
            _ = list(state.frames.applied())
        except BackchannelError as error:
            said = reason(error, Reason.LOG_CORRUPT)
            return said, type(error.__cause__), str(error.__cause__)[:20]
        return found


ODD: Final[tuple[object, ...]] = (
    None,
    True,
    -1,
    0,
    2**64,
    1e300,
    "",
    "\ud800",
    "x",
    "AAAA",
    [],
    [[]],
    {},
    {"a": 1},
)


def sealed(body: bytes) -> bytes:
    """A checkpoint whose checksum fits."""
    return b"%08x" % crc32(body) + body


# --- results of tools ----------------------------------------------------------------------------


class ToolJson:
    """The JSON of a tool's results: what is taken can be told to a model, and means the same."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.bender = Bender(rng, WORDS)
        self.taken = 0

    @staticmethod
    def seeds() -> list[bytes]:
        """Values of every kind, and what was found."""
        return corpus("tool_json")

    def bend(self, data: bytes, other: bytes) -> bytes:
        """Break the bytes, or put values into each other."""
        match self.rng.randrange(8):
            case 0:
                return b"[" + data + b"," + other + b"]"
            case 1:
                return b'{"k":' + data + b"}"
            case 2:
                return b"[" * self.rng.choice((1, 127, 128, 1000)) + data
        return self.bender.bend(data, other)

    def again(self) -> None:
        """Another call that waits for its result."""
        self.driver = Driver(tools=[tool()])
        self.driver.say("look")
        self.call_id = self.driver.call()
        self.driver.finish("tool_calls")
        self.values: list[object] = []

    def execute(self, data: bytes) -> object:
        """Send it as a part of a result, or as the end of one."""
        text = data.decode(errors="replace")
        final = self.rng.random() < 0.1
        receipt = self.driver.result(self.call_id, json=text, partial=not final)
        if receipt.status == frame_pb2.RECEIPT_STATUS_REJECTED:
            said = reason_of(receipt.error)
            assert said in ("FIELD_INVALID", "FIELD_TOO_LONG"), said
            return said, re.sub(r"\d+|'.*'|\".*\"", "", receipt.error.message)[:80]
        self.values.append(json.loads(text))
        self.taken += 1
        if not final:
            return "part", type(self.values[-1])
        told = "".join(part.text for part in messages(self.driver.state)[-1].parts)
        told.encode()
        # As any engine's template may have to put it into its own JSON.
        json.dumps({"content": told}, allow_nan=False).encode()
        expected = self.values if len(self.values) > 1 else self.values[0]
        assert json.dumps(json.loads(told)) == json.dumps(expected)
        json.dumps(expected, allow_nan=False)
        assert durable(self.driver.folded().state) == durable(self.driver.state)
        values = len(self.values)
        self.again()
        return "whole", values > 1, type(expected)


WORDS: Final = (
    *("1e400", "-0", "NaN", "Infinity", "-Infinity", "1e-400", "\\ud800", "\\u0000", "9" * 500),
    *("true", "null", '"a":', '{"a":1,"a":2}', "\ufeff", "[]", "{}", "//", ",", "\u2028"),
)


# --- cursors -------------------------------------------------------------------------------------


class Cursors:
    """Where to go on: a request's bytes, the header of a browser, a page's token.

    The first byte of an input says what the others are.
    """

    def __init__(self, rng: random.Random, live: LiveSession, earliest_seq: int) -> None:
        self.rng = rng
        self.live = live
        self.earliest_seq = earliest_seq
        self.last_seq = live.ledger.committed_seq
        edges = [seq + by for seq in (earliest_seq, self.last_seq) for by in (-2, -1, 0, 1)]
        self.messages = {
            0: Bender(rng, IDS, pb.AttachRequest, edges),
            1: Bender(rng, IDS, browser_service_pb2.StreamEventsRequest, edges),
            2: Bender(rng, IDS, frame_pb2.Resume, edges),
        }
        self.text = Bender(
            rng, [*map(str, edges), str(2**64 - 1), str(2**64), "٣", "+1", "1_0", " 1", "0x1", "²"]
        )

    @staticmethod
    def seeds() -> list[bytes]:
        """One of each kind, and what was found."""
        return corpus("cursors")

    def bend(self, data: bytes, other: bytes) -> bytes:
        """The rest, by what it is."""
        if not data:
            return other
        return data[:1] + self.messages.get(data[0], self.text).bend(data[1:], other[1:])

    def execute(self, data: bytes) -> object:
        """Attach there and read one frame, or read the place."""
        which, rest = data[:1], data[1:]
        try:
            match which:
                case b"\0":
                    return self._read(_reader, parsing(pb.AttachRequest.FromString)(rest))
                case b"\1":
                    return self._read(
                        _stream, parsing(browser_service_pb2.StreamEventsRequest.FromString)(rest)
                    )
                case b"\2":
                    return self._read(_reader, parsing(frame_pb2.Resume.FromString)(rest))
                case b"\3":
                    return self._header(rest.decode(errors="replace"))
                case _:
                    place = from_token(rest.decode(errors="replace"))
                    return place is None
        except BackchannelError as error:
            return which, reason(error)

    def _header(self, text: str) -> object:
        context = SimpleNamespace(invocation_metadata=lambda: (("last-event-id", text),))
        seq = doors._last_event_id(cast(Any, context))
        wanted = browser_service_pb2.StreamEventsRequest(snapshot=self.rng.random() < 0.5)
        return self._read(lambda live, one: doors._attach(live, one, seq), wanted, seq or 0)

    def _read(
        self, attach: Callable[[LiveSession, Any], Reader], wanted: Any, seq: int | None = None
    ) -> object:
        with attach(self.live, wanted) as reader:
            frame = frame_pb2.ServerFrame.FromString(at_once(reader.__anext__()))
        after_seq = wanted.after_seq if seq is None else seq
        if frame.HasField("snapshot"):
            assert wanted.snapshot
            return "snapshot"
        if frame.HasField("heartbeat"):
            assert frame.heartbeat.seq == after_seq == self.last_seq
            return "end"
        assert frame.events[0].seq == after_seq + 1
        assert self.earliest_seq <= after_seq + 1 <= self.last_seq
        return "events", after_seq + 1 == self.earliest_seq


def _reader(live: LiveSession, wanted: Any) -> Reader:
    return conversation._reader(live, wanted)


def _stream(live: LiveSession, wanted: browser_service_pb2.StreamEventsRequest) -> Reader:
    return doors._attach(live, wanted, None)


# --- all of them ---------------------------------------------------------------------------------


def fuzz_frames(rng: random.Random, executions: int) -> Report:
    target = Frames(rng)
    return fuzz(target.execute, target.bend, corpus("frames"), executions, rng, target.again)


def fuzz_logs(rng: random.Random, executions: int) -> Report:
    target = Logs(rng)
    return fuzz(target.execute, target.bend, target.seeds(), executions, rng)


def fuzz_checkpoints(rng: random.Random, executions: int) -> Report:
    target = Checkpoints(rng)
    return fuzz(target.execute, target.bend, target.seeds(), executions, rng)


def fuzz_tool_json(rng: random.Random, executions: int) -> Report:
    target = ToolJson(rng)
    return fuzz(target.execute, target.bend, target.seeds(), executions, rng, target.again)


def fuzz_cursors(rng: random.Random, executions: int) -> Report:
    async def attached() -> Report:
        async with hosting() as running:
            made = await running.create(max_tokens=200)
            stream = made.live.attach(0, snapshot=False)
            await made.live.send(HELLO)
            frame = frame_pb2.ServerFrame()
            while not any(kind_of(one) == "turn_finished" for one in frame.events):
                frame = frame_pb2.ServerFrame.FromString(await anext(stream))
            stream.close()
            earliest_seq = 50
            made.live._core.earliest_seq = earliest_seq  # As retention leaves it.
            target = Cursors(rng, made.live, earliest_seq)
            return fuzz(target.execute, target.bend, target.seeds(), executions, rng)

    return asyncio.run(attached())


TARGETS: Final[Mapping[str, Callable[[random.Random, int], Report]]] = {
    "frames": fuzz_frames,
    "logs": fuzz_logs,
    "checkpoints": fuzz_checkpoints,
    "cursors": fuzz_cursors,
    "tool_json": fuzz_tool_json,
}
