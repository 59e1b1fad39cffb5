"""Sessions: turns with their queue, tools, readers and last commit, as their events tell them.

A turn belongs to the trace of the client whose message it answers. Where the client has none the
turn is a trace of its own, so that one turn is one trace also on a stream that carries a whole
conversation. Calls are linked both ways: a turn to the call that its message came with and to each
that read it, those to the turn.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from google.protobuf.duration_pb2 import Duration
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, Status, StatusCode, set_span_in_context

from backchannel.errors import reason_of
from backchannel.observer import AfterCommit, Lagging
from backchannel.session.decision import StartEngine
from backchannel.telemetry import content, table
from backchannel.telemetry import conventions as names
from backchannel.telemetry.calls import CALL, Call
from backchannel.telemetry.runs import Run
from backchannel.v1 import event_pb2, session_pb2

if TYPE_CHECKING:
    from backchannel.telemetry.telemetry import Telemetry

_MAX_INPUTS: Final = 256
_MAX_TURNS: Final = 4
_MAX_TOOLS: Final = 1024
_FINE: Final = frozenset({"stop", "length", "tool_calls", "content_filter", "steered"})
"""Endings that nobody is to blame for."""


# What a link is for.
_BEGAN: Final = {names.LINK: "message"}
_READ: Final = {names.LINK: "read"}
_STOPPED: Final = {names.LINK: "stop"}


def _lower(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower()


def _seconds(duration: Duration) -> float:
    return duration.ToNanoseconds() / 1e9


@dataclass(slots=True)
class Turn:
    """A turn that has begun and of which no ending is committed.

    Attributes:
        reads: A span for each reader that reads of it.
        finishing: Its ending is decided.
    """

    turn_id: str
    model: str
    span: Span
    context: Context
    reads: dict[ReaderTrace, Span] = field(default_factory=dict)
    finishing: bool = False


@dataclass(frozen=True, slots=True)
class Input:
    """A message whose turn has not begun.

    Attributes:
        call: The RPC that it came with.
        time_ns: When it was taken in.
        waits: A turn runs before its own.
    """

    frame_id: str
    call: Call | None
    time_ns: int
    waits: bool


@dataclass(slots=True)
class OpenCall:
    """A tool call that waits for its result."""

    span: Span
    since_ns: int


class ReaderTrace:
    """One reader; see `observer.ReaderWatch`.

    Args:
        session: What it reads.
        reader: Itself.
        after_seq: Where it began.
        replayed: How many events it had missed.
    """

    def __init__(
        self, session: SessionTrace, reader: Lagging, after_seq: int, replayed: int
    ) -> None:
        self.reader = reader
        self.call: Call | None = CALL.get()
        self.door = self.call.method if self.call is not None else ""
        self.after_seq, self.replayed = after_seq, replayed
        self._session = session
        self._telemetry = session.telemetry
        self._telemetry.readers[self] = None

    def heartbeat(self) -> None:
        """One was handed out."""
        self._telemetry.figures.number(table.HEARTBEATS).add(1)

    def closed(self, *, goodbye: bool) -> None:
        """It is gone."""
        if self in self._telemetry.readers:
            del self._telemetry.readers[self]
            self._session.reader_closed(self, goodbye=goodbye)


class SessionTrace:
    """One session in memory; see `observer.SessionWatch`.

    Args:
        telemetry: Where it is told.
        session_id: Its id, which goes into spans and nowhere else.
    """

    def __init__(self, telemetry: Telemetry, session_id: str) -> None:
        self.telemetry = telemetry
        self._figures = telemetry.figures
        self._session_id = session_id
        self._inputs: deque[Input] = deque(maxlen=_MAX_INPUTS)
        self._turns: dict[str, Turn] = {}
        self._tools: dict[str, OpenCall] = {}
        self._running: Turn | None = None
        self._readers: dict[ReaderTrace, None] = {}

    # --- what is decided ---------------------------------------------------------------------

    def decided(self, kind: str, event: event_pb2.Event) -> AfterCommit | None:
        """An event was decided."""
        if kind == "input_accepted":
            frame_id, time_ns = event.input_accepted.frame_id, event.time.ToNanoseconds()
            self._inputs.append(Input(frame_id, CALL.get(), time_ns, self._running is not None))
        elif kind == "input_withdrawn":
            self._take(event.input_withdrawn.frame_id)
        elif kind == "turn_started":
            self._started(event.turn_started, event.time.ToNanoseconds())
        elif kind == "turn_finished":
            return self._finished(event.turn_finished)
        elif kind == "turn_interrupted":
            return self._interrupted(event.turn_interrupted)
        elif kind == "turn_recovered":
            turn = self._turn(event.turn_recovered.turn_id, "")
            turn.span.set_attribute(names.RECOVERED, True)
            self._running = turn
        elif kind == "tool_call_ready":
            self._tool_ready(event.tool_call_ready, event.time.ToNanoseconds())
        elif kind == "tool_call_finished":
            self._tool_finished(event.tool_call_finished, event.time.ToNanoseconds())
        return None

    def refused(self, reason: str) -> None:
        """A frame was refused."""
        self._figures.number(table.REFUSED).add(1, reason)

    def trace(self, turn_id: str) -> dict[str, str]:
        """The ids of a turn's trace and span; empty if it is not known."""
        turn = self._turns.get(turn_id)
        if turn is None:
            return {}
        context = turn.span.get_span_context()
        if not context.is_valid:  # Nobody takes traces.
            return {}
        return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}

    def _take(self, frame_id: str) -> Input | None:
        """A message that waited."""
        for place, one in enumerate(self._inputs):
            if one.frame_id == frame_id:
                del self._inputs[place]
                return one
        return None

    def _started(self, started: event_pb2.TurnStarted, time_ns: int) -> None:
        inputs = [one for frame in started.frame_ids if (one := self._take(frame)) is not None]
        calls = [one.call for one in inputs if one.call is not None]
        for turn in [turn for turn in self._turns.values() if not turn.finishing]:
            self._break_off(turn, "lost")  # Its beginning was refused by the log.
        turn = self._running = self._turn(started.turn_id, started.model, calls)
        for one in inputs:
            if one.waits:
                wait = self.telemetry.tracer.start_span(
                    "wait for turn", context=turn.context, start_time=one.time_ns
                )
                wait.end(time_ns)

    def _turn(self, turn_id: str, model: str, calls: list[Call] | None = None) -> Turn:
        """The turn of that id, also one that another process has begun."""
        turn = self._turns.get(turn_id)
        if turn is not None:
            return turn
        while len(self._turns) >= _MAX_TURNS:
            self._break_off(next(iter(self._turns.values())), "lost")
        taken_over = calls is None
        calls = calls or []
        parent = Context()
        if calls and calls[0].remote:
            parent = set_span_in_context(calls[0].span, parent)
        links = [Link(call.context, _BEGAN) for call in calls if call.context.is_valid]
        span = self.telemetry.tracer.start_span(
            f"turn {model}".strip(),
            context=parent,
            links=links,
            attributes={names.CONVERSATION_ID: self._session_id, names.TURN_ID: turn_id},
        )
        turn = Turn(turn_id, model, span, set_span_in_context(span, Context()))
        if taken_over:
            span.set_attribute(names.RECOVERED, True)
        if turn.model:
            span.set_attribute(names.REQUEST_MODEL, model)
        for call in calls:
            call.span.add_link(span.get_span_context(), _BEGAN)
        self._turns[turn_id] = turn
        self._figures.number(table.RUNNING).add(1)
        for reader in self._readers:
            self._reads(reader, turn, linked=reader.call in calls)
        return turn

    def _interrupted(self, interrupted: event_pb2.TurnInterrupted) -> AfterCommit:
        turn = self._turns.get(interrupted.turn_id)
        if turn is not None:
            turn.span.add_event("interrupted")
        call = CALL.get()
        if turn is not None and call is not None and call.context.is_valid:
            turn.span.add_link(call.context, _STOPPED)

        def count(error: Exception | None) -> None:
            if error is None:
                self._figures.number(table.INTERRUPTS).add(1)

        return count

    def _finished(self, finished: event_pb2.TurnFinished) -> AfterCommit:
        turn = self._turn(finished.turn_id, finished.model)
        if self._running is turn:
            self._running = None
        turn.finishing = True
        commit = self.telemetry.tracer.start_span("commit", context=turn.context)
        return partial(self._settled, turn, finished, commit)

    def _settled(
        self,
        turn: Turn,
        finished: event_pb2.TurnFinished,
        commit: Span,
        error: Exception | None,
    ) -> None:
        """The ending is in the log, or will not be."""
        if error is not None:
            commit.set_status(Status(StatusCode.ERROR, _reason(error)))
            commit.set_attribute(names.ERROR_TYPE, _reason(error))
        commit.end()
        if error is not None:
            turn.finishing = False
            return
        if self._turns.pop(turn.turn_id, None) is None:
            return
        self._figures.number(table.RUNNING).add(-1)
        ending = _lower(session_pb2.FinishReason.Name(finished.finish_reason), "FINISH_REASON_")
        self._count(finished, ending, turn.model)
        self._tell(turn, finished, ending)

    def _count(self, finished: event_pb2.TurnFinished, ending: str, asked: str) -> None:
        figures, usage, timing = self._figures, finished.usage, finished.timing
        model = finished.model or asked
        provider, _, name = model.partition("/")
        labels = (names.CHAT, provider, name or model)
        if timing.HasField("time_to_first_token"):
            figures.spread(table.TTFT).add(_seconds(timing.time_to_first_token), *labels)
        if timing.HasField("time_per_output_token"):
            figures.spread(table.PER_TOKEN).add(_seconds(timing.time_per_output_token), *labels)
        if timing.HasField("queued"):
            figures.spread(table.QUEUE_WAIT).add(_seconds(timing.queued), model)
        fault = "" if ending in _FINE else ending
        figures.spread(table.DURATION).add(_seconds(timing.total), *labels, fault)
        figures.number(table.TURNS).add(1, ending, model)
        tokens = figures.number(table.TOKENS)
        for fate, count in (
            ("delivered", usage.delivered_tokens),
            ("displayed", usage.displayed_tokens),
            ("kept", usage.kept_tokens),
            ("wasted", usage.wasted_tokens),
        ):
            tokens.add(count, fate, model)

    def _tell(self, turn: Turn, finished: event_pb2.TurnFinished, ending: str) -> None:
        span, usage, timing = turn.span, finished.usage, finished.timing
        for reader, read in list(turn.reads.items()):
            read.set_attribute(names.READER_ENDING, "turn_ended")
            read.end()
            del turn.reads[reader]
        if span.is_recording():
            span.set_attributes(
                {
                    names.ENDING: ending,
                    names.RESPONSE_MODEL: finished.model,
                    names.GENERATED: usage.generated_tokens,
                    names.DELIVERED: usage.delivered_tokens,
                    names.DISPLAYED: usage.displayed_tokens,
                    names.KEPT: usage.kept_tokens,
                    names.WASTED: usage.wasted_tokens,
                    names.ESTIMATED: usage.estimated,
                    names.QUEUED_S: _seconds(timing.queued),
                    names.MAX_GAP_S: _seconds(timing.max_gap),
                }
            )
            if timing.HasField("time_to_first_token"):
                span.set_attribute(names.TTFT_S, _seconds(timing.time_to_first_token))
        if ending not in _FINE:
            span.set_attribute(names.ERROR_TYPE, ending)
            span.set_status(Status(StatusCode.ERROR, ending))
        if finished.HasField("error"):
            span.set_attribute(names.ERROR_REASON, reason_of(finished.error))
        span.end()

    # --- tools -------------------------------------------------------------------------------

    # By the events' own times: the deadlines that they tell are counted by these.

    def _tool_ready(self, ready: event_pb2.ToolCallReady, time_ns: int) -> None:
        if self._running is None or len(self._tools) >= _MAX_TOOLS:
            return
        span = self.telemetry.tracer.start_span(
            f"{names.EXECUTE_TOOL} {ready.name}",
            context=self._running.context,
            start_time=time_ns,
            attributes={
                names.OPERATION_NAME: names.EXECUTE_TOOL,
                names.TOOL_NAME: ready.name,
                names.TOOL_CALL_ID: ready.call_id,
                names.TOOL_TYPE: "function",
                names.CONVERSATION_ID: self._session_id,
            },
        )
        if self.telemetry.config.content:
            span.set_attribute(names.TOOL_CALL_ARGUMENTS, content.cut(ready.arguments_json))
        call = OpenCall(span, time.monotonic_ns())
        self._tools[ready.call_id] = call
        self.telemetry.open_calls[(self._session_id, ready.call_id)] = call.since_ns

    def _tool_finished(self, finished: event_pb2.ToolCallFinished, time_ns: int) -> None:
        outcome = _lower(session_pb2.ToolCallOutcome.Name(finished.outcome), "TOOL_CALL_OUTCOME_")
        if finished.late:
            self._figures.number(table.TOOL_CALLS).add(1, "late")
            return
        self._figures.number(table.TOOL_CALLS).add(1, outcome)
        call = self._tools.pop(finished.call_id, None)
        self.telemetry.open_calls.pop((self._session_id, finished.call_id), None)
        if call is None:
            return
        waited_s = (time.monotonic_ns() - call.since_ns) / 1e9
        self._figures.spread(table.TOOL_WAIT).add(waited_s, outcome)
        call.span.set_attribute(names.TOOL_OUTCOME, outcome)
        if self.telemetry.config.content and finished.HasField("result"):
            call.span.set_attribute(names.TOOL_CALL_RESULT, content.result(finished.result))
        if outcome != "completed":
            call.span.set_attribute(names.ERROR_TYPE, outcome)
            call.span.set_status(Status(StatusCode.ERROR, outcome))
        call.span.end(time_ns)

    # --- engines and readers -----------------------------------------------------------------

    def run(self, effect: StartEngine) -> Run:
        """An engine is to be asked."""
        turn = self._turn(effect.turn_id, effect.model)
        self._running = turn
        return Run(self.telemetry, effect, turn.context, self._session_id)

    def reader(
        self, reader: Lagging, *, after_seq: int, last_seq: int, snapshot: bool
    ) -> ReaderTrace:
        """Somebody reads from here on."""
        figures = self._figures
        # Who begins right behind the first event has just created the session.
        resumes = snapshot or after_seq > 1
        replayed = 0 if snapshot else last_seq - after_seq
        if resumes:
            figures.number(table.RESUMES).add(1, "snapshot" if snapshot else "cursor")
            figures.number(table.REPLAYED).add(replayed)
        trace = ReaderTrace(self, reader, after_seq, replayed)
        self._readers[trace] = None
        if self._running is not None:
            self._reads(trace, self._running, linked=False)
        return trace

    def _reads(self, reader: ReaderTrace, turn: Turn, *, linked: bool) -> None:
        """A reader hears of a turn."""
        call = reader.call
        links = [Link(call.context, _READ)] if call is not None and call.context.is_valid else []
        turn.reads[reader] = self.telemetry.tracer.start_span(
            f"read {reader.door}".strip(),
            context=turn.context,
            links=links,
            attributes={
                names.DOOR: reader.door,
                names.AFTER_SEQ: reader.after_seq,
                names.REPLAYED: reader.replayed,
            },
        )
        if call is not None and not linked:
            call.span.add_link(turn.span.get_span_context(), _READ)
            if links:
                turn.span.add_link(call.context, _READ)

    def reader_closed(self, reader: ReaderTrace, *, goodbye: bool) -> None:
        """It is gone."""
        self._readers.pop(reader, None)
        for turn in self._turns.values():
            read = turn.reads.pop(reader, None)
            if read is None:
                continue
            ending = "left" if goodbye else "cut"
            read.set_attribute(names.READER_ENDING, ending)
            if not goodbye:
                read.set_attribute(names.ERROR_TYPE, ending)
                read.set_status(Status(StatusCode.ERROR, ending))
            read.end()

    # --- trouble -----------------------------------------------------------------------------

    def lost(self, reason: str) -> None:
        """The log refused: the session comes back as it stands there, and its turns go on."""
        for turn in self._turns.values():
            turn.span.add_event("append refused", {names.ERROR_TYPE: reason})
        self._running = None
        self._inputs.clear()
        self._close_tools(reason)

    def gone(self, reason: str) -> None:
        """The session leaves memory; what has not ended goes on elsewhere, or later."""
        for turn in list(self._turns.values()):
            self._break_off(turn, reason)
        self._close_tools(reason)
        self._running = None
        self._inputs.clear()

    def _close_tools(self, reason: str) -> None:
        for call_id, call in self._tools.items():
            self.telemetry.open_calls.pop((self._session_id, call_id), None)
            call.span.set_attribute(names.ERROR_TYPE, reason)
            call.span.set_status(Status(StatusCode.ERROR, reason))
            call.span.end()
        self._tools.clear()

    def _break_off(self, turn: Turn, reason: str) -> None:
        self._turns.pop(turn.turn_id, None)
        self._figures.number(table.RUNNING).add(-1)
        for read in turn.reads.values():
            read.set_status(Status(StatusCode.ERROR, reason))
            read.end()
        turn.reads.clear()
        turn.span.set_attribute(names.ERROR_TYPE, reason)
        turn.span.set_status(Status(StatusCode.ERROR, reason))
        turn.span.end()


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", type(error).__name__))
