"""What becomes of tool calls: results, progress, and the two deadlines that the server owns.

A call has exactly one result. One that comes after it is kept as late, at most `LATE_RESULTS` of
them. A call whose deadline passes ends `TIMED_OUT`, the model is told so, and the turn goes on.
"""

from __future__ import annotations

from typing import Final

from backchannel.errors import BackchannelError, Reason
from backchannel.session.configuration import SECOND_NS
from backchannel.session.draft import Draft
from backchannel.session.owner import Owner, Progress
from backchannel.session.state import SessionState, stamp_of
from backchannel.session.turn import Call
from backchannel.session.turns import Turns
from backchannel.session.validation import duration_ns
from backchannel.v1 import event_pb2, frame_pb2, session_pb2

LATE_RESULTS: Final = 4
PROGRESS_EVERY_NS: Final = SECOND_NS
# A deadline that passed while nobody lived gives the tool's runner so long to come back.
RECOVERY_GRACE_NS: Final = 5 * SECOND_NS


class Tools:
    """Answers for the tool calls of one session.

    Args:
        draft: Takes the events.
        owner: The soft state.
        turns: Goes on when the last open call is answered.
    """

    def __init__(self, draft: Draft, owner: Owner, turns: Turns) -> None:
        self._draft = draft
        self._owner = owner
        self._turns = turns

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

    def result(self, result: session_pb2.ToolResult) -> tuple[int, str]:
        """Take a result; returns its event's seq and the call's turn.

        Raises:
            BackchannelError: `TOOL_CALL_NOT_FOUND`; `LATE_RESULTS_FULL`.
        """
        call = self._find(result.call_id, "tool_result.call_id")
        failed = result.WhichOneof("outcome") == "error"
        outcome = (
            session_pb2.TOOL_CALL_OUTCOME_FAILED
            if failed
            else session_pb2.TOOL_CALL_OUTCOME_COMPLETED
        )
        late = not call.open
        if late and call.late_results >= LATE_RESULTS:
            raise BackchannelError(
                Reason.LATE_RESULTS_FULL,
                f"this call has ended, and {LATE_RESULTS} late results are kept already",
                field="tool_result.call_id",
            )
        seq = self._turns.end_call(call, outcome, result, late=late, caused=True)
        if not late:
            self._turns.calls_answered()
        return seq, call.turn_id

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
        spec = self._turns.spec(call.name)
        idle_ns = duration_ns(spec.idle_timeout) if spec else 0
        held.idle_deadline_ns = min(now_ns + idle_ns, call.deadline_ns)
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
        turn = self._state.running
        if turn is None:
            return None
        due = [self.deadline_ns(call) for call in turn.open_calls]
        due += [
            held.logged_ns + PROGRESS_EVERY_NS
            for held in self._owner.progress.values()
            if held.pending
        ]
        return min(due, default=None)

    def tick(self) -> None:
        """Do what is due."""
        turn, now_ns = self._state.running, self._draft.now_ns
        if turn is None:
            return
        for call in turn.open_calls:
            held = self._owner.progress.get(call.call_id)
            if held and held.pending and held.logged_ns + PROGRESS_EVERY_NS <= now_ns:
                self._log_progress(call, held)
            if self.deadline_ns(call) <= now_ns:
                self._turns.end_call(call, session_pb2.TOOL_CALL_OUTCOME_TIMED_OUT)
        self._turns.calls_answered()
