"""What becomes of tool calls: results, progress, and the two deadlines that the server owns.

A call has exactly one result, which may come in parts. One that comes after it is kept as late, at
most `LATE_RESULTS` of them. A call whose deadline passes ends `TIMED_OUT`, the model is told so,
and the turn goes on. Calls that are not waited for outlive their turn, and may start one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from backchannel.errors import BackchannelError, Reason
from backchannel.session.calls import Calls
from backchannel.session.configuration import SECOND_NS
from backchannel.session.draft import Draft
from backchannel.session.owner import Owner, Progress
from backchannel.session.state import SessionState, stamp_of
from backchannel.session.transcript import compact_json, logged_json
from backchannel.session.turn import Call
from backchannel.session.turns import Turns
from backchannel.session.validation import MIB, duration_ns
from backchannel.v1 import event_pb2, frame_pb2, session_pb2

LATE_RESULTS: Final = 4
MAX_PARTS: Final = 1024
PROGRESS_EVERY_NS: Final = SECOND_NS
# A deadline that passed while nobody lived gives the tool's runner so long to come back.
RECOVERY_GRACE_NS: Final = 5 * SECOND_NS


class Tools:
    """Answers for the tool calls of one session.

    Args:
        draft: Takes the events.
        owner: The soft state.
        turns: Goes on when the last open call is answered.
        calls: Ends them.
    """

    def __init__(self, draft: Draft, owner: Owner, turns: Turns, calls: Calls) -> None:
        self._draft = draft
        self._owner = owner
        self._turns = turns
        self._calls = calls

    @property
    def _state(self) -> SessionState:
        return self._draft.state

    def _find(self, call_id: str, field: str) -> Call:
        call = self._state.calls.get(call_id)
        if call is None or not call.ready:
            raise BackchannelError(
                Reason.TOOL_CALL_NOT_FOUND,
                "this session has made no such call; take the call_id from tool_call_ready",
                field=field,
            )
        return call

    def result(self, result: session_pb2.ToolResult) -> tuple[int, str] | None:
        """Take a result, or a part of one.

        Returns:
            Its event's seq and the call's turn; None for a part that comes after the call's end.

        Raises:
            BackchannelError: `TOOL_CALL_NOT_FOUND`; `LATE_RESULTS_FULL`; `FIELD_TOO_LONG` if the
                parts together are too much.
        """
        call = self._find(result.call_id, "tool_result.call_id")
        late = not call.open
        if result.partial:
            return None if late else (self._part(call, result), call.turn_id)
        if late and call.late_results >= LATE_RESULTS:
            raise BackchannelError(
                Reason.LATE_RESULTS_FULL,
                f"this call has ended, and {LATE_RESULTS} late results are kept already",
                field="tool_result.call_id",
            )
        outcome = session_pb2.TOOL_CALL_OUTCOME_COMPLETED
        if result.WhichOneof("outcome") == "error":
            outcome = session_pb2.TOOL_CALL_OUTCOME_FAILED
        elif call.parts:
            self._check_parts(call, result)
            result = _whole(call.parts, result)
        at_once = self._calls.scheduling(call, outcome, result, late=late)
        seq = self._calls.end(call, outcome, result, late=late, caused=True)
        if at_once == session_pb2.SCHEDULING_INTERRUPT:
            self._turns.make_way()
        self._turns.calls_answered()
        self._turns.start_next()
        return seq, call.turn_id

    def _part(self, call: Call, result: session_pb2.ToolResult) -> int:
        if result.WhichOneof("outcome") == "error":
            raise BackchannelError(
                Reason.FIELD_INVALID,
                "an error ends the call; leave partial out",
                field="tool_result.partial",
            )
        self._check_parts(call, result, last=False)
        held = self._owner.progress.get(call.call_id)
        idle_deadline_ns = self._moved_ns(call)
        if held is not None:
            held.idle_deadline_ns = idle_deadline_ns
        part = event_pb2.ToolCallOutput(
            call_id=call.call_id,
            index=len(call.parts),
            idle_deadline=stamp_of(idle_deadline_ns),
        )
        if result.HasField("json"):
            part.json = result.json
        else:
            part.content.CopyFrom(result.content)
        return self._draft.emit("tool_call_output", part, caused=True)

    def _check_parts(
        self, call: Call, result: session_pb2.ToolResult, *, last: bool = True
    ) -> None:
        most = MAX_PARTS - (not last)  # There is always room for the last one.
        if len(call.parts) >= most or call.parts_bytes + result.ByteSize() > MIB:
            raise BackchannelError(
                Reason.FIELD_TOO_LONG,
                f"a result has at most {MAX_PARTS} parts and 1 MiB in all; end it with an error",
                field="tool_result",
            )

    def _moved_ns(self, call: Call) -> int:
        """The idle deadline after a sign of life now."""
        spec = self._calls.spec(call.name)
        idle_ns = duration_ns(spec.idle_timeout) if spec else 0
        return min(self._draft.now_ns + idle_ns, call.deadline_ns)

    def progress(self, report: frame_pb2.ToolProgress) -> tuple[int, str] | None:
        """Take a progress report, which moves the idle deadline.

        Returns:
            Its event's seq (0 if it is held back for the rest of the second) and the call's turn;
            None if the call has ended.

        Raises:
            BackchannelError: `TOOL_CALL_NOT_FOUND`.
        """
        call = self._find(report.call_id, "tool_progress.call_id")
        if not call.open:
            return None
        now_ns = self._draft.now_ns
        held = self._owner.progress.setdefault(call.call_id, Progress())
        held.idle_deadline_ns = self._moved_ns(call)
        held.fraction = report.fraction if report.HasField("fraction") else None
        held.note = report.note
        held.pending = True
        if held.logged_ns + PROGRESS_EVERY_NS > now_ns:
            return 0, call.turn_id
        return self._log_progress(call, held, caused=True), call.turn_id

    def _log_progress(self, call: Call, held: Progress, *, caused: bool = False) -> int:
        held.pending, held.logged_ns = False, self._draft.now_ns
        return self._draft.emit(
            "tool_call_progressed",
            event_pb2.ToolCallProgressed(
                call_id=call.call_id,
                fraction=held.fraction,
                note=held.note,
                idle_deadline=stamp_of(held.idle_deadline_ns),
            ),
            caused=caused,
        )

    # --- deadlines ---------------------------------------------------------------------------

    def idle_deadline_ns(self, call: Call) -> int:
        """When the call times out for silence."""
        held = self._owner.progress.get(call.call_id)
        return held.idle_deadline_ns if held else call.idle_deadline_ns

    def after_recovery(self, deadline_ns: int) -> int:
        """A deadline, moved if it passed before this process took over."""
        recovered_ns = self._owner.recovered_ns
        if deadline_ns < recovered_ns:
            return recovered_ns + RECOVERY_GRACE_NS
        return deadline_ns

    def deadline_ns(self, call: Call) -> int:
        """When the call times out, for silence or in all."""
        return self.after_recovery(min(self.idle_deadline_ns(call), call.deadline_ns))

    def next_ns(self) -> int | None:
        """When something is due next."""
        due = [self.deadline_ns(call) for call in self._state.open.values()]
        due += [
            held.logged_ns + PROGRESS_EVERY_NS
            for held in self._owner.progress.values()
            if held.pending
        ]
        return min(due, default=None)

    def tick(self) -> None:
        """Do what is due."""
        now_ns = self._draft.now_ns
        for call in list(self._state.open.values()):
            held = self._owner.progress.get(call.call_id)
            if held and held.pending and held.logged_ns + PROGRESS_EVERY_NS <= now_ns:
                self._log_progress(call, held)
            if self.deadline_ns(call) <= now_ns:
                self._calls.end(call, session_pb2.TOOL_CALL_OUTCOME_TIMED_OUT)
        self._turns.calls_answered()
        self._turns.start_next()


def _whole(
    parts: Sequence[event_pb2.ToolCallOutput], last: session_pb2.ToolResult
) -> session_pb2.ToolResult:
    """All parts of a result as one: text laid end to end, anything else as a JSON list."""
    whole = session_pb2.ToolResult(call_id=last.call_id, scheduling=last.scheduling)
    if last.HasField("content") and all(part.HasField("content") for part in parts):
        for part in parts:
            whole.content.parts.extend(part.content.parts)
        whole.content.parts.extend(last.content.parts)
        return whole
    values = [_value(part) for part in parts] + [_value(last)]
    whole.json = compact_json(values)
    return whole


def _value(part: event_pb2.ToolCallOutput | session_pb2.ToolResult) -> object:
    if part.HasField("json"):
        return logged_json(part.json)
    return "".join(piece.text for piece in part.content.parts)
