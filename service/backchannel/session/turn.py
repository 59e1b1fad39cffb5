"""A turn and its tool calls as the log tells them: what was said, and what of it stays.

Everything here follows from events. Positions in text are counted in characters (code points) from
the turn's start of that channel; `Mark`s tell where each delta ended, so that a reader's position
(a seq, or an offset) can be turned into characters and tokens long after the delta was sent.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Final

from google.rpc.status_pb2 import Status

from backchannel.v1 import event_pb2, session_pb2

TEXT: Final = event_pb2.CHANNEL_TEXT
REASONING: Final = event_pb2.CHANNEL_REASONING
OPEN: Final = session_pb2.TOOL_CALL_OUTCOME_UNSPECIFIED


@dataclass(slots=True)
class Mark:
    """Where a delta ended.

    Attributes:
        seq: The delta's event.
        channel: TEXT or REASONING; UNSPECIFIED for a piece of a tool call.
        end: Characters of the channel up to and including the delta.
        tokens: Tokens counted with it.
        call_id: For a piece of a tool call: which.
    """

    seq: int
    channel: event_pb2.Channel.ValueType
    end: int
    tokens: int
    call_id: str = ""


@dataclass(slots=True)
class Call:
    """A tool call.

    Attributes:
        ready: Its arguments are complete and it was announced.
        text_offset: Characters of the turn's text before it.
        arguments: Pieces while it is written, one string once it is ready.
        round: The round of its turn that it was made in.
        awaited: Its turn waits for the result, if it is ready.
        told_later: The model had gone on when its result came; a later turn tells it.
        parts: Of a result that comes in several.
        parts_bytes: How large they are together.
        late_results: How many results came after its end.
    """

    call_id: str
    turn_id: str
    name: str
    text_offset: int
    round: int = 0
    ready: bool = False
    awaited: bool = True
    arguments: list[str] = field(default_factory=list)
    idle_deadline_ns: int = 0
    deadline_ns: int = 0
    outcome: session_pb2.ToolCallOutcome.ValueType = OPEN
    result: session_pb2.ToolResult | None = None
    told_later: bool = False
    parts: list[event_pb2.ToolCallOutput] = field(default_factory=list)
    parts_bytes: int = 0
    late_results: int = 0

    @property
    def open(self) -> bool:
        """Announced and without a result."""
        return self.ready and self.outcome == OPEN

    @property
    def arguments_json(self) -> str:
        """The arguments so far."""
        return "".join(self.arguments)


@dataclass(slots=True)
class Deferred:
    """The end of a call that a later turn tells the model.

    Attributes:
        by_itself: A turn is started for it if nothing else starts one.
        time_ns: When it came.
    """

    call_id: str
    outcome: session_pb2.ToolCallOutcome.ValueType
    result: session_pb2.ToolResult | None
    by_itself: bool
    time_ns: int


@dataclass(slots=True)
class Round:
    """A question to the engine that was answered: where its text and its calls end."""

    text_end: int
    reasoning_end: int
    calls_end: int


@dataclass(slots=True)
class Pace:
    """When tokens came, for `Timing`. Tool waits are left out."""

    first_ns: int = 0
    last_ns: int = 0
    max_gap_ns: int = 0
    spent_ns: int = 0
    tokens_after_first: int = 0

    def delta(self, now_ns: int, tokens: int) -> None:
        """A delta was logged."""
        if not self.first_ns:
            self.first_ns = now_ns
        elif self.last_ns:
            gap = now_ns - self.last_ns
            self.spent_ns += gap
            self.tokens_after_first += tokens
            self.max_gap_ns = max(self.max_gap_ns, gap)
        self.last_ns = now_ns

    def pause(self) -> None:
        """A tool wait begins: the time until the next delta does not count."""
        self.last_ns = 0


@dataclass(slots=True)
class Turn:
    """One answer with its tool rounds.

    Attributes:
        inputs: The messages that it answers, oldest first.
        told: The ends of earlier calls that the model is told with it.
        accepted_ns: When the first of all these was accepted.
        ended_seq: Its `TurnFinished`; 0 while it runs.
        marks: One for each delta; dropped when a later turn has started.
        rounds: The finished rounds; what comes after the last one is the running round.
        kept_chars: How much of the text stays in the context; None while nothing was cut.
        kept_reasoning_chars: The same for reasoning.
        recoveries: How often its process was lost and another went on with it.
        line: Its part of a checkpoint, once it was made; empty if it was not, or something changed.
    """

    turn_id: str
    frame_ids: list[str]
    inputs: list[session_pb2.UserMessage]
    model: str
    accepted_ns: int
    started_ns: int
    started_seq: int
    ended_seq: int = 0
    told: list[Deferred] = field(default_factory=list)
    text_parts: list[str] = field(default_factory=list)
    text_chars: int = 0
    reasoning_parts: list[str] = field(default_factory=list)
    reasoning_chars: int = 0
    marks: list[Mark] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    delivered_tokens: int = 0
    pace: Pace = field(default_factory=Pace)
    kept_chars: int | None = None
    kept_reasoning_chars: int | None = None
    recoveries: int = 0
    finish_reason: session_pb2.FinishReason.ValueType = session_pb2.FINISH_REASON_UNSPECIFIED
    usage: session_pb2.Usage | None = None
    timing: session_pb2.Timing | None = None
    error: Status | None = None
    line: bytes = field(default=b"", compare=False, repr=False)

    @property
    def text(self) -> str:
        """All text that was logged."""
        if len(self.text_parts) > 1:
            self.text_parts = ["".join(self.text_parts)]
        return self.text_parts[0] if self.text_parts else ""

    @property
    def reasoning(self) -> str:
        """All reasoning that was logged."""
        if len(self.reasoning_parts) > 1:
            self.reasoning_parts = ["".join(self.reasoning_parts)]
        return self.reasoning_parts[0] if self.reasoning_parts else ""

    @property
    def context_chars(self) -> int:
        """Characters of `text` that stay in the context."""
        return self.text_chars if self.kept_chars is None else self.kept_chars

    @property
    def open_calls(self) -> list[Call]:
        """Announced calls without a result, oldest first."""
        return [call for call in self.calls if call.open]

    @property
    def waits(self) -> bool:
        """A call is open that the turn waits for."""
        return any(call.open and call.awaited for call in self.calls)

    def tail(self, channel: event_pb2.Channel.ValueType, chars: int) -> str:
        """The end of a channel's text, at least so many characters of it if there are."""
        parts = self.reasoning_parts if channel == REASONING else self.text_parts
        end, place = "", len(parts)
        while place and len(end) < chars:
            place -= 1
            end = parts[place] + end
        return end

    @property
    def round_calls(self) -> list[Call]:
        """The calls of the running round."""
        return self.calls[self.rounds[-1].calls_end if self.rounds else 0 :]

    @property
    def round_text(self) -> str:
        """The text of the running round."""
        return self.text[self.rounds[-1].text_end if self.rounds else 0 :]

    @property
    def round_begun(self) -> bool:
        """Something of the running round is in the log."""
        last = self.rounds[-1] if self.rounds else Round(0, 0, 0)
        return (
            self.text_chars > last.text_end
            or self.reasoning_chars > last.reasoning_end
            or len(self.calls) > last.calls_end
        )

    def call(self, call_id: str) -> Call | None:
        """The call of that id, if it is of this turn."""
        return next((call for call in self.calls if call.call_id == call_id), None)

    def enter_round(self, round_: int) -> None:
        """Output of this round begins: what came before it is over."""
        while len(self.rounds) < round_:
            self.rounds.append(Round(self.text_chars, self.reasoning_chars, len(self.calls)))

    def add_delta(self, seq: int, delta: event_pb2.OutputDelta, now_ns: int) -> None:
        """Take in a delta of text or reasoning."""
        text, tokens = delta.text, delta.token_count
        if delta.round:
            self.enter_round(delta.round)
        if delta.channel == REASONING:
            self.reasoning_parts.append(text)
            self.reasoning_chars += len(text)
            self.marks.append(Mark(seq, REASONING, self.reasoning_chars, tokens))
        else:
            self.text_parts.append(text)
            self.text_chars += len(text)
            self.marks.append(Mark(seq, TEXT, self.text_chars, tokens))
        self.delivered_tokens += tokens
        self.pace.delta(now_ns, tokens)

    def add_fragment(self, seq: int, delta: event_pb2.ToolCallDelta, now_ns: int) -> None:
        """Take in a piece of a tool call."""
        tokens = delta.token_count
        self.marks.append(Mark(seq, event_pb2.CHANNEL_UNSPECIFIED, 0, tokens, delta.call_id))
        self.delivered_tokens += tokens
        self.pace.delta(now_ns, tokens)

    def chars_at(self, seq: int) -> int:
        """Characters of text in the log up to and including event `seq`."""
        place = bisect_right(self.marks, seq, key=lambda mark: mark.seq)
        for mark in reversed(self.marks[:place]):
            if mark.channel == TEXT:
                return mark.end
        return 0

    def seq_at(self, chars: int) -> int:
        """The seq of the last text delta that lies wholly within the first `chars` characters."""
        seq = 0
        if chars > 0:
            for mark in self.marks:
                if mark.channel != TEXT:
                    continue
                if mark.end > chars:
                    break
                seq = mark.seq
        return seq

    def displayed_tokens(self, seq: int, chars: int) -> int:
        """Whole tokens seen by a reader at event `seq`, or at `chars` characters of text."""
        last = max(seq, self.seq_at(chars))
        return sum(mark.tokens for mark in self.marks if mark.seq <= last)

    def kept_tokens(self) -> int:
        """Whole tokens that stay in the context."""
        ready = {call.call_id for call in self.calls if call.ready}
        cut, total = self.kept_chars is not None, 0
        reasoning_end = self.kept_reasoning_chars or 0
        for mark in self.marks:
            if mark.call_id:
                kept = mark.call_id in ready
            elif mark.channel == TEXT:
                kept = not cut or 0 < self.context_chars >= mark.end
            else:
                kept = not cut or 0 < reasoning_end >= mark.end
            total += mark.tokens if kept else 0
        return total

    def cut(self, kept_chars: int, keep: event_pb2.Keep.ValueType) -> None:
        """Leave only `kept_chars` of the text in the context, and the reasoning that led to it."""
        self.kept_chars = kept_chars
        if keep == event_pb2.KEEP_GENERATED:
            self.kept_reasoning_chars = self.reasoning_chars
            return
        reasoning, begun = 0, 0
        self.kept_reasoning_chars = 0
        for mark in self.marks:
            if mark.channel == REASONING:
                reasoning = mark.end
            elif mark.channel == TEXT:
                if kept_chars > begun:
                    self.kept_reasoning_chars = reasoning
                begun = mark.end

    def forget_marks(self) -> None:
        """Drop what only a cut of this turn would need."""
        self.marks = []
        self.text_parts = [self.text]
        self.reasoning_parts = [self.reasoning]
