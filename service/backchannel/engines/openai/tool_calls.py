"""Tool calls put together from the fragments of a stream, in whatever order a server sends them.

The API numbers the calls of an answer by `index`, names each once, and sends the arguments of one
after the other. Servers are seen that leave `index` out or say 0 for every call, tell calls apart
by `id` alone, give each fragment an `id` of its own, send the name late or again, write several
calls by turns, send arguments as an object, or repeat a whole call at the end. All of these come
out as calls numbered from 0 in the order of their names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from backchannel.engines.openai.text import Halves, whole
from backchannel.engines.protocol import ToolCallEnd, ToolCallFragment, ToolCallStart

MOST_CALLS: Final = 128
"""More than this in one answer are not taken."""

MOST_CHARS: Final = 8 * 2**20
"""Nor arguments of more than this, of all calls together."""


class _Call:
    """One call as far as it has come."""

    def __init__(self) -> None:
        self.identity = ""
        self.number: int | None = None  # Ours, once it has a name.
        self.arguments: list[str] = []
        self.early: list[str] = []  # Arguments that came before the name.
        self.ended = False
        self.halves = Halves()

    def complete(self) -> bool:
        """Whether its arguments are one JSON object."""
        try:
            return isinstance(json.loads("".join(self.arguments)), dict)
        except (ValueError, RecursionError):
            return False


class ToolCalls:
    """The calls of one answer.

    Every method raises `ValueError` for what cannot be a call.
    """

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._by_index: dict[object, _Call] = {}
        self._by_identity: dict[str, _Call] = {}
        self._named = 0
        self._chars = 0
        self._last: _Call | None = None

    @property
    def any(self) -> bool:
        """Whether there was a call."""
        return bool(self._calls)

    @property
    def open_call(self) -> int | None:
        """The number of the call that was written last, if it has not ended."""
        last = self._last
        return None if last is None or last.ended else last.number

    def feed(
        self, entry: dict[str, Any]
    ) -> Iterator[ToolCallStart | ToolCallFragment | ToolCallEnd]:
        """Read one entry of `delta.tool_calls`. Fragments are given with a count of 0."""
        function = entry.get("function") or {}
        name = function.get("name") or ""
        arguments = function.get("arguments")
        if arguments is None:
            arguments = ""
        elif not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        self._chars += len(arguments)
        if self._chars > MOST_CHARS:
            raise ValueError(f"more than {MOST_CHARS} characters of arguments")
        call, known = self._find(entry.get("index"), entry.get("id") or "", name)
        if not known:
            yield from self._end_complete()
        self._last = call
        if known and arguments and (call.ended or name) and self._repeated(call, arguments):
            return
        if name and call.number is None:
            call.number = self._named
            self._named += 1
            yield ToolCallStart(call.number, whole(name))
            arguments = "".join((*call.early, arguments))
            call.early.clear()
        if not arguments:
            return
        if call.number is None:
            call.early.append(arguments)
            return
        if call.ended:
            if arguments.strip():
                raise ValueError("arguments for a call that was complete")
            return
        call.arguments.append(arguments)
        if text := call.halves.feed(arguments):
            yield ToolCallFragment(call.number, text, 0)

    def finish(self, *, cut: bool) -> Iterator[ToolCallFragment | ToolCallEnd]:
        """The answer has ended; `cut` in the midst of things, so that what is open stays open."""
        for call in self._calls:
            if call.ended or cut:
                continue
            if call.number is None:
                raise ValueError("a call without a name")
            if rest := call.halves.rest():
                yield ToolCallFragment(call.number, rest, 0)
            call.ended = True
            yield ToolCallEnd(call.number)

    def _find(self, index: object, identity: str, name: str) -> tuple[_Call, bool]:
        """The call that an entry belongs to, and whether it was there already."""
        call = self._by_identity.get(identity) if identity else None
        if call is None:
            call = self._last if index is None else self._by_index.get(index)
            # Another identity with a name is another call, whatever its index says; without a
            # name it is a server that gives each fragment a new one.
            if call is not None and name and self._other(call, index, identity):
                call = None
        known = call is not None
        if call is None:
            if len(self._calls) >= MOST_CALLS:
                raise ValueError(f"more than {MOST_CALLS} calls in one answer")
            call = _Call()
            self._calls.append(call)
        if identity and not call.identity:
            call.identity = identity
            self._by_identity[identity] = call
        if index is not None and not known:
            self._by_index[index] = call
        return call, known

    @staticmethod
    def _other(call: _Call, index: object, identity: str) -> bool:
        """Whether a named entry begins a call beside this one."""
        if call.number is None:
            return False
        if identity and call.identity:
            return identity != call.identity
        return index is None

    def _end_complete(self) -> Iterator[ToolCallEnd]:
        """A new call begins: those that are whole need not wait for it."""
        for call in self._calls:
            if call.number is not None and not call.ended and call.complete():
                call.ended = True
                yield ToolCallEnd(call.number)

    @staticmethod
    def _repeated(call: _Call, arguments: str) -> bool:
        """Whether an entry says a whole call again."""
        return "".join(call.arguments) == arguments and call.complete()
