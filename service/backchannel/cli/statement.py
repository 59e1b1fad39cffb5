"""What a session has cost, told from its own log: tokens by fate, tool calls, time by phase.

A pure fold over events, made without the server's: the tokens of each turn are counted again from
its deltas, so that what the server has billed can be checked against what it has delivered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from backchannel.v1 import event_pb2
from backchannel.v1.session_pb2 import (
    Delivery,
    FinishReason,
    SideEffect,
    Timing,
    ToolCallOutcome,
    ToolSpec,
    Turn,
    Usage,
    UserMessage,
)

_NO_TOOL: Final = ToolSpec()
RUNNING: Final = FinishReason.FINISH_REASON_UNSPECIFIED
_URGENT: Final = (Delivery.DELIVERY_INTERRUPT, Delivery.DELIVERY_STEER)
_COUNTS: Final = (
    "prompt_tokens",
    "cached_prompt_tokens",
    "generated_tokens",
    "delivered_tokens",
    "displayed_tokens",
    "kept_tokens",
    "wasted_tokens",
)


@dataclass(slots=True)
class Phases:
    """Where the time of a turn went, in nanoseconds; together they are its whole time.

    Attributes:
        queued_ns: From the message until an engine took it up.
        first_token_ns: The engine had been asked, and had said nothing of this round yet.
        generating_ns: Tokens came; also whatever none of the others accounts for.
        tools_ns: The model had called tools and waited for their results.
        stopping_ns: From the stop until the engine had confirmed it.
    """

    queued_ns: int = 0
    first_token_ns: int = 0
    generating_ns: int = 0
    tools_ns: int = 0
    stopping_ns: int = 0

    @property
    def total_ns(self) -> int:
        """From the message to the end."""
        return (
            self.queued_ns
            + self.first_token_ns
            + self.generating_ns
            + self.tools_ns
            + self.stopping_ns
        )

    def add(self, other: Phases) -> None:
        """Add the time of another turn."""
        self.queued_ns += other.queued_ns
        self.first_token_ns += other.first_token_ns
        self.generating_ns += other.generating_ns
        self.tools_ns += other.tools_ns
        self.stopping_ns += other.stopping_ns


@dataclass(slots=True)
class CallCost:
    """A tool call.

    Attributes:
        side_effect: What its tool may change, as the session declares it.
        blocking: The turn waits for its result.
        ready: The model had finished writing it, so that somebody may have run it.
        ended_ns: When it ended; 0 while it is open.
        late_results: Results that came after the call had ended.
    """

    call_id: str
    name: str
    side_effect: SideEffect.ValueType
    blocking: bool = True
    ready: bool = False
    outcome: ToolCallOutcome.ValueType = ToolCallOutcome.TOOL_CALL_OUTCOME_UNSPECIFIED
    ended_ns: int = 0
    late_results: int = 0

    @property
    def awaited(self) -> bool:
        """The turn waits for it."""
        return self.blocking and self.ready and not self.outcome


class _Mark(NamedTuple):
    """A delta: what it counts, and where its channel ended with it."""

    channel: event_pb2.Channel.ValueType
    end: int
    tokens: int
    call: CallCost | None


@dataclass(slots=True)
class TurnCost:
    """One turn.

    Attributes:
        number: From 1, in the order of the session.
        model: Who answered; while it runs, or if nobody was asked, what the session names.
        input: The text that it answers.
        usage: As billed; while it runs, what was delivered so far.
        complete: All its events were read. Without them its counts are taken on trust, and of its
            time only the beginning is told apart.
    """

    number: int
    turn_id: str
    model: str
    input: str
    finish_reason: FinishReason.ValueType = RUNNING
    usage: Usage = field(default_factory=Usage)
    phases: Phases = field(default_factory=Phases)
    calls: list[CallCost] = field(default_factory=list)
    complete: bool = True

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.finish_reason == RUNNING

    def problems(self) -> list[str]:
        """What does not add up in it, for people."""
        usage, found = self.usage, []
        if usage.generated_tokens != usage.delivered_tokens + usage.wasted_tokens:
            found.append(
                f"{usage.generated_tokens:,} tokens generated are not {usage.delivered_tokens:,} "
                f"delivered and {usage.wasted_tokens:,} wasted"
            )
        for name in ("displayed", "kept"):
            count = getattr(usage, f"{name}_tokens")
            if count > usage.delivered_tokens:
                found.append(f"{count:,} tokens {name}, of {usage.delivered_tokens:,} delivered")
        return [f"turn {self.number}: {problem}" for problem in found]


class _Telling(TurnCost):
    """A turn whose events are being read."""

    def __init__(
        self, number: int, started: event_pb2.TurnStarted, text: str, accepted_ns: int, now_ns: int
    ) -> None:
        super().__init__(number, started.turn_id, started.model, text)
        self._accepted_ns = accepted_ns
        self._started_ns = now_ns
        self._first_ns = 0
        self._last_output_ns = now_ns
        self._stop_ns = 0
        self._round = 0
        self._recovered = False
        self._marks: list[_Mark] = []
        self._chars = Counter[int]()
        # A wait for tools that is over, unless the same round goes on after it: a call may be
        # answered while the model still writes the next one.
        self._wait: tuple[int, int] | None = None
        self._tools_ns = 0
        self._asked_again_ns = 0

    @property
    def counted(self) -> int:
        """The tokens in its deltas."""
        return sum(mark.tokens for mark in self._marks)

    def output(self, now_ns: int, round_: int = 0) -> None:
        """The model said something."""
        self._first_ns = self._first_ns or now_ns
        if self._wait is not None:
            begin_ns, end_ns = self._wait
            if round_ > self._round:
                self._tools_ns += end_ns - begin_ns
                self._asked_again_ns += now_ns - end_ns
            self._wait = None
        self._round = max(self._round, round_)
        self._last_output_ns = now_ns

    def delta(self, delta: event_pb2.OutputDelta, now_ns: int) -> None:
        self.output(now_ns, delta.round)
        self._chars[delta.channel] += len(delta.text)
        end = self._chars[delta.channel]
        self._marks.append(_Mark(delta.channel, end, delta.token_count, None))

    def fragment(self, call: CallCost, delta: event_pb2.ToolCallDelta, now_ns: int) -> None:
        self.output(now_ns)
        self._marks.append(_Mark(event_pb2.CHANNEL_UNSPECIFIED, 0, delta.token_count, call))

    def call_ended(self, now_ns: int) -> None:
        """A call has its result; if it was the last that the turn waited for, the wait is over."""
        if not any(call.awaited for call in self.calls):
            self._wait = (self._last_output_ns, now_ns)

    def recovered(self) -> None:
        self._recovered = True

    def interrupted(self, now_ns: int) -> None:
        self._stop_ns = now_ns

    def finished(self, finished: event_pb2.TurnFinished, now_ns: int) -> None:
        self.finish_reason = finished.finish_reason
        self.model = finished.model or self.model
        self.usage = Usage()
        self.usage.CopyFrom(finished.usage)
        # Of a turn whose process was lost nobody knows when an engine took it up.
        lost = self._recovered or finished.finish_reason == FinishReason.FINISH_REASON_OWNER_LOST
        timing = finished.timing
        known = timing.queued.ToNanoseconds() if timing.HasField("queued") else None
        if known is None and (lost or self._first_ns):
            known = self._started_ns - self._accepted_ns
        self.phases = self._told(known, now_ns)

    def so_far(self, now_ns: int) -> None:
        """It runs on: what there is of it until `now_ns`."""
        counted = self.counted
        self.usage = Usage(generated_tokens=counted, delivered_tokens=counted)
        if any(call.awaited for call in self.calls):
            self._wait = (self._last_output_ns, now_ns)
        self.phases = self._told(self._started_ns - self._accepted_ns, now_ns)

    def truncated(self, kept_chars: int) -> None:
        """It was cut back after its end; the whole tokens that are left are what is kept."""
        reasoning = text = 0
        kept_reasoning = 0
        for mark in self._marks:
            if mark.channel == event_pb2.CHANNEL_REASONING:
                reasoning = mark.end
            elif mark.channel == event_pb2.CHANNEL_TEXT:
                if kept_chars > text:
                    kept_reasoning = reasoning
                text = mark.end
        kept = 0
        for mark in self._marks:
            if mark.call is not None:
                stays = mark.call.ready
            elif mark.channel == event_pb2.CHANNEL_TEXT:
                stays = 0 < kept_chars >= mark.end
            else:
                stays = 0 < kept_reasoning >= mark.end
            kept += mark.tokens if stays else 0
        self.usage.kept_tokens = kept

    def problems(self) -> list[str]:
        found = super().problems()
        if self.counted != self.usage.delivered_tokens:
            found.append(
                f"turn {self.number}: {self.counted:,} tokens are in the log, and "
                f"{self.usage.delivered_tokens:,} are billed as delivered"
            )
        return found

    def _told(self, queued_ns: int | None, end_ns: int) -> Phases:
        stop_ns = self._stop_ns or end_ns
        tools_ns, asked_ns = self._tools_ns, self._asked_again_ns
        if self._wait is not None:
            tools_ns += self._wait[1] - self._wait[0]
            asked_ns += stop_ns - self._wait[1]
        before_stop_ns = stop_ns - self._accepted_ns
        # One that was stopped in the queue may still be let in before it hears of that.
        queued_ns = before_stop_ns if queued_ns is None else min(queued_ns, before_stop_ns)
        admitted_ns = self._accepted_ns + queued_ns
        asked_ns += (self._first_ns or stop_ns) - admitted_ns
        phases = Phases(
            queued_ns=max(queued_ns, 0),
            first_token_ns=max(asked_ns, 0),
            tools_ns=tools_ns,
            stopping_ns=end_ns - stop_ns,
        )
        phases.generating_ns = max(end_ns - self._accepted_ns - phases.total_ns, 0)
        return phases


@dataclass(slots=True)
class _Waiting:
    """A message whose turn has not started."""

    frame_id: str
    text: str
    accepted_ns: int
    urgent: bool


class Statement:
    """Everything a session has cost. Feed it the events in order, then ask.

    Attributes:
        waiting: Messages that wait for their turn.
    """

    def __init__(self) -> None:
        self._told: dict[str, _Telling] = {}
        self._past: list[TurnCost] = []
        self._calls: dict[str, tuple[_Telling, CallCost]] = {}
        self._tools: dict[str, ToolSpec] = {}
        self._now_ns = 0
        self.waiting: list[_Waiting] = []

    # --- taking in ----------------------------------------------------------------------------

    def declare(self, tools: Iterable[ToolSpec]) -> None:
        """The session's tools, where its first event is not there to say so."""
        self._tools.update((tool.name, tool) for tool in tools)

    def feed(self, event: event_pb2.Event) -> None:
        """Take in the next event. One of a turn whose beginning was not fed changes nothing."""
        now_ns = self._now_ns = event.time.ToNanoseconds()
        kind = event.WhichOneof("kind")
        if kind == "output_delta":  # Nearly all events are this one.
            if turn := self._told.get(event.output_delta.turn_id):
                turn.delta(event.output_delta, now_ns)
        elif kind == "session_opened":
            self.declare(event.session_opened.session.config.tools)
        elif kind == "input_accepted":
            self._accept(event.input_accepted, now_ns)
        elif kind == "session_closed":
            self.waiting.clear()
        elif kind == "input_withdrawn":
            self._withdraw(event.input_withdrawn.frame_id)
        elif kind == "turn_started":
            self._start(event.turn_started, now_ns)
        elif kind == "turn_recovered":
            if turn := self._told.get(event.turn_recovered.turn_id):
                turn.recovered()
        elif kind == "turn_interrupted":
            if turn := self._told.get(event.turn_interrupted.turn_id):
                turn.interrupted(now_ns)
        elif kind == "turn_truncated":
            if turn := self._told.get(event.turn_truncated.turn_id):
                turn.truncated(event.turn_truncated.kept_chars)
        elif kind == "turn_finished":
            if turn := self._told.get(event.turn_finished.turn_id):
                turn.finished(event.turn_finished, now_ns)
        else:
            self._feed_call(event, kind or "", now_ns)

    def take_past(self, turns: Sequence[Turn], model: str) -> None:
        """Put in front what only a snapshot still tells.

        Args:
            turns: All turns of the session; those whose events were fed are left alone.
            model: The session's.
        """
        for turn in turns:
            if turn.turn_id not in self._told:
                self._past.append(self._from_snapshot(turn, model, len(self._past) + 1))
        for number, turn_cost in enumerate(self._told.values(), len(self._past) + 1):
            turn_cost.number = number

    # --- telling ------------------------------------------------------------------------------

    @property
    def turns(self) -> list[TurnCost]:
        """All turns, oldest first."""
        for turn in self._told.values():
            if turn.running:
                turn.so_far(self._now_ns)
        return [*self._past, *self._told.values()]

    @property
    def past(self) -> int:
        """How many of the turns are known from a snapshot only: the first ones."""
        return len(self._past)

    def total(self) -> Usage:
        """What the turns that have ended cost together, as `Session.total_usage` adds it up."""
        total = Usage()
        for turn in self.turns:
            if turn.running:
                continue
            for name in _COUNTS:
                setattr(total, name, getattr(total, name) + getattr(turn.usage, name))
            total.estimated = total.estimated or turn.usage.estimated
        return total

    def phases(self) -> Phases:
        """The time of all turns, the running one's until now."""
        total = Phases()
        for turn in self.turns:
            total.add(turn.phases)
        return total

    def problems(self, billed: Usage) -> list[str]:
        """What does not add up, for people; empty if the bill is right.

        Args:
            billed: The server's own total.
        """
        found = [problem for turn in self.turns for problem in turn.problems()]
        total = self.total()
        for name in _COUNTS:
            ours, theirs = getattr(total, name), getattr(billed, name)
            if ours != theirs:
                what = name.replace("_", " ")
                found.append(
                    f"{what}: the turns add up to {ours:,}, and the server's total is {theirs:,}"
                )
        return found

    # --- inside -------------------------------------------------------------------------------

    def _accept(self, accepted: event_pb2.InputAccepted, now_ns: int) -> None:
        message = accepted.message
        urgent = message.delivery in _URGENT
        waiting = _Waiting(accepted.frame_id, _text(message), now_ns, urgent)
        # They go before those that queue, as on the server.
        place = sum(other.urgent for other in self.waiting) if urgent else len(self.waiting)
        self.waiting.insert(place, waiting)

    def _withdraw(self, frame_id: str) -> None:
        for place, waiting in enumerate(self.waiting):
            if waiting.frame_id == frame_id:
                del self.waiting[place]
                return

    def _start(self, started: event_pb2.TurnStarted, now_ns: int) -> None:
        wanted = len(started.frame_ids)
        taken, rest = self.waiting[:wanted], self.waiting[wanted:]
        if [waiting.frame_id for waiting in taken] != list(started.frame_ids):
            taken, rest = [], self.waiting  # What it answers is not in the log any more.
        self.waiting = rest
        # A turn may also be told the results of tools that nobody waited for.
        results = [
            self._calls[call_id][1] for call_id in started.call_ids if call_id in self._calls
        ]
        since = [waiting.accepted_ns for waiting in taken] + [call.ended_ns for call in results]
        self._told[started.turn_id] = _Telling(
            len(self._told) + 1,
            started,
            " ".join(waiting.text for waiting in taken),
            min(since, default=now_ns),
            now_ns,
        )

    def _feed_call(self, event: event_pb2.Event, kind: str, now_ns: int) -> None:
        if kind == "tool_call_started":
            started = event.tool_call_started
            turn = self._told.get(started.turn_id)
            if turn is None:
                return
            turn.output(now_ns, started.round)
            call = self._call(started.call_id, started.name)
            turn.calls.append(call)
            self._calls[started.call_id] = (turn, call)
            return
        if kind not in ("tool_call_delta", "tool_call_ready", "tool_call_finished"):
            return
        known = self._calls.get(getattr(event, kind).call_id)
        if known is None:
            return
        turn, call = known
        if kind == "tool_call_delta":
            turn.fragment(call, event.tool_call_delta, now_ns)
        elif kind == "tool_call_ready":
            call.ready = True
            turn.output(now_ns)
        elif event.tool_call_finished.late:
            call.late_results += 1
        else:
            call.outcome = event.tool_call_finished.outcome
            call.ended_ns = now_ns
            if turn.running and call.blocking:
                turn.call_ended(now_ns)

    def _call(self, call_id: str, name: str) -> CallCost:
        # A tool that is not declared is nobody's to run.
        tool = self._tools.get(name, _NO_TOOL)
        blocking = tool.blocking if tool.HasField("blocking") else True
        return CallCost(call_id, name, tool.side_effect or SideEffect.SIDE_EFFECT_NONE, blocking)

    def _from_snapshot(self, turn: Turn, model: str, number: int) -> TurnCost:
        cost = TurnCost(
            number,
            turn.turn_id,
            model,
            _text(turn.input),
            turn.finish_reason,
            turn.usage,
            _begun(turn.timing),
            complete=False,
        )
        for told in turn.tool_calls:
            call = self._call(told.call_id, told.name)
            call.ready, call.outcome = told.HasField("deadline"), told.outcome
            cost.calls.append(call)
        return cost


def _begun(timing: Timing) -> Phases:
    """What a turn's figures alone tell of its phases; the rest counts as generating."""
    queued_ns = timing.queued.ToNanoseconds()
    first_ns = max(timing.time_to_first_token.ToNanoseconds() - queued_ns, 0)
    rest_ns = max(timing.total.ToNanoseconds() - queued_ns - first_ns, 0)
    return Phases(queued_ns, first_ns, rest_ns)


def _text(message: UserMessage) -> str:
    return "".join(part.text for part in message.parts)
