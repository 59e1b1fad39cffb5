"""The filter of a listing: ``labels.KEY = "VALUE"``, several joined by ``AND``.

A part of the language of https://google.aip.dev/160, so that more of it can come.
"""

from __future__ import annotations

import re
from typing import Final

from backchannel.errors import BackchannelError, Reason

MAX_TERMS: Final = 64
MAX_CHARS: Final = 32 * 1024

_SPACE: Final = re.compile(r"[ \t\r\n]*")
_FIELD: Final = re.compile(r"labels\.")
_KEY: Final = re.compile(r"[a-z0-9_.-]+")
_EQUALS: Final = re.compile(r"=")
_TEXT: Final = re.compile(r'"((?:[^"\\]|\\["\\])*)"')
_AND: Final = re.compile(r"AND(?![^ \t\r\n])")
_ESCAPE: Final = re.compile(r'\\(["\\])')


def parse(text: str) -> list[tuple[str, str]]:
    r"""The labels that a filter asks for, all of them; none for an empty filter.

    Within a value ``\"`` is a quotation mark and ``\\`` a backslash.

    Raises:
        BackchannelError: `FIELD_INVALID`, which names the place, or `FIELD_TOO_LONG`.
    """
    if len(text) > MAX_CHARS:
        raise BackchannelError(
            Reason.FIELD_TOO_LONG, f"must be at most {MAX_CHARS} characters", field="filter"
        )
    labels: list[tuple[str, str]] = []
    place = _end(_SPACE, text, 0)
    while place < len(text):
        if labels:
            place = _skip(_AND, text, place, "AND before another label")
        if len(labels) == MAX_TERMS:
            raise _invalid(text, place, f"no more than {MAX_TERMS} labels")
        place = _skip(_FIELD, text, place, 'labels.KEY = "VALUE"', space=False)
        end = _skip(_KEY, text, place, "a label's key, of a-z0-9_.-", space=False)
        key = text[place:end]
        place = _skip(_EQUALS, text, _end(_SPACE, text, end), "=")
        value = _TEXT.match(text, place)
        if value is None:
            what = 'a value in quotation marks, with \\" and \\\\ for those within'
            raise _invalid(text, place, what)
        labels.append((key, _ESCAPE.sub(r"\1", value[1])))
        place = _end(_SPACE, text, value.end())
    return labels


def _end(pattern: re.Pattern[str], text: str, place: int) -> int:
    found = pattern.match(text, place)
    return found.end() if found else place


def _skip(pattern: re.Pattern[str], text: str, place: int, what: str, *, space: bool = True) -> int:
    """The place after what must be here, and after the space that may follow."""
    end = _end(pattern, text, place)
    if end == place:
        raise _invalid(text, place, what)
    return _end(_SPACE, text, end) if space else end


def _invalid(text: str, place: int, wanted: str) -> BackchannelError:
    found = f"{text[place : place + 16]!r}" if place < len(text) else "the end"
    return BackchannelError(
        Reason.FIELD_INVALID,
        f"at character {place + 1} there should be {wanted}; there is {found}",
        field="filter",
    )
