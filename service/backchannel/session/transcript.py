"""What an engine is told of a conversation: what was kept, as ordinary messages.

* A cut answer is an ordinary assistant message that ends where the user had stopped reading; no
  marker of ours is ever put into the model's mouth.
* An answer of which nothing was kept is left out; the user's message stays.
* A ready tool call and its one result are facts and stay, whatever was kept; a call that was never
  ready is left out. Every call has exactly one result, and one without an answer says which it was.
* A call that its turn did not wait for has a placeholder in its place, for good; how it ended is
  told at the beginning of a later turn, as the call once more with its result.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Final

from backchannel.errors import BackchannelError, Reason
from backchannel.session.state import SessionState, Settled, exchanges
from backchannel.session.turn import Call, Deferred, Turn
from backchannel.v1 import session_pb2

_SURROGATE = re.compile("[\ud800-\udfff]")
_LOST: Final = session_pb2.TOOL_CALL_OUTCOME_UNKNOWN
_ENDINGS = {
    session_pb2.TOOL_CALL_OUTCOME_TIMED_OUT: "timed out",
    session_pb2.TOOL_CALL_OUTCOME_CANCELLED: "cancelled; it may or may not have run",
    session_pb2.TOOL_CALL_OUTCOME_UNKNOWN: "lost; it may or may not have run",
}


RUNNING: Final = '{"status":"running"}'
"""What stands in place of a result that the model did not wait for."""


def result_text(call: Call) -> str:
    """The result of a call as the model reads it in the call's place: compact JSON."""
    if not call.awaited and (call.open or call.told_later):
        return RUNNING
    if call.open:
        raise ValueError(f"call {call.call_id} has no result yet")
    return ending_text(call.outcome, call.result)


def ending_text(
    outcome: session_pb2.ToolCallOutcome.ValueType, result: session_pb2.ToolResult | None
) -> str:
    """The end of a call as the model reads it: compact JSON."""
    if result is None:
        return compact_json({"error": _ENDINGS.get(outcome, "lost; it may or may not have run")})
    match result.WhichOneof("outcome"):
        case "json":
            return compact_json(logged_json(result.json))
        case "content":
            return compact_json("".join(part.text for part in result.content.parts))
        case _:
            return compact_json({"error": result.error.message or result.error.code})


def logged_json(text: str) -> object:
    """A value that was found to be JSON before it was logged.

    Raises:
        BackchannelError: `LOG_CORRUPT`: it is not any more.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BackchannelError(
            Reason.LOG_CORRUPT, "the log of this session is damaged: a tool's result is not JSON"
        ) from None


def compact_json(value: object) -> str:
    """A JSON value on one line, and always text that can be encoded."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # JSON may name half a surrogate pair, which is no character: the escape stays.
    return text if _SURROGATE.search(text) is None else json.dumps(value, separators=(",", ":"))


def _text(role: session_pb2.Role.ValueType, text: str, call_id: str = "") -> session_pb2.Message:
    return session_pb2.Message(role=role, parts=[session_pb2.Part(text=text)], call_id=call_id)


def _rounds(turn: Turn) -> Iterator[tuple[str, list[Call]]]:
    """Each question's kept text and ready calls."""
    text, kept = turn.text, turn.context_chars
    begin = calls_begin = 0
    ends = [(one.text_end, one.calls_end) for one in turn.rounds]
    for text_end, calls_end in [*ends, (turn.text_chars, len(turn.calls))]:
        piece = text[begin : min(text_end, kept)] if kept > begin else ""
        yield piece, [call for call in turn.calls[calls_begin:calls_end] if call.ready]
        begin, calls_begin = text_end, calls_end


def _told_again(
    told: Sequence[Deferred], calls: Mapping[str, Call], suffix: str
) -> Iterator[session_pb2.Message]:
    """The ends of earlier calls, each as the call once more with its result.

    So every engine takes it, and nobody's mouth says what they did not say.
    """
    if not told:
        return
    asked = session_pb2.Message(role=session_pb2.ROLE_ASSISTANT)
    results = []
    for place, ended in enumerate(told):
        call = calls[ended.call_id]
        call_id = f"{call.call_id}_{suffix}_{place}"
        asked.tool_calls.add(call_id=call_id, name=call.name, arguments_json=call.arguments_json)
        text = ending_text(ended.outcome, ended.result)
        results.append(_text(session_pb2.ROLE_TOOL, text, call_id))
    yield asked
    yield from results


def messages(state: SessionState) -> tuple[session_pb2.Message, ...]:
    """The conversation so far, oldest first, the running turn included.

    Text that the running round has brought already is its last message. What a `ContextTrimmed`
    has dropped is left out. What turns before the last say is made once and kept in the state, so
    the messages are shared by all prompts, and never to be changed.

    Raises:
        ValueError: A call that is waited for has no result yet: the engine must not be asked now.
    """
    settled = state.settled
    if settled is None:
        settled = state.settled = Settled(_history(state))
    for place in range(settled.turns, len(state.turns) - 1):
        if place not in state.dropped:
            settled.messages += turn_messages(state.turns[place], state.calls)
        settled.turns = place + 1
    last = state.last_turn
    return (*settled.messages, *(turn_messages(last, state.calls) if last else ()))


def _history(state: SessionState) -> list[session_pb2.Message]:
    """What is left of the imported history."""
    return list(chain.from_iterable(exchanges(state.config.history)[state.history_dropped :]))


def past(state: SessionState) -> list[session_pb2.Message]:
    """The same as a history for another session, whatever is still under way here.

    What an open call will bring is lost to the other session, and told so.
    """
    told = _history(state)
    for place in range(len(state.turns)):
        if place not in state.dropped:
            told += turn_messages(state.turns[place], state.calls, whole=False)
    told += _told_again(state.deferred, state.calls, f"{state.last_seq}")
    return told


def turn_messages(
    turn: Turn, calls: Mapping[str, Call], *, whole: bool = True
) -> list[session_pb2.Message]:
    """One turn.

    Args:
        turn: Which.
        calls: All calls of the session.
        whole: Every call that is waited for has its result; else open calls are told as lost.

    Raises:
        ValueError: As `messages`.
    """
    told = list(_told_again(turn.told, calls, f"{turn.started_seq}"))
    told += [
        session_pb2.Message(role=session_pb2.ROLE_USER, parts=message.parts)
        for message in turn.inputs
    ]
    for text, made in _rounds(turn):
        if text or made:
            answer = _text(session_pb2.ROLE_ASSISTANT, text)
            answer.tool_calls.extend(
                session_pb2.ToolCall(
                    call_id=call.call_id,
                    turn_id=turn.turn_id,
                    name=call.name,
                    arguments_json=call.arguments_json,
                )
                for call in made
            )
            told.append(answer)
        for call in made:
            lost = call.open and not whole
            text = ending_text(_LOST, None) if lost else result_text(call)
            told.append(_text(session_pb2.ROLE_TOOL, text, call.call_id))
    return told
