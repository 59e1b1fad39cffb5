"""What the contract says a session does, as a second program: to be read, and to be compared with.

Written from the contract and the comments in `proto/`, not from the core; plain Python, no
protocol buffers. `test_reference.py` drives both with the same random schedules.

How to read it. First come the nouns: what a session is configured with, what a client sends
(`Frame`), and what the log tells (`Durable`: turns, calls, the queue), which is all that outlives
a process. Then `Reference`, whose methods without a word on it are steps of the others:

    what is written         `emit` and the few questions that everything asks
    frames                  `frame` takes one: a message, a stop, an Ack, a result, progress
    turns                   `settle` begins what can begin; `stop` and `end_turn` end it
    steering and credit     where an answer may be cut, and when it must wait
    engines                 `text`, `call_started` to `call_ready`, `finished`, `failed`
    tool calls              `end_call`: the one end of a call, and when the model is told of it
    time                    `due` is when something is due by itself; `tick` lets it happen
    readers and losses      `readers_changed`, `drain`, `close`, and `lose`: another process goes on

What an input leads to is left in `events`, `effects` and `receipt`. Ids are counted (`T1` the
first turn, `C1` the first call, `R1` the first question). Times are Unix nanoseconds.

Left out: what a field may hold (validation), bytes and sizes, history and the context policy,
`Timing` but for its sums. Where the contract is silent and the core had to choose, a comment
says `Silent:`, and the choice is a promise from then on.
"""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

SECOND = 1_000_000_000
# An engine has so long to confirm that it stopped; a deadline that passed while no process lived
# comes so long after the next one began; who may not go away has so long to acknowledge.
CONFIRM = 2 * SECOND
MERCY = 5 * SECOND
NO_GRACE = 30 * SECOND
PROGRESS_EVERY = SECOND
LATE_RESULTS = 4
RECOVERIES = 2
# Endings after which the calls that nobody waits for go on; an interrupt says itself which do.
KEEPS_CALLS = ("STOP", "LENGTH", "CONTENT_FILTER", "STEERED", "OWNER_LOST", "INTERRUPTED")
WITHOUT_RESULT = ("CANCELLED", "TIMED_OUT", "UNKNOWN")
# What the model is told of a call that has no result.
TOLD = {
    "": '{"status":"running"}',
    "TIMED_OUT": '{"error":"timed out"}',
    "CANCELLED": '{"error":"cancelled; it may or may not have run"}',
}

Receipt = dict[str, Any]
Said = tuple[Any, ...]


# --- what a session is made of ------------------------------------------------------------------


@dataclass(frozen=True)
class Tool:
    blocking: bool = True
    idle: int = 60 * SECOND
    timeout: int = 300 * SECOND
    let_finish: bool = False
    side_effect: str = "NONE"


@dataclass(frozen=True)
class Config:
    tools: dict[str, Tool] = field(default_factory=dict)
    policy: str = "CANCEL_AFTER_GRACE"
    grace: int = 30 * SECOND
    turn: int = 600 * SECOND
    rounds: int = 8
    queued: int = 16
    window: int | None = None
    steer_tokens: int = 64
    steer_delay: int = 5 * SECOND
    max_tokens: int | None = None


@dataclass(frozen=True)
class Frame:
    """A client frame that is right in itself."""

    id: str
    kind: str
    text: str = ""
    delivery: str = "QUEUE"
    turn: str = ""
    target: str = ""
    seq: int = 0
    offset: int | None = None
    keep: str = "DISPLAYED"
    tools: str = ""
    call: str = ""
    json: str = ""
    content: str | None = None
    error: str | None = None
    partial: bool = False
    scheduling: str = ""
    max_tokens: int | None = None

    @property
    def urgent(self) -> bool:
        return self.delivery != "QUEUE"


@dataclass
class Call:
    id: str
    turn: str
    name: str
    tool: Tool
    round: int
    arguments: str = ""
    ready: bool = False
    idle_at: int = 0
    end_at: int = 0
    parts: list[Frame] = field(default_factory=list)
    outcome: str = ""
    says: str = ""
    passed_over: bool = False
    late: int = 0

    @property
    def open(self) -> bool:
        return self.ready and not self.outcome

    def heard_of(self, now: int) -> None:
        self.idle_at = min(now + self.tool.idle, self.end_at)


@dataclass
class Deferred:
    """A result that the model is told in a later turn."""

    call: Call
    says: str
    scheduling: str


@dataclass
class Mark:
    """Tokens in the log, and where they belong."""

    seq: int
    channel: str
    end: int
    tokens: int
    round: int
    call: Call | None = None


@dataclass
class Turn:
    id: str
    inputs: list[Frame]
    told: list[Deferred]
    seq: int
    began: int
    max_tokens: int | None
    ended_seq: int = 0
    reason: str = ""
    text: str = ""
    reasoning: str = ""
    round: int = 0
    round_text: list[int] = field(default_factory=lambda: [0])
    round_reasoning: int = 0
    marks: list[Mark] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    kept: int | None = None
    keeps_all: bool = False
    interrupted: bool = False
    recoveries: int = 0

    @property
    def tokens(self) -> int:
        return sum(mark.tokens for mark in self.marks)

    @property
    def awaits(self) -> bool:
        return any(call.open and call.tool.blocking for call in self.calls)

    @property
    def round_calls(self) -> list[Call]:
        return [call for call in self.calls if call.round == self.round]

    @property
    def round_said(self) -> str:
        return self.text[self.round_text[-1] :]

    @property
    def round_thought(self) -> str:
        return self.reasoning[self.round_reasoning :]

    def answers(self, frame_id: str) -> bool:
        return bool(frame_id) and frame_id in [one.id for one in self.inputs]

    def chars_at(self, seq: int) -> int:
        return max((m.end for m in self.marks if m.channel == "TEXT" and m.seq <= seq), default=0)

    @property
    def kept_tokens(self) -> int:
        """Whole tokens; of the reasoning, what came before the last text of which some is kept."""
        kept = len(self.text) if self.kept is None else self.kept
        reached, begin, thought = 0, 0, 0
        for mark in self.marks:
            if mark.channel == "REASONING":
                reached = mark.end
            elif mark.channel == "TEXT":
                thought = reached if begin < kept else thought
                begin = mark.end
        ends = {"TEXT": kept, "REASONING": len(self.reasoning) if self.keeps_all else thought}
        return sum(
            mark.tokens
            for mark in self.marks
            if (mark.call is not None and mark.call.ready)
            or (mark.call is None and (self.kept is None or 0 < ends[mark.channel] >= mark.end))
        )


@dataclass
class Durable:
    """What the log tells whoever reads it."""

    seq: int = 0
    turns: list[Turn] = field(default_factory=list)
    queue: list[Frame] = field(default_factory=list)
    calls: dict[str, Call] = field(default_factory=dict)
    deferred: list[Deferred] = field(default_factory=list)
    applied: dict[str, tuple[Frame, Receipt]] = field(default_factory=dict)
    closed: bool = False


@dataclass
class Run:
    """An engine at work on one question of a turn.

    `computed` tokens are in the log (`delivered`), ride on the next event (`carry`), or wasted.
    """

    id: str
    turn: Turn
    calls: dict[int, Call] = field(default_factory=dict)
    computed: int = 0
    delivered: int = 0
    carry: int = 0
    stopped_at: int | None = None
    why: str = ""


@dataclass
class Bill:
    """What only the owner of the running turn knows of its cost."""

    prompt: int = 0
    cached: int = 0
    wasted: int = 0
    paused: int = 0
    estimated: bool = False


# --- what is said -------------------------------------------------------------------------------


def compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def whole(parts: list[Frame]) -> str:
    """What the model is told of a result that came in these parts."""
    if parts[-1].error is not None:
        return compact({"error": parts[-1].error})
    if all(one.content is not None for one in parts):
        return compact("".join(one.content or "" for one in parts))
    said = [json.loads(one.json) if one.content is None else one.content for one in parts]
    return compact(said[0] if len(said) == 1 else said)


def sentence_ends(text: str, coming: str) -> bool:
    """Whether a sentence has ended, or has if white space follows and is `coming`.

    Silent: which full stops end none (numbers, abbreviations); the schedules have no such.
    """
    if re.search(r"[.!?][\"')]*\s+$|\n\s*$", text):
        return True
    return coming[:1].isspace() and re.search(r"[.!?][\"')]*$", text) is not None


def transcript(turns: list[Turn], more: str) -> list[Said]:
    """What the model is told: `(role, text, calls)`, and `(TOOL, text, call)`.

    `more` has been said in the running round already, and is to be gone on with.
    """
    said: list[Said] = []
    for turn in turns:
        # What came after the model had gone on is told as calls made anew, with their results.
        again = [
            (f"{one.call.id}_{turn.seq}_{place}", one.call.name, one.call.arguments)
            for place, one in enumerate(turn.told)
        ]
        if again:
            said.append(("ASSISTANT", "", again))
        for one, (name, _, _) in zip(turn.told, again, strict=True):
            said.append(("TOOL", one.says, name))
        said += [("USER", one.text, []) for one in turn.inputs]
        ends = [*turn.round_text[1:], len(turn.text)]
        for number, (start, end) in enumerate(zip(turn.round_text, ends, strict=True)):
            text = turn.text[start : end if turn.kept is None else min(end, turn.kept)]
            if turn is turns[-1] and number == turn.round:
                text = text.removesuffix(more)
            calls = [one for one in turn.calls if one.ready and one.round == number]
            if text or calls:
                asked = [(one.id, one.name, one.arguments) for one in calls]
                said.append(("ASSISTANT", text, asked))
            for call in calls:
                told = TOLD[""] if call.open or call.passed_over else call.says
                said.append(("TOOL", told, call.id))
    return said


class Reference:
    """One session."""

    def __init__(self, config: Config, now: int) -> None:
        self.config, self.now = config, now
        self.log = Durable()
        self.ids: Counter[str] = Counter()
        self.begin(now)
        self.soft()
        self.emit("session_opened")

    def begin(self, now: int, by: str = "") -> None:
        """An input: what it leads to is empty yet, and is caused by this frame."""
        self.now, self.by = max(self.now, now), by
        self.events: list[dict[str, Any]] = []
        self.effects: list[Said] = []
        self.receipt: Receipt | None = None

    def soft(self) -> None:
        """What only the owner knows, and a new one does not."""
        self.readers = 0
        self.absent = self.now
        self.run: Run | None = None
        self.bill = Bill(estimated=True)
        self.draining = False
        self.recovered = 0
        self.quiet: dict[str, tuple[Frame, Receipt]] = {}
        self.seen_seq = 0
        self.seen_offset: dict[str, int] = {}
        self.acked = 0
        self.held_since: int | None = None
        self.steer_since: int | None = None
        self.steer_tokens = 0
        self.progress_logged: dict[str, int] = {}
        self.progress_waits: dict[str, Frame] = {}

    # --- what is written --------------------------------------------------------------------

    def emit(self, kind: str, **fields: Any) -> int:
        """Put an event into the log; `by` is the frame that caused it, if that is another one."""
        self.log.seq += 1
        self.events.append({"kind": kind, "by": self.by, **fields})
        return self.log.seq

    def new_id(self, letter: str) -> str:
        self.ids[letter] += 1
        return f"{letter}{self.ids[letter]}"

    @property
    def last(self) -> Turn | None:
        return self.log.turns[-1] if self.log.turns else None

    @property
    def running(self) -> Turn | None:
        return self.last if self.last and not self.last.reason else None

    @property
    def stopping(self) -> bool:
        return self.run is not None and self.run.stopped_at is not None

    def displayed(self, turn: Turn) -> int:
        return max(turn.chars_at(self.seen_seq), self.seen_offset.get(turn.id, 0))

    def displayed_tokens(self, turn: Turn) -> int:
        chars = self.seen_offset.get(turn.id, 0)
        text = [m.seq for m in turn.marks if m.channel == "TEXT" and chars and m.end <= chars]
        last = max([self.seen_seq, *text])
        return sum(m.tokens for m in turn.marks if m.seq <= last)

    # --- frames -----------------------------------------------------------------------------

    def frame(self, frame: Frame, now: int) -> None:
        """Exactly once: a frame that is known gets its receipt again, and does nothing."""
        self.begin(now, frame.id)
        known = self.log.applied.get(frame.id) or self.quiet.get(frame.id)
        if known is not None:
            before, receipt = known
            again = {**receipt, "status": "DUPLICATE"}
            self.receipt = again if frame == before else self.refusal("FRAME_ID_REUSED")
        elif self.log.closed:
            self.receipt = self.refusal("SESSION_CLOSED")
        else:
            receipt = getattr(self, "take_" + frame.kind)(frame)
            if frame.id and receipt["status"] != "REJECTED":
                # What caused no event is remembered only as long as its owner lives.
                (self.log.applied if receipt["seq"] else self.quiet)[frame.id] = frame, receipt
            self.receipt = receipt

    def answer(self, status: str, seq: int = 0, turn: str = "", delivery: str = "") -> Receipt:
        return {"status": status, "seq": seq, "turn": turn, "delivery": delivery, "error": ""}

    def refusal(self, reason: str) -> Receipt:
        return {**self.answer("REJECTED"), "error": reason}

    def turn_at(self, seq: int) -> Turn | None:
        """The turn that an event is of; where none is, the last."""
        for turn in self.log.turns:
            if turn.seq <= seq and (not turn.ended_seq or seq <= turn.ended_seq):
                return turn
        return self.last

    def is_beyond(self, frame: Frame, turn: Turn | None) -> bool:
        """Whether a position is after the end of the log, or of the turn that it counts in."""
        turn = turn or self.turn_at(frame.seq)
        end = len(turn.text) if turn else 0
        return frame.seq > self.log.seq or (frame.offset is not None and frame.offset > end)

    def saw(self, frame: Frame, turn: Turn | None) -> None:
        """Take note of what the user has seen: the furthest of all that was said of it."""
        turn = turn or self.turn_at(frame.seq)
        if frame.offset is None:
            self.seen_seq = max(self.seen_seq, frame.seq)
        elif turn is not None:
            self.seen_offset[turn.id] = max(self.seen_offset.get(turn.id, 0), frame.offset)

    def take_ping(self, frame: Frame) -> Receipt:
        return self.answer("ACCEPTED")

    def take_ack(self, frame: Frame) -> Receipt:
        if self.is_beyond(frame, None):
            return self.refusal("POSITION_BEYOND_END")
        self.saw(frame, None)
        self.acked = self.now
        self.credit()
        return self.answer("ACCEPTED")

    def take_message(self, frame: Frame) -> Receipt:
        turn, queue = self.running, self.log.queue
        if frame.turn and (self.last is None or frame.turn != self.last.id):
            return self.refusal("TURN_MISMATCH")
        named = self.last if frame.turn else None
        if self.is_beyond(frame, named):
            return self.refusal("POSITION_BEYOND_END")
        if sum(one.urgent == frame.urgent for one in queue) >= self.config.queued:
            return self.refusal("QUEUE_FULL")
        self.saw(frame, named)
        seq = self.emit("input_accepted", frame=frame.id, text=frame.text, delivery=frame.delivery)
        # A message of its own, though the same frame may come twice where it has no id.
        message = replace(frame)
        queue.insert(sum(one.urgent for one in queue) if frame.urgent else len(queue), message)
        # Silent: a message begins the grace anew, where nobody reads.
        self.absent = self.now
        runs = turn is not None and not self.stopping
        met = "QUEUE"
        if frame.delivery == "STEER" and turn is not None and not turn.interrupted:
            # Silent: also where the turn's end was decided by something else, but is in no log
            # yet; and those that come together with the one that stopped it are taken too.
            met = "STEER"
            if runs and self.steer_since is None:
                self.steer_since, self.steer_tokens = self.now, 0
        elif frame.delivery == "INTERRUPT":
            cut = self.interrupt(frame) if runs else self.truncate(frame)
            met = "INTERRUPT" if cut else "QUEUE"
        self.settle()
        started = self.running
        at_once = started is not None and any(one is message for one in started.inputs)
        return self.answer("ACCEPTED", seq, started.id if started and at_once else "", met)

    def take_interrupt(self, frame: Frame) -> Receipt:
        queue = self.log.queue
        for one in queue:
            if frame.target and one.id == frame.target:
                queue.remove(one)
                if not any(other.delivery == "STEER" for other in queue):
                    self.steer_since = None
                return self.answer("ACCEPTED", self.emit("input_withdrawn", frame=one.id))
        if frame.seq > self.log.seq:
            return self.refusal("POSITION_BEYOND_END")
        named = [one for one in self.log.turns if frame.turn == one.id or one.answers(frame.target)]
        turn = named[-1] if named else None
        if turn is None or turn is not self.last:
            # Silent: the receipt names the turn as the frame did, even one that never was.
            return self.answer("STALE", 0, named[0].id if named else frame.turn)
        # Silent: only in the turn that can still be cut does an offset matter.
        if self.is_beyond(frame, turn):
            return self.refusal("POSITION_BEYOND_END")
        self.saw(frame, turn)
        runs = self.running is not None and not self.stopping
        seq = self.interrupt(frame) if runs else self.truncate(frame)
        self.settle()
        return self.answer("ACCEPTED" if seq else "STALE", seq, turn.id)

    def interrupt(self, frame: Frame) -> int:
        """One append: what becomes of each open call, then the cut."""
        turn = self.running
        assert turn is not None
        tools = []
        for call in turn.calls:
            let = frame.tools == "LET_FINISH" or (not frame.tools and call.tool.let_finish)
            if call.open and not let:
                self.cancel(call, "INTERRUPTED")
            state = call.outcome or ("STILL_RUNNING" if call.ready else "NOT_STARTED")
            # Also where a process was lost after it had cancelled a call, before the turn's end.
            state = "CANCEL_SENT" if state == "CANCELLED" else state
            tools.append((call.id, call.name, state, call.tool.side_effect))
        shown, end = self.displayed(turn), len(turn.text)
        turn.kept = {"DISPLAYED": shown, "GENERATED": end, "NOTHING": 0}[frame.keep]
        turn.keeps_all, turn.interrupted = frame.keep == "GENERATED", True
        seq = self.emit(
            "turn_interrupted",
            turn=turn.id,
            frame=frame.id,
            kept=turn.kept,
            dropped=end - turn.kept,
            tools=tools,
            keep=frame.keep,
        )
        self.stop("INTERRUPTED")
        return seq

    def truncate(self, frame: Frame) -> int:
        """A stop after the engine was faster than the reader."""
        turn = self.last
        told = frame.seq > 0 or frame.offset is not None
        if turn is None or not turn.reason or turn.kept is not None or not told:
            return 0
        kept, end = self.displayed(turn), len(turn.text)
        if frame.keep != "DISPLAYED" or kept >= end:
            return 0
        turn.kept = kept
        return self.emit(
            "turn_truncated", turn=turn.id, frame=frame.id, kept=kept, dropped=end - kept
        )

    def take_result(self, frame: Frame) -> Receipt:
        call = self.log.calls.get(frame.call)
        if call is None or not call.ready:
            return self.refusal("TOOL_CALL_NOT_FOUND")
        if frame.partial:
            return self.take_part(frame, call) if call.open else self.answer("STALE")
        if call.late >= LATE_RESULTS:
            return self.refusal("LATE_RESULTS_FULL")
        late = not call.open
        says = whole([frame] if late else [*call.parts, frame])
        outcome = "COMPLETED" if frame.error is None else "FAILED"
        seq = self.end_call(call, outcome, says, frame.scheduling, late=late)
        at_once = frame.scheduling == "INTERRUPT" and call.passed_over and not late
        if at_once and self.running and not self.stopping:
            self.interrupt(Frame(frame.id, "interrupt", keep="GENERATED"))
        self.settle()
        return self.answer("ACCEPTED", seq, call.turn)

    def take_part(self, frame: Frame, call: Call) -> Receipt:
        call.heard_of(self.now)
        said = {"json": frame.json, "content": frame.content, "idle": call.idle_at}
        seq = self.emit("tool_call_output", call=call.id, index=len(call.parts), **said)
        call.parts.append(frame)
        return self.answer("ACCEPTED", seq, call.turn)

    def take_progress(self, frame: Frame) -> Receipt:
        call = self.log.calls.get(frame.call)
        if call is None or not call.ready:
            return self.refusal("TOOL_CALL_NOT_FOUND")
        if not call.open:
            return self.answer("STALE")
        call.heard_of(self.now)
        self.progress_waits[call.id] = frame
        logged = self.progress_logged.get(call.id)
        held_back = logged is not None and self.now < logged + PROGRESS_EVERY
        return self.answer("ACCEPTED", 0 if held_back else self.log_progress(call), call.turn)

    # --- turns ------------------------------------------------------------------------------

    @property
    def may_start(self) -> bool:
        """Whether somebody reads, or may come back to."""
        policy, until = self.config.policy, self.absent + self.config.grace
        left = policy == "CANCEL_AFTER_GRACE" and self.now < until
        return bool(self.readers) or policy == "CONTINUE" or left

    def settle(self) -> None:
        """Whatever follows by itself: the next round, the next turn."""
        turn = self.running
        if turn is not None and self.run is None and not turn.awaits:
            self.next_round(turn)
        elif turn is not None and self.run is not None and not self.stopping:
            self.look_for_boundary(turn)
        while self.running is None and not self.log.closed and not self.draining and self.may_start:
            wakes = any(one.scheduling != "SILENT" for one in self.log.deferred)
            if not self.log.queue and not wakes:
                break
            self.start_turn()

    def start_turn(self) -> None:
        """The first message, or all in front that steer; and whatever is to be told of calls."""
        queue = self.log.queue
        steers = list(takewhile(lambda one: one.delivery == "STEER", queue))
        taken = steers or queue[:1]
        self.log.queue = queue[len(taken) :]
        told, self.log.deferred = self.log.deferred, []
        # Silent: of several steering messages the last one's sampling counts.
        own = taken[-1].max_tokens if taken else None
        most = self.config.max_tokens if own is None else own
        turn = Turn(self.new_id("T"), taken, told, self.log.seq + 1, self.now, most)
        frames, calls = [one.id for one in taken], [one.call.id for one in told]
        by = self.by if self.by in frames else ""
        self.emit("turn_started", by=by, turn=turn.id, frames=frames, calls=calls)
        self.log.turns.append(turn)
        self.bill, self.steer_since = Bill(), None
        self.ask(turn)

    def next_round(self, turn: Turn) -> None:
        if self.steer_since is not None:
            self.end_turn("STEERED")
            return
        turn.round += 1
        turn.round_text.append(len(turn.text))
        turn.round_reasoning = len(turn.reasoning)
        self.ask(turn)

    def ask(self, turn: Turn, more: str = "") -> None:
        """Put the question to an engine; `max_tokens` is for all rounds together."""
        left = None if turn.max_tokens is None else turn.max_tokens - turn.tokens
        if left is not None and left <= 0:
            self.end_turn("LENGTH")
            return
        self.run = Run(self.new_id("R"), turn)
        said = transcript(self.log.turns, more)
        self.effects.append(("start", self.run.id, turn.id, said, left, more))
        if self.held_since is not None:
            self.effects.append(("hold", self.run.id, True))

    def stop(self, why: str) -> None:
        """The running turn is to end before its engine has."""
        if self.running and why not in KEEPS_CALLS:
            self.cancel_open(self.running.calls, why)
        self.steer_since = None
        if self.run is None:
            self.end_turn(why)
        else:
            self.run.stopped_at, self.run.why = self.now, why
            self.effects.append(("stop", self.run.id))

    def confirmed(self, total: int | None) -> None:
        """The engine at work has ended, with its own count; or it is given up."""
        run = self.run
        assert run is not None
        if total is None or total < run.computed:
            self.bill.estimated = True
        self.bill.wasted += max(total or 0, run.computed) - run.delivered
        self.run = None
        if run.why:
            self.end_turn(run.why)

    def end_turn(self, reason: str, error: str = "") -> None:
        turn, bill = self.running, self.bill
        assert turn is not None
        self.let_go()
        if reason not in KEEPS_CALLS:
            self.cancel_open(turn.calls, reason)
        turn.ended_seq = self.emit(
            "turn_finished",
            by="",
            turn=turn.id,
            reason=reason,
            error=error,
            generated=turn.tokens + bill.wasted,
            delivered=turn.tokens,
            wasted=bill.wasted,
            displayed=self.displayed_tokens(turn),
            kept=turn.kept_tokens,
            prompt=bill.prompt,
            cached=bill.cached,
            estimated=bill.estimated,
            total=self.now - turn.began,
            paused=bill.paused,
        )
        turn.reason = reason
        self.run, self.steer_since = None, None

    # --- steering and credit ----------------------------------------------------------------

    def look_for_boundary(self, turn: Turn, coming: str = "") -> bool:
        """Whether the turn is steered away here, before `coming`.

        Where a call was begun in this round, only the round's end is a boundary.
        """
        if self.steer_since is None or turn.round_calls:
            return False
        begun = turn.round_said or turn.round_thought
        tail = turn.text if turn.marks and turn.marks[-1].channel == "TEXT" else turn.reasoning
        late = self.steer_tokens >= self.config.steer_tokens
        if begun and not late and not sentence_ends(tail, coming):
            return False
        self.stop("STEERED")
        return True

    def credit(self) -> None:
        """Judged after each delta and each Ack.

        Silent: what another frame says was displayed counts with the next of them; after a loss,
        when nobody knows what was seen, one more delta goes out for somebody to acknowledge.
        """
        turn = self.running
        if self.config.window is None or turn is None:
            return
        short = len(turn.text) - self.displayed(turn) > self.config.window
        if short == (self.held_since is not None):
            return
        if self.run is not None:
            self.effects.append(("hold", self.run.id, short))
        if short:
            self.held_since = self.now
        else:
            self.let_go()

    def let_go(self) -> None:
        if self.held_since is not None:
            self.bill.paused += self.now - self.held_since
        self.held_since = None

    # --- engines ----------------------------------------------------------------------------

    def hear(self, run_id: str, now: int) -> Run | None:
        """The engine at work says something; nobody listens to another one."""
        self.begin(now)
        return self.run if self.run is not None and self.run.id == run_id else None

    def counted(self, run: Run, tokens: int) -> bool:
        """Count what an engine has made; whether it still comes into the log."""
        run.computed += tokens
        if not self.stopping:
            run.carry += tokens
        return not self.stopping

    def deliver(self, run: Run, channel: str, end: int, call: Call | None = None) -> None:
        """The tokens that ride on the event that was just written."""
        tokens, run.carry = run.carry, 0
        run.delivered += tokens
        self.steer_tokens += tokens
        run.turn.marks.append(Mark(self.log.seq, channel, end, tokens, run.turn.round, call))

    def text(self, run_id: str, channel: str, text: str, tokens: int, now: int) -> None:
        run = self.hear(run_id, now)
        # Silent: whether tokens without text wait for text is the engine's choice.
        if run is None or not self.counted(run, tokens) or not (text or tokens):
            return
        if not self.look_for_boundary(run.turn, text):
            self.delta(run, channel, text)
            if not self.look_for_boundary(run.turn):
                self.credit()
        self.settle()

    def delta(self, run: Run, channel: str, text: str) -> None:
        turn = run.turn
        offset = len(turn.text if channel == "TEXT" else turn.reasoning)
        said = {"channel": channel, "text": text, "offset": offset, "tokens": run.carry}
        self.emit("output_delta", turn=turn.id, round=turn.round, **said)
        if channel == "TEXT":
            turn.text += text
        else:
            turn.reasoning += text
        self.deliver(run, channel, offset + len(text))

    def call_started(self, run_id: str, index: int, name: str, now: int) -> None:
        run = self.hear(run_id, now)
        if run is None or self.stopping:
            return
        turn = run.turn
        if turn.round >= self.config.rounds:
            self.stop("TOOL_CALLS")
            return
        tool = self.config.tools.get(name) or Tool(idle=0, timeout=0)
        call = Call(self.new_id("C"), turn.id, name, tool, turn.round)
        self.emit("tool_call_started", turn=turn.id, call=call.id, name=name, round=turn.round)
        turn.calls.append(call)
        self.log.calls[call.id] = run.calls[index] = call

    def call_fragment(self, run_id: str, index: int, text: str, tokens: int, now: int) -> None:
        run = self.hear(run_id, now)
        call = run.calls.get(index) if run else None
        if run is None or not self.counted(run, tokens) or call is None or call.ready:
            return
        self.emit("tool_call_delta", call=call.id, text=text, tokens=run.carry)
        call.arguments += text
        self.deliver(run, "CALL", 0, call)

    def call_ready(self, run_id: str, index: int, now: int) -> None:
        run = self.hear(run_id, now)
        call = run.calls.get(index) if run else None
        if call is None or call.ready or self.stopping:
            return
        call.ready, call.arguments = True, call.arguments or "{}"
        call.end_at = self.now + call.tool.timeout
        call.heard_of(self.now)
        said = {"name": call.name, "arguments": call.arguments}
        self.emit("tool_call_ready", call=call.id, idle=call.idle_at, end=call.end_at, **said)
        # Silent: a call that nobody could run is announced and fails at once.
        try:
            good = isinstance(json.loads(call.arguments), dict)
        except ValueError:
            good = False
        wrong = "" if good else "the arguments are not one JSON object"
        if call.name not in self.config.tools:
            wrong = f"there is no tool named '{call.name}'"
        if wrong:
            self.end_call(call, "FAILED", compact({"error": wrong}))
        self.settle()

    def finished(
        self, run_id: str, cause: str, prompt: int, cached: int, total: int | None, now: int
    ) -> None:
        run = self.hear(run_id, now)
        if run is None:
            return
        self.bill.prompt += prompt
        self.bill.cached += cached
        if self.stopping:
            self.confirmed(total)
            self.settle()
            return
        # Tokens without text come into the log with a last, empty delta.
        self.counted(run, max(0, (total or 0) - run.computed))
        if run.carry:
            self.delta(run, "TEXT", "")
        self.confirmed(total)
        if cause == "stopped":
            self.end_turn("ERROR", "ENGINE_UNAVAILABLE")
        elif not any(call.ready for call in run.calls.values()):
            # Silent: whatever the cause, an engine that has made a whole call is asked again.
            self.end_turn(cause.upper() if cause in ("length", "content_filter") else "STOP")
        self.settle()

    def failed(self, run_id: str, reason: str, now: int) -> None:
        if self.hear(run_id, now) is None:
            return
        self.confirmed(None)
        if self.running:
            self.end_turn("ERROR", reason)
        self.settle()

    # --- tool calls -------------------------------------------------------------------------

    def cancel(self, call: Call, why: str) -> None:
        self.emit("tool_call_cancelled", call=call.id, reason=why)
        self.end_call(call, "CANCELLED")

    def cancel_open(self, calls: list[Call], why: str) -> None:
        for call in calls:
            if call.open:
                self.cancel(call, why)

    def end_call(
        self, call: Call, outcome: str, says: str = "", scheduling: str = "", *, late: bool = False
    ) -> int:
        """A result, or that there is none; `when` a later turn tells it, if one does."""
        says = says or TOLD[outcome]
        if late:
            # The first late result of a call that had none is told, when something else is.
            call.late += 1
            when = "SILENT" if call.late == 1 and call.outcome in WITHOUT_RESULT else ""
        else:
            self.progress_waits.pop(call.id, None)
            call.passed_over = self.went_on_without(call)
            default = "SILENT" if call.tool.blocking or outcome == "CANCELLED" else "WHEN_IDLE"
            when = (scheduling or default) if call.passed_over else ""
            call.outcome, call.says = outcome, says
        if when:
            self.log.deferred.append(Deferred(call, says, when))
        return self.emit(
            "tool_call_finished", call=call.id, outcome=outcome, late=late, says=says, when=when
        )

    def went_on_without(self, call: Call) -> bool:
        """Whether the model went on without the result of an open call."""
        turn = self.running
        if turn is None or turn.id != call.turn or turn.interrupted:
            return True
        if call.tool.blocking:
            return False
        if self.stopping or self.run is not None:
            return self.stopping or call.round < turn.round
        # An engine that failed before its first token has not gone on.
        rounds = [*(one.round for one in turn.marks), *(one.round for one in turn.calls)]
        return max(rounds) > call.round

    def log_progress(self, call: Call) -> int:
        report = self.progress_waits.pop(call.id)
        self.progress_logged[call.id] = self.now
        # Silent: a report that was held back is in the log without its frame.
        by = report.id if report.id == self.by else ""
        said = {"note": report.text, "idle": call.idle_at}
        return self.emit("tool_call_progressed", by=by, call=call.id, **said)

    # --- time -------------------------------------------------------------------------------

    def mercy(self, at: int) -> int:
        return self.recovered + MERCY if self.recovered and at < self.recovered else at

    def dues(self) -> Iterator[tuple[int, str, Call | None]]:
        """All that time alone leads to, in the order in which it counts at one moment."""
        turn = self.running
        if self.run is not None and self.run.stopped_at is not None:
            yield self.run.stopped_at + CONFIRM, "unconfirmed", None
        elif turn is not None:
            yield from self.ends(turn)
        for call in self.log.calls.values():
            if call.open:
                if call.id in self.progress_waits:
                    yield self.progress_logged[call.id] + PROGRESS_EVERY, "progress", call
                yield self.mercy(min(call.idle_at, call.end_at)), "timeout", call

    def ends(self, turn: Turn) -> Iterator[tuple[int, str, Call | None]]:
        """How time alone ends a turn."""
        yield self.mercy(turn.began + self.config.turn), "DEADLINE", None
        after_grace = self.config.policy == "CANCEL_AFTER_GRACE"
        if self.config.policy == "CONTINUE":
            pass
        elif not self.readers:
            gone = max(self.absent, turn.began) + self.config.grace
            yield gone if after_grace else self.now, "DISCONNECTED", None
        elif self.held_since is not None:
            # Silent: a grace of nothing is no time for an Ack either.
            wait = (after_grace and self.config.grace) or NO_GRACE
            yield max(self.held_since, self.acked) + wait, "DISCONNECTED", None
        if self.steer_since is not None and self.run is not None and not turn.round_calls:
            yield self.steer_since + self.config.steer_delay, "STEERED", None

    def due(self) -> int | None:
        return min((at for at, _, _ in self.dues()), default=None)

    def tick(self, now: int) -> None:
        self.begin(now)
        for _, what, call in [one for one in self.dues() if one[0] <= now]:
            if call is None:
                if what == "unconfirmed":
                    self.confirmed(None)
                elif self.running and not self.stopping:
                    self.stop(what)
                self.settle()
            elif call.open and what == "progress":
                self.log_progress(call)
            elif call.open:
                self.end_call(call, "TIMED_OUT")
        self.settle()

    # --- readers and losses -----------------------------------------------------------------

    def readers_changed(self, count: int, now: int) -> None:
        self.begin(now)
        if self.readers and not count:
            self.absent = self.now
        self.readers = count
        if not count and self.config.policy == "CANCEL_NOW" and self.running and not self.stopping:
            self.stop("DISCONNECTED")
        self.settle()

    def drain(self, survives: bool, now: int) -> None:
        self.begin(now)
        self.draining = True
        ends = not survives or self.config.policy == "CANCEL_NOW"
        if self.running and not self.stopping and ends:
            self.stop("DISCONNECTED")
        self.settle()

    def close(self, reason: str, now: int) -> None:
        """The session is deleted; whatever runs ends first."""
        self.begin(now)
        if self.log.closed:
            return
        if self.running is not None:
            # Silent: a deleted session's turn ends DISCONNECTED, and nobody waits for its engine.
            why = (self.run and self.run.why) or "DISCONNECTED"
            if why == "DISCONNECTED":
                self.cancel_open(self.running.calls, "CLOSED")
            if self.run is not None:
                self.effects.append(("stop", self.run.id))
                self.run.why = ""
                self.confirmed(None)
            self.end_turn(why)
        self.cancel_open(list(self.log.calls.values()), "CLOSED")
        self.emit("session_closed", reason=reason)
        self.log.closed = True

    def remember(self) -> Durable:
        """What is in the log now."""
        return copy.deepcopy(self.log)

    def lose(self, log: Durable, now: int, *, continues: bool) -> None:
        """The process is gone; the next one finds this log, perhaps an engine that continues."""
        self.log = copy.deepcopy(log)
        self.begin(now)
        self.soft()
        self.recovered = self.now
        if self.running is not None:
            self.recover(self.running, continues=continues)
        self.settle()

    def recover(self, turn: Turn, *, continues: bool) -> None:
        """Go on with what can go on, end what cannot."""
        if turn.interrupted:
            self.end_turn("INTERRUPTED")
            return
        if any(one.delivery == "STEER" for one in self.log.queue):
            self.steer_since = self.now
        if turn.awaits:
            return
        said, calls = turn.round_said, turn.round_calls
        answered = any(call.ready for call in calls)
        begun = bool(said or calls or turn.round_thought)
        # Silent: there is nothing to go on from where the model had only thought.
        goes_on = answered or not begun or (continues and bool(said or calls))
        if (
            not goes_on
            or self.steer_since is not None
            or self.config.policy == "CANCEL_NOW"
            or turn.began + self.config.turn <= self.now
            or turn.recoveries >= RECOVERIES
        ):
            self.end_turn("OWNER_LOST", "OWNER_LOST")
            return
        turn.recoveries += 1
        self.emit("turn_recovered", turn=turn.id, from_seq=self.log.seq + 1)
        if answered:
            self.next_round(turn)
        else:
            self.ask(turn, said)
