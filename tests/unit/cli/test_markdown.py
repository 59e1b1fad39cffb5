"""An answer on a terminal: block by block, nothing lost, nothing that drives the terminal."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from backchannel.cli.markdown import MarkdownView, PlainView, clean, split

ANSWER = """# A title

A paragraph with **bold** text
over two lines.

- one

  with more
- two

1. first
2. second

```python
def f():

    return "a # title?"
```

> quoted

| a | b |
|---|---|
| 1 | 2 |

The end."""


def painted(text: str, step: int, *, height: int = 25) -> tuple[MarkdownView, str]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=60, height=height, color_system=None)
    view = MarkdownView(console)
    for start in range(0, len(text), step):
        view.add(text[start : start + step])
        assert view.paint() == min(start + step, len(text))
    view.end()
    return view, out.getvalue()


def screen(raw: str) -> list[str]:
    """What a terminal shows in the end: it knows the few things that a repaint does."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[[?0-9;]*[a-zA-Z]|\r|\n|[^\x1b\r\n]+", raw):
        if part == "\n":
            row += 1
            if row == len(lines):
                lines.append("")
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1])
            assert row >= 0, "it went above what it may repaint"
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part[0] not in "\r\x1b":
            lines[row] += part
    assert not any(lines[row:]), "something is left below"
    return [line.rstrip() for line in lines[:row]]


@pytest.mark.parametrize("step", [1, 3, 7, 50, 1000])
def test_in_the_end_all_of_it_stands_there_however_it_came(step: int) -> None:
    shown = screen(painted(ANSWER, step)[1])
    whole = screen(painted(ANSWER, len(ANSWER))[1])
    assert shown == whole
    text = "\n".join(shown)
    for piece in ("A title", "bold", "with more", "2 second", 'return "a # title?"', "quoted"):
        assert piece in text
    assert "**" not in text
    assert "```" not in text


def test_a_block_taller_than_the_screen_is_all_there_in_the_end() -> None:
    text = "```\n" + "\n".join(f"line {number}" for number in range(100)) + "\n```\n"
    shown = "\n".join(screen(painted(text, 5, height=10)[1]))
    for number in range(100):
        assert f"line {number}\n" in shown + "\n"


@given(st.text("ab#*`-> |\n1.", max_size=120))
def test_blocks_are_parts_of_the_text_in_order(text: str) -> None:
    done, last = split(text)
    assert "".join(done) + last == text


def test_a_block_that_is_not_the_last_does_not_change_any_more() -> None:
    done: list[str] = []
    rest = ""
    for char in ANSWER:
        blocks, rest = split(rest + char)
        done += blocks
    assert [*done, rest] == [*split(ANSWER)[0], split(ANSWER)[1]]
    assert len(done) == 7


def test_nothing_a_model_says_is_an_escape_sequence() -> None:
    assert clean("a\x1b[2J\x9b1m\x07\u202eb\r\n\tc") == "a[2J1mb\n\tc"
    # Joined emoji and Persian need theirs.
    for text in ("👩\u200d🚀", "\u0645\u06cc\u200c\u0631\u0648\u0645"):
        assert clean(text) == text


def test_characters_are_counted_as_they_came() -> None:
    out = io.StringIO()
    view = MarkdownView(Console(file=out, force_terminal=True))
    view.add("a\x1b[2Jb")
    assert view.paint() == 6
    view.end()
    assert view.paint() == 6


def test_elsewhere_the_text_is_left_as_it_is() -> None:
    out = io.StringIO()
    view = PlainView(out)
    for piece in ("a **b**", "", "\x1bc"):
        view.add(piece)
    assert out.getvalue() == ""
    assert view.paint() == 9
    view.end()
    view.end()
    assert out.getvalue() == "a **b**\x1bc\n"
