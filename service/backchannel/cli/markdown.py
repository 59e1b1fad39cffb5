"""Showing an answer while it comes: as Markdown on a terminal, as it is elsewhere.

Markdown is painted block by block. A top-level block that is not the last one can't change any
more, so it is printed for good; only the last one is painted anew as it grows. That is why nothing
flickers and nothing scrolls away unseen, however long the answer.
"""

from __future__ import annotations

import itertools
import sys
import unicodedata
from collections.abc import Iterator
from typing import Final, Protocol, TextIO

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment


def clean(text: str) -> str:
    """Text that a terminal only prints: escape sequences and the like come to nothing.

    What a model or a tool says must not move the cursor, set the title or answer for the user.
    """
    return "".join(
        char for char in text if char in _HARMLESS or unicodedata.category(char) not in ("Cc", "Cf")
    )


# Beside what is printed: lines, tabs, and what joins or parts letters and emoji.
_HARMLESS: Final = "\n\t\u200c\u200d"


class View(Protocol):
    """Where the text of an answer goes."""

    def add(self, text: str) -> None:
        """The next piece has come."""

    def paint(self) -> int:
        """Bring what has come to the screen; how many characters of the answer are there now."""

    def end(self) -> None:
        """Nothing more comes: paint the rest, for good."""


class PlainView:
    """The text and nothing else, at once.

    Args:
        out: Where to. Default: standard output.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = sys.stdout if out is None else out
        self._waiting = ""
        self._shown_chars = 0
        self._last = ""

    def add(self, text: str) -> None:
        """The next piece has come."""
        self._waiting += text

    def paint(self) -> int:
        """Write what has come."""
        if self._waiting:
            self._out.write(self._waiting)
            self._out.flush()
            self._shown_chars += len(self._waiting)
            self._last, self._waiting = self._waiting[-1], ""
        return self._shown_chars

    def end(self) -> None:
        """Write the rest, and end the line."""
        self.paint()
        if self._last not in ("", "\n"):
            self._out.write("\n")
            self._out.flush()
            self._last = "\n"


class MarkdownView:
    """Markdown on a terminal.

    Args:
        console: The terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._open = ""
        self._came_chars = 0
        self._shown_chars = 0
        self._printed = False
        self._live: Live | None = None

    def add(self, text: str) -> None:
        """The next piece has come."""
        self._open += clean(text)
        self._came_chars += len(text)

    def paint(self) -> int:
        """Print the blocks that are done, and paint the last one as it stands."""
        if self._came_chars == self._shown_chars:
            return self._shown_chars
        if self._live is None:
            # No thread of its own: it is painted here and nowhere else.
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        done, self._open = split(self._open)
        for block in done:
            self._print(block)
        self._live.update(_Tail(self._block(self._open)), refresh=True)
        self._shown_chars = self._came_chars
        return self._shown_chars

    def end(self) -> None:
        """Print the rest."""
        self.paint()
        if self._live is not None:
            self._live.update("", refresh=True)
            self._live.stop()
            self._live = None
        if self._open.strip():
            self._print(self._open)
        self._open = ""

    def _print(self, block: str) -> None:
        self._console.print(self._block(block))
        self._printed = True

    def _block(self, text: str) -> RenderableType:
        # A link that hides where it leads is no help from a stranger.
        return _Spaced(Markdown(text, hyperlinks=False), spaced=self._printed)


def split(text: str) -> tuple[list[str], str]:
    """The top-level blocks that can't change any more, and the last one, which can."""
    starts = [
        token.map[0]
        for token in Markdown(text).parsed
        if token.level == 0 and token.map is not None and token.nesting >= 0
    ]
    if len(starts) < 2:
        return [], text
    lines = text.splitlines(keepends=True)
    edges = [0, *starts[1:]]
    blocks = ["".join(lines[a:b]) for a, b in itertools.pairwise(edges)]
    return blocks, "".join(lines[edges[-1] :])


class _Spaced:
    """A block with an empty line before it, unless it is the first."""

    def __init__(self, inner: RenderableType, *, spaced: bool) -> None:
        self._inner = inner
        self._spaced = spaced

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._spaced:
            yield Segment.line()
        yield self._inner


class _Tail:
    """As many of the last lines as fit on the screen: what is above can't be repainted."""

    def __init__(self, inner: RenderableType) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._inner, options, pad=False)
        yield from _join(lines[-max(options.size.height - 1, 1) :])


def _join(lines: list[list[Segment]]) -> Iterator[Segment]:
    for number, line in enumerate(lines):
        if number:
            yield Segment.line()
        yield from line
