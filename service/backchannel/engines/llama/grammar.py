"""Refuses grammars that llama.cpp would choke on, before it sees them.

llama.cpp reads grammars on the thread that computes everybody's answers, and trusts whoever wrote
them: one that repeats something `{5,3}` times keeps that thread for ever, and parentheses that are
nested deeply enough end the process. So syntax and limits are checked here, where a mistake can
also be shown by its line. What needs the whole grammar's meaning (a rule that begins with itself)
is left to llama.cpp, which refuses it properly.

Source: https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md
"""

from __future__ import annotations

import re
from typing import Final, NoReturn

from backchannel.errors import BackchannelError, Reason

FIELD: Final = "response_format.grammar"

MOST_BYTES: Final = 16 * 1024
MOST_DEEP: Final = 64
"""Parentheses within each other."""
MOST_RULES: Final = 1000
MOST_TIMES: Final = 1999
"""Repetitions; above that llama.cpp gives up, or forgets the limit."""

_ESCAPE: Final = r'\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U00[01][0-9A-Fa-f]{5}|[trn\\"\[\]-])'
_TOKEN: Final = re.compile(
    rf"""
      (?P<space>    [ \t]+ | \#[^\r\n]* )
    | (?P<line>     \r\n? | \n )
    | (?P<define>   ::= )
    | (?P<name>     [A-Za-z0-9-]+ )
    | (?P<item>     "(?:{_ESCAPE}|[^"\\])*" | \[(?:{_ESCAPE}|[^\]\\])*\] | !?<[^>\r\n]+> | \. )
    | (?P<open>     \( )
    | (?P<close>    \) )
    | (?P<or>       \| )
    | (?P<times>    [*+?] | \{{[ \t]*[0-9]+[ \t]*(?:,[ \t]*[0-9]*[ \t]*)?\}} )
    """,
    re.VERBOSE,
)
_CHARACTER: Final = re.compile(rf"({_ESCAPE}|[^\]\\])(?:-({_ESCAPE}|[^\]\\]))?")


def check_grammar(text: str) -> None:
    """Refuse what is no GBNF, or more of it than a server should have to work through.

    Raises:
        BackchannelError: `FIELD_INVALID` with the line, or `FIELD_TOO_LONG`.
    """
    if len(text.encode()) > MOST_BYTES:
        raise BackchannelError(
            Reason.FIELD_TOO_LONG,
            f"has {len(text.encode())} bytes; the embedded engine takes grammars of at most "
            f"{MOST_BYTES}",
            field=FIELD,
        )
    _Reading(text).run()


class _Reading:
    """One grammar, token by token."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._deep = 0
        self._in_rule = False
        self._repeatable = False  # Something stands here that can be repeated.
        self._may_break = True  # A new line goes on with what was begun.
        self._defined: set[str] = set()
        self._used: dict[str, int] = {}  # Each with where it is used first.

    def run(self) -> None:
        """Read it to its end."""
        if "\0" in self._text:
            self._refuse("a null character ends the grammar early")
        while self._at < len(self._text):
            match = _TOKEN.match(self._text, self._at)
            if match is None:
                self._refuse(f"cannot be read at {self._shown(self._at)}")
            kind, token = str(match.lastgroup), match[0]
            if kind != "space":
                getattr(self, f"_{kind}")(token)
            self._at = match.end()
        if self._deep:
            self._refuse("a parenthesis is not closed")
        for name, at in self._used.items():
            if name not in self._defined:
                self._refuse(f"uses {name[:32]}, which is no rule", at)
        if "root" not in self._defined:
            self._refuse("has no rule called root, where an answer begins")

    def _line(self, _: str) -> None:
        if self._in_rule and not self._deep and not self._may_break:
            self._in_rule = False
            self._may_break = True

    def _name(self, name: str) -> None:
        if not self._in_rule:
            definition = re.compile(r"(?:[ \t]|#[^\r\n]*)*::=").match(
                self._text, self._at + len(name)
            )
            if definition is None:
                self._refuse(f"expects ::= behind the name of a rule ({name[:32]})")
            if name in self._defined:
                self._refuse(f"has two rules called {name[:32]}")
            self._defined.add(name)
            if len(self._defined) > MOST_RULES:
                self._refuse(f"has more than {MOST_RULES} rules")
            self._in_rule = True
            self._repeatable = False
            return
        self._used.setdefault(name, self._at)
        self._element()

    def _define(self, _: str) -> None:
        behind_name = self._text[: self._at].rsplit("\n", 1)[-1]
        if not self._in_rule or not re.fullmatch(r"\s*[A-Za-z0-9-]+[ \t]*", behind_name):
            self._refuse("has a ::= that does not follow a rule's name")
        self._may_break = True

    def _item(self, item: str) -> None:
        self._require_rule(item)
        if item[0] == "[":
            body = item[2:-1] if item.startswith("[^") else item[1:-1]
            for match in _CHARACTER.finditer(body):
                if match[2] is not None and _code(match[1]) > _code(match[2]):
                    self._refuse(f"has a range that goes backwards, {match[0][:24]}")
        self._element()

    def _open(self, token: str) -> None:
        self._require_rule(token)
        self._deep += 1
        if self._deep > MOST_DEEP:
            self._refuse(f"has more than {MOST_DEEP} parentheses within each other")
        self._repeatable = False

    def _close(self, _: str) -> None:
        if not self._deep:
            self._refuse("closes a parenthesis that was not opened")
        self._deep -= 1
        self._element()

    def _or(self, token: str) -> None:
        self._require_rule(token)
        self._repeatable = False
        self._may_break = True

    def _times(self, token: str) -> None:
        if not self._repeatable:
            self._refuse(f"has nothing in front of {token[:24]} to repeat")
        numbers = [int(number[:9]) for number in re.findall(r"[0-9]+", token)]
        if any(number > MOST_TIMES for number in numbers):
            self._refuse(f"repeats something more than {MOST_TIMES} times; leave the limit out")
        if len(numbers) == 2 and numbers[0] > numbers[1]:
            self._refuse(f"repeats something at least {numbers[0]} and at most {numbers[1]} times")

    def _element(self) -> None:
        self._repeatable = True
        self._may_break = False

    def _require_rule(self, token: str) -> None:
        if not self._in_rule:
            self._refuse(f"expects the name of a rule, not {token[:24]}")

    def _shown(self, at: int) -> str:
        return repr(self._text[at : at + 16])

    def _refuse(self, why: str, at: int | None = None) -> NoReturn:
        line = self._text.count("\n", 0, self._at if at is None else at) + 1
        raise BackchannelError(
            Reason.FIELD_INVALID,
            f"is no grammar that llama.cpp can use: line {line} {why}. It is to be GBNF, such as "
            'root ::= "yes" | "no"',
            field=FIELD,
        )


def _code(character: str) -> int:
    """The code point of a character of a class."""
    if character[0] == "\\" and character[1:2] in ("x", "u", "U"):
        return int(character[2:], 16)
    return ord({"\\t": "\t", "\\r": "\r", "\\n": "\n"}.get(character, character[-1]))
