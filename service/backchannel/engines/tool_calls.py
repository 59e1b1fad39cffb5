"""Finds tool calls in what a model writes, while it writes it.

Two forms are known, both framed by `<tool_call>` and `</tool_call>`, several in one answer, with
text around them:

* Hermes, also Qwen 2.5 and Qwen 3: `{"name": "clock", "arguments": {"zone": "UTC"}}`;
* Qwen3-Coder: `<function=clock><parameter=zone>UTC</parameter></function>`.

What comes out does not depend on how the text is cut into pieces:

* Arguments are passed on as they are written, character by character the same (Qwen3-Coder's are
  made into JSON). A call is over when its arguments are, whatever its frame does after that.
* What is not a call after all (no object, no name, broken before its arguments begin) is text, the
  tag included. Nothing that a model wrote gets lost but frames and the white space around calls.
* Arguments that break later are passed on up to `</tool_call>`, and the call is ended: whoever
  takes it sees that they are no JSON, and can tell the model.
* A call that the answer's end cuts off in its arguments has no end.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from backchannel.engines.protocol import (
    Chunk,
    TextChunk,
    ToolCallEnd,
    ToolCallFragment,
    ToolCallStart,
)
from backchannel.engines.tool_call_grammars import Grammar, NotACallError, argument_types, call
from backchannel.v1 import session_pb2

OPEN: Final = "<tool_call>"

MOST_HELD_CHARS: Final = 2**18
"""How much of what may be a call is held back until it is certain that it is one."""

_MOST_BLANK_CHARS: Final = 1024
"""How much white space is held back, which is dropped if a call follows."""

_SPACE: Final = " \t\r\n"


class ToolCallParser:
    """Reads one answer.

    Args:
        tools: What the model may call; their schemas tell the types of Qwen3-Coder's arguments.
        most_held_chars: What may be a call and is longer, without a sign of arguments, is text.
    """

    def __init__(
        self,
        tools: Iterable[session_pb2.ToolSpec] = (),
        *,
        most_held_chars: int = MOST_HELD_CHARS,
    ) -> None:
        self._types = {tool.name: argument_types(tool.parameters_json_schema) for tool in tools}
        self._most_held_chars = most_held_chars
        self._tokens = 0  # Not counted by any chunk yet.
        self._out: list[Chunk] = []
        self._held = ""  # White space before a call, the beginning of a tag.
        self._blank = True  # Whether there was no text since the last call.
        self._grammar: Grammar | None = None
        self._raw: list[str] = []  # The tag and what was read since, until the call has begun.
        self._arguments: list[str] = []  # Not given out yet.
        self._calls = 0
        self._open = False
        self._ended = False

    @property
    def calls(self) -> int:
        """How many calls were begun."""
        return self._calls

    def feed(self, text: str, token_count: int = 0) -> list[Chunk]:
        """Read on; `token_count` tokens had this text. Each is counted in one chunk."""
        self._tokens += token_count
        while text:
            text = self._read_text(text) if self._grammar is None else self._read_call(text)
        self._flush()
        return self._taken()

    def finish(self) -> list[Chunk]:
        """Say that the answer is over; what was held back comes out."""
        if self._grammar is not None:
            self._grammar.close()
            self._grammar = None
            self._flush()
            if not self._open and not self._ended:
                self._write("".join(self._raw))
        elif not self._blank or self._held.strip(_SPACE) or not self._calls:
            self._write(self._held)
        self._held = ""
        if self._tokens:
            count = self._take()
            rest = ToolCallFragment(self._calls - 1, "", count) if self._open else None
            self._out.append(rest or TextChunk("", count))
        return self._taken()

    # --- text

    def _read_text(self, text: str) -> str:
        """Read text up to a tag; return what follows it."""
        text = self._held + text
        at = text.find(OPEN)
        if at >= 0:
            self._held = ""
            self._raw = []
            if not self._blank or text[:at].strip(_SPACE):
                self._write(text[:at])
                self._raw.append(OPEN)
            else:
                self._raw.append(text[:at] + OPEN)
            self._ended = False
            self._grammar = call(self, self._types)
            next(self._grammar)
            return text[at + len(OPEN) :]
        if self._blank and len(text) <= _MOST_BLANK_CHARS and not text.strip(_SPACE):
            self._held = text
            return ""
        # With blanks before it that would be dropped, a tag's beginning is held back with them.
        cut = len(text) - _overlap(text)
        if self._blank and cut <= _MOST_BLANK_CHARS and not text[:cut].strip(_SPACE):
            cut = 0
        self._held = text[cut:]
        self._write(text[:cut])
        return ""

    def _write(self, text: str) -> None:
        if text:
            self._blank = False
            self._out.append(TextChunk(text, self._take()))

    # --- calls

    def _read_call(self, text: str) -> str:
        """Read a call up to its end; return what follows it."""
        grammar = self._grammar
        assert grammar is not None  # noqa: S101 - the caller has looked
        for at, char in enumerate(text):
            if not self._open and not self._ended:
                self._raw.append(char)
                if len(self._raw) > self._most_held_chars:
                    return self._give_up() + text[at + 1 :]
            try:
                grammar.send(char)
            except StopIteration as end:
                self._grammar = None
                return str(end.value) + text[at + 1 :]
            except NotACallError:
                if not self._ended:
                    return self._give_up() + text[at + 1 :]
                self._grammar = None
                return text[at:]
        return ""

    def _give_up(self) -> str:
        """It was text; what may be the beginning of a tag at its end is read again."""
        self._grammar = None
        raw = "".join(self._raw)
        cut = len(raw) - _overlap(raw)
        self._write(raw[:cut])
        return raw[cut:]

    @property
    def ended(self) -> bool:
        """Whether the call that is being read has its arguments."""
        return self._ended

    def start(self, name: str) -> None:
        """A call begins (for grammars)."""
        self._out.append(ToolCallStart(self._calls, name))
        self._calls += 1
        self._open = True
        self._raw.clear()

    def argument(self, text: str) -> None:
        """Its arguments go on (for grammars)."""
        self._arguments.append(text)

    def end(self) -> None:
        """Its arguments are there (for grammars)."""
        self._flush()
        self._out.append(ToolCallEnd(self._calls - 1))
        self._open, self._ended, self._blank = False, True, True

    def _flush(self) -> None:
        if self._arguments:
            text = "".join(self._arguments)
            self._arguments.clear()
            self._out.append(ToolCallFragment(self._calls - 1, text, self._take()))

    def _take(self) -> int:
        count, self._tokens = self._tokens, 0
        return count

    def _taken(self) -> list[Chunk]:
        out, self._out = self._out, []
        return out


def _overlap(text: str) -> int:
    """How much of the end of a text may be the beginning of a tag."""
    sizes = range(min(len(text), len(OPEN) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(OPEN[:size])), 0)
