"""What `chat` prints beside the answers: notes, tool calls, figures.

On a terminal notes stand between the answers, dimmed. When the output goes elsewhere it is the
answer alone, and notes go to standard error.
"""

from __future__ import annotations

from typing import Final, TextIO

from rich.console import Console
from rich.text import Text

from backchannel.cli.markdown import MarkdownView, PlainView, View, clean

# More of a result is not read anyway.
_MAX_CHARS: Final = 400


class Screen:
    """Where a chat is shown.

    Args:
        out: For answers. Markdown is painted if it is a terminal.
        err: For notes, if `out` is no terminal.
    """

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self.console = Console(file=out, highlight=False)
        self.is_terminal = self.console.is_terminal
        self._out = out
        self._notes = self.console if self.is_terminal else Console(file=err, highlight=False)
        self._column = 0

    def view(self) -> View:
        """For the next answer."""
        return MarkdownView(self.console) if self.is_terminal else PlainView(self._out)

    def note(self, text: str, style: str = "dim") -> None:
        """A line about what happens."""
        self.end_line()
        self._notes.print(Text(clean(text), style=style), soft_wrap=True)

    def said(self, text: str) -> None:
        """What the user has said, in a transcript."""
        self.end_line()
        self._notes.print(Text("> " + clean(text), style="bold cyan"), soft_wrap=True)

    def piece(self, text: str, style: str = "dim") -> None:
        """A part of a line, as it streams."""
        self._notes.print(Text(clean(text), style=style), end="", soft_wrap=True)
        self._column += len(text)

    def end_line(self) -> None:
        """End a line that has been begun with `piece`."""
        if self._column:
            self._notes.print()
            self._column = 0

    def gap(self) -> None:
        """An empty line between turns, on a terminal."""
        if self.is_terminal:
            self.console.print()


def short(text: str) -> str:
    """One line, not too long."""
    line = " ".join(text.split())
    return line if len(line) <= _MAX_CHARS else f"{line[: _MAX_CHARS - 1]}…"
