"""What engines say, made into events.

What comes after an engine was told to stop is counted as wasted and goes nowhere. What comes under
a run that is of no interest any more is not even counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Final

from backchannel.errors import BackchannelError, Reason
from backchannel.session.calls import Calls
from backchannel.session.context import trim_of
from backchannel.session.draft import Draft
from backchannel.session.owner import Owner, Run
from backchannel.session.state import SessionState, stamp_of
from backchannel.session.steering import TAIL_CHARS
from backchannel.session.turn import TEXT
from backchannel.session.turns import Turns
from backchannel.session.validation import duration_ns
from backchannel.v1 import event_pb2, session_pb2

_REASONS: Final = {
    "stop": session_pb2.FINISH_REASON_STOP,
    "length": session_pb2.FINISH_REASON_LENGTH,
    "content_filter": session_pb2.FINISH_REASON_CONTENT_FILTER,
    # A model that asks for tools without naming any has nothing more to say.
    "tool_calls": session_pb2.FINISH_REASON_STOP,
}
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


class Output:
    """Takes in what the engine of one session says.

    Args:
        draft: Takes the events.
        owner: The soft state.
        turns: Stops, finishes and asks again.
        calls: Ends calls that cannot be run.
        ids: Makes unguessable ids from a prefix.
    """

    def __init__(
        self,
        draft: Draft,
        owner: Owner,
        turns: Turns,
        calls: Calls,
        ids: Callable[[str], str],
    ) -> None:
        self._draft = draft
        self._owner = owner
        self._turns = turns
        self._calls = calls
        self._ids = ids

    @property
    def _state(self) -> SessionState:
        return self._draft.state

    def _run(self, run_id: str) -> Run | None:
        """The run of that id if it is still of interest."""
        run = self._owner.run
        return run if run is not None and run.run_id == run_id else None

    def admitted(self, run_id: str, model: str) -> None:
        """An engine has taken the question up."""
        bill = self._owner.bill
        if self._run(run_id) is not None:
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
        run, turn = self._run(run_id), self._state.last_turn
        if run is None or turn is None:
            return
        if self._owner.stop is not None:
            run.wasted += token_count
            return
        if not text and not token_count:
            return
        owner = self._owner
        steer = owner.steer
        if steer is not None and steer.perhaps and text[:1].isspace() and not turn.round_calls:
            run.wasted += token_count
            self._turns.steer_now()
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
            self._turns.steer_now()
        elif self._state.credit_window:
            self._turns.credit()

    def tool_started(self, run_id: str, index: int, name: str) -> None:
        """The model begins to write a tool call."""
        run = self._run(run_id)
        if run is None or self._owner.stop is not None:
            return
        if run.round >= self._state.config.limits.max_tool_rounds:
            self._turns.stop(session_pb2.FINISH_REASON_TOOL_CALLS, "TOOL_CALLS")
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
        run = self._run(run_id)
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
        run = self._run(run_id)
        if run is None or self._owner.stop is not None:
            return
        state, draft = self._state, self._draft
        call = state.calls[run.calls[index]]
        run.ready_calls += 1
        arguments = call.arguments_json.strip() or "{}"
        spec = self._calls.spec(call.name)
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
            self._calls.end(
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
        run = self._run(run_id)
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
            self._turns.finish(owner.stop.reason, owner.stop.error)
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
            self._turns.stop(session_pb2.FINISH_REASON_ERROR, "ERROR", gone.to_status())
        elif run.ready_calls:
            self._turns.calls_answered()
        else:
            self._turns.finish(_REASONS.get(cause, session_pb2.FINISH_REASON_STOP))

    def failed(self, run_id: str, error: BackchannelError) -> None:
        """The engine failed, or could not be asked."""
        run = self._run(run_id)
        if run is None:
            return
        owner = self._owner
        owner.run = None
        if owner.stop is None and not run.delivered and self._make_room(error):
            self._turns.ask(self._state.turns[-1], run.round, continued=run.continued)
            return
        owner.bill.wasted += run.wasted
        if run.delivered or run.wasted or error.reason not in _NOTHING_COMPUTED:
            owner.bill.estimated = True
        if owner.stop is not None:
            self._turns.finish(owner.stop.reason, owner.stop.error)
        else:
            self._turns.stop(session_pb2.FINISH_REASON_ERROR, "ERROR", error.to_status())

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


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0


def _not_an_object(arguments: str) -> str:
    try:
        if isinstance(json.loads(arguments), dict):
            return ""
    except (ValueError, RecursionError):
        pass
    return "the arguments are not one JSON object"
