"""How turns run: started, asked of an engine, stopped, finished.

* A turn is asked of an engine once, and again after each round of tool calls.
* What an engine yields after it was told to stop is counted as wasted and goes nowhere.
* A turn ends when its engine has confirmed the stop, or `STOP_CONFIRMATION_S` after it was told.
* Whatever happens, there is exactly one `TurnFinished`; it is emitted in one place, `finish`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from typing import Final

from google.rpc.status_pb2 import Status

from backchannel.errors import Reason
from backchannel.session.account import timing_of, usage_of
from backchannel.session.calls import Calls
from backchannel.session.configuration import (
    MAX_STEER_DELAY_S,
    MAX_STEER_TOKENS,
    SECOND_NS,
    grace_ns,
    merged_sampling,
)
from backchannel.session.decision import HoldEngine, StartEngine, StopEngine
from backchannel.session.draft import Draft
from backchannel.session.owner import Bill, Owner, Run, Stop
from backchannel.session.state import SessionState
from backchannel.session.steering import TAIL_CHARS, Boundary, Steer, boundary
from backchannel.session.table import Phase
from backchannel.session.transcript import messages
from backchannel.session.turn import Turn
from backchannel.session.validation import duration_ns
from backchannel.v1 import event_pb2, session_pb2

STOP_CONFIRMATION_S: Final = 2
# Endings that leave open calls alone: one has closed those that are to be, the other goes on.
_CALLS_STAY: Final = (session_pb2.FINISH_REASON_INTERRUPTED, session_pb2.FINISH_REASON_STEERED)
# A turn that takes its process down with it must not do so for ever.
MAX_RECOVERIES: Final = 2

_ACTION = session_pb2.DisconnectPolicy


class Turns:
    """Runs the turns of one session.

    Args:
        draft: Takes the events.
        owner: The soft state.
        calls: Ends tool calls.
        ids: Makes unguessable ids from a prefix.
    """

    def __init__(self, draft: Draft, owner: Owner, calls: Calls, ids: Callable[[str], str]) -> None:
        self._draft = draft
        self._owner = owner
        self._calls = calls
        self._ids = ids

    @property
    def _state(self) -> SessionState:
        return self._draft.state

    # --- start -------------------------------------------------------------------------------

    def _may_start(self) -> bool:
        policy, owner = self._state.config.on_disconnect, self._owner
        if owner.draining:
            return False
        if owner.readers or policy.action == _ACTION.ACTION_CONTINUE:
            return True
        if policy.action == _ACTION.ACTION_CANCEL_NOW:
            return False
        return self._draft.now_ns < owner.absent_since_ns + grace_ns(self._state.config)

    def start_next(self) -> None:
        """Start the next turn, if none runs, something waits for one and somebody may read it.

        It takes the first waiting message, or all the steering ones at the head of the queue
        together, and all ends of calls that the model is yet to be told.
        """
        state, draft = self._state, self._draft
        if state.phase is not Phase.IDLE or not self._may_start():
            return
        if not state.queue and not any(ended.by_itself for ended in state.deferred):
            return
        taken = list(takewhile(lambda queued: queued.steers, state.queue)) or state.queue[:1]
        frame_ids = [queued.frame_id for queued in taken]
        draft.emit(
            "turn_started",
            event_pb2.TurnStarted(
                turn_id=self._ids("turn"),
                frame_id=frame_ids[0] if frame_ids else "",
                frame_ids=frame_ids,
                model=state.config.model,
                call_ids=[ended.call_id for ended in state.deferred],
            ),
            # A turn that starts with its message's own append belongs to that frame's receipt.
            caused=bool(draft.frame_id) and draft.frame_id in frame_ids,
        )
        self._owner.bill = Bill()
        turn = state.turns[-1]
        self._owner.displayed.forget_before(turn)
        self.ask(turn, 0)

    def ask(self, turn: Turn, round_: int, *, continued: bool = False) -> None:
        """Ask the engine: for the first time, with the results of a round, or to go on."""
        state, owner = self._state, self._owner
        sampling = state.config.sampling
        for message in turn.inputs[-1:]:
            sampling = merged_sampling(sampling, message.sampling)
        if sampling.HasField("max_tokens"):
            left = sampling.max_tokens - turn.delivered_tokens - owner.bill.wasted
            if left <= 0:
                self.finish(session_pb2.FINISH_REASON_LENGTH)
                return
            sampling = merged_sampling(sampling, session_pb2.Sampling(max_tokens=left))
        told = messages(state)
        begun = turn.round_text if continued else ""
        if begun:
            told = told[:-1]  # It is the answer's beginning, not a message of the past.
        owner.run = Run(self._ids("run"), turn.turn_id, round_, continued=continued)
        self._draft.effect(
            StartEngine(
                run_id=owner.run.run_id,
                turn_id=turn.turn_id,
                model=turn.model,
                system=state.config.system,
                messages=told,
                tools=tuple(state.config.tools),
                sampling=sampling,
                options=dict(state.config.engine_options),
                response_format=self._response_format(turn),
                continue_text=begun,
            )
        )
        if owner.paused_since_ns:
            self._draft.effect(HoldEngine(owner.run.run_id, hold=True))

    def _response_format(self, turn: Turn) -> session_pb2.ResponseFormat | None:
        """The shape this turn's answer must have, if any: the message's own goes first."""
        if turn.inputs and turn.inputs[-1].HasField("response_format"):
            return turn.inputs[-1].response_format
        config = self._state.config
        return config.response_format if config.HasField("response_format") else None

    def resume(self, *, engine_continues: bool) -> bool:
        """Go on with a turn whose process was lost while it generated; False if that cannot be.

        What is in the log stays. So a round of which something is there takes an engine that goes
        on from text; one that thinks has nothing to go on from, and under a schema or grammar the
        place in it is lost.

        Args:
            engine_continues: The model can go on from a partial answer.
        """
        state, turn = self._state, self._state.turns[-1]
        cancel_now = state.config.on_disconnect.action == _ACTION.ACTION_CANCEL_NOW
        deadline_ns = turn.started_ns + duration_ns(state.config.limits.max_turn_duration)
        if (
            cancel_now
            or self._owner.steer is not None
            or deadline_ns <= self._draft.now_ns
            or turn.recoveries >= MAX_RECOVERIES
            or self._response_format(turn) is not None
        ):
            return False
        # Its calls have all been answered: what comes next is another round.
        answered = any(call.ready for call in turn.round_calls)
        if turn.round_begun and not answered:
            only_thought = not turn.round_text and not turn.round_calls
            if only_thought or not engine_continues:
                return False
        self._draft.emit(
            "turn_recovered",
            event_pb2.TurnRecovered(
                turn_id=turn.turn_id,
                reason=Reason.OWNER_LOST.value,
                from_seq=state.last_seq + 1,
            ),
        )
        if answered:
            self.calls_answered()
        else:
            self.ask(turn, len(turn.rounds), continued=True)
        return True

    def calls_answered(self) -> None:
        """After a tool result: ask the engine again if it waits for nothing else."""
        turn = self._state.running
        if turn is None or self._owner.run is not None or self._owner.stop is not None:
            return
        if self._state.phase is not Phase.GENERATING:
            return
        if self._owner.steer is not None:
            self.finish(session_pb2.FINISH_REASON_STEERED)
        else:
            self.ask(turn, len(turn.rounds) + 1)

    # --- steering and credit -----------------------------------------------------------------

    def steer(self) -> None:
        """A message came that is to redirect the running turn at the next boundary."""
        state, owner, turn = self._state, self._owner, self._state.turns[-1]
        if owner.steer is not None or owner.stop is not None or state.phase is Phase.STOPPING:
            return
        limits = state.config.limits
        # A session of an older version has neither in its configuration.
        delay_ns = duration_ns(limits.max_steer_delay) or MAX_STEER_DELAY_S * SECOND_NS
        tokens = limits.max_steer_tokens or MAX_STEER_TOKENS
        owner.steer = Steer(self._draft.now_ns + delay_ns, tokens)
        if owner.run is None:
            return  # It waits for tools.
        if owner.run.round > len(turn.rounds) or not turn.round_begun:
            self.steer_now()
        elif not turn.round_calls:
            tail = turn.tail(turn.marks[-1].channel, TAIL_CHARS)
            owner.steer.perhaps = boundary(tail) is Boundary.PERHAPS
            if boundary(tail) is Boundary.CERTAIN:
                self.steer_now()

    def steer_now(self) -> None:
        """The running turn ends here, for what is to be answered next."""
        self.stop(session_pb2.FINISH_REASON_STEERED, "STEERED")

    def withdrawn(self) -> None:
        """A message was taken back: perhaps it was the last that wanted to steer."""
        owner = self._owner
        if owner.steer is not None and not any(queued.steers for queued in self._state.queue):
            owner.steer = None

    @property
    def steer_deadline_ns(self) -> int | None:
        """When the running turn ends for a steer without a boundary; None if it need not."""
        owner, state = self._owner, self._state
        if owner.steer is None or owner.run is None or owner.stop is not None:
            return None
        turn = state.turns[-1]
        if owner.run.round == len(turn.rounds) and turn.round_calls:
            return None  # The round's end is the boundary.
        return owner.steer.deadline_ns

    def credit(self) -> None:
        """Hold the engine, or let it go on, as the unread text of the running turn demands."""
        state, owner = self._state, self._owner
        turn, window = state.running, state.credit_window
        if turn is None or not window:
            return
        short = turn.text_chars - owner.displayed.chars(turn) > window
        if short == bool(owner.paused_since_ns):
            return
        if short:
            owner.paused_since_ns = self._draft.now_ns
        else:
            self._end_pause(turn)
        if owner.run is not None:
            self._draft.effect(HoldEngine(owner.run.run_id, hold=short))

    def _end_pause(self, turn: Turn) -> None:
        owner = self._owner
        if owner.paused_since_ns:
            owner.bill.paused_ns += self._draft.now_ns - owner.paused_since_ns
            owner.paused_since_ns = 0
            turn.pace.pause()

    # --- ends --------------------------------------------------------------------------------

    def interrupt(
        self,
        keep: event_pb2.Keep.ValueType,
        displayed_chars: int,
        tools: session_pb2.ToolDisposition.ValueType = session_pb2.TOOL_DISPOSITION_UNSPECIFIED,
    ) -> int:
        """Stop the running turn because a frame says so; returns the seq of `TurnInterrupted`.

        Args:
            keep: What stays of its text.
            displayed_chars: What the user had seen.
            tools: What becomes of its open calls; unspecified: as each tool declares.
        """
        turn, draft = self._state.turns[-1], self._draft
        closing = [call for call in turn.open_calls if not self._calls.is_let_finish(call, tools)]
        self._calls.close(closing, "INTERRUPTED", caused=True)
        if keep == event_pb2.KEEP_GENERATED:
            kept = turn.text_chars
        elif keep == event_pb2.KEEP_NOTHING:
            kept = 0
        else:
            kept = min(displayed_chars, turn.text_chars)
        seq = draft.emit(
            "turn_interrupted",
            event_pb2.TurnInterrupted(
                turn_id=turn.turn_id,
                frame_id=draft.frame_id,
                kept_chars=kept,
                dropped_chars=turn.text_chars - kept,
                tools=[self._calls.outcome(call) for call in turn.calls],
                keep=keep or event_pb2.KEEP_DISPLAYED,
            ),
            caused=True,
        )
        self.stop(session_pb2.FINISH_REASON_INTERRUPTED, "INTERRUPTED")
        return seq

    def make_way(self) -> None:
        """A result is to be told at once: stop the running turn, and forget nothing it said."""
        state = self._state
        if state.running is None or self._owner.stop or state.phase is Phase.STOPPING:
            return
        self.interrupt(event_pb2.KEEP_GENERATED, 0)

    def stop(
        self,
        reason: session_pb2.FinishReason.ValueType,
        label: str,
        error: Status | None = None,
    ) -> None:
        """End the running turn: at once, or as soon as its engine has confirmed."""
        owner, draft = self._owner, self._draft
        owner.steer = None
        if reason not in _CALLS_STAY:
            self._calls.close(self._state.turns[-1].open_calls, label)
        if owner.run is None:
            self.finish(reason, error)
            return
        owner.stop = Stop(reason, draft.now_ns + STOP_CONFIRMATION_S * SECOND_NS, error)
        draft.effect(StopEngine(owner.run.run_id))

    def abandon(self) -> None:
        """The engine did not confirm in time, or nobody waits for it: end without its count."""
        owner = self._owner
        if owner.run is not None:
            owner.bill.wasted += owner.run.wasted
            owner.bill.estimated = True
            owner.run = None
        if owner.stop is not None:
            self.finish(owner.stop.reason, owner.stop.error)

    def finish(
        self, reason: session_pb2.FinishReason.ValueType, error: Status | None = None
    ) -> None:
        """Write the one ending of the running turn, and start the next."""
        owner, turn = self._owner, self._state.turns[-1]
        self._end_pause(turn)
        self._draft.emit(
            "turn_finished",
            event_pb2.TurnFinished(
                turn_id=turn.turn_id,
                finish_reason=reason,
                usage=usage_of(turn, owner),
                timing=timing_of(turn, owner, self._draft.now_ns),
                error=error,
                model=owner.bill.model,
            ),
        )
        owner.stop = None
        owner.steer = None
        owner.run = None
        owner.bill = Bill()
        self.start_next()
