"""Reasoning between tags, fed in every way that a stream may be cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backchannel.engines.protocol import REASONING, TEXT
from backchannel.engines.reasoning import THINK, Piece, ReasoningSplitter


def split(pieces: list[str], *, begun: bool = False) -> list[Piece]:
    """What comes out, neighbours of one channel joined."""
    splitter = ReasoningSplitter(begun=begun)
    said = [piece for text in pieces for piece in splitter.feed(text)] + splitter.end()
    out: list[Piece] = []
    for piece in said:
        assert piece.text, "an empty piece"
        if out and out[-1].channel == piece.channel:
            out[-1] = Piece(out[-1].text + piece.text, piece.channel)
        else:
            out.append(piece)
    return out


def reasoning(text: str) -> Piece:
    return Piece(text, REASONING)


def answer(text: str) -> Piece:
    return Piece(text, TEXT)


CASES = {
    "": [],
    " \n ": [answer(" \n ")],
    "yes": [answer("yes")],
    " yes ": [answer(" yes ")],
    "<think>hm</think>yes": [reasoning("hm"), answer("yes")],
    "\n <think>\nhm\n</think>\n\nyes\n": [reasoning("hm\n"), answer("yes\n")],
    "<think></think>yes": [answer("yes")],
    "<think>\n\n</think>\n\nyes": [answer("yes")],
    "<think>": [],
    "<think>hm": [reasoning("hm")],
    "<think>hm</thin": [reasoning("hm</thin")],
    "<thin": [answer("<thin")],
    "a < b, <th> and <thinker>": [answer("a < b, <th> and <thinker>")],
    "<think>a<think>b</think>c</think>d": [reasoning("a<think>b"), answer("c</think>d")],
    "<think>a</think>b<think>c</think>d": [
        reasoning("a"),
        answer("b"),
        reasoning("c"),
        answer("d"),
    ],
    "</think>yes": [answer("</think>yes")],
    "x <think>hm</think> y": [answer("x "), reasoning("hm"), answer("y")],
    "<<think>>hm</</think>>": [answer("<"), reasoning(">hm</"), answer(">")],
    "<think>\u00e9\U0001f642</think>\u00df": [reasoning("\u00e9\U0001f642"), answer("\u00df")],
}


@pytest.mark.parametrize("text", CASES)
def test_the_rules(text: str) -> None:
    assert split([text]) == CASES[text]


@pytest.mark.parametrize("text", CASES)
def test_one_character_at_a_time(text: str) -> None:
    assert split(list(text)) == CASES[text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hm</think>yes", [reasoning("hm"), answer("yes")]),
        ("\nhm</think>yes", [reasoning("hm"), answer("yes")]),
        ("\n<think>\nhm</think>yes", [reasoning("hm"), answer("yes")]),
        ("<think><think>hm</think>yes", [reasoning("<think>hm"), answer("yes")]),
        ("hm", [reasoning("hm")]),
        ("<thin", [reasoning("<thin")]),
        ("</think>yes", [answer("yes")]),
        ("", []),
    ],
)
def test_a_prompt_that_ends_with_the_tag(text: str, expected: list[Piece]) -> None:
    assert split([text], begun=True) == expected
    assert split(list(text), begun=True) == expected


TEXTS = st.lists(
    st.sampled_from([*THINK, "<", "</", "think", ">", " ", "\n", "a", "\u00e9", "<thi", "nk>"])
    | st.text(max_size=3)
).map("".join)


@given(TEXTS, st.lists(st.integers(0, 40)), st.booleans())
def test_how_it_is_cut_changes_nothing(text: str, sizes: list[int], begun: bool) -> None:
    pieces, at = [], 0
    for size in sizes:
        pieces.append(text[at : at + size])
        at += size
    assert split([*pieces, text[at:]], begun=begun) == split([text], begun=begun)


@given(TEXTS)
def test_nothing_is_lost_but_tags_and_white_space_next_to_them(text: str) -> None:
    def kept(text: str) -> str:
        return "".join(one for one in text if not one.isspace() and one not in "".join(THINK))

    assert kept("".join(piece.text for piece in split([text]))) == kept(text)


@given(TEXTS)
def test_text_is_held_back_no_longer_than_it_may_become_a_tag(text: str) -> None:
    splitter = ReasoningSplitter()
    assert splitter.feed("x" + text)[0].text.startswith("x")
    rest = "".join(piece.text for piece in splitter.end())
    assert any(tag.startswith(rest) and tag != rest for tag in THINK)
