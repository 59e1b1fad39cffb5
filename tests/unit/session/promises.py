"""What must hold of every log and every state, whatever happened; judged from outside.

Nothing here asks the core for its opinion: the log is read as a client would read it.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field

from backchannel.session.session import Session
from backchannel.session.transcript import messages
from backchannel.v1 import event_pb2, frame_pb2, session_pb2
from tests.unit.session.driver import (
    CANCELLED,
    DUPLICATE,
    INTERRUPTED,
    SECOND,
    TEXT,
    Driver,
    durable,
    kind_of,
)

LATE = 4
URGENT = (session_pb2.DELIVERY_INTERRUPT, session_pb2.DELIVERY_STEER)


@dataclass
class ReadCall:
    """A call as the log tells it."""

    call_id: str
    turn_id: str
    text_offset: int
    ready: bool = False
    ends: list[event_pb2.ToolCallFinished] = field(default_factory=list)
    late: int = 0
    arguments_json: str = ""


@dataclass
class ReadTurn:
    """A turn as the log tells it."""

    turn_id: str
    started_seq: int
    frame_ids: list[str]
    text: str = ""
    reasoning: str = ""
    text_ends: list[tuple[int, int]] = field(default_factory=list)
    tokens: int = 0
    calls: list[ReadCall] = field(default_factory=list)
    interrupted: event_pb2.TurnInterrupted | None = None
    truncated: event_pb2.TurnTruncated | None = None
    finished: event_pb2.TurnFinished | None = None
    finished_seq: int = 0

    @property
    def kept(self) -> str:
        cut = self.truncated or self.interrupted
        return self.text if cut is None else self.text[: cut.kept_chars]

    def chars_at(self, seq: int) -> int:
        return max((end for at, end in self.text_ends if at <= seq), default=0)


class Reading:
    """A log, read from its first event to its last. Anything that must not be there is a failure.

    Args:
        events: From seq 1.
        lost_at: The seqs after which a process was lost.
    """

    def __init__(self, events: list[event_pb2.Event], lost_at: list[int] | None = None) -> None:
        self.turns: list[ReadTurn] = []
        self.calls: dict[str, ReadCall] = {}
        self.waiting: list[tuple[str, session_pb2.UserMessage]] = []
        self.inputs: dict[str, list[session_pb2.UserMessage]] = {}
        self.deferred: list[event_pb2.ToolCallFinished] = []
        self.told: dict[str, event_pb2.ToolCallFinished] = {}
        self.closed = False
        self.cancelled = ""
        self._progress: dict[str, int] = {}
        self._last_ns = 0
        lost = set(lost_at or ())
        for seq, event in enumerate(events, start=1):
            assert event.seq == seq, "the numbers have a gap or a repeat"
            if seq - 1 in lost:
                self._progress.clear()
            self._read(event)

    @property
    def running(self) -> ReadTurn | None:
        return self.turns[-1] if self.turns and self.turns[-1].finished is None else None

    def holding(self, seq: int) -> ReadTurn | None:
        """The turn that has this event between its start and its end."""
        for turn in self.turns:
            if turn.started_seq <= seq and (not turn.finished or seq <= turn.finished_seq):
                return turn
        return None

    def _read(self, event: event_pb2.Event) -> None:
        kind = kind_of(event)
        now_ns = event.time.ToNanoseconds()
        assert now_ns >= self._last_ns, "the time runs backwards"
        self._last_ns = now_ns
        assert not self.closed, "something happened after the end"
        assert (kind == "session_opened") == (event.seq == 1)
        if event.frame_id and event.seq > 1:
            assert len(event.frame_digest) == 32
        if self.cancelled:
            assert kind == "tool_call_finished", "a cancelled call is not ended at once"
            assert event.tool_call_finished.call_id == self.cancelled
            assert event.tool_call_finished.outcome == CANCELLED
            self.cancelled = ""
        read = getattr(self, f"_{kind}", None)
        if read is not None:
            read(event, getattr(event, kind), now_ns)

    def _of(self, turn_id: str) -> ReadTurn:
        """The running turn, which this must be about."""
        turn = self.running
        assert turn is not None, "no turn runs"
        assert turn.turn_id == turn_id, "another turn runs"
        return turn

    def _speaking(self, turn_id: str) -> ReadTurn:
        turn = self._of(turn_id)
        assert turn.interrupted is None, "a turn goes on after it was interrupted"
        return turn

    def _input_accepted(
        self, event: event_pb2.Event, accepted: event_pb2.InputAccepted, now_ns: int
    ) -> None:
        assert accepted.frame_id == event.frame_id
        place = len(self.waiting)
        if accepted.message.delivery in URGENT:
            place = sum(one.delivery in URGENT for _, one in self.waiting)
        self.waiting.insert(place, (accepted.frame_id, accepted.message))

    def _input_withdrawn(
        self, event: event_pb2.Event, withdrawn: event_pb2.InputWithdrawn, now_ns: int
    ) -> None:
        before = len(self.waiting)
        self.waiting = [one for one in self.waiting if one[0] != withdrawn.frame_id]
        assert len(self.waiting) == before - 1, "what was withdrawn did not wait"

    def _turn_started(
        self, event: event_pb2.Event, started: event_pb2.TurnStarted, now_ns: int
    ) -> None:
        assert self.running is None, "a turn starts while another one runs"
        assert started.turn_id not in {turn.turn_id for turn in self.turns}
        count = len(started.frame_ids)
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        assert list(started.frame_ids) == [one[0] for one in taken], "not the first that wait"
        assert started.frame_id == (taken[0][0] if taken else "")
        steers = [one.delivery == session_pb2.DELIVERY_STEER for _, one in taken]
        assert count <= 1 or all(steers)
        if steers and steers[0] and self.waiting:
            assert self.waiting[0][1].delivery != session_pb2.DELIVERY_STEER, "one left behind"
        assert list(started.call_ids) == [one.call_id for one in self.deferred]
        assert taken or any(
            one.scheduling != session_pb2.SCHEDULING_SILENT for one in self.deferred
        )
        for place, ended in enumerate(self.deferred):
            self.told[f"{ended.call_id}_{event.seq}_{place}"] = ended
        self.deferred = []
        self.inputs[started.turn_id] = [one for _, one in taken]
        self.turns.append(ReadTurn(started.turn_id, event.seq, list(started.frame_ids)))

    def _output_delta(
        self, event: event_pb2.Event, delta: event_pb2.OutputDelta, now_ns: int
    ) -> None:
        turn = self._speaking(delta.turn_id)
        turn.tokens += delta.token_count
        if delta.channel == TEXT:
            assert delta.offset == len(turn.text), "the text has a gap or a repeat"
            turn.text += delta.text
            turn.text_ends.append((event.seq, len(turn.text)))
        else:
            assert delta.offset == len(turn.reasoning), "the reasoning has a gap or a repeat"
            turn.reasoning += delta.text

    def _tool_call_started(
        self, event: event_pb2.Event, started: event_pb2.ToolCallStarted, now_ns: int
    ) -> None:
        assert started.call_id not in self.calls
        turn = self._speaking(started.turn_id)
        call = ReadCall(started.call_id, started.turn_id, len(turn.text))
        turn.calls.append(call)
        self.calls[started.call_id] = call

    def _tool_call_delta(
        self, event: event_pb2.Event, delta: event_pb2.ToolCallDelta, now_ns: int
    ) -> None:
        call = self.calls[delta.call_id]
        assert not call.ready, "a call is written on after it was announced"
        self._speaking(call.turn_id).tokens += delta.token_count

    def _tool_call_ready(
        self, event: event_pb2.Event, ready: event_pb2.ToolCallReady, now_ns: int
    ) -> None:
        call = self.calls[ready.call_id]
        self._speaking(call.turn_id)
        assert not call.ready, "a call is announced twice"
        call.ready, call.arguments_json = True, ready.arguments_json
        assert now_ns <= ready.idle_deadline.ToNanoseconds() <= ready.deadline.ToNanoseconds()

    def _tool_call_progressed(
        self, event: event_pb2.Event, progressed: event_pb2.ToolCallProgressed, now_ns: int
    ) -> None:
        call = self.calls[progressed.call_id]
        assert call.ready
        assert not call.ends
        last_ns = self._progress.get(call.call_id, -SECOND)
        assert now_ns - last_ns >= SECOND, "progress is logged more than once a second"
        self._progress[call.call_id] = now_ns

    def _tool_call_cancelled(
        self, event: event_pb2.Event, cancelled: event_pb2.ToolCallCancelled, now_ns: int
    ) -> None:
        call = self.calls[cancelled.call_id]
        self._of(call.turn_id)
        assert call.ready
        assert not call.ends, "a call is cancelled that has ended"
        self.cancelled = call.call_id

    def _tool_call_finished(
        self, event: event_pb2.Event, finished: event_pb2.ToolCallFinished, now_ns: int
    ) -> None:
        call = self.calls[finished.call_id]
        assert call.ready
        assert finished.outcome
        if finished.scheduling:
            self.deferred.append(finished)
        if finished.late:
            assert call.ends, "a late result of a call that is open"
            call.late += 1
            assert call.late <= LATE
            return
        assert not call.ends, "a call has two results"
        if not finished.scheduling:
            self._of(call.turn_id)
        call.ends.append(finished)

    def _turn_interrupted(
        self, event: event_pb2.Event, cut: event_pb2.TurnInterrupted, now_ns: int
    ) -> None:
        turn = self._speaking(cut.turn_id)
        assert cut.kept_chars + cut.dropped_chars == len(turn.text)
        assert [one.call_id for one in cut.tools] == [one.call_id for one in turn.calls]
        assert all(one.state for one in cut.tools)
        assert all(call.ends for call in turn.calls if call.ready), "a call is left open"
        assert cut.frame_id == event.frame_id
        turn.interrupted = cut

    def _turn_truncated(
        self, event: event_pb2.Event, cut: event_pb2.TurnTruncated, now_ns: int
    ) -> None:
        turn = self.turns[-1]
        assert turn.finished is not None
        assert cut.turn_id == turn.turn_id
        assert turn.interrupted is None
        assert turn.truncated is None
        assert cut.dropped_chars > 0
        assert cut.kept_chars + cut.dropped_chars == len(turn.text)
        turn.truncated = cut

    def _turn_finished(
        self, event: event_pb2.Event, finished: event_pb2.TurnFinished, now_ns: int
    ) -> None:
        turn = self._of(finished.turn_id)
        assert all(call.ends for call in turn.calls if call.ready), "a call is left open"
        assert (finished.finish_reason == INTERRUPTED) == (turn.interrupted is not None)
        usage = finished.usage
        assert usage.delivered_tokens == turn.tokens
        assert usage.generated_tokens == usage.delivered_tokens + usage.wasted_tokens
        assert usage.displayed_tokens <= usage.delivered_tokens
        assert usage.kept_tokens <= usage.delivered_tokens
        turn.finished, turn.finished_seq = finished, event.seq

    def _session_closed(
        self, event: event_pb2.Event, closed: event_pb2.SessionClosed, now_ns: int
    ) -> None:
        assert self.running is None, "the session ends while a turn runs"
        self.closed = True


def result_told(finished: event_pb2.ToolCallFinished) -> str:
    """What a model is told of a call that ended so: always compact JSON."""
    said: object
    match finished.outcome, finished.result.WhichOneof("outcome"):
        case (session_pb2.TOOL_CALL_OUTCOME_TIMED_OUT, None):
            said = {"error": "timed out"}
        case (session_pb2.TOOL_CALL_OUTCOME_CANCELLED, None):
            said = {"error": "cancelled; it may or may not have run"}
        case (_, "json"):
            said = json.loads(finished.result.json)
        case (_, "content"):
            said = "".join(part.text for part in finished.result.content.parts)
        case _:
            said = {"error": finished.result.error.message or finished.result.error.code}
    text = json.dumps(said, ensure_ascii=False, separators=(",", ":"))
    if any("\ud800" <= character <= "\udfff" for character in text):
        return json.dumps(said, separators=(",", ":"))
    return text


def check_transcript(told: tuple[session_pb2.Message, ...], reading: Reading) -> None:
    """A transcript that any engine takes, and that says what the log says was kept."""
    pending: Counter[str] = Counter()
    for message in told:
        text = "".join(part.text for part in message.parts)
        if message.role == session_pb2.ROLE_TOOL:
            assert pending[message.call_id] == 1, "a result without its call, or a second one"
            ended = reading.told.get(message.call_id)
            if ended is None:
                ended = reading.calls[message.call_id].ends[0]
            assert text == result_told(ended)
            pending[message.call_id] -= 1
            continue
        assert not any(pending.values()), "a call without its result"
        if message.role == session_pb2.ROLE_ASSISTANT:
            assert text or message.tool_calls, "an empty answer"
            pending.update(call.call_id for call in message.tool_calls)
            assert all(count == 1 for count in pending.values() if count)
    assert not any(pending.values()), "a call without its result"

    expected = []
    for turn in reading.turns:
        expected += [one.parts[0].text for one in reading.inputs[turn.turn_id]]
    users = [one.parts[0].text for one in told if one.role == session_pb2.ROLE_USER]
    assert users == expected
    answers = "".join(
        part.text for one in told if one.role == session_pb2.ROLE_ASSISTANT for part in one.parts
    )
    assert answers == "".join(turn.kept for turn in reading.turns)
    called = [
        (call.call_id, call.arguments_json)
        for one in told
        if one.role == session_pb2.ROLE_ASSISTANT
        for call in one.tool_calls
    ]
    wanted = []
    for turn in reading.turns:
        wanted += [
            (call_id, reading.calls[ended.call_id].arguments_json)
            for call_id, ended in reading.told.items()
            if call_id.split("_")[-2] == str(turn.started_seq)
        ]
        wanted += [(call.call_id, call.arguments_json) for call in turn.calls if call.ready]
    assert called == wanted


def check_view(driver: Driver, reading: Reading) -> None:
    """What is shown of a session is what its log says."""
    view = driver.session.view()
    running = reading.running
    states = session_pb2.Session
    assert view.last_seq == len(driver.events)
    assert view.running_turn_id == (running.turn_id if running else "")
    unanswered = [call.call_id for call in running.calls if call.ready] if running else []
    assert [one.call_id for one in view.open_tool_calls] == [
        call_id for call_id in unanswered if not reading.calls[call_id].ends
    ]
    if reading.closed:
        assert view.state == states.STATE_CLOSED
    elif running is None:
        assert view.state == states.STATE_IDLE
    elif driver.live is None:
        assert view.state == states.STATE_WAITING_FOR_TOOLS
    else:
        assert view.state == states.STATE_GENERATING
    totals = [turn.finished.usage for turn in reading.turns if turn.finished]
    for name in ("generated", "delivered", "displayed", "wasted", "prompt", "cached_prompt"):
        total = sum(getattr(one, f"{name}_tokens") for one in totals)
        assert getattr(view.total_usage, f"{name}_tokens") == total
    assert view.total_usage.kept_tokens <= view.total_usage.delivered_tokens
    parts = driver.session.snapshots(max_bytes=2_000)
    assert [part.more for part in parts] == [True] * (len(parts) - 1) + [False]
    whole = frame_pb2.Snapshot()
    for part in parts:
        whole.MergeFrom(part)
    assert [turn.turn_id for turn in whole.turns] == [turn.turn_id for turn in reading.turns]
    assert [turn.text for turn in whole.turns] == [turn.text for turn in reading.turns]
    assert [turn.kept_chars for turn in whole.turns] == [len(one.kept) for one in reading.turns]
    for shown, turn in zip(whole.turns, reading.turns, strict=True):
        assert [(call.call_id, call.text_offset) for call in shown.tool_calls] == [
            (call.call_id, call.text_offset) for call in turn.calls
        ]
        assert shown.HasField("timing") == (turn.finished is not None)
        assert not turn.finished or shown.timing == turn.finished.timing
    if not reading.closed:
        assert [one.frame_id for one in whole.queued] == [one for one, _ in reading.waiting]


def check_folds(
    driver: Driver,
    answered: dict[str, tuple[frame_pb2.ClientFrame, frame_pb2.Receipt]],
    checkpoint: tuple[bytes, int] | None,
) -> None:
    """Whoever reads the log knows the same, and answers a repeated frame the same."""
    now = durable(driver.state)
    folded = driver.folded()
    assert durable(folded.state) == now
    check_repeats(folded, answered)
    if checkpoint is not None:
        data, at_seq = checkpoint
        folded = driver.folded(data, at_seq)
        assert durable(folded.state) == now
        check_repeats(folded, answered)


def check_repeats(
    session: Session, answered: dict[str, tuple[frame_pb2.ClientFrame, frame_pb2.Receipt]]
) -> None:
    """Every frame that caused an event gets its first receipt again, and causes nothing."""
    for frame_id, (frame, receipt) in answered.items():
        decision = session.accept(frame, session.state.update_ns)
        assert decision.receipt == frame_pb2.Receipt(
            frame_id=frame_id,
            status=DUPLICATE,
            seq=receipt.seq,
            turn_id=receipt.turn_id,
            delivery=receipt.delivery,
        )
        assert not decision.events
        assert not decision.effects


def told_by(driver: Driver) -> tuple[session_pb2.Message, ...] | None:
    """What an engine would be told now; None while a call is open."""
    running = driver.running
    if running is not None and running.waits:
        return None
    return messages(driver.state)
