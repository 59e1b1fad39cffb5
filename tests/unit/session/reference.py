"""What the contract says a session does, as a second program: to be read, and to be compared with.

Written from the contract and the comments in `proto/`, not from the core; plain Python, no
protocol buffers. Every input is a method; what it leads to is left in `events`, `effects` and
`receipt`, and `due()` is when the timer must go off. Ids are what the caller hands out by
counting (`T1` the first turn, `C1` the first call, `R1` the first question). Times are Unix
nanoseconds.

Left out: what a field may hold (validation), bytes and sizes, history and the context policy,
`Timing` but for its sums. Where the contract is silent and the core had to choose, a comment
says `Silent:`, and the choice is a promise from then on.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

SECOND = 1_000_000_000
CONFIRM = 2 * SECOND
MERCY = 5 * SECOND
NO_GRACE = 30 * SECOND
LATE = 4
RECOVERIES = 2
FOREVER = 1 << 62
KEEPS_CALLS = ("STOP", "LENGTH", "CONTENT_FILTER", "STEERED", "OWNER_LOST")


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


@dataclass
class Waiting:
    frame: str
    text: str
    delivery: str
    seq: int
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
    offset: int
    arguments: str = ""
    ready: bool = False
    passed_over: bool = False
    idle_at: int = 0
    end_at: int = 0
    outcome: str = ""
    says: str = ""
    late: int = 0
    parts: list[Frame] = field(default_factory=list)
    deferred_late: bool = False

    @property
    def open(self) -> bool:
        return self.ready and not self.outcome


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
class Deferred:
    """A result that the model is told in a later turn."""

    call: Call
    says: str
    scheduling: str


@dataclass
class Turn:
    id: str
    inputs: list[Waiting]
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
    prompt: int = 0
    cached: int = 0
    wasted: int = 0
    estimated: bool = False
    carry: int = 0
    paused: int = 0

    @property
    def tokens(self) -> int:
        return sum(mark.tokens for mark in self.marks)

    @property
    def awaits(self) -> bool:
        return any(call.open and call.tool.blocking for call in self.calls)

    def chars_at(self, seq: int) -> int:
        return max((m.end for m in self.marks if m.channel == "TEXT" and m.seq <= seq), default=0)


@dataclass
class Run:
    """An engine at work on one question."""

    id: str
    turn: str
    computed: int = 0
    stopped_at: int | None = None
    why: str = ""
    calls: dict[int, Call | None] = field(default_factory=dict)
    delivered: int = 0


@dataclass
class Durable:
    """What the log tells whoever reads it."""

    seq: int = 0
    turns: list[Turn] = field(default_factory=list)
    queue: list[Waiting] = field(default_factory=list)
    calls: dict[str, Call] = field(default_factory=dict)
    deferred: list[Deferred] = field(default_factory=list)
    applied: dict[str, tuple[Frame, int, str, str]] = field(default_factory=dict)
    closed: bool = False


def sentence(text: str) -> str:
    """Whether a sentence has ended: `yes`, `no`, or `perhaps`, if white space follows.

    Silent: which full stops end none (numbers, abbreviations); the schedules have no such.
    """
    if re.search(r"[.!?][\"')]*\s+$|\n\s*$", text):
        return "yes"
    return "perhaps" if re.search(r"[.!?][\"')]*$", text) else "no"


class Reference:
    """One session."""

    def __init__(self, config: Config, now: int, readers: int = 0) -> None:
        self.config, self.now = config, now
        self.log = Durable()
        self.events: list[dict[str, Any]] = []
        self.effects: list[tuple[Any, ...]] = []
        self.receipt: dict[str, Any] | None = None
        self.turn_count = self.call_count = self.run_count = 0
        self.by = ""
        self.soft()
        self.absent = now
        self.emit("session_opened")
        if readers:
            self.readers_changed(readers)

    def soft(self) -> None:
        """What only the owner knows, and a new one does not."""
        self.readers = 0
        self.absent = self.now
        self.run: Run | None = None
        self.draining = False
        self.recovered = 0
        self.quiet: dict[str, tuple[Frame, dict[str, Any]]] = {}
        self.seen_seq = 0
        self.seen_offset: dict[str, int] = {}
        self.steer_since: int | None = None
        self.steer_tokens = 0
        self.held_since: int | None = None
        self.acked = 0
        self.progress_logged: dict[str, int] = {}
        self.progress_waits: dict[str, Frame] = {}

    # --- what there is ----------------------------------------------------------------------

    @property
    def last(self) -> Turn | None:
        return self.log.turns[-1] if self.log.turns else None

    @property
    def running(self) -> Turn | None:
        return self.last if self.last and not self.last.reason else None

    @property
    def stopping(self) -> bool:
        return self.run is not None and self.run.stopped_at is not None

    @property
    def may_start(self) -> bool:
        """Whether somebody reads, or may come back to."""
        if self.readers or self.config.policy == "CONTINUE":
            return True
        return (
            self.config.policy == "CANCEL_AFTER_GRACE"
            and self.now < self.absent + self.config.grace
        )

    def displayed(self, turn: Turn) -> int:
        return max(turn.chars_at(self.seen_seq), self.seen_offset.get(turn.id, 0))

    def emit(self, kind: str, **fields: Any) -> int:
        self.log.seq += 1
        self.events.append({"kind": kind, "by": self.by, **fields})
        return self.log.seq

    # --- time -------------------------------------------------------------------------------

    def mercy(self, at: int) -> int:
        return self.recovered + MERCY if self.recovered and at < self.recovered else at

    def dues(self) -> Iterator[tuple[int, str, Call | None]]:
        """All that time alone leads to, in the order in which it counts at one moment."""
        turn = self.running
        if self.run is not None and self.run.stopped_at is not None:
            yield self.run.stopped_at + CONFIRM, "unconfirmed", None
        if turn is not None and not self.stopping:
            yield from self.ends(turn)
        for call in self.log.calls.values():
            if call.open:
                if call.id in self.progress_waits:
                    yield self.progress_logged[call.id] + SECOND, "progress", call
                yield self.mercy(min(call.idle_at, call.end_at)), "timeout", call

    def ends(self, turn: Turn) -> Iterator[tuple[int, str, Call | None]]:
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
        if self.steer_since is not None and self.run is not None and not self.in_call():
            yield self.steer_since + self.config.steer_delay, "STEERED", None

    def due(self) -> int | None:
        return min((at for at, _, _ in self.dues()), default=None)

    def tick(self, now: int) -> None:
        self.begin(now)
        for _, what, call in [one for one in self.dues() if one[0] <= now]:
            if what == "unconfirmed":
                if self.running:
                    self.confirmed(None)
            elif what == "timeout" and call is not None and call.open:
                self.end_call(call, "TIMED_OUT")
            elif what == "progress" and call is not None and call.open:
                self.log_progress(call)
            elif self.running and not self.stopping and what.isupper():
                self.stop(what)
            if call is None:
                self.settle()
        self.settle()

    def begin(self, now: int, by: str = "") -> None:
        self.now = max(self.now, now)
        self.events, self.effects, self.receipt, self.by = [], [], None, by

    # --- turns ------------------------------------------------------------------------------

    def settle(self) -> None:
        """Whatever follows by itself: the next round, the next turn."""
        turn = self.running
        self.by = self.by if self.receipt else ""
        if turn is not None:
            if self.run is None and not turn.awaits:
                self.next_round(turn)
            elif self.steer_since is not None and self.run and not self.stopping:
                self.look_for_boundary(turn, "")
        while self.running is None and not self.log.closed and not self.draining and self.may_start:
            wakes = any(one.scheduling != "SILENT" for one in self.log.deferred)
            if not self.log.queue and not wakes:
                break
            self.start_turn()

    def start_turn(self) -> None:
        queue = self.log.queue
        count = 1 if queue else 0
        if queue and queue[0].delivery == "STEER":
            steers = [one.delivery == "STEER" for one in queue]
            count = steers.index(False) if False in steers else len(steers)
        taken, self.log.queue = queue[:count], queue[count:]
        told, self.log.deferred = self.log.deferred, []
        self.turn_count += 1
        # Silent: of several steering messages the last one's sampling counts.
        own = taken[-1].max_tokens if taken else None
        most = self.config.max_tokens if own is None else own
        turn = Turn(f"T{self.turn_count}", taken, told, self.log.seq + 1, self.now, most)
        by, self.by = self.by, self.by if self.by in [one.frame for one in taken] else ""
        self.emit(
            "turn_started",
            turn=turn.id,
            frames=[one.frame for one in taken],
            calls=[one.call.id for one in told],
        )
        self.by = by
        self.log.turns.append(turn)
        self.steer_since = None
        self.ask(turn)

    def ask(self, turn: Turn, more: str = "") -> None:
        left = None if turn.max_tokens is None else turn.max_tokens - turn.tokens
        if left is not None and left <= 0:
            self.end_turn("LENGTH")
            return
        said = self.transcript(turn, more)
        self.run_count += 1
        self.run = Run(f"R{self.run_count}", turn.id)
        self.effects.append(("start", self.run.id, turn.id, said, left, more))
        if self.held_since is not None:
            self.effects.append(("hold", self.run.id, True))

    def next_round(self, turn: Turn) -> None:
        if self.steer_since is not None:
            self.end_turn("STEERED")
            return
        turn.round += 1
        turn.round_text.append(len(turn.text))
        turn.round_reasoning = len(turn.reasoning)
        self.ask(turn)

    def stop(self, why: str) -> None:
        """The running turn is to end before its engine has."""
        if why not in ("INTERRUPTED", *KEEPS_CALLS) and self.running:
            self.cancel_calls(self.running, why)
        self.steer_since = None
        if self.run is None:
            self.end_turn(why)
        else:
            self.run.stopped_at, self.run.why = self.now, why
            self.effects.append(("stop", self.run.id))

    def cancel_calls(self, turn: Turn, why: str) -> None:
        for call in [one for one in turn.calls if one.open]:
            self.emit("tool_call_cancelled", call=call.id, reason=why)
            self.end_call(call, "CANCELLED")

    def confirmed(self, total: int | None, *, exact: bool = True) -> None:
        """The engine at work has ended, or is given up."""
        run, turn = self.run, self.running
        assert run is not None
        assert turn is not None
        if total is None or not exact or total < run.computed:
            turn.estimated = True
        turn.wasted += max(total or 0, run.computed) - run.delivered
        turn.carry = 0
        self.run = None
        if run.why:
            self.end_turn(run.why)

    def end_turn(self, reason: str, error: str = "") -> None:
        turn = self.running
        assert turn is not None
        self.let_go()
        if reason not in ("INTERRUPTED", *KEEPS_CALLS):
            self.cancel_calls(turn, reason)
        turn.wasted += turn.carry
        delivered = turn.tokens
        kept = self.kept_tokens(turn)
        turn.reason = reason
        by, self.by = self.by, ""
        turn.ended_seq = self.emit(
            "turn_finished",
            turn=turn.id,
            reason=reason,
            error=error,
            delivered=delivered,
            wasted=turn.wasted,
            generated=delivered + turn.wasted,
            kept=kept,
            displayed=self.displayed_tokens(turn),
            prompt=turn.prompt,
            cached=turn.cached,
            estimated=turn.estimated,
            total=self.now - turn.began,
        )
        self.by = by
        self.run, self.steer_since = None, None

    def kept_tokens(self, turn: Turn) -> int:
        """Whole tokens; of the reasoning, what came before the last text of which some is kept."""
        kept = len(turn.text) if turn.kept is None else turn.kept
        thought = len(turn.reasoning)
        if turn.kept is not None and not turn.keeps_all:
            reached, begin, thought = 0, 0, 0
            for mark in turn.marks:
                if mark.channel == "REASONING":
                    reached = mark.end
                elif mark.channel == "TEXT":
                    thought = reached if begin < kept else thought
                    begin = mark.end
        tokens = 0
        for mark in turn.marks:
            whole = {"TEXT": kept, "REASONING": thought}.get(mark.channel, 0)
            if mark.call is not None:
                tokens += mark.tokens if mark.call.ready else 0
            elif turn.kept is None or 0 < whole >= mark.end:
                tokens += mark.tokens
        return tokens

    def displayed_tokens(self, turn: Turn) -> int:
        chars = self.seen_offset.get(turn.id, 0)
        text = [m.seq for m in turn.marks if m.channel == "TEXT" and chars and m.end <= chars]
        last = max([self.seen_seq, *text])
        return sum(m.tokens for m in turn.marks if m.seq <= last)

    # --- steering and credit ------------------------------------------------------------------

    def in_call(self) -> bool:
        """Whether a call was begun in this round: then only its end is a boundary."""
        turn = self.running
        return turn is not None and any(call.round == turn.round for call in turn.calls)

    def look_for_boundary(self, turn: Turn, coming: str) -> bool:
        """Whether the turn stops here, before `coming`."""
        if self.steer_since is None or self.in_call():
            return False
        said = turn.text[turn.round_text[-1] :]
        thought = turn.reasoning[turn.round_reasoning :]
        tail = ""
        if said or thought:
            tail = turn.text if turn.marks[-1].channel == "TEXT" else turn.reasoning
        found = sentence(tail)
        certain = (
            not (said or thought) or found == "yes" or (found == "perhaps" and coming[:1].isspace())
        )
        if certain or self.steer_tokens >= self.config.steer_tokens:
            self.stop("STEERED")
            return True
        return False

    def credit(self) -> None:
        """Judged after each delta and each Ack.

        Silent: what another frame says was displayed counts with the next of them; after a loss,
        when nobody knows what was seen, one more delta goes out for somebody to acknowledge.
        """
        turn = self.running
        if self.config.window is None or turn is None:
            return
        behind = len(turn.text) - self.displayed(turn)
        short = behind > self.config.window
        if short == (self.held_since is not None):
            return
        if self.run is not None:
            self.effects.append(("hold", self.run.id, short))
        if short:
            self.held_since = self.now
        else:
            self.let_go()

    def let_go(self) -> None:
        if self.held_since is not None and self.running is not None:
            self.running.paused += self.now - self.held_since
        self.held_since = None

    # --- the transcript -----------------------------------------------------------------------

    def transcript(self, current: Turn, more: str) -> list[tuple[Any, ...]]:
        """What the model is told: `(role, text, calls)`, and `(TOOL, text, call)`."""
        said: list[tuple[Any, ...]] = []
        for turn in self.log.turns:
            again = [
                (f"{one.call.id}_{turn.seq}_{place}", one.call.name, one.call.arguments)
                for place, one in enumerate(turn.told)
            ]
            if again:
                said.append(("ASSISTANT", "", again))
            said += [
                ("TOOL", one.says, name) for one, (name, _, _) in zip(turn.told, again, strict=True)
            ]
            said += [("USER", one.text, []) for one in turn.inputs]
            ends = [*turn.round_text[1:], len(turn.text)]
            for number, (start, end) in enumerate(zip(turn.round_text, ends, strict=True)):
                kept = end if turn.kept is None else min(end, turn.kept)
                text = turn.text[start:kept]
                if turn is current and number == turn.round:
                    assert text.endswith(more)
                    text = text[: len(text) - len(more)]
                calls = [one for one in turn.calls if one.ready and one.round == number]
                if text or calls:
                    asked = [(one.id, one.name, one.arguments) for one in calls]
                    said.append(("ASSISTANT", text, asked))
                for call in calls:
                    said.append(("TOOL", self.told_of(call), call.id))
        return said

    @staticmethod
    def told_of(call: Call) -> str:
        return call.says if call.outcome and not call.passed_over else '{"status":"running"}'

    # --- engines ------------------------------------------------------------------------------

    def at_work(self, run: str, now: int) -> bool:
        self.begin(now)
        return self.run is not None and self.run.id == run

    def computed(self, tokens: int) -> bool:
        """Count what an engine has made; whether it still counts for the log."""
        assert self.run is not None
        self.run.computed += tokens
        if self.stopping:
            return False
        if self.running:
            self.running.carry += tokens
        return True

    def deliver(self, turn: Turn, channel: str, end: int, call: Call | None = None) -> int:
        """The tokens that ride on the event that was just written."""
        tokens, turn.carry = turn.carry, 0
        assert self.run is not None
        self.run.delivered += tokens
        if self.steer_since is not None:
            self.steer_tokens += tokens
        turn.marks.append(Mark(self.log.seq, channel, end, tokens, turn.round, call))
        return tokens

    def text(self, run: str, channel: str, text: str, tokens: int, now: int) -> None:
        if not self.at_work(run, now):
            return
        turn = self.running
        assert turn is not None
        before = turn.carry
        # Silent: whether tokens without text wait for text is the engine's choice.
        if not self.computed(tokens) or not (text or tokens):
            return
        if self.steer_since is not None and self.look_for_boundary(turn, text):
            turn.carry = before
            self.settle()
            return
        whole = turn.text if channel == "TEXT" else turn.reasoning
        self.delta(turn, channel, text, len(whole))
        if not self.look_for_boundary(turn, ""):
            self.credit()
        self.settle()

    def delta(self, turn: Turn, channel: str, text: str, offset: int) -> None:
        tokens = turn.carry
        self.emit(
            "output_delta",
            turn=turn.id,
            channel=channel,
            text=text,
            offset=offset,
            tokens=tokens,
            round=turn.round,
        )
        if channel == "TEXT":
            turn.text += text
        else:
            turn.reasoning += text
        self.deliver(turn, channel, offset + len(text))

    def call_started(self, run: str, index: int, name: str, now: int) -> None:
        if not self.at_work(run, now) or self.stopping:
            return
        turn = self.running
        assert turn is not None
        assert self.run is not None
        if turn.round >= self.config.rounds:
            self.stop("TOOL_CALLS")
            return
        self.call_count += 1
        tool = self.config.tools.get(name) or Tool(idle=0, timeout=0)
        call = Call(f"C{self.call_count}", turn.id, name, tool, turn.round, len(turn.text))
        self.emit("tool_call_started", turn=turn.id, call=call.id, name=name, round=turn.round)
        turn.calls.append(call)
        self.log.calls[call.id] = call
        self.run.calls[index] = call

    def call_fragment(self, run: str, index: int, text: str, tokens: int, now: int) -> None:
        if not self.at_work(run, now):
            return
        turn, call = self.running, self.run.calls.get(index) if self.run else None
        assert turn is not None
        if not self.computed(tokens) or call is None or call.ready:
            return
        self.emit("tool_call_delta", call=call.id, text=text, tokens=turn.carry)
        call.arguments += text
        self.deliver(turn, "CALL", 0, call)

    def call_ready(self, run: str, index: int, now: int) -> None:
        if not self.at_work(run, now) or self.stopping:
            return
        call = self.run.calls.get(index) if self.run else None
        if call is None or call.ready:
            return
        call.arguments = call.arguments or "{}"
        call.ready = True
        call.end_at = self.now + call.tool.timeout
        call.idle_at = min(self.now + call.tool.idle, call.end_at)
        self.emit(
            "tool_call_ready",
            call=call.id,
            name=call.name,
            arguments=call.arguments,
            idle=call.idle_at,
            end=call.end_at,
        )
        # Silent: a call that nobody could run is announced and fails at once.
        try:
            good = isinstance(json.loads(call.arguments), dict)
        except ValueError:
            good = False
        if call.name not in self.config.tools:
            self.end_call(
                call, "FAILED", compact({"error": f"there is no tool named '{call.name}'"})
            )
        elif not good:
            self.end_call(
                call, "FAILED", compact({"error": "the arguments are not one JSON object"})
            )
        self.settle()

    def finished(
        self, run: str, cause: str, prompt: int, cached: int, total: int | None, now: int
    ) -> None:
        if not self.at_work(run, now):
            return
        turn, ended = self.running, self.run
        assert turn is not None
        assert ended is not None
        turn.prompt += prompt
        turn.cached += cached
        if self.stopping:
            self.confirmed(total)
            self.settle()
            return
        if total is not None and total > ended.computed:
            turn.carry += total - ended.computed
            ended.computed = total
        if turn.carry:
            self.delta(turn, "TEXT", "", len(turn.text))
        self.confirmed(total)
        asked = any(call is not None and call.ready for call in ended.calls.values())
        if cause == "stopped":
            self.end_turn("ERROR", "ENGINE_UNAVAILABLE")
        elif not asked:
            # Silent: whatever the cause, an engine that has made a whole call is asked again.
            self.end_turn(cause.upper() if cause in ("length", "content_filter") else "STOP")
        self.settle()

    def failed(self, run: str, reason: str, now: int) -> None:
        if not self.at_work(run, now):
            return
        self.confirmed(None)
        if self.running:
            self.end_turn("ERROR", reason)
        self.settle()

    # --- tool calls ---------------------------------------------------------------------------

    def end_call(
        self, call: Call, outcome: str, says: str = "", scheduling: str = "", late: bool = False
    ) -> int:
        says = says or {
            "TIMED_OUT": '{"error":"timed out"}',
            "CANCELLED": '{"error":"cancelled; it may or may not have run"}',
        }.get(outcome, "")
        if late:
            # The first late result of a call that had none is told, when something else is.
            first = call.outcome in ("CANCELLED", "TIMED_OUT", "UNKNOWN") and not call.deferred_late
            call.deferred_late = True
            when = "SILENT" if first else ""
        else:
            self.progress_waits.pop(call.id, None)
            default = "WHEN_IDLE" if not call.tool.blocking else "SILENT"
            call.passed_over = self.gone_on(call)
            when = (scheduling or default) if call.passed_over else ""
            if when and outcome == "CANCELLED":
                when = "SILENT"
            call.outcome, call.says = outcome, says
        if when:
            self.log.deferred.append(Deferred(call, says, when))
        return self.emit(
            "tool_call_finished", call=call.id, outcome=outcome, late=late, says=says, when=when
        )

    def gone_on(self, call: Call) -> bool:
        """Whether the model went on without the result of an open call."""
        turn = self.running
        if turn is None or turn.id != call.turn or turn.interrupted:
            return True
        if call.tool.blocking:
            return False
        if self.stopping:
            return True
        if self.run is not None:
            return call.round < turn.round
        # An engine that failed before its first token has not gone on.
        rounds = [*(one.round for one in turn.marks), *(one.round for one in turn.calls)]
        return max(rounds) > call.round

    def log_progress(self, call: Call) -> int:
        report = self.progress_waits.pop(call.id)
        self.progress_logged[call.id] = self.now
        # Silent: a report that was held back is in the log without its frame.
        by, self.by = self.by, report.id if report.id == self.by else ""
        seq = self.emit("tool_call_progressed", call=call.id, note=report.text, idle=call.idle_at)
        self.by = by
        return seq

    # --- frames -------------------------------------------------------------------------------

    def frame(self, frame: Frame, now: int) -> None:
        self.begin(now, frame.id)
        known = self.log.applied.get(frame.id) if frame.id else None
        if known is not None:
            self.answer("DUPLICATE", known[1], known[2], known[3])
            if known[0] != frame:
                self.refuse("FRAME_ID_REUSED")
        elif frame.id in self.quiet:
            before, receipt = self.quiet[frame.id]
            self.receipt = {**receipt, "status": "DUPLICATE"}
            if before != frame:
                self.refuse("FRAME_ID_REUSED")
        elif self.log.closed:
            self.refuse("SESSION_CLOSED")
        else:
            getattr(self, "take_" + frame.kind)(frame)
            assert self.receipt is not None
            if frame.id and self.receipt["status"] in ("ACCEPTED", "STALE"):
                one = self.receipt
                if one["seq"]:
                    self.log.applied[frame.id] = (frame, one["seq"], one["turn"], one["delivery"])
                else:
                    self.quiet[frame.id] = (frame, dict(one))

    def answer(self, status: str, seq: int = 0, turn: str = "", delivery: str = "") -> None:
        self.receipt = {"status": status, "seq": seq, "turn": turn, "delivery": delivery}
        self.receipt["error"] = ""

    def refuse(self, reason: str) -> None:
        self.answer("REJECTED")
        assert self.receipt is not None
        self.receipt["error"] = reason

    def position(self, frame: Frame, turn: Turn | None, *, note: bool = True) -> bool:
        """Take note of what the user has seen; False if that is beyond the end."""
        if turn is None:
            held = [
                one
                for one in self.log.turns
                if one.seq <= frame.seq and (not one.ended_seq or frame.seq <= one.ended_seq)
            ]
            turn = held[0] if held else self.last
        # Silent: only in the turn that can still be cut does an offset matter.
        if frame.seq > self.log.seq or (
            frame.offset is not None and frame.offset > (len(turn.text) if turn else 0)
        ):
            self.refuse("POSITION_BEYOND_END")
            return False
        if not note:
            return True
        if frame.offset is None:
            self.seen_seq = max(self.seen_seq, frame.seq)
        elif turn is not None:
            self.seen_offset[turn.id] = max(self.seen_offset.get(turn.id, 0), frame.offset)
        return True

    def take_ack(self, frame: Frame) -> None:
        if not self.position(frame, None):
            return
        self.acked = self.now
        self.answer("ACCEPTED")
        self.credit()

    def take_ping(self, frame: Frame) -> None:
        self.answer("ACCEPTED")

    def take_message(self, frame: Frame) -> None:
        turn = self.running
        if frame.turn and (self.last is None or frame.turn != self.last.id):
            self.refuse("TURN_MISMATCH")
            return
        urgent = frame.delivery != "QUEUE"
        full = sum(one.urgent == urgent for one in self.log.queue) >= self.config.queued
        if not self.position(frame, self.last if frame.turn else None, note=not full):
            return
        if full:
            self.refuse("QUEUE_FULL")
            return
        runs = turn is not None and not self.stopping
        seq = self.emit("input_accepted", frame=frame.id, text=frame.text, delivery=frame.delivery)
        one = Waiting(frame.id, frame.text, frame.delivery, seq, frame.max_tokens)
        place = sum(other.urgent for other in self.log.queue) if urgent else len(self.log.queue)
        self.log.queue.insert(place, one)
        # Silent: a message begins the grace anew, where nobody reads.
        self.absent = self.now
        # Silent: a steer says STEER also where the turn's end was decided by something else, but
        # is in no log yet; and those that come together with the one that stopped it are taken too.
        steers = frame.delivery == "STEER" and turn is not None and not turn.interrupted
        delivery = (
            "STEER"
            if steers
            else "INTERRUPT"
            if frame.delivery == "INTERRUPT" and runs
            else "QUEUE"
        )
        self.answer("ACCEPTED", seq, "", delivery)
        if frame.delivery == "INTERRUPT":
            if runs:
                self.interrupt(frame)
            elif self.truncate(frame):
                self.answer("ACCEPTED", seq, "", "INTERRUPT")
        elif frame.delivery == "STEER" and runs and self.steer_since is None:
            self.steer_since, self.steer_tokens = self.now, 0
        self.settle()
        started = self.running
        if started is not None and any(other is one for other in started.inputs):
            assert self.receipt is not None
            self.receipt["turn"] = started.id

    def take_interrupt(self, frame: Frame) -> None:
        for one in self.log.queue:
            if frame.target and one.frame == frame.target:
                self.log.queue.remove(one)
                seq = self.emit("input_withdrawn", frame=one.frame)
                self.answer("ACCEPTED", seq)
                if not any(other.delivery == "STEER" for other in self.log.queue):
                    self.steer_since = None
                return
        if frame.seq > self.log.seq:
            self.refuse("POSITION_BEYOND_END")
            return
        turn = self.last
        named = turn is not None and (
            frame.turn == turn.id
            or (frame.target and frame.target in [one.frame for one in turn.inputs])
        )
        if turn is None or not named:
            known = [
                one.id
                for one in self.log.turns
                if frame.turn == one.id or frame.target in [w.frame for w in one.inputs if w.frame]
            ]
            # Silent: the receipt names the turn as the frame did, even one that never was.
            self.answer("STALE", 0, known[0] if known else frame.turn)
            return
        if not self.position(frame, turn):
            return
        if self.running and not self.stopping:
            seq = self.interrupt(frame)
            self.answer("ACCEPTED", seq, turn.id)
        else:
            cut = self.truncate(frame)
            self.answer("ACCEPTED" if cut else "STALE", cut, turn.id)
        self.settle()

    def interrupt(self, frame: Frame) -> int:
        """One append: what becomes of each open call, then the cut."""
        turn = self.running
        assert turn is not None
        tools = []
        for call in turn.calls:
            let = frame.tools == "LET_FINISH" or (not frame.tools and call.tool.let_finish)
            state = call.outcome or ("STILL_RUNNING" if call.ready else "NOT_STARTED")
            # Where a process was lost after it had cancelled a call, before the turn's end.
            state = "CANCEL_SENT" if state == "CANCELLED" else state
            if call.open and not let:
                self.emit("tool_call_cancelled", call=call.id, reason="INTERRUPTED")
                self.end_call(call, "CANCELLED")
                state = "CANCEL_SENT"
            tools.append((call.id, call.name, state, call.tool.side_effect))
        keep = frame.keep if frame.kind == "interrupt" else "DISPLAYED"
        whole = len(turn.text)
        turn.kept = {"DISPLAYED": self.displayed(turn), "GENERATED": whole, "NOTHING": 0}[keep]
        turn.keeps_all, turn.interrupted = keep == "GENERATED", True
        seq = self.emit(
            "turn_interrupted",
            turn=turn.id,
            frame=frame.id,
            kept=turn.kept,
            dropped=whole - turn.kept,
            tools=tools,
            keep=keep,
        )
        self.stop("INTERRUPTED")
        return seq

    def truncate(self, frame: Frame) -> int:
        """A stop after the engine was faster than the reader."""
        turn = self.last
        told = frame.seq > 0 or frame.offset is not None
        if turn is None or not turn.reason or turn.kept is not None or not told:
            return 0
        kept = self.displayed(turn)
        if frame.keep != "DISPLAYED" or kept >= len(turn.text):
            return 0
        turn.kept = kept
        return self.emit(
            "turn_truncated",
            turn=turn.id,
            frame=frame.id,
            kept=kept,
            dropped=len(turn.text) - kept,
        )

    def take_result(self, frame: Frame) -> None:
        call = self.log.calls.get(frame.call)
        if call is None or not call.ready:
            self.refuse("TOOL_CALL_NOT_FOUND")
        elif frame.partial:
            if not call.open:
                self.answer("STALE")
                return
            call.idle_at = min(self.now + call.tool.idle, call.end_at)
            said = {"json": frame.json, "content": frame.content}
            seq = self.emit(
                "tool_call_output", call=call.id, index=len(call.parts), idle=call.idle_at, **said
            )
            call.parts.append(frame)
            self.answer("ACCEPTED", seq, call.turn)
        elif not call.open and call.late >= LATE:
            self.refuse("LATE_RESULTS_FULL")
        else:
            late = not call.open
            call.late += late
            parts = [frame] if late else [*call.parts, frame]
            outcome = "FAILED" if frame.error is not None else "COMPLETED"
            seq = self.end_call(call, outcome, whole(parts), frame.scheduling, late)
            self.answer("ACCEPTED", seq, call.turn)
            newest = self.log.deferred[-1] if self.log.deferred else None
            at_once = (
                newest is not None and newest.call is call and newest.scheduling == "INTERRUPT"
            )
            if at_once and not late and self.running and not self.stopping:
                self.interrupt(Frame(frame.id, "interrupt", keep="GENERATED"))
            self.settle()

    def take_progress(self, frame: Frame) -> None:
        call = self.log.calls.get(frame.call)
        if call is None or not call.ready:
            self.refuse("TOOL_CALL_NOT_FOUND")
        elif not call.open:
            self.answer("STALE")
        else:
            call.idle_at = min(self.now + call.tool.idle, call.end_at)
            self.progress_waits[call.id] = frame
            ago = self.now - self.progress_logged.get(call.id, -FOREVER)
            seq = self.log_progress(call) if ago >= SECOND else 0
            self.answer("ACCEPTED", seq, call.turn)

    # --- readers, drains, losses --------------------------------------------------------------

    def readers_changed(self, count: int, now: int | None = None) -> None:
        self.begin(self.now if now is None else now)
        left = self.readers and not count
        self.readers = count
        if left:
            self.absent = self.now
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
        self.begin(now)
        if self.log.closed:
            return
        if self.running is not None:
            # Silent: a deleted session's turn ends DISCONNECTED, and nobody waits for its engine.
            why = "DISCONNECTED"
            if self.run is not None:
                self.effects.append(("stop", self.run.id))
                why, self.run.why = self.run.why or why, ""
                self.confirmed(None)
            if why == "DISCONNECTED":
                self.cancel_calls(self.running, "CLOSED")
            self.end_turn(why)
        for call in self.log.calls.values():
            if call.open:
                self.emit("tool_call_cancelled", call=call.id, reason="CLOSED")
                self.end_call(call, "CANCELLED")
        self.emit("session_closed", reason=reason)
        self.log.closed = True

    def remember(self) -> Durable:
        """What is in the log now."""
        return copy.deepcopy(self.log)

    def lose(self, log: Durable, now: int, *, continues: bool) -> None:
        """The process is gone; the next one finds this log."""
        self.log = copy.deepcopy(log)
        self.begin(now)
        self.soft()
        self.recovered = self.now
        turn = self.running
        if turn is not None:
            turn.estimated = True
            turn.wasted = turn.carry = turn.prompt = turn.cached = 0
            self.recover(turn, continues=continues)
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
        said = turn.text[turn.round_text[-1] :]
        calls = [one for one in turn.calls if one.round == turn.round]
        answered = any(one.ready for one in calls)
        begun = bool(said or calls or len(turn.reasoning) > turn.round_reasoning)
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


def compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def whole(parts: list[Frame]) -> str:
    """What the model is told of a result that came in these parts."""
    last = parts[-1]
    if last.error is not None:
        return compact({"error": last.error})
    if all(one.content is not None for one in parts):
        return compact("".join(one.content or "" for one in parts))
    said = [json.loads(one.json) if one.content is None else one.content for one in parts]
    return compact(said[0] if len(said) == 1 else said)
