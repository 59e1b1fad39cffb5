"""What people, models and tools say, in the form that the conventions have for spans.

Only for those who ask for it. Each text is an attribute of a span, and bounded: a message that is
too long is cut, and older ones are left out before newer ones. What is JSON remains JSON.

The form: https://github.com/open-telemetry/semantic-conventions-genai (gen-ai-input-messages.json,
gen-ai-output-messages.json).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

from backchannel.engines.protocol import (
    Chunk,
    StopCause,
    TextChunk,
    ToolCallFragment,
    ToolCallStart,
)
from backchannel.v1 import event_pb2, session_pb2

MAX_BYTES: Final = 64 * 1024
"""Of one attribute, in UTF-8."""
CUT: Final = "…"
"""What a text ends with that was longer."""

_MAX_CALLS: Final = 64
_ROLES: Final = {
    session_pb2.ROLE_USER: "user",
    session_pb2.ROLE_ASSISTANT: "assistant",
    session_pb2.ROLE_TOOL: "tool",
}
_LONG: Final = frozenset({"content", "response", "arguments"})
_FINISH: Final = {StopCause.TOOL_CALLS: "tool_call"}


def cut(text: str, max_bytes: int = MAX_BYTES) -> str:
    """The beginning of a text."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= max_bytes:
        return text
    return encoded[: max(0, max_bytes - len(CUT.encode()))].decode(errors="ignore") + CUT


def instructions(system: str) -> str:
    """A system prompt."""
    return _fitting([_text(system)], MAX_BYTES) or "[]"


def prompt(messages: Sequence[session_pb2.Message]) -> str:
    """A conversation, or its newest part."""
    left = MAX_BYTES - len("[]")
    kept: list[str] = []
    for message in reversed(messages):
        told = {
            "role": _ROLES.get(message.role, "user"),
            "parts": [*_spoken(message), *_called(message)],
        }
        fitting = _fitting(told, left - len(","))
        if fitting is None:
            break
        kept.append(fitting)
        if fitting != _json(told):
            break  # For what is older there is no room.
        left -= len(fitting.encode()) + len(",")
    return f"[{','.join(reversed(kept))}]"


def result(result: session_pb2.ToolResult) -> str:
    """What a tool gave: its JSON, or its text."""
    match result.WhichOneof("outcome"):
        case "json":
            return cut(result.json)
        case "content":
            return cut("".join(part.text for part in result.content.parts))
        case _:
            return cut(_json({"error": result.error.message or result.error.code}))


class Answer:
    """An answer as it comes; no more of it is kept than is told."""

    def __init__(self) -> None:
        self._said: dict[str, list[str]] = {"reasoning": [], "text": []}
        self._room = dict.fromkeys(self._said, MAX_BYTES)
        self._calls: dict[int, tuple[str, list[str]]] = {}
        self._call_room = MAX_BYTES

    def add(self, chunk: Chunk) -> None:
        """A chunk came."""
        if type(chunk) is TextChunk:
            kind = "reasoning" if chunk.channel == event_pb2.CHANNEL_REASONING else "text"
            # Beyond the bound by a chunk at most: so that it shows that there was more.
            if self._room[kind] >= 0:
                self._said[kind].append(chunk.text)
                self._room[kind] -= len(chunk.text)
        elif type(chunk) is ToolCallStart:
            if len(self._calls) < _MAX_CALLS:
                self._calls[chunk.index] = chunk.name, []
        elif type(chunk) is ToolCallFragment and self._call_room >= 0:
            _, pieces = self._calls.get(chunk.index, ("", []))
            pieces.append(chunk.text)
            self._call_room -= len(chunk.text)

    def told(self, finish: StopCause | None) -> str | None:
        """All of it; None if there is nothing.

        Args:
            finish: Why it is over; None if it failed.
        """
        parts: list[dict[str, Any]] = [
            {"type": kind, "content": "".join(pieces)}
            for kind, pieces in self._said.items()
            if any(pieces)
        ]
        parts += [
            {"type": "tool_call", "name": name, "arguments": _value("".join(pieces))}
            for name, pieces in self._calls.values()
        ]
        if not parts:
            return None
        reason = "error" if finish is None else _FINISH.get(finish, finish.value)
        message = {"role": "assistant", "parts": parts, "finish_reason": reason}
        return _fitting([message], MAX_BYTES)


def _spoken(message: session_pb2.Message) -> Iterable[dict[str, Any]]:
    if message.role == session_pb2.ROLE_TOOL:
        said = "".join(part.text for part in message.parts)
        yield {"type": "tool_call_response", "id": message.call_id, "response": _value(said)}
        return
    for part in message.parts:
        kind = part.WhichOneof("content")
        if part.text:
            yield _text(part.text)
        elif kind not in ("text", None):
            yield {"type": str(kind)}  # Of what is not text, only that it was there.


def _called(message: session_pb2.Message) -> Iterable[dict[str, Any]]:
    for call in message.tool_calls:
        arguments = _value(call.arguments_json)
        yield {"type": "tool_call", "id": call.call_id, "name": call.name, "arguments": arguments}


def _text(said: str) -> dict[str, Any]:
    return {"type": "text", "content": said}


def _value(text: str) -> object:
    """What a JSON text says; the text itself where it is none, or very long."""
    if len(text) > MAX_BYTES:
        return text
    try:
        return json.loads(text, parse_constant=str)
    except (ValueError, RecursionError):
        return text


def _fitting(value: object, max_bytes: int) -> str | None:
    """JSON of a value, its texts cut until it fits; None where that is not enough."""
    told = _json(value)
    limit = max_bytes
    while len(told.encode()) > max_bytes:
        limit = limit * 3 // 4
        if limit < len(CUT.encode()):
            return None
        told = _json(_shorter(value, limit))
    return told


def _shorter(value: Any, max_bytes: int) -> Any:
    """A message, or its parts, with each text cut; what is no text is made one before that."""
    if isinstance(value, list):
        return [_shorter(one, max_bytes) for one in value]
    shorter = dict(value)
    for key in _LONG & shorter.keys():
        said = value[key] if isinstance(value[key], str) else _json(value[key])
        if len(said.encode()) > max_bytes:
            shorter[key] = cut(said, max_bytes)
    if "parts" in shorter:
        shorter["parts"] = _shorter(shorter["parts"], max_bytes)
    return shorter


def _json(value: object) -> str:
    told = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # Half a surrogate pair, which JSON may have as an escape, cannot be sent.
    return told.encode(errors="replace").decode()
