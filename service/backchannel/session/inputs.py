"""What a client's frames do to a session: messages, stops, positions, and what tools say.

A stop names its target and is computed from what was displayed: the furthest position that readers
have told, never what was sent to them. One that comes after its turn has ended changes nothing, but
for the last turn of an engine that was faster than its reader, which is cut back.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final, NamedTuple

from backchannel.errors import BackchannelError, Reason
from backchannel.session.draft import Draft
from backchannel.session.owner import Owner
from backchannel.session.state import URGENT, SessionState
from backchannel.session.table import Phase
from backchannel.session.tools import Tools
from backchannel.session.turn import Turn
from backchannel.session.turns import Turns
from backchannel.session.validation import MIB
from backchannel.v1 import event_pb2, frame_pb2, session_pb2

MAX_CONTENT_BYTES: Final = 64 * MIB

_ACCEPTED: Final = frame_pb2.RECEIPT_STATUS_ACCEPTED
_STALE: Final = frame_pb2.RECEIPT_STATUS_STALE


class Answer(NamedTuple):
    """What a frame is answered; `seq` is of its own event, `delivery` for a message only."""

    status: frame_pb2.ReceiptStatus.ValueType
    seq: int
    turn_id: str
    delivery: session_pb2.Delivery.ValueType = session_pb2.DELIVERY_UNSPECIFIED


class Inputs:
    """Takes the frames of one session.

    Args:
        draft: Takes the events.
        owner: The soft state.
        turns: Starts and stops turns.
        tools: Answers for tool calls.
    """

    def __init__(self, draft: Draft, owner: Owner, turns: Turns, tools: Tools) -> None:
        self._draft = draft
        self._owner = owner
        self._turns = turns
        self._tools = tools

    @property
    def _state(self) -> SessionState:
        return self._draft.state

    def take(self, frame: frame_pb2.ClientFrame) -> Answer:
        """Apply a frame that is valid in itself and new.

        Raises:
            BackchannelError: It does not fit the state; nothing was changed.
        """
        match frame.WhichOneof("frame"):
            case "message":
                return self._message(frame.message)
            case "tool_result":
                answered = self._tools.result(frame.tool_result)
                return Answer(_STALE, 0, "") if answered is None else Answer(_ACCEPTED, *answered)
            case "tool_progress":
                taken = self._tools.progress(frame.tool_progress)
                return Answer(_STALE, 0, "") if taken is None else Answer(_ACCEPTED, *taken)
            case "interrupt":
                return self._interrupt(frame.interrupt)
            case "ack":
                return self._ack(frame.ack)
            case "ping":
                return Answer(_ACCEPTED, 0, "")
            case kind:
                raise BackchannelError(
                    Reason.FRAME_NOT_FOR_SEND,
                    f"{kind} is about a stream; only Converse takes it",
                    field=kind or "frame",
                )

    def _message(self, message: session_pb2.UserMessage) -> Answer:
        state, draft = self._state, self._draft
        last = state.last_turn
        if message.expected_turn_id and (last is None or last.turn_id != message.expected_turn_id):
            raise BackchannelError(
                Reason.TURN_MISMATCH,
                "another turn is running (or was the last) by now; look at it, then send again",
                field="message.expected_turn_id",
                metadata={"turn_id": last.turn_id if last else ""},
            )
        offset = message.displayed_offset if message.HasField("displayed_offset") else None
        seen = last if message.expected_turn_id else self._turn_at(message.displayed_seq)
        self._check_position("message", message.displayed_seq, offset, seen)
        urgent = message.delivery in URGENT
        self._check_room(message, urgent)
        self._saw(seen, message.displayed_seq, offset)
        self._owner.absent_since_ns = max(self._owner.absent_since_ns, draft.now_ns)
        accepted = event_pb2.InputAccepted(frame_id=draft.frame_id, message=message)
        delivery = state.delivery_of(message)
        seq = draft.emit("input_accepted", accepted, caused=True)
        if message.delivery == session_pb2.DELIVERY_STEER:
            if state.running is not None:
                self._turns.steer()
        elif urgent and last is not None:
            explicit = offset is not None or message.displayed_seq > 0
            if self._cut_short(last, event_pb2.KEEP_DISPLAYED, explicit=explicit):
                delivery = session_pb2.DELIVERY_INTERRUPT
        self._turns.start_next()
        # Without a frame_id there is no record to read the receipt from.
        running = state.running
        if running is None or any(queued.seq == seq for queued in state.queue):
            return Answer(_ACCEPTED, seq, "", delivery)
        return Answer(_ACCEPTED, seq, running.turn_id, delivery)

    def _check_room(self, message: session_pb2.UserMessage, urgent: bool) -> None:
        waiting = sum(queued.urgent == urgent for queued in self._state.queue)
        if waiting >= self._state.config.limits.max_queued_messages:
            raise BackchannelError(
                Reason.QUEUE_FULL,
                f"{waiting} messages wait already (limits.max_queued_messages); "
                "wait for a turn to finish, or withdraw one with an interrupt",
                field="message",
            )
        if self._state.content_bytes + message.ByteSize() > MAX_CONTENT_BYTES:
            raise BackchannelError(
                Reason.SESSION_FULL,
                f"this session holds {MAX_CONTENT_BYTES // MIB} MiB already; create a new one",
                field="message",
            )

    def _cut_short(
        self,
        turn: Turn,
        keep: event_pb2.Keep.ValueType,
        tools: session_pb2.ToolDisposition.ValueType = session_pb2.TOOL_DISPOSITION_UNSPECIFIED,
        *,
        explicit: bool,
    ) -> int:
        """Stop `turn`, or cut it back if it ended before the reader had seen all of it.

        Returns:
            The seq of the event that says so; 0 if it was too late for either.
        """
        state, owner = self._state, self._owner
        displayed = owner.displayed.chars(turn)
        if state.running is turn:
            if state.phase is Phase.STOPPING or owner.stop is not None:
                return 0
            return self._turns.interrupt(keep, displayed, tools)
        if (
            turn is not state.last_turn
            or state.phase is not Phase.IDLE
            or keep not in (event_pb2.KEEP_UNSPECIFIED, event_pb2.KEEP_DISPLAYED)
            or not explicit
            or turn.kept_chars is not None
            or displayed >= turn.text_chars
        ):
            return 0
        return self._draft.emit(
            "turn_truncated",
            event_pb2.TurnTruncated(
                turn_id=turn.turn_id,
                frame_id=self._draft.frame_id,
                kept_chars=displayed,
                dropped_chars=turn.text_chars - displayed,
            ),
            caused=True,
        )

    def _interrupt(self, interrupt: frame_pb2.Interrupt) -> Answer:
        state, draft = self._state, self._draft
        offset = interrupt.displayed_offset if interrupt.HasField("displayed_offset") else None
        wanted = interrupt.target_frame_id
        if wanted and any(queued.frame_id == wanted for queued in state.queue):
            seq = draft.emit(
                "input_withdrawn", event_pb2.InputWithdrawn(frame_id=wanted), caused=True
            )
            self._turns.withdrawn()
            return Answer(_ACCEPTED, seq, "")
        turn = self._target(interrupt)
        # Only the last turn can still be cut; for any other the position no longer matters.
        current = turn if turn is state.last_turn else None
        self._check_position(
            "interrupt", interrupt.displayed_seq, offset if current else None, current
        )
        if turn is None or current is None:
            return Answer(_STALE, 0, turn.turn_id if turn else interrupt.turn_id)
        self._saw(turn, interrupt.displayed_seq, offset)
        explicit = offset is not None or interrupt.displayed_seq > 0
        seq = self._cut_short(turn, interrupt.keep, interrupt.tools, explicit=explicit)
        return Answer(_ACCEPTED if seq else _STALE, seq, turn.turn_id)

    def _target(self, interrupt: frame_pb2.Interrupt) -> Turn | None:
        """The newest turn that a stop names; by its id alone, only if it is the last."""
        last, turn_id, wanted = self._state.last_turn, interrupt.turn_id, interrupt.target_frame_id
        if not wanted:
            # An earlier one need not be looked for: its id is all that the answer tells of it.
            return last if last is not None and last.turn_id == turn_id else None
        named = (
            turn
            for turn in reversed(self._state.turns)
            if turn.turn_id == turn_id or wanted in turn.frame_ids
        )
        return next(named, None)

    def _ack(self, ack: frame_pb2.Ack) -> Answer:
        offset = ack.displayed_offset if ack.HasField("displayed_offset") else None
        turn = self._turn_at(ack.displayed_seq)
        self._check_position("ack", ack.displayed_seq, offset, turn)
        self._saw(turn, ack.displayed_seq, offset)
        self._owner.acked_ns = self._draft.now_ns
        self._turns.credit()
        return Answer(_ACCEPTED, 0, "")

    def _turn_at(self, seq: int) -> Turn | None:
        """The turn that holds event `seq`; if none does, the running one, or the last."""
        turns, last = self._state.turns, self._state.last_turn
        if last is None or not seq or last.started_seq <= seq:
            return last
        place = bisect_right(turns, seq, key=lambda turn: turn.started_seq) - 1
        if place < 0 or 0 < turns[place].ended_seq < seq:
            return last
        return turns[place]

    def _saw(self, turn: Turn | None, seq: int, offset: int | None) -> None:
        """Note a position; those in turns before the last no longer matter."""
        if turn is self._state.last_turn or offset is None:
            self._owner.displayed.saw(turn, seq, offset)

    def _check_position(self, frame: str, seq: int, offset: int | None, turn: Turn | None) -> None:
        if seq > self._state.last_seq:
            raise BackchannelError(
                Reason.POSITION_BEYOND_END,
                f"nobody can have seen event {seq}: the newest is {self._state.last_seq}",
                field=f"{frame}.displayed_seq",
                metadata={"last_seq": str(self._state.last_seq)},
            )
        text_chars = turn.text_chars if turn is not None else 0
        if offset is not None and offset > text_chars:
            raise BackchannelError(
                Reason.POSITION_BEYOND_END,
                f"nobody can have seen {offset} characters: the turn has {text_chars}",
                field=f"{frame}.displayed_offset",
                metadata={"text_chars": str(text_chars)},
            )
