"""Splits reasoning that stands between tags, such as `<think>…</think>`, out of a text stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from backchannel.engines.protocol import REASONING, TEXT
from backchannel.v1 import event_pb2

THINK: Final = ("<think>", "</think>")
"""The tags of DeepSeek, Qwen and most that follow them."""


class Piece(NamedTuple):
    """Some text and the channel it belongs to."""

    text: str
    channel: event_pb2.Channel.ValueType


class ReasoningSplitter:
    """Tells reasoning and answer apart while they come in.

    What matters is the text, not how it is cut into pieces: any way of feeding it gives the same
    two texts. What may become a tag is held back until that is certain. The rules:

    * Reasoning may stand at several places, each from an opening tag to the next closing one.
    * An opening tag within reasoning is reasoning: tags do not nest. A closing tag outside of
      reasoning is text.
    * Without a closing tag everything to the end is reasoning.
    * White space behind a tag, and in front of one that comes first, is left out.

    Args:
        tags: The opening and the closing one.
        begun: Whether the text begins within reasoning, because the prompt ends with the opening
            tag. One that the model writes all the same, before anything else, is left out.
    """

    def __init__(self, tags: Sequence[str] = THINK, *, begun: bool = False) -> None:
        self._opening, self._closing = tags
        self._inside = begun
        self._may_repeat = begun
        self._bare = True  # Nothing but white space since the last tag, or since the beginning.
        self._blank: str | None = None if begun else ""  # What precedes the first tag, if white.
        self._held = ""  # What may become a tag.

    def feed(self, text: str) -> list[Piece]:
        """Take the next text; return what is certain now."""
        pieces: list[Piece] = []
        text, self._held = self._held + text, ""
        if self._may_repeat:
            begin = text.lstrip()
            if self._opening.startswith(begin) and begin != self._opening:
                self._held = text
                return pieces
            self._may_repeat = False
            text = begin.removeprefix(self._opening)
        while True:
            tag = self._closing if self._inside else self._opening
            before, found, behind = text.partition(tag)
            if not found:
                cut = len(text) - _overlap(text, tag)
                self._held = text[cut:]
                self._say(text[:cut], pieces)
                return pieces
            self._say(before, pieces)
            self._inside = not self._inside
            self._bare, self._blank = True, None
            text = behind

    def end(self) -> list[Piece]:
        """The text has ended: what was held back is no tag after all."""
        pieces: list[Piece] = []
        held, self._held = self._held, ""
        self._say(held, pieces)
        if self._blank:
            pieces.append(Piece(self._blank, TEXT))
            self._blank = None
        return pieces

    def _say(self, text: str, pieces: list[Piece]) -> None:
        """Give out what is no tag, but for white space next to one."""
        if self._bare:
            body = text.lstrip()
            if self._blank is not None:
                self._blank += text[: len(text) - len(body)]
                if body:
                    body, self._blank = self._blank + body, None
            text = body
            self._bare = not body
        if text:
            pieces.append(Piece(text, REASONING if self._inside else TEXT))


def _overlap(text: str, tag: str) -> int:
    """The length of the longest beginning of `tag`, short of all of it, that ends `text`."""
    longest = min(len(text), len(tag) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(tag[:size])), 0)
