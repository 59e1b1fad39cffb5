"""How turns run: started, asked of an engine, stopped, finished.

* A turn is asked of an engine once, and again after each round of tool calls.
* What an engine yields after it was told to stop is counted as wasted and goes nowhere.
* A turn ends when its engine has confirmed the stop, or `STOP_CONFIRMATION_S` after it was told.
* Whatever happens, there is exactly one `TurnFinished`; it is emitted in one place, `finish`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.rpc.status_pb2 import Status

from backchannel.errors import BackchannelError, Reason
from backchannel.session.configuration import (
    MAX_STEER_DELAY_S,
    MAX_STEER_TOKENS,
    SECOND_NS,
    grace_ns,
    merged_sampling,
)
from backchannel.session.context import trim_of
from backchannel.session.decision import HoldEngine, StartEngine, StopEngine
from backchannel.session.draft import Draft
from backchannel.session.owner import Bill, Owner, Run, Stop
from backchannel.session.state import SessionState, stamp_of
from backchannel.session.steering import TAIL_CHARS, Boundary, Steer, boundary
from backchannel.session.table import Phase
from backchannel.session.transcript import messages
from backchannel.session.turn import TEXT, Call, Turn
from backchannel.session.validation import duration_ns
from backchannel.v1 import event_pb2, session_pb2

STOP_CONFIRMATION_S: Final = 2
_IN_PLACE: Final = session_pb2.SCHEDULING_UNSPECIFIED
# Ends of calls of which a result may still come that the model does not know.
_WITHOUT_RESULT: Final = (
    session_pb2.TOOL_CALL_OUTCOME_CANCELLED,
    session_pb2.TOOL_CALL_OUTCOME_TIMED_OUT,
    session_pb2.TOOL_CALL_OUTCOME_UNKNOWN,
)
# Failures before anything was computed, so that nothing about the bill is uncertain.
_NOTHING_COMPUTED: Final = (
    Reason.PROMPT_TOO_LONG,
    Reason.ENGINE_BUSY,
    Reason.MODEL_NOT_FOUND,
    Reason.CAPABILITY_MISSING,
    Reason.FIELD_INVALID,
    Reason.UPSTREAM_UNREACHABLE,
    Reason.UPSTREAM_UNAUTHORIZED,
    Reason.UPSTREAM_RATE_LIMITED,
    Reason.UPSTREAM_REFUSED,
)
# Endings that leave open calls alone: one has closed those that are to be, the other goes on.
_CALLS_STAY: Final = (session_pb2.FINISH_REASON_INTERRUPTED, session_pb2.FINISH_REASON_STEERED)
# A turn that takes its process down with it must not do so for ever.
MAX_RECOVERIES: Final = 2

_ACTION = session_pb2.DisconnectPolicy
_REASONS: Final = {
    "stop": session_pb2.FINISH_REASON_STOP,
    "length": session_pb2.FINISH_REASON_LENGTH,
    "content_filter": session_pb2.FINISH_REASON_CONTENT_FILTER,
    # A model that asks for tools without naming any has nothing more to say.
    "tool_calls": session_pb2.FINISH_REASON_STOP,
}


class Turns:
    """Runs the turns of one session.

    Args:
        draft: Takes the events.
        owner: The soft state.
        ids: Makes unguessable ids from a prefix.
    """

    def __init__(self, draft: Draft, owner: Owner, ids: Callable[[str], str]) -> None:
        self._draft = draft
        self._owner = owner
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
        self._ask(turn, 0)

    def _ask(self, turn: Turn, round_: int, *, continued: bool = False) -> None:
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
            self._ask(turn, len(turn.rounds), continued=True)
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
            self._ask(turn, len(turn.rounds) + 1)

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

    # --- what the engine says ----------------------------------------------------------------

    def run(self, run_id: str) -> Run | None:
        """The run of that id if it is still of interest."""
        run = self._owner.run
        return run if run is not None and run.run_id == run_id else None

    def admitted(self, run_id: str, model: str) -> None:
        """An engine has taken the question up."""
        bill = self._owner.bill
        if self.run(run_id) is not None:
            bill.model = model
            bill.admitted_ns = bill.admitted_ns or self._draft.now_ns

    def text(
        self,
        run_id: str,
        channel: event_pb2.Channel.ValueType,
        text: str,
        token_count: int,
        logprobs: Sequence[event_pb2.TokenLogprob],
    ) -> None:
        """One or more tokens of text or reasoning."""
        run = self.run(run_id)
        if run is None:
            return
        if self._owner.stop is not None:
            run.wasted += token_count
            return
        if not text and not token_count:
            return
        owner, turn = self._owner, self._state.turns[-1]
        steer = owner.steer
        if steer is not None and steer.perhaps and text[:1].isspace() and not turn.round_calls:
            run.wasted += token_count
            self.steer_now()
            return
        run.delivered += token_count
        # Written out rather than through `emit`: this is every token's way.
        event = self._draft.event()
        delta = event.output_delta
        delta.turn_id = turn.turn_id
        delta.channel = channel
        delta.text = text
        delta.offset = turn.text_chars if channel == TEXT else turn.reasoning_chars
        delta.token_count = token_count
        delta.round = run.round
        if logprobs:
            delta.logprobs.extend(logprobs)
        self._draft.put(event)
        if (
            steer is not None
            and not turn.round_calls
            and steer.spoke(turn.tail(channel, TAIL_CHARS), token_count)
        ):
            self.steer_now()
        elif self._state.credit_window:
            self.credit()

    def tool_started(self, run_id: str, index: int, name: str) -> None:
        """The model begins to write a tool call."""
        run = self.run(run_id)
        if run is None or self._owner.stop is not None:
            return
        if run.round >= self._state.config.limits.max_tool_rounds:
            self.stop(session_pb2.FINISH_REASON_TOOL_CALLS, "TOOL_CALLS")
            return
        call_id = self._ids("call")
        run.calls[index] = call_id
        self._draft.emit(
            "tool_call_started",
            event_pb2.ToolCallStarted(
                turn_id=run.turn_id, call_id=call_id, name=name, round=run.round
            ),
        )

    def tool_fragment(self, run_id: str, index: int, text: str, token_count: int) -> None:
        """The next piece of a call's arguments."""
        run = self.run(run_id)
        if run is None:
            return
        if self._owner.stop is not None:
            run.wasted += token_count
            return
        run.delivered += token_count
        self._draft.emit(
            "tool_call_delta",
            event_pb2.ToolCallDelta(
                call_id=run.calls[index], arguments_fragment=text, token_count=token_count
            ),
        )

    def tool_ready(self, run_id: str, index: int) -> None:
        """The call's arguments are complete: announce it, or refuse it in the model's face."""
        run = self.run(run_id)
        if run is None or self._owner.stop is not None:
            return
        state, draft = self._state, self._draft
        call = state.calls[run.calls[index]]
        run.ready_calls += 1
        arguments = call.arguments_json.strip() or "{}"
        spec = self.spec(call.name)
        timeout_ns = duration_ns(spec.timeout) if spec else 0
        idle_ns = min(duration_ns(spec.idle_timeout), timeout_ns) if spec else 0
        draft.emit(
            "tool_call_ready",
            event_pb2.ToolCallReady(
                call_id=call.call_id,
                name=call.name,
                arguments_json=arguments,
                idle_deadline=stamp_of(draft.now_ns + idle_ns),
                deadline=stamp_of(draft.now_ns + timeout_ns),
            ),
        )
        wrong = "" if spec else f"there is no tool named {call.name!r}"
        wrong = wrong or _not_an_object(arguments)
        if wrong:
            self.end_call(
                call,
                session_pb2.TOOL_CALL_OUTCOME_FAILED,
                session_pb2.ToolResult(
                    call_id=call.call_id,
                    error=session_pb2.ToolError(message=wrong, code="INVALID_CALL"),
                ),
            )

    def finished(
        self,
        run_id: str,
        cause: str,
        prompt_tokens: int,
        cached_prompt_tokens: int,
        output_tokens: int | None,
        exact: bool,
    ) -> None:
        """The engine has said all, or confirms a stop; `output_tokens` is its own total."""
        run = self.run(run_id)
        if run is None:
            return
        owner, turn = self._owner, self._state.turns[-1]
        bill = owner.bill
        bill.prompt_tokens += prompt_tokens
        bill.cached_prompt_tokens += cached_prompt_tokens
        seen = run.delivered + run.wasted
        silent = max((output_tokens or 0) - seen, 0)
        if not exact or output_tokens is None or output_tokens < seen:
            bill.estimated = True
        owner.run = None
        if owner.stop is not None:
            bill.wasted += run.wasted + silent
            self.finish(owner.stop.reason, owner.stop.error)
            return
        if silent:
            # Tokens without text, e.g. the one that says "done": counted, to the token.
            event = self._draft.event()
            delta = event.output_delta
            delta.turn_id, delta.channel, delta.token_count = turn.turn_id, TEXT, silent
            delta.offset = turn.text_chars
            delta.round = run.round
            self._draft.put(event)
        if cause == "stopped":
            gone = BackchannelError(
                Reason.ENGINE_UNAVAILABLE, "the engine stopped by itself; send the message again"
            )
            self.stop(session_pb2.FINISH_REASON_ERROR, "ERROR", gone.to_status())
        elif run.ready_calls:
            self.calls_answered()
        else:
            self.finish(_REASONS.get(cause, session_pb2.FINISH_REASON_STOP))

    def failed(self, run_id: str, error: BackchannelError) -> None:
        """The engine failed, or could not be asked."""
        run = self.run(run_id)
        if run is None:
            return
        owner = self._owner
        owner.run = None
        if owner.stop is None and not run.delivered and self._make_room(error):
            self._ask(self._state.turns[-1], run.round, continued=run.continued)
            return
        owner.bill.wasted += run.wasted
        if run.delivered or run.wasted or error.reason not in _NOTHING_COMPUTED:
            owner.bill.estimated = True
        if owner.stop is not None:
            self.finish(owner.stop.reason, owner.stop.error)
        else:
            self.stop(session_pb2.FINISH_REASON_ERROR, "ERROR", error.to_status())

    def _make_room(self, error: BackchannelError) -> bool:
        """After a refusal for the prompt's length: leave out old turns, if the session wants that.

        Which of them is an estimate, by the share that their text has of all text; if it was too
        few, the engine refuses again.
        """
        state = self._state
        if (
            error.reason is not Reason.PROMPT_TOO_LONG
            or state.config.context_policy != session_pb2.CONTEXT_POLICY_DROP_OLDEST
        ):
            return False
        trim = trim_of(
            state,
            prompt_tokens=_number(error.metadata.get("prompt_tokens")),
            max_context_tokens=_number(error.metadata.get("max_context_tokens")),
        )
        if trim is None:
            return False
        self._draft.emit("context_trimmed", trim)
        return True

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
        closing = [call for call in turn.open_calls if not self._is_let_finish(call, tools)]
        self._close_calls(closing, "INTERRUPTED", caused=True)
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
                tools=[self._outcome(call) for call in turn.calls],
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
            self._close_calls(self._state.turns[-1].open_calls, label)
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

    def _is_let_finish(self, call: Call, tools: session_pb2.ToolDisposition.ValueType) -> bool:
        spec = self.spec(call.name)
        wanted = tools or (spec.on_interrupt if spec else tools)
        return wanted == session_pb2.TOOL_DISPOSITION_LET_FINISH

    def close_all_calls(self, label: str) -> None:
        """End every open call of the session, of whatever turn."""
        self._close_calls(list(self._state.open.values()), label)

    def _close_calls(self, calls: Iterable[Call], label: str, *, caused: bool = False) -> None:
        for call in calls:
            self._draft.emit(
                "tool_call_cancelled",
                event_pb2.ToolCallCancelled(call_id=call.call_id, reason=label),
                caused=caused,
            )
            self.end_call(call, session_pb2.TOOL_CALL_OUTCOME_CANCELLED, caused=caused)

    def end_call(
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
                usage=self._usage(turn),
                timing=self._timing(turn),
                error=error,
                model=owner.bill.model,
            ),
        )
        owner.stop = None
        owner.steer = None
        owner.run = None
        owner.bill = Bill()
        self.start_next()

    def _usage(self, turn: Turn) -> session_pb2.Usage:
        bill = self._owner.bill
        return session_pb2.Usage(
            prompt_tokens=bill.prompt_tokens,
            cached_prompt_tokens=bill.cached_prompt_tokens,
            generated_tokens=turn.delivered_tokens + bill.wasted,
            delivered_tokens=turn.delivered_tokens,
            displayed_tokens=self._owner.displayed.tokens(turn),
            kept_tokens=turn.kept_tokens(),
            wasted_tokens=bill.wasted,
            estimated=bill.estimated,
        )

    def _timing(self, turn: Turn) -> session_pb2.Timing:
        pace, bill = turn.pace, self._owner.bill
        timing = session_pb2.Timing(total=_span(self._draft.now_ns - turn.started_ns))
        if bill.admitted_ns > 0:
            timing.queued.CopyFrom(_span(bill.admitted_ns - turn.accepted_ns))
        if pace.first_ns:
            timing.time_to_first_token.CopyFrom(_span(pace.first_ns - turn.accepted_ns))
            timing.max_gap.CopyFrom(_span(pace.max_gap_ns))
        if pace.tokens_after_first:
            timing.time_per_output_token.CopyFrom(_span(pace.spent_ns // pace.tokens_after_first))
        if bill.paused_ns:
            timing.paused.CopyFrom(_span(bill.paused_ns))
        return timing

    # --- tools -------------------------------------------------------------------------------

    def spec(self, name: str) -> session_pb2.ToolSpec | None:
        """The declared tool of that name."""
        return next((tool for tool in self._state.config.tools if tool.name == name), None)

    def _outcome(self, call: Call) -> session_pb2.ToolOutcome:
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


def _span(ns: int) -> Duration:
    span = Duration()
    span.FromNanoseconds(max(ns, 0))
    return span


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0


def _not_an_object(arguments: str) -> str:
    try:
        if isinstance(json.loads(arguments), dict):
            return ""
    except (ValueError, RecursionError):
        pass
    return "the arguments are not one JSON object"
