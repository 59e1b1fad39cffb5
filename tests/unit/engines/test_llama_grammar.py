"""Grammars: what is refused before llama.cpp sees it, and that it takes the rest."""

from __future__ import annotations

import pytest

from backchannel.engines.llama.grammar import FIELD, MOST_DEEP, check_grammar
from backchannel.errors import BackchannelError, Reason

GOOD = [
    'root ::= "yes" | "no"',
    "root ::= [0-9]+",
    'root ::= "a"{2,3}b\nb ::= [^"\\]]*',
    '# a comment\nroot ::= item (", " item)* # more\r\nitem ::= [a-z] |\n  "x"? # or\n\n',
    'root ::= ("a"\n | "b"\n)\n',
    'root ::=\n "\\x41\\u0042\\U0001F642\\t\\n\\r\\\\\\"" .',
    'root ::= "a"{3} "b"{ 0 , 2 } "c"{1,}',
    'root ::= "" | "a" root',
    "root ::= [a-] [\\]] [\\[-\\]]",
    'root::="a"',
    "root ::= \u00e9 | [\u00e0-\u00ff]".replace("\u00e9", '"\u00e9"'),
    'root ::= "' + "x\ny" + '"',
]

BAD = [
    ("", "no rule called root"),
    ("a ::= b\nb ::= [0-9]", "no rule called root"),
    ('root ::= "yes', "line 1 cannot be read"),
    ('root ::= "a"\nb ::= [0-9', "line 2 cannot be read"),
    ('root ::= "\\q"', "cannot be read"),
    ('root ::= "\\x4"', "cannot be read"),
    ('root ::= "\\UFFFFFFFF"', "cannot be read"),
    ("root ::= number", "uses number, which is no rule"),
    ('root ::= "a"\n\nb ::= c "x"', "line 3 uses c"),
    ('root ::= ("a"', "not closed"),
    ('root ::= "a")', "not opened"),
    ('root ::= * "a"', "nothing in front of *"),
    ('root ::= "a" | + "b"', "nothing in front of +"),
    ('root ::= "a"{5,3}', "at least 5 and at most 3"),
    ('root ::= "a"{2000}', "more than 1999 times"),
    ('root ::= "a"{0,99999999999999999999}', "more than 1999 times"),
    ('root ::= "a"{,3}', "cannot be read"),
    ("root ::= [z-a]", "range that goes backwards"),
    ('root ::= "a"\nroot ::= "b"', "two rules called root"),
    ("yes or no", "expects ::= behind the name of a rule (yes)"),
    ('"yes"', "expects the name of a rule"),
    ('root ::= "a" ::= "b"', "::= that does not follow"),
    ('root ::= "a"\0', "null character"),
    ("root ::= " + "(" * (MOST_DEEP + 1) + '"a"' + ")" * (MOST_DEEP + 1), "parentheses within"),
    ("\n".join(f'r{i} ::= "a"' for i in range(1001)), "more than 1000 rules"),
    ('%llguidance {}\nstart: "a"', "cannot be read"),
]


@pytest.mark.parametrize("text", GOOD)
def test_what_is_a_grammar(text: str) -> None:
    check_grammar(text)


@pytest.mark.parametrize(("text", "says"), BAD)
def test_what_is_none(text: str, says: str) -> None:
    with pytest.raises(BackchannelError) as caught:
        check_grammar(text)
    assert says in str(caught.value)
    assert (caught.value.reason, caught.value.field) == (Reason.FIELD_INVALID, FIELD)


def test_one_that_is_too_long() -> None:
    with pytest.raises(BackchannelError, match="at most 16384") as caught:
        check_grammar('root ::= "' + "\u00e9" * 8200 + '"')
    assert caught.value.reason is Reason.FIELD_TOO_LONG
