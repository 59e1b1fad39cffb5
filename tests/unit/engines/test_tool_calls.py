"""Tool calls in what models write: the same whatever pieces it comes in."""

from __future__ import annotations

import codecs
import itertools
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backchannel.engines.protocol import (
    Chunk,
    TextChunk,
    ToolCallEnd,
    ToolCallFragment,
    ToolCallStart,
)
from backchannel.engines.tool_calls import ToolCallParser
from backchannel.v1 import session_pb2

CASES: Final[list[dict[str, Any]]] = tomllib.loads(
    Path(__file__).with_name("tool_calls.toml").read_text(encoding="utf-8")
)["case"]
TOOLS: Final = [
    session_pb2.ToolSpec(
        name="weather",
        parameters_json_schema=(
            '{"type":"object","properties":{"city":{"type":"string"},"days":{"type":"integer"},'
            '"hourly":{"type":"boolean"},"options":{"type":"object"}}}'
        ),
    ),
    session_pb2.ToolSpec(name="clock"),
]

Event = list[str]


def by_byte(text: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    for byte in text.encode():
        yield decoder.decode(bytes([byte]))


def by_token(text: str) -> Iterator[str]:
    """Pieces like those of a tokeniser: words with the space before them, tags, runs of signs."""
    yield from re.findall(r"</?tool_call>|\s?\w{1,5}|[^\w\s]{1,3}|\s+", text)


def whole(text: str) -> Iterator[str]:
    yield text


def read(pieces: Iterable[str]) -> tuple[list[Event], int, int]:
    """The events of a text, how many tokens it had and how many of them were counted."""
    parser = ToolCallParser(TOOLS)
    tokens = 0
    chunks: list[Chunk] = []
    for piece in pieces:
        tokens += 1
        chunks += parser.feed(piece, 1)
    chunks += parser.finish()
    assert parser.finish() == []
    counted = sum(
        chunk.token_count for chunk in chunks if isinstance(chunk, TextChunk | ToolCallFragment)
    )
    return events(chunks), tokens, counted


def events(chunks: Iterable[Chunk]) -> list[Event]:
    """Chunks as the corpus has them."""
    found: list[Event] = []
    calls = itertools.count()
    current = -1
    for chunk in chunks:
        if isinstance(chunk, TextChunk):
            if not chunk.text:
                continue
            if found and found[-1][0] == "text":
                found[-1][1] += chunk.text
            else:
                found.append(["text", chunk.text])
        elif isinstance(chunk, ToolCallStart):
            current = next(calls)
            assert chunk.index == current
            found.append(["open", chunk.name, ""])
        elif isinstance(chunk, ToolCallFragment):
            assert chunk.index == current
            assert found[-1][0] == "open"
            found[-1][2] += chunk.text
        else:
            assert isinstance(chunk, ToolCallEnd)
            assert chunk.index == current
            assert found[-1][0] == "open"
            found[-1][0] = "call"
    return found


def test_the_corpus_is_large_and_its_names_are_its_own() -> None:
    assert len(CASES) >= 100
    assert len({case["name"] for case in CASES}) == len(CASES)


@pytest.mark.parametrize("cut", [whole, by_token, iter, by_byte])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_same_events_each_way(
    case: dict[str, Any], cut: Callable[[str], Iterable[str]]
) -> None:
    pieces = list(cut(case["output"]))
    assert "".join(pieces) == case["output"]
    found, tokens, counted = read(pieces)
    assert found == case["events"]
    assert counted == tokens


fragments = st.sampled_from(
    [
        *'<>{}[]":,\\ \nax1',
        "<tool_call>",
        "</tool_call>",
        '{"name": "f", "arguments": ',
        '"arguments": {"a": "b"}',
        '"name": "g"',
        "<function=weather>",
        "<parameter=city>",
        "<parameter=days>",
        "</parameter>",
        "</function>",
        "</tool",
        "世界",
    ]
)


@given(st.lists(fragments, max_size=25).map("".join), st.data())
def test_pieces_make_no_difference(text: str, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8).map(sorted))
    pieces = [text[low:high] for low, high in itertools.pairwise([0, *cuts, len(text)])]
    found, tokens, counted = read(pieces)
    assert (found, counted) == (read([text])[0], tokens)
    assert found == read(text)[0]
    if not any(kind != "text" for kind, *_ in found):
        assert "".join(event[1] for event in found) == text, "something was lost"


def test_arguments_come_as_they_are_written() -> None:
    parser = ToolCallParser()
    assert parser.feed('<tool_call>{"name": "f", "arguments"', 5) == []
    assert parser.feed(': {"a"', 1) == [ToolCallStart(0, "f"), ToolCallFragment(0, '{"a"', 6)]
    assert parser.feed(': "b', 1) == [ToolCallFragment(0, ': "b', 1)]
    assert parser.feed('"}', 1) == [ToolCallFragment(0, '"}', 1), ToolCallEnd(0)]
    assert parser.feed("}</tool_call>", 2) == []
    assert parser.finish() == [TextChunk("", 2)]
    assert parser.calls == 1


def test_text_is_held_back_no_longer_than_needed() -> None:
    parser = ToolCallParser()
    assert parser.feed("a <", 1) == [TextChunk("a ", 1)]
    assert parser.feed("b", 1) == [TextChunk("<b", 1)]
    assert parser.feed(" \n", 1) == [TextChunk(" \n", 1)]


def test_a_call_that_is_cut_off_counts_its_last_tokens() -> None:
    parser = ToolCallParser()
    parser.feed('<tool_call>{"name": "f", "arguments": {', 1)
    assert parser.feed("", 2) == []
    assert parser.finish() == [ToolCallFragment(0, "", 2)]


@pytest.mark.parametrize(
    "begin",
    ['<tool_call>{"name": "', '<tool_call>{"arguments": {"a": "', '<tool_call>{"x": [', "\n"],
)
def test_what_is_held_back_has_a_bound(begin: str) -> None:
    parser = ToolCallParser(most_held_chars=2000)
    text = begin + " " * 5000
    chunks = [chunk for char in text for chunk in parser.feed(char)]
    seen = "".join(chunk.text for chunk in chunks if isinstance(chunk, TextChunk))
    assert len(seen) >= 3000
    assert text.startswith(seen)
    chunks += parser.finish()
    assert events(chunks) == [["text", text]]


def test_a_long_value_of_a_type_is_not_held_back_for_ever() -> None:
    parser = ToolCallParser(TOOLS)
    begin = "<tool_call><function=weather><parameter=options>"
    value = "[" + "1," * 100_000 + "1]"
    chunks = parser.feed(begin + value)
    assert len(events(chunks)[0][2]) > 100_000
    chunks += parser.feed("</parameter></function></tool_call>")
    assert events(chunks) == [["call", "weather", '{"options": ' + value + "}"]]


@pytest.mark.timeout(20)
def test_reading_takes_time_in_proportion() -> None:
    # Were a call that failed read again from behind its tag, each tag in it would be tried anew.
    text = '<tool_call>{"x": [' * 20_000
    parser = ToolCallParser(most_held_chars=100_000)
    assert events([*parser.feed(text), *parser.finish()]) == [["text", text]]
