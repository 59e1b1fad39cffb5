"""Tool calls from their announcement to their end, and when the model is told of it.

A ready call has exactly one end. If the model was told meanwhile that the call runs, its end is
told at the beginning of a later turn; else it stands in the call's own place.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from backchannel.session.draft import Draft
from backchannel.session.owner import Owner
from backchannel.session.state import SessionState
from backchannel.session.table import Phase
from backchannel.session.turn import Call
from backchannel.v1 import event_pb2, session_pb2

_IN_PLACE: Final = session_pb2.SCHEDULING_UNSPECIFIED
# Ends of calls of which a result may still come that the model does not know.
_WITHOUT_RESULT: Final = (
    session_pb2.TOOL_CALL_OUTCOME_CANCELLED,
    session_pb2.TOOL_CALL_OUTCOME_TIMED_OUT,
    session_pb2.TOOL_CALL_OUTCOME_UNKNOWN,
)


class Calls:
    """Ends the calls of one session.

    Args:
        draft: Takes the events.
        owner: The soft state.
    """

    def __init__(self, draft: Draft, owner: Owner) -> None:
        self._draft = draft
        self._owner = owner

    @property
    def _state(self) -> SessionState:
        return self._draft.state

    def is_let_finish(self, call: Call, tools: session_pb2.ToolDisposition.ValueType) -> bool:
        """Whether a stop leaves a call alone: the stop's own word goes before the tool's."""
        spec = self.spec(call.name)
        wanted = tools or (spec.on_interrupt if spec else tools)
        return wanted == session_pb2.TOOL_DISPOSITION_LET_FINISH

    def close_all(self, label: str) -> None:
        """End every open call of the session, of whatever turn."""
        self.close(list(self._state.open.values()), label)

    def close(self, calls: Iterable[Call], label: str, *, caused: bool = False) -> None:
        """Cancel open calls, telling whoever runs them why."""
        for call in calls:
            self._draft.emit(
                "tool_call_cancelled",
                event_pb2.ToolCallCancelled(call_id=call.call_id, reason=label),
                caused=caused,
            )
            self.end(call, session_pb2.TOOL_CALL_OUTCOME_CANCELLED, caused=caused)

    def end(
        self,
        call: Call,
        outcome: session_pb2.ToolCallOutcome.ValueType,
        result: session_pb2.ToolResult | None = None,
        *,
        late: bool = False,
        caused: bool = False,
    ) -> int:
        """Log the end of a call, or a result that came after it; returns the event's seq."""
        if not late:
            self._owner.progress.pop(call.call_id, None)
        return self._draft.emit(
            "tool_call_finished",
            event_pb2.ToolCallFinished(
                call_id=call.call_id,
                outcome=outcome,
                late=late,
                result=result,
                scheduling=self.scheduling(call, outcome, result, late=late),
            ),
            caused=caused,
        )

    def scheduling(
        self,
        call: Call,
        outcome: session_pb2.ToolCallOutcome.ValueType,
        result: session_pb2.ToolResult | None,
        *,
        late: bool,
    ) -> session_pb2.Scheduling.ValueType:
        """When the model is told of this end of a call; unspecified: in the call's own place."""
        if late:
            # The model was told that it has no result; a second result is none of its business.
            first = call.outcome in _WITHOUT_RESULT and not call.late_results
            return session_pb2.SCHEDULING_SILENT if first else _IN_PLACE
        if not self._was_passed_over(call):
            return _IN_PLACE
        if outcome == session_pb2.TOOL_CALL_OUTCOME_CANCELLED:
            return session_pb2.SCHEDULING_SILENT
        if result is not None and result.scheduling:
            return result.scheduling
        spec = self.spec(call.name)
        if spec is None or spec.blocking:
            return session_pb2.SCHEDULING_SILENT
        return session_pb2.SCHEDULING_WHEN_IDLE

    def _was_passed_over(self, call: Call) -> bool:
        """The model has gone on without the result of an open call."""
        state, owner = self._state, self._owner
        turn = state.running
        if call.awaited:
            return False
        if turn is None or turn.turn_id != call.turn_id:
            return True
        if owner.stop is not None or state.phase is Phase.STOPPING:
            return True
        return call.round < (owner.run.round if owner.run else len(turn.rounds))

    def spec(self, name: str) -> session_pb2.ToolSpec | None:
        """The declared tool of that name."""
        return next((tool for tool in self._state.config.tools if tool.name == name), None)

    def outcome(self, call: Call) -> session_pb2.ToolOutcome:
        """What a stop did to a call, or found."""
        state = session_pb2.ToolOutcome
        told = {
            session_pb2.TOOL_CALL_OUTCOME_COMPLETED: state.STATE_COMPLETED,
            session_pb2.TOOL_CALL_OUTCOME_FAILED: state.STATE_FAILED,
            session_pb2.TOOL_CALL_OUTCOME_TIMED_OUT: state.STATE_TIMED_OUT,
            # By this stop, or by one that its process did not outlive.
            session_pb2.TOOL_CALL_OUTCOME_CANCELLED: state.STATE_CANCEL_SENT,
        }
        if not call.ready:
            shown = state.STATE_NOT_STARTED
        elif call.open:
            shown = state.STATE_STILL_RUNNING
        else:
            shown = told.get(call.outcome, state.STATE_UNKNOWN)
        spec = self.spec(call.name)
        return session_pb2.ToolOutcome(
            call_id=call.call_id,
            name=call.name,
            state=shown,
            side_effect=spec.side_effect if spec else session_pb2.SIDE_EFFECT_NONE,
        )
