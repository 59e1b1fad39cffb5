"""Random conversations. After every step, everything that is promised is looked at again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from backchannel.session.decision import NOTHING
from backchannel.session.table import Phase
from backchannel.v1 import event_pb2, frame_pb2, session_pb2
from tests.scale import scale
from tests.unit.session.driver import (
    ACCEPTED,
    AFTER_GRACE,
    CANCEL_NOW,
    CONTINUE,
    DEADLINE,
    DISCONNECTED,
    DUPLICATE,
    ERROR,
    INTERRUPT,
    LENGTH,
    OWNER_LOST,
    REASONING,
    REJECTED,
    SECOND,
    STALE,
    TEXT,
    TIMED_OUT,
    Driver,
    Run,
    kind_of,
    limits,
    policy,
    seconds,
    tool,
    user,
)
from tests.unit.session.promises import (
    Reading,
    ReadTurn,
    check_folds,
    check_transcript,
    check_view,
    told_by,
)

# Random, and so as long as the machine lets it be.
pytestmark = pytest.mark.timeout(scale(300, 3600))

GRACE_S = 5
TURN_S = 20
IDLE_S = 3
TIMEOUT_S = 8
CONFIRM_S = 2
AFTER_RECOVERY_S = 5

PIECES = st.text(alphabet="ab \n\U0001f600\u0301é", max_size=6)
PICK = st.integers(0, 50)
POSITION = st.one_of(st.none(), st.integers(0, 40))

BAD_FRAMES: list[frame_pb2.ClientFrame] = [
    frame_pb2.ClientFrame(),
    frame_pb2.ClientFrame(message=session_pb2.UserMessage()),
    frame_pb2.ClientFrame(message=user("")),
    frame_pb2.ClientFrame(message=user("x", delivery=session_pb2.Delivery.ValueType(77))),
    frame_pb2.ClientFrame(message=user("x", expected_turn_id="no-such-turn")),
    frame_pb2.ClientFrame(message=user("x", displayed_seq=10**9)),
    frame_pb2.ClientFrame(message=user("x", displayed_offset=10**6)),
    frame_pb2.ClientFrame(ack=frame_pb2.Ack(displayed_seq=10**9)),
    frame_pb2.ClientFrame(ack=frame_pb2.Ack(displayed_offset=10**6)),
    frame_pb2.ClientFrame(interrupt=frame_pb2.Interrupt()),
    frame_pb2.ClientFrame(interrupt=frame_pb2.Interrupt(turn_id="a", target_frame_id="b")),
    frame_pb2.ClientFrame(
        interrupt=frame_pb2.Interrupt(turn_id="a", tools=session_pb2.ToolDisposition.ValueType(77))
    ),
    frame_pb2.ClientFrame(tool_result=session_pb2.ToolResult(call_id="no-such-call", json="1")),
    frame_pb2.ClientFrame(tool_result=session_pb2.ToolResult(call_id="no-such-call")),
    frame_pb2.ClientFrame(tool_result=session_pb2.ToolResult(call_id="x", json="{")),
    frame_pb2.ClientFrame(tool_result=session_pb2.ToolResult(call_id="x", json="1", partial=True)),
    frame_pb2.ClientFrame(tool_progress=frame_pb2.ToolProgress(call_id="no-such-call")),
    frame_pb2.ClientFrame(tool_progress=frame_pb2.ToolProgress(call_id="x", fraction=float("nan"))),
    frame_pb2.ClientFrame(open=frame_pb2.Open()),
    frame_pb2.ClientFrame(close=frame_pb2.Close()),
]

OUTCOMES: list[dict[str, Any]] = [
    {"json": "1"},
    {"json": '{"half": "\\ud800", "n": 1e300}'},
    {"json": "[" * 128 + "]" * 128},
    {"content": session_pb2.Content(parts=[session_pb2.Part(text="seen \U0001f600")])},
    {"content": session_pb2.Content()},
    {"error": session_pb2.ToolError(message="it broke", code="E1")},
    {"error": session_pb2.ToolError()},
]

ARGUMENTS = ["{}", '{"a": 1}', "", "[1]", "{oops", '"\\ud800"']


class Seen:
    """How far the user has seen, as the frames told it."""

    def __init__(self) -> None:
        self.seq = 0
        self.offsets: dict[str, int] = {}

    def tell(self, turn: ReadTurn | None, seq: int, offset: int | None) -> None:
        if offset is None:
            self.seq = max(self.seq, seq)
        elif turn is not None:
            self.offsets[turn.turn_id] = max(self.offsets.get(turn.turn_id, 0), offset)

    def chars(self, turn: ReadTurn) -> int:
        return max(turn.chars_at(self.seq), self.offsets.get(turn.turn_id, 0))


class Conversation(RuleBasedStateMachine):
    """One session with everything that can happen to it."""

    driver: Driver

    def __init__(self) -> None:
        super().__init__()
        self.sent: dict[str, frame_pb2.ClientFrame] = {}
        self.quiet: dict[str, frame_pb2.Receipt] = {}
        self.answered: dict[str, tuple[frame_pb2.ClientFrame, frame_pb2.Receipt]] = {}
        self.checkpoint: tuple[bytes, int] | None = None
        self.lost_at: list[int] = []
        self.seen = Seen()
        self.read = 0
        self.estimated: set[str] = set()
        self.absent_ns = 0
        self.recovered: dict[str, int] = {}
        self.idle_ns: dict[str, int] = {}
        self.draining = False

    @initialize(
        action=st.sampled_from([AFTER_GRACE, AFTER_GRACE, CONTINUE, CANCEL_NOW]),
        grace_s=st.sampled_from([0, GRACE_S, GRACE_S]),
        rounds=st.sampled_from([0, 1, 2, 8, 8]),
        queued=st.integers(1, 3),
        max_tokens=st.sampled_from([None, None, None, 12]),
        readers=st.sampled_from([0, 1, 1, 2]),
    )
    def begin(
        self,
        action: int,
        grace_s: int,
        rounds: int,
        queued: int,
        max_tokens: int | None,
        readers: int,
    ) -> None:
        self.grace_s = grace_s
        self.action = action
        self.max_queued = queued
        self.driver = Driver(
            readers=readers,
            tools=[
                tool("look", idle_timeout=seconds(IDLE_S), timeout=seconds(TIMEOUT_S)),
                tool("wait", idle_timeout=seconds(TIMEOUT_S), timeout=seconds(TIMEOUT_S)),
            ],
            limits=limits(
                max_turn_duration=seconds(TURN_S),
                max_tool_rounds=rounds,
                max_queued_messages=queued,
            ),
            sampling=session_pb2.Sampling(max_tokens=max_tokens),
            on_disconnect=policy(action, grace_s if action == AFTER_GRACE else None),
        )
        self.absent_ns = self.driver.now_ns
        self.settle()

    # --- the pieces of a step ----------------------------------------------------------------

    def settle(self) -> None:
        """Let the timer go off if it is due, and note what the events say."""
        self.driver.advance(0)
        self.note()

    def note(self) -> None:
        """Go through the new events: keep the model of what only the owner knows."""
        driver = self.driver
        for event in driver.events[self.read :]:
            match kind_of(event):
                case "tool_call_ready":
                    ready = event.tool_call_ready
                    self.idle_ns[ready.call_id] = ready.idle_deadline.ToNanoseconds()
                case "turn_finished":
                    self.check_ending(event.turn_finished, event.time.ToNanoseconds())
        self.read = len(driver.events)

    def check_ending(self, finished: event_pb2.TurnFinished, at_ns: int) -> None:
        """What the turn cost, by the engines' own count, and whether its reason is true."""
        driver, turn_id = self.driver, finished.turn_id
        runs = [run for run in driver.runs if run.asked.turn_id == turn_id]
        estimated = turn_id in self.estimated or any(not run.over for run in runs)
        assert finished.usage.estimated == estimated
        if not estimated:
            assert finished.usage.generated_tokens == sum(run.computed for run in runs)
            assert finished.usage.prompt_tokens == 10 * len(runs)
            assert finished.usage.cached_prompt_tokens == 4 * len(runs)
        assert finished.HasField("error") == (finished.finish_reason in (ERROR, OWNER_LOST))
        assert finished.timing.total.ToNanoseconds() >= 0
        turn = next(
            turn for turn in Reading(driver.events, self.lost_at).turns if turn.turn_id == turn_id
        )
        began_ns = driver.events[turn.started_seq - 1].time.ToNanoseconds()
        if finished.finish_reason == DEADLINE:
            assert at_ns >= began_ns + TURN_S * SECOND
        if turn.interrupted is None:
            tokens = turn.tokens
            assert finished.usage.kept_tokens <= tokens

    def send(self, frame: frame_pb2.ClientFrame, *, repeat: bool = False) -> frame_pb2.Receipt:
        """Send a frame, and judge its receipt by what it had been answered before."""
        driver, frame_id = self.driver, frame.frame_id
        before, phase = len(driver.events), driver.state.phase
        reading = Reading(driver.events, self.lost_at)
        receipt = driver.send(frame)
        decision = driver.decisions[-1]
        assert receipt.frame_id == frame_id
        if receipt.status == REJECTED:
            assert not decision.events
            assert not decision.effects
            assert receipt.error.code
            return receipt
        assert not receipt.HasField("error")
        known = self.sent.get(frame_id)
        if known is not None and frame_id in self.answered:
            assert known == frame
            assert receipt.status == DUPLICATE
        if receipt.status in (DUPLICATE, STALE):
            assert not decision.events
            assert receipt.status == STALE or repeat
            if receipt.status == STALE:
                self.saw(frame, reading)
                if frame_id:
                    self.sent[frame_id] = frame
                    self.quiet[frame_id] = receipt
            return receipt
        assert receipt.status == ACCEPTED
        assert phase is not Phase.CLOSED
        self.saw(frame, reading)
        if receipt.seq:
            assert before < receipt.seq <= len(driver.events)
            own = driver.events[receipt.seq - 1]
            assert own.frame_id == frame_id
            self.check_cut(frame, reading, before)
        if frame_id:
            self.sent[frame_id] = frame
            if receipt.seq:
                self.answered[frame_id] = (frame, receipt)
            else:
                self.quiet[frame_id] = receipt
        if frame.HasField("message"):
            self.absent_ns = max(self.absent_ns, driver.now_ns)
        if frame.HasField("tool_progress"):
            spec = IDLE_S if self.name_of(frame.tool_progress.call_id) == "look" else TIMEOUT_S
            call = driver.state.calls[frame.tool_progress.call_id]
            self.idle_ns[call.call_id] = min(driver.now_ns + spec * SECOND, call.deadline_ns)
        return receipt

    def name_of(self, call_id: str) -> str:
        return self.driver.state.calls[call_id].name

    def saw(self, frame: frame_pb2.ClientFrame, reading: Reading) -> None:
        """Keep the model of what the user has seen."""
        kind = frame.WhichOneof("frame")
        if kind not in ("ack", "interrupt", "message"):
            return
        last = reading.turns[-1] if reading.turns else None
        told = getattr(frame, kind)
        turn = reading.holding(told.displayed_seq) or last
        if kind == "message" and frame.message.expected_turn_id:
            turn = last
        if kind == "interrupt":
            turn = last
            if last is None or not self.targets(frame.interrupt, last):
                return
        offset = told.displayed_offset if told.HasField("displayed_offset") else None
        self.seen.tell(turn, told.displayed_seq, offset)

    @staticmethod
    def targets(interrupt: frame_pb2.Interrupt, turn: ReadTurn) -> bool:
        return interrupt.turn_id == turn.turn_id or (
            bool(interrupt.target_frame_id) and interrupt.target_frame_id in turn.frame_ids
        )

    def check_cut(self, frame: frame_pb2.ClientFrame, before: Reading, at: int) -> None:
        """A cut keeps what was displayed, by our own account."""
        turn = before.turns[-1] if before.turns else None
        kinds = self.driver.kinds(at)
        for event in self.driver.events[at:]:
            if kind_of(event) == "turn_interrupted":
                assert turn is not None
                cut = event.turn_interrupted
                keep = frame.interrupt.keep or event_pb2.KEEP_DISPLAYED
                kept = {
                    event_pb2.KEEP_GENERATED: len(turn.text),
                    event_pb2.KEEP_NOTHING: 0,
                    event_pb2.KEEP_DISPLAYED: self.seen.chars(turn),
                }
                assert (cut.turn_id, cut.kept_chars) == (turn.turn_id, kept[keep])
                assert cut.keep == keep
            elif kind_of(event) == "turn_truncated":
                assert turn is not None
                assert event.turn_truncated.kept_chars == self.seen.chars(turn)
        if "turn_interrupted" in kinds:
            # One append, in this order; what may follow is the ending and what comes next.
            place = kinds.index("turn_interrupted")
            head = kinds[:place]
            if frame.HasField("message"):
                assert head.pop(0) == "input_accepted"
            assert head == ["tool_call_cancelled", "tool_call_finished"] * (len(head) // 2)
            rest = kinds[place + 1 :]
            assert rest in (
                [],
                ["turn_finished"],
                ["turn_finished", "turn_started"],
            )
            assert all(
                event.frame_id == frame.frame_id for event in self.driver.events[at:][:place]
            )

    def turn_ids(self) -> list[str]:
        return [turn.turn_id for turn in self.driver.turns]

    def known_calls(self) -> list[str]:
        return [call.call_id for call in self.driver.state.calls.values() if call.ready]

    # --- clients -----------------------------------------------------------------------------

    def position(self, seq: int | None, offset: int | None) -> dict[str, Any]:
        """A position that is at most a little beyond the end."""
        fields: dict[str, Any] = {}
        if seq is not None:
            fields["displayed_seq"] = max(0, len(self.driver.events) + 1 - seq)
        if offset is not None:
            last = self.driver.state.last_turn
            fields["displayed_offset"] = offset % (last.text_chars + 2 if last else 2)
        return fields

    @rule(
        text=st.sampled_from(["one", "two \U0001f600", "three"]),
        urgent=st.booleans(),
        expected=st.booleans(),
        named=st.booleans(),
        seq=POSITION,
        offset=POSITION,
        own_max=st.sampled_from([None, None, 2]),
    )
    def say(
        self,
        text: str,
        urgent: bool,
        expected: bool,
        named: bool,
        seq: int | None,
        offset: int | None,
        own_max: int | None,
    ) -> None:
        message = user(text, **self.position(seq, offset))
        if urgent:
            message.delivery = INTERRUPT
        if expected and self.driver.turns:
            message.expected_turn_id = self.turn_ids()[-1]
        if own_max:
            message.sampling.max_tokens = own_max
        frame_id = self.driver.new_id("m") if named else ""
        receipt = self.send(frame_pb2.ClientFrame(frame_id=frame_id, message=message))
        self.settle()
        if receipt.status == ACCEPTED and receipt.turn_id:
            started = [one for one in self.driver.of("turn_started") if one.frame_id == frame_id]
            assert receipt.turn_id in {one.turn_id for one in started}

    @rule(seq=POSITION, offset=POSITION, named=st.booleans())
    @precondition(lambda self: self.under_way)
    def ack(self, seq: int | None, offset: int | None, named: bool) -> None:
        frame_id = self.driver.new_id("a") if named else ""
        ack = frame_pb2.Ack(**self.position(seq, offset))
        self.send(frame_pb2.ClientFrame(frame_id=frame_id, ack=ack))
        self.settle()

    @rule(
        pick=PICK,
        keep=st.integers(0, 3),
        seq=POSITION,
        offset=POSITION,
        by=st.sampled_from(["last", "last", "turn", "frame", "queued", "unknown"]),
    )
    @precondition(lambda self: self.under_way)
    def interrupt(self, pick: int, keep: int, seq: int | None, offset: int | None, by: str) -> None:
        interrupt = frame_pb2.Interrupt(
            keep=event_pb2.Keep.ValueType(keep), **self.position(seq, offset)
        )
        turns, frames = self.turn_ids(), list(self.sent)
        waiting = [one.frame_id for one in self.driver.state.queue if one.frame_id]
        if by == "last" and turns:
            interrupt.turn_id = turns[-1]
        elif by == "turn" and turns:
            interrupt.turn_id = turns[pick % len(turns)]
        elif by == "frame" and frames:
            interrupt.target_frame_id = frames[pick % len(frames)]
        elif by == "queued" and waiting:
            interrupt.target_frame_id = waiting[pick % len(waiting)]
        else:
            interrupt.turn_id = "turn-that-never-was"
        running = self.driver.running
        idle = running is None
        stopping = self.driver.live is not None and self.driver.live.stopped
        frame = frame_pb2.ClientFrame(frame_id=self.driver.new_id("i"), interrupt=interrupt)
        receipt = self.send(frame)
        if receipt.status == ACCEPTED:
            kind = kind_of(self.driver.events[receipt.seq - 1])
            if kind == "turn_interrupted":
                assert running is not None
                assert receipt.turn_id == running.turn_id
            elif kind == "turn_truncated":
                assert idle
                assert seq or offset is not None
            else:
                assert kind == "input_withdrawn"
                assert interrupt.target_frame_id in waiting
        elif receipt.status == STALE and running is not None and not stopping:
            # A running turn that is named is stopped, whatever else the frame says.
            assert interrupt.turn_id != running.turn_id
            assert interrupt.target_frame_id not in [one for one in running.frame_ids if one]
        self.settle()

    @rule(pick=PICK, newest=st.booleans(), outcome=st.sampled_from(OUTCOMES), named=st.booleans())
    @precondition(lambda self: bool(self.known_calls()))
    def result(self, pick: int, newest: bool, outcome: dict[str, Any], named: bool) -> None:
        calls = self.known_calls()
        if newest:
            running = self.driver.running
            calls = [one.call_id for one in running.open_calls] if running else calls
            calls = calls or self.known_calls()
        call_id = calls[pick % len(calls)]
        call = self.driver.state.calls[call_id]
        was_open, late = call.open, call.late_results
        frame = frame_pb2.ClientFrame(
            frame_id=self.driver.new_id("r") if named else "",
            tool_result=session_pb2.ToolResult(call_id=call_id, **outcome),
        )
        receipt = self.send(frame)
        if self.driver.state.phase is Phase.CLOSED:
            assert receipt.status == REJECTED
        elif was_open or late < 4:
            assert receipt.status == ACCEPTED
            finished = self.driver.events[receipt.seq - 1].tool_call_finished
            assert finished.late == (not was_open)
            assert finished.result.call_id == call_id
            assert receipt.turn_id == call.turn_id
        else:
            assert receipt.status == REJECTED
        self.settle()

    @rule(outcome=st.sampled_from(OUTCOMES))
    @precondition(lambda self: self.driver.running and self.driver.running.open_calls)
    def all_results(self, outcome: dict[str, Any]) -> None:
        """The next question is asked when the last open call is answered."""
        running = self.driver.running
        assert running is not None
        for call in running.open_calls:
            result = session_pb2.ToolResult(call_id=call.call_id, **outcome)
            self.send(frame_pb2.ClientFrame(frame_id=self.driver.new_id("r"), tool_result=result))
        assert self.driver.running is not running or self.driver.live is not None
        self.settle()

    @rule(pick=PICK, fraction=st.sampled_from([None, 0.0, 0.5]), named=st.booleans())
    @precondition(lambda self: bool(self.known_calls()))
    def progress(self, pick: int, fraction: float | None, named: bool) -> None:
        calls = self.known_calls()
        running = self.driver.running
        if running is not None and running.open_calls:
            calls = [one.call_id for one in running.open_calls]
        call_id = calls[pick % len(calls)]
        was_open = self.driver.state.calls[call_id].open
        report = frame_pb2.ToolProgress(call_id=call_id, fraction=fraction, note="on its way")
        frame_id = self.driver.new_id("p") if named else ""
        receipt = self.send(frame_pb2.ClientFrame(frame_id=frame_id, tool_progress=report))
        if self.driver.state.phase is not Phase.CLOSED:
            assert receipt.status == (ACCEPTED if was_open else STALE)
        self.settle()

    @rule(pick=PICK)
    @precondition(lambda self: bool(self.sent))
    def again(self, pick: int) -> None:
        """A frame is sent a second time."""
        frame_id = list(self.sent)[pick % len(self.sent)]
        frame = self.sent[frame_id]
        receipt = self.send(frame, repeat=True)
        if frame_id in self.answered:
            first = self.answered[frame_id][1]
            assert receipt.status == DUPLICATE
            assert (receipt.seq, receipt.turn_id) == (first.seq, first.turn_id)
        elif frame_id in self.quiet:
            assert receipt.status == DUPLICATE
            assert receipt.seq == 0
        self.settle()

    @rule(bad=st.sampled_from([*BAD_FRAMES, None, None, None]), pick=PICK, named=st.booleans())
    @precondition(lambda self: self.under_way)
    def bad(self, bad: frame_pb2.ClientFrame | None, pick: int, named: bool) -> None:
        """A frame that is wrong in itself, or has the id of another one."""
        frame = frame_pb2.ClientFrame()
        if bad is not None:
            frame.CopyFrom(bad)
            frame.frame_id = self.driver.new_id("bad") if named else ""
        elif self.answered:
            frame.message.CopyFrom(user("something else"))
            frame.frame_id = list(self.answered)[pick % len(self.answered)]
        assert self.send(frame).status == REJECTED
        self.settle()

    # --- engines -----------------------------------------------------------------------------

    @property
    def under_way(self) -> bool:
        """There is something to be random about."""
        return bool(self.driver.turns) and (
            self.driver.state.phase is not Phase.CLOSED or len(self.driver.decisions) % 7 == 0
        )

    def engine_is(self, *, stopped: bool | None = None) -> bool:
        live = self.driver.live
        return live is not None and (stopped is None or live.stopped == stopped)

    @property
    def live(self) -> Run:
        assert self.driver.live is not None
        return self.driver.live

    @rule(
        pieces=st.lists(PIECES, min_size=1, max_size=4),
        tokens=st.integers(0, 2),
        channel=st.sampled_from([TEXT, TEXT, TEXT, REASONING]),
    )
    @precondition(lambda self: self.engine_is())
    def tokens(self, pieces: list[str], tokens: int, channel: int) -> None:
        self.driver.admit()
        before = len(self.driver.events)
        stopped = self.live.stopped
        self.driver.text(*pieces, tokens=tokens, channel=channel)
        if stopped:
            assert len(self.driver.events) == before
        self.settle()

    @rule(name=st.sampled_from(["look", "wait", "nothing-of-that-name"]))
    @precondition(lambda self: self.engine_is())
    def begin_call(self, name: str) -> None:
        self.driver.begin_call(name)
        self.settle()

    @rule(words=st.lists(PIECES, min_size=1, max_size=3), end=st.booleans())
    @precondition(lambda self: self.engine_is(stopped=False) and not self.live.written)
    def round(self, words: list[str], end: bool) -> None:
        """Words, a call, and the engine waits; or just an answer."""
        self.driver.admit()
        self.driver.think("hm ")
        self.driver.text(*words)
        if end:
            self.driver.finish("stop", silent=1)
        else:
            index = self.driver.begin_call()
            if index in self.live.written:
                self.driver.fragment(index, '{"x":2}', 2)
                self.driver.end_call(index)
                self.driver.finish("tool_calls", silent=1)
        self.settle()

    @rule(pick=PICK, text=st.sampled_from(["", "{", '"a":', "}"]), tokens=st.integers(0, 2))
    @precondition(lambda self: self.engine_is() and self.live.written)
    def fragment(self, pick: int, text: str, tokens: int) -> None:
        run = self.live
        self.driver.fragment(run.written[pick % len(run.written)], text, tokens)
        self.settle()

    @rule(name=st.sampled_from(["look", "wait"]), count=st.integers(1, 2))
    @precondition(lambda self: self.engine_is(stopped=False) and not self.live.written)
    def whole_calls(self, name: str, count: int) -> None:
        for _ in range(count):
            run = self.live
            if run.stopped:
                break
            index = self.driver.begin_call(name)
            if index in run.written:
                self.driver.fragment(index, '{"x":2}', 2)
                self.driver.end_call(index)
        self.settle()

    @rule(pick=PICK, arguments=st.sampled_from(ARGUMENTS))
    @precondition(lambda self: self.engine_is(stopped=False) and self.live.written)
    def end_call(self, pick: int, arguments: str) -> None:
        run = self.live
        index = run.written[pick % len(run.written)]
        self.driver.fragment(index, arguments)
        self.driver.end_call(index)
        self.settle()

    @rule(
        how=st.sampled_from(
            [
                "stop",
                "stop",
                "length",
                "tool_calls",
                "content_filter",
                "vague",
                "by itself",
                "fails",
            ]
        ),
        silent=st.integers(0, 2),
        total=st.sampled_from([None, 0, 1000]),
        sure=st.booleans(),
    )
    @precondition(lambda self: self.engine_is())
    def engine_ends(self, how: str, silent: int, total: int | None, sure: bool) -> None:
        run = self.live
        if run.stopped and how not in ("vague", "fails"):
            self.driver.finish("stopped", silent=silent)
        elif not sure:
            return
        elif how == "vague":
            if total is None or total < run.computed:
                self.estimated.add(run.asked.turn_id)
            else:
                run.computed = total
            self.driver.finish(output_tokens=total)
        elif how == "by itself":
            self.driver.finish("stopped", silent=silent)
            assert self.driver.ending.finish_reason == ERROR
        elif how == "fails":
            self.estimated.add(run.asked.turn_id)
            self.driver.fail()
        else:
            self.driver.finish(how, silent=silent)
        self.settle()

    @rule(pick=PICK, end=st.booleans(), tick=st.booleans())
    @precondition(lambda self: any(run is not self.driver.live for run in self.driver.runs))
    def nothing_of_interest(self, pick: int, end: bool, tick: bool) -> None:
        """An engine to which nobody listens any more goes on; the timer goes off too early."""
        before = len(self.driver.events)
        if tick:
            self.driver.tick()
        runs = [run for run in self.driver.runs if run is not self.driver.live]
        run_id = runs[pick % len(runs)].run_id
        session, now_ns = self.driver.session, self.driver.now_ns
        assert session.engine_admitted(run_id, "m", now_ns) == NOTHING
        assert session.engine_text(run_id, TEXT, "late", 1, (), now_ns) == NOTHING
        assert session.engine_tool_started(run_id, 7, "look", now_ns) == NOTHING
        assert session.engine_tool_fragment(run_id, 7, "{", 1, now_ns) == NOTHING
        assert session.engine_tool_ready(run_id, 7, now_ns) == NOTHING
        if end:
            assert session.engine_finished(run_id, "stop", 1, 1, 9, True, now_ns) == NOTHING
        assert len(self.driver.events) == before
        self.settle()

    # --- time, readers, losses ---------------------------------------------------------------

    @rule(span_s=st.sampled_from([0.1, 0.1, 0.4, 0.4, 1.0, 2.5, 6.0, None]))
    @precondition(lambda self: self.driver.timer_ns is not None)
    def wait(self, span_s: float | None) -> None:
        if span_s is None:
            assert self.driver.timer_ns is not None
            span_s = (self.driver.timer_ns - self.driver.now_ns) / SECOND
        self.driver.advance(span_s)
        self.note()

    @rule(count=st.sampled_from([0, 1, 2, 2]))
    @precondition(lambda self: self.under_way or not self.driver.readers)
    def readers_change(self, count: int) -> None:
        if self.driver.readers and not count:
            self.absent_ns = self.driver.now_ns
        self.driver.attach(count)
        self.settle()

    @rule()
    @precondition(
        lambda self: (
            self.driver.session.quiescent
            and (self.checkpoint or (b"", 1))[1] + 5 < len(self.driver.events)
        )
    )
    def make_checkpoint(self) -> None:
        self.checkpoint = (self.driver.session.checkpoint(), len(self.driver.events))

    @precondition(lambda self: self.under_way)
    @rule(
        from_checkpoint=st.booleans(),
        away_s=st.sampled_from([0.0, 0.5, 7.0, 60.0]),
        continues=st.booleans(),
    )
    def lose(self, from_checkpoint: bool, away_s: float, continues: bool) -> None:
        """The process dies, and another takes over."""
        driver = self.driver
        running, was = driver.running, driver.state.phase
        at, seq_before = len(driver.events), len(driver.events)
        self.lost_at.append(seq_before)
        if running is not None:
            self.estimated.add(running.turn_id)
            self.recovered[running.turn_id] = driver.now_ns + round(away_s * SECOND)
        self.seen, self.quiet = Seen(), {}
        self.sent = {one: frame for one, frame in self.sent.items() if one in self.answered}
        self.idle_ns = {call.call_id: call.idle_deadline_ns for call in driver.state.calls.values()}
        self.draining = False
        data, at_seq = (self.checkpoint or (None, 0)) if from_checkpoint else (None, 0)
        text_before = running.text if running is not None else ""
        driver.lose(checkpoint=data, at_seq=at_seq, away_s=away_s, engine_continues=continues)
        self.absent_ns = driver.now_ns
        ended = [e.turn_finished for e in driver.events[at:] if kind_of(e) == "turn_finished"]
        recovered = [e.turn_recovered for e in driver.events[at:] if kind_of(e) == "turn_recovered"]
        if recovered:
            assert running is not None
            assert was is Phase.GENERATING
            assert self.action != CANCEL_NOW
            assert [one.from_seq for one in recovered] == [at + 1]
            assert [one.finish_reason for one in ended] in ([], [LENGTH])
            asked = driver.asked
            assert ended or asked.turn_id == running.turn_id
            assert not asked.continue_text or continues
            assert text_before.endswith(asked.continue_text)
        elif was is Phase.GENERATING:
            assert [one.finish_reason for one in ended] == [OWNER_LOST]
        elif was is Phase.STOPPING:
            assert [one.finish_reason for one in ended] == [session_pb2.FINISH_REASON_INTERRUPTED]
        else:
            assert not ended
        self.settle()

    @rule(survives=st.booleans(), sure=st.integers(0, 3))
    @precondition(lambda self: self.under_way)
    def drain(self, survives: bool, sure: int) -> None:
        if sure:
            return
        self.draining = True
        running, live = self.driver.running, self.driver.live
        stopping = live is not None and live.stopped
        self.driver.drain(survives=survives)
        self.note()
        if running is not None and not stopping and (not survives or self.action == CANCEL_NOW):
            if live is None:
                assert self.driver.ending.finish_reason == DISCONNECTED
            else:
                assert live.stopped
        self.settle()

    @rule(sure=st.integers(0, 15))
    @precondition(lambda self: self.under_way)
    def close(self, sure: int) -> None:
        if sure:
            return
        self.driver.close()
        if self.driver.runs and not self.driver.runs[-1].over:
            assert self.driver.runs[-1].stopped
        self.settle()

    # --- the promises ------------------------------------------------------------------------

    @invariant()
    def promises_hold(self) -> None:
        if not hasattr(self, "driver"):
            return
        driver = self.driver
        reading = Reading(driver.events, self.lost_at)
        check_view(driver, reading)
        told = told_by(driver)
        if told is not None:
            check_transcript(told, reading)
        check_folds(driver, self.answered, self.checkpoint)
        self.check_running(reading)
        self.check_timer(reading)
        self.check_queue()

    def check_running(self, reading: Reading) -> None:
        """Whatever runs is waited for, and nothing else is."""
        driver, running = self.driver, reading.running
        waits = running is not None and any(call.ready and not call.ends for call in running.calls)
        if running is None:
            assert driver.live is None
        elif driver.live is None:
            assert waits, "a turn runs, and nothing will ever end it"
        if driver.live is not None:
            unstopped = running is not None and running.interrupted is None
            assert driver.live.stopped or unstopped
            # The prompt was what it should be when it was asked.
            check = [one.role for one in driver.live.asked.messages]
            assert session_pb2.ROLE_USER in check
            asked = driver.live.asked.sampling
            if asked.HasField("max_tokens"):
                assert asked.max_tokens >= 1

    def due_ns(self, reading: Reading) -> int | None:
        """When the next thing must happen, by our own account."""
        driver, turn = self.driver, reading.running
        if turn is None:
            return None
        if driver.live is not None and driver.live.stopped:
            return driver.live.stopped_ns + CONFIRM_S * SECOND
        began_ns = driver.events[turn.started_seq - 1].time.ToNanoseconds()
        recovered_ns = self.recovered.get(turn.turn_id, 0)

        def mercy(at_ns: int) -> int:
            return recovered_ns + AFTER_RECOVERY_S * SECOND if at_ns < recovered_ns else at_ns

        due = [mercy(began_ns + TURN_S * SECOND)]
        if not driver.readers and self.action == AFTER_GRACE:
            due.append(max(self.absent_ns, began_ns) + self.grace_s * SECOND)
        for call in turn.calls:
            if call.ready and not call.ends:
                deadline_ns = driver.state.calls[call.call_id].deadline_ns
                due.append(mercy(min(self.idle_ns[call.call_id], deadline_ns)))
        return min(due)

    def check_timer(self, reading: Reading) -> None:
        """The timer is set to when something is due, not later and not to a time long past."""
        driver, due_ns = self.driver, self.due_ns(reading)
        if due_ns is None:
            assert driver.timer_ns is None
            return
        assert driver.timer_ns is not None, "something is due, and nobody will look"
        assert driver.timer_ns > driver.now_ns
        assert driver.timer_ns <= due_ns
        if driver.timer_ns < due_ns:
            # Only a progress report that is held back may want attention earlier.
            assert driver.timer_ns <= driver.now_ns + SECOND
            turn = driver.running
            assert turn is not None
            assert turn.open_calls

    def check_queue(self) -> None:
        """It is bounded, and nothing waits that could run."""
        driver, state = self.driver, self.driver.state
        for urgent in (True, False):
            assert sum(one.urgent == urgent for one in state.queue) <= self.max_queued
        if state.queue and state.phase is Phase.IDLE and not self.draining:
            assert not driver.readers
            assert self.action != CONTINUE

    def teardown(self) -> None:
        """In the end everything ends, and exactly once."""
        if not hasattr(self, "driver"):
            return
        driver = self.driver
        driver.detach()
        driver.advance(24 * 3600)
        self.note()
        reading = Reading(driver.events, self.lost_at)
        assert reading.running is None
        assert driver.timer_ns is None
        assert all(call.ends for call in reading.calls.values() if call.ready)
        outcomes = {one.outcome for call in reading.calls.values() for one in call.ends}
        assert outcomes <= {1, 2, 4, TIMED_OUT}
        self.promises_hold()


TestConversation = Conversation.TestCase
TestConversation.settings = settings(
    max_examples=scale(200, 5000), stateful_step_count=scale(50, 80)
)
