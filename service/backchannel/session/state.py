"""The state of a session: the fold of its events, and of nothing else.

`SessionState.apply` is the only place where an event changes anything, for the owner who has just
decided it and for a later process that reads it from the log. It trusts nothing: an event that the
transition table does not allow, a gap in the numbers, a turn or call that does not exist is
`DATA_LOSS`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from backchannel.errors import BackchannelError, Reason
from backchannel.session.receipts import FrameBook
from backchannel.session.table import TRANSITIONS, Guard, Phase
from backchannel.session.turn import OPEN, Call, Deferred, Turn
from backchannel.session.turn_book import CallBook, TurnBook
from backchannel.v1 import event_pb2, session_pb2

END_NS: Final = 253_402_300_800 * 1_000_000_000
"""The year 10000, where timestamps end: no event is of that time, and no deadline beyond it."""

MAX_TOKENS: Final = 2**31 - 1
"""No turn has more; so that what is added to it still fits into its fields."""

URGENT: Final = (session_pb2.DELIVERY_INTERRUPT, session_pb2.DELIVERY_STEER)


def to_ns(stamp: Timestamp) -> int:
    """A timestamp as Unix nanoseconds."""
    return stamp.seconds * 1_000_000_000 + stamp.nanos


def stamp_of(time_ns: int) -> Timestamp:
    """Unix nanoseconds as a timestamp, or the nearest that there is."""
    seconds, nanos = divmod(min(max(time_ns, 0), END_NS - 1), 1_000_000_000)
    return Timestamp(seconds=seconds, nanos=nanos)


@dataclass(slots=True)
class Queued:
    """A message that waits for its turn.

    Attributes:
        seq: Its `InputAccepted`.
        time_ns: When it was accepted.
        urgent: It goes before the ordinary ones (`DELIVERY_INTERRUPT`, `DELIVERY_STEER`).
    """

    frame_id: str
    message: session_pb2.UserMessage
    seq: int
    time_ns: int
    urgent: bool

    @property
    def steers(self) -> bool:
        """It is to redirect a running turn at a boundary."""
        return self.message.delivery == session_pb2.DELIVERY_STEER


def exchanges(history: Iterable[session_pb2.Message]) -> list[list[session_pb2.Message]]:
    """A conversation cut before each message of the user that follows something else."""
    groups: list[list[session_pb2.Message]] = []
    for message in history:
        before = groups[-1][-1].role if groups else session_pb2.ROLE_UNSPECIFIED
        if not groups or (message.role == session_pb2.ROLE_USER and before != message.role):
            groups.append([])
        groups[-1].append(message)
    return groups


@dataclass(slots=True)
class Settled:
    """What the prompt says of the history and of turns before the last, so that it is made once.

    Only a `ContextTrimmed` changes it: turns before the last are cut no more, and a call that
    outlives its turn keeps its placeholder there for good.

    Attributes:
        messages: What they say.
        turns: So many of the oldest turns, those that are left out included.
    """

    messages: list[session_pb2.Message]
    turns: int = 0


@dataclass(slots=True)
class SessionState:
    """What the events say.

    Attributes:
        turns: All turns, oldest first; the last one may be running.
        last_turn: The running turn, or with none running the last that ended.
        dropped: The places of turns that are left out of the prompt (`ContextTrimmed`).
        queue: Messages that wait, in the order in which they will be answered.
        open: Those that are announced and have no result, by id, oldest first.
        deferred: Ends of calls that the model is yet to be told, in the order in which they came.
        history_dropped: How many exchanges of the imported history are left out of the prompt.
        credit_window: `Limits.max_unacked_chars`; 0 for none.
        content_bytes: Size of what was said, for the limit on a session's growth.
        config_line: The configuration's part of a checkpoint, once it was made.
        settled: What the prompt says of turns before the last, once it was made.
    """

    session_id: str = ""
    config: session_pb2.SessionConfig = field(default_factory=session_pb2.SessionConfig)
    config_digest: bytes = b""
    phase: Phase = Phase.NEW
    last_seq: int = 0
    create_ns: int = 0
    update_ns: int = 0
    turns: TurnBook = field(default_factory=TurnBook)
    last_turn: Turn | None = None
    dropped: set[int] = field(default_factory=set)
    queue: list[Queued] = field(default_factory=list)
    open: dict[str, Call] = field(default_factory=dict)
    deferred: list[Deferred] = field(default_factory=list)
    history_dropped: int = 0
    frames: FrameBook = field(default_factory=FrameBook)
    total_usage: session_pb2.Usage = field(default_factory=session_pb2.Usage)
    content_bytes: int = 0
    credit_window: int = 0
    config_line: bytes = field(default=b"", compare=False, repr=False)
    settled: Settled | None = field(default=None, compare=False, repr=False)

    @property
    def calls(self) -> CallBook:
        """Every call of every turn by its id."""
        return self.turns.calls

    @property
    def running(self) -> Turn | None:
        """The running turn."""
        if self.phase in (Phase.GENERATING, Phase.WAITING_FOR_TOOLS, Phase.STOPPING):
            return self.last_turn
        return None

    def apply(self, event: event_pb2.Event) -> None:
        """Take in the next event.

        Raises:
            BackchannelError: `LOG_CORRUPT` if it cannot be the next one.
        """
        kind = event.WhichOneof("kind")
        if event.seq != self.last_seq + 1:
            raise self._corrupt(event, f"follows event {self.last_seq}")
        if kind is None:
            raise self._corrupt(event, "has no kind that this version knows")
        target = TRANSITIONS.get((self.phase, kind))
        if target is None:
            raise self._corrupt(event, f"({kind}) cannot happen while {self.phase.value}")
        now_ns = to_ns(event.time)
        if not 0 <= now_ns < END_NS:
            raise self._corrupt(event, "is of no time that there is")
        if kind == "output_delta":  # Nearly all events are this one.
            turn = self.last_turn
            delta = event.output_delta
            if turn is None or delta.turn_id != turn.turn_id:
                raise self._corrupt(event, "is about a turn that does not run")
            if delta.round > len(turn.rounds) + 1:
                raise self._corrupt(event, "skips a round")
            turn.add_delta(event.seq, delta, now_ns)
            self.content_bytes += len(delta.text)
            if turn.delivered_tokens > MAX_TOKENS:
                raise self._corrupt(event, "counts more tokens than there can be")
        else:
            delivery = self._delivery_of(event, kind)
            getattr(self, f"_apply_{kind}")(event, getattr(event, kind), now_ns)
            if target is Guard.AWAITED_CALLS_LEFT:
                waiting = self.last_turn is not None and self.last_turn.waits
                target = Phase.WAITING_FOR_TOOLS if waiting else Phase.GENERATING
            self.phase = Phase(target)
            if event.frame_id:
                self.frames.record(event, kind, self._turn_of(event, kind), delivery)
        self.last_seq = event.seq
        self.update_ns = now_ns

    def _turn_of(self, event: event_pb2.Event, kind: str) -> str:
        """The turn that a receipt for this event's frame names."""
        if kind == "tool_call_finished":
            return self.calls[event.tool_call_finished.call_id].turn_id
        if kind == "tool_call_progressed":
            return self.calls[event.tool_call_progressed.call_id].turn_id
        if kind == "tool_call_output":
            return self.calls[event.tool_call_output.call_id].turn_id
        if kind in ("turn_started", "turn_interrupted", "turn_truncated"):
            return str(getattr(event, kind).turn_id)
        return ""

    def _delivery_of(self, event: event_pb2.Event, kind: str) -> session_pb2.Delivery.ValueType:
        """How a message meets the session; to be asked before the event is applied."""
        if kind in ("turn_interrupted", "turn_truncated"):
            return session_pb2.DELIVERY_INTERRUPT
        if kind != "input_accepted":
            return session_pb2.DELIVERY_UNSPECIFIED
        return self.delivery_of(event.input_accepted.message)

    def delivery_of(self, message: session_pb2.UserMessage) -> session_pb2.Delivery.ValueType:
        """How a message that stops nothing meets the session now."""
        steers = message.delivery == session_pb2.DELIVERY_STEER
        if steers and self.phase in (Phase.GENERATING, Phase.WAITING_FOR_TOOLS):
            return session_pb2.DELIVERY_STEER
        return session_pb2.DELIVERY_QUEUE

    def _corrupt(self, event: event_pb2.Event, message: str) -> BackchannelError:
        return BackchannelError(
            Reason.LOG_CORRUPT,
            f"the log of this session is damaged: event {event.seq} {message}",
        )

    def _call(self, event: event_pb2.Event, call_id: str) -> Call:
        call = self.calls.get(call_id)
        if call is None:
            raise self._corrupt(event, "is about a tool call that was never started")
        return call

    def _running(self, event: event_pb2.Event, turn_id: str) -> Turn:
        turn = self.running
        if turn is None or turn.turn_id != turn_id:
            raise self._corrupt(event, "is about a turn that does not run")
        return turn

    def _apply_session_opened(
        self, event: event_pb2.Event, opened: event_pb2.SessionOpened, now_ns: int
    ) -> None:
        self.session_id = opened.session.session_id
        self.config = opened.session.config
        self.credit_window = self.config.limits.max_unacked_chars
        self.config_digest = event.frame_digest
        self.create_ns = now_ns

    def _apply_input_accepted(
        self, event: event_pb2.Event, accepted: event_pb2.InputAccepted, now_ns: int
    ) -> None:
        message = accepted.message
        urgent = message.delivery in URGENT
        queued = Queued(accepted.frame_id, message, event.seq, now_ns, urgent)
        place = sum(other.urgent for other in self.queue) if urgent else len(self.queue)
        self.queue.insert(place, queued)
        self.content_bytes += message.ByteSize()

    def _apply_input_withdrawn(
        self, event: event_pb2.Event, withdrawn: event_pb2.InputWithdrawn, now_ns: int
    ) -> None:
        for place, queued in enumerate(self.queue):
            if queued.frame_id == withdrawn.frame_id:
                del self.queue[place]
                return
        raise self._corrupt(event, "withdraws a message that does not wait")

    def _apply_turn_started(
        self, event: event_pb2.Event, started: event_pb2.TurnStarted, now_ns: int
    ) -> None:
        count = len(started.frame_ids)
        taken = self.queue[:count]
        if [queued.frame_id for queued in taken] != list(started.frame_ids):
            raise self._corrupt(event, "starts a turn for messages that do not wait")
        told = self.deferred[: len(started.call_ids)]
        if [deferred.call_id for deferred in told] != list(started.call_ids):
            raise self._corrupt(event, "starts a turn for results that do not wait")
        if not taken and not told:
            raise self._corrupt(event, "starts a turn for nothing")
        del self.queue[:count]
        del self.deferred[: len(told)]
        if self.last_turn is not None:
            self.last_turn.forget_marks()
        self.last_turn = Turn(
            turn_id=started.turn_id,
            frame_ids=list(started.frame_ids),
            inputs=[queued.message for queued in taken],
            model=started.model,
            told=told,
            accepted_ns=min(
                [queued.time_ns for queued in taken] + [ended.time_ns for ended in told]
            ),
            started_ns=now_ns,
            started_seq=event.seq,
        )
        self.turns.append(self.last_turn)

    def _apply_tool_call_started(
        self, event: event_pb2.Event, started: event_pb2.ToolCallStarted, now_ns: int
    ) -> None:
        turn = self._running(event, started.turn_id)
        if started.call_id in self.calls:
            raise self._corrupt(event, "starts a tool call that there is already")
        if started.round > len(turn.rounds) + 1:
            raise self._corrupt(event, "skips a round")
        turn.enter_round(started.round)
        call = Call(started.call_id, turn.turn_id, started.name, turn.text_chars, started.round)
        turn.calls.append(call)
        self.calls.add(call)

    def _apply_tool_call_delta(
        self, event: event_pb2.Event, delta: event_pb2.ToolCallDelta, now_ns: int
    ) -> None:
        call = self._call(event, delta.call_id)
        if call.ready:
            raise self._corrupt(event, "goes on with a tool call that is complete")
        call.arguments.append(delta.arguments_fragment)
        turn = self._running(event, call.turn_id)
        turn.add_fragment(event.seq, delta, now_ns)
        self.content_bytes += len(delta.arguments_fragment)
        if turn.delivered_tokens > MAX_TOKENS:
            raise self._corrupt(event, "counts more tokens than there can be")

    def _apply_tool_call_ready(
        self, event: event_pb2.Event, ready: event_pb2.ToolCallReady, now_ns: int
    ) -> None:
        call = self._call(event, ready.call_id)
        if call.ready:
            raise self._corrupt(event, "announces a tool call again")
        call.ready = True
        spec = next((tool for tool in self.config.tools if tool.name == call.name), None)
        call.awaited = spec is None or not spec.HasField("blocking") or spec.blocking
        self.open[call.call_id] = call
        call.arguments = [ready.arguments_json]
        call.idle_deadline_ns = to_ns(ready.idle_deadline)
        call.deadline_ns = to_ns(ready.deadline)
        self._running(event, call.turn_id).pace.pause()

    def _apply_tool_call_progressed(
        self, event: event_pb2.Event, progressed: event_pb2.ToolCallProgressed, now_ns: int
    ) -> None:
        call = self._call(event, progressed.call_id)
        if not call.open:
            raise self._corrupt(event, "is about a tool call that is not open")
        call.idle_deadline_ns = to_ns(progressed.idle_deadline)

    def _apply_tool_call_output(
        self, event: event_pb2.Event, output: event_pb2.ToolCallOutput, now_ns: int
    ) -> None:
        call = self._call(event, output.call_id)
        if not call.open or output.index != len(call.parts):
            raise self._corrupt(event, "is a part of a result that does not fit")
        call.parts.append(output)
        call.parts_bytes += output.ByteSize()
        call.idle_deadline_ns = to_ns(output.idle_deadline)

    def _apply_tool_call_cancelled(
        self, event: event_pb2.Event, cancelled: event_pb2.ToolCallCancelled, now_ns: int
    ) -> None:
        if not self._call(event, cancelled.call_id).open:
            raise self._corrupt(event, "cancels a tool call that is not open")

    def _apply_tool_call_finished(
        self, event: event_pb2.Event, finished: event_pb2.ToolCallFinished, now_ns: int
    ) -> None:
        call = self._call(event, finished.call_id)
        if finished.outcome == OPEN:
            raise self._corrupt(event, "does not say how a tool call ended")
        self.content_bytes += finished.ByteSize()
        if finished.late:
            if call.outcome == OPEN:
                raise self._corrupt(event, "is a late result of a call that has none in time")
            call.late_results += 1
            self.turns[self.calls.places[call.call_id]].line = b""
        elif not call.open:
            raise self._corrupt(event, "ends a tool call that is not open")
        result = finished.result if finished.HasField("result") else None
        if finished.scheduling:
            by_itself = finished.scheduling != session_pb2.SCHEDULING_SILENT
            self.deferred.append(
                Deferred(call.call_id, finished.outcome, result, by_itself, now_ns)
            )
        if finished.late:
            return
        call.outcome, call.result = finished.outcome, result
        call.told_later = finished.scheduling != session_pb2.SCHEDULING_UNSPECIFIED
        call.parts, call.parts_bytes = [], 0
        del self.open[call.call_id]

    def _apply_turn_interrupted(
        self, event: event_pb2.Event, interrupted: event_pb2.TurnInterrupted, now_ns: int
    ) -> None:
        turn = self._running(event, interrupted.turn_id)
        turn.cut(interrupted.kept_chars, interrupted.keep)
        still = session_pb2.ToolOutcome.STATE_STILL_RUNNING
        left = {told.call_id for told in interrupted.tools if told.state == still}
        for call in turn.open_calls:
            if call.call_id not in left:
                raise self._corrupt(event, "leaves a tool call open and does not say so")
            call.awaited = False  # It outlives its turn.

    def _apply_turn_truncated(
        self, event: event_pb2.Event, truncated: event_pb2.TurnTruncated, now_ns: int
    ) -> None:
        turn = self.last_turn
        if turn is None or turn.turn_id != truncated.turn_id:
            raise self._corrupt(event, "cuts a turn that is not the last")
        turn.cut(truncated.kept_chars, event_pb2.KEEP_DISPLAYED)
        if turn.usage is not None:
            kept = turn.kept_tokens()
            self.total_usage.kept_tokens -= turn.usage.kept_tokens - kept
            turn.usage.kept_tokens = kept

    def _apply_turn_recovered(
        self, event: event_pb2.Event, recovered: event_pb2.TurnRecovered, now_ns: int
    ) -> None:
        self._running(event, recovered.turn_id).recoveries += 1

    def _apply_context_trimmed(
        self, event: event_pb2.Event, trimmed: event_pb2.ContextTrimmed, now_ns: int
    ) -> None:
        left = trimmed.dropped_turns
        history = min(left, len(exchanges(self.config.history)) - self.history_dropped)
        self.history_dropped += history
        self.dropped.update(self.droppable()[: left - history])
        self.settled = None

    def droppable(self) -> list[int]:
        """The places of turns that the prompt can do without, oldest first.

        They have ended, and have no open call.
        """
        return [
            place
            for place in range(len(self.turns) - 1)
            if place not in self.dropped and not self.turns.has_open_call(place)
        ]

    def _apply_turn_finished(
        self, event: event_pb2.Event, finished: event_pb2.TurnFinished, now_ns: int
    ) -> None:
        turn = self._running(event, finished.turn_id)
        turn.finish_reason = finished.finish_reason
        turn.ended_seq = event.seq
        turn.usage = session_pb2.Usage()
        turn.usage.CopyFrom(finished.usage)
        turn.timing = finished.timing if finished.HasField("timing") else None
        turn.error = finished.error if finished.HasField("error") else None
        total, usage = self.total_usage, finished.usage
        try:
            total.prompt_tokens += usage.prompt_tokens
            total.cached_prompt_tokens += usage.cached_prompt_tokens
            total.generated_tokens += usage.generated_tokens
            total.delivered_tokens += usage.delivered_tokens
            total.displayed_tokens += usage.displayed_tokens
            total.kept_tokens += usage.kept_tokens
            total.wasted_tokens += usage.wasted_tokens
        except ValueError:
            raise self._corrupt(event, "counts more tokens than there can be") from None
        total.estimated = total.estimated or usage.estimated

    def _apply_session_closed(
        self, event: event_pb2.Event, closed: event_pb2.SessionClosed, now_ns: int
    ) -> None:
        self.queue.clear()
