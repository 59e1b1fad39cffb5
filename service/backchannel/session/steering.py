"""Where a turn can be redirected without tearing a sentence: the safe boundaries.

Judged at the ends of deltas, because what was generated is kept and nothing behind the boundary may
be in the log. A full stop says little by itself ("3." may go on as "3.14"): it counts once white
space follows, and if that comes only with the next delta, that delta is not delivered.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

TAIL_CHARS: Final = 64
"""So much of a text's end tells whether a sentence ends there."""

_CLOSERS: Final = "[\"'”’»)\\]*_`」』]*"
_CERTAIN: Final = re.compile(rf"\n\s*\Z|[。！？…]{_CLOSERS}\s*\Z|[.!?]{_CLOSERS}\s+\Z")  # noqa: RUF001 - full width is meant
_PERHAPS: Final = re.compile(rf"[.!?]{_CLOSERS}\Z")
# "e. ", "Dr. ", "12. " at the beginning of a line: a stop that ends no sentence.
_NO_END: Final = re.compile(
    rf"(?:(?:^|[\s.(])[^\W\d]|(?:^|\s)(?:Mr|Mrs|Ms|Dr|St|vs|etc|cf|No)|(?:^|\n)\s*\d+)\.{_CLOSERS}\s*\Z"
)


class Boundary(Enum):
    """What the end of a text is."""

    NONE = auto()
    PERHAPS = auto()
    CERTAIN = auto()


def boundary(tail: str) -> Boundary:
    """Judge the end of a text by its last `TAIL_CHARS` characters."""
    if _NO_END.search(tail):
        return Boundary.NONE
    if _CERTAIN.search(tail):
        return Boundary.CERTAIN
    return Boundary.PERHAPS if _PERHAPS.search(tail) else Boundary.NONE


@dataclass(slots=True)
class Steer:
    """A message waits to redirect the running turn.

    Attributes:
        deadline_ns: No boundary is waited for any longer than this.
        tokens_left: Nor for more tokens than this.
        perhaps: The last delta ended a sentence, if the next one begins with white space.
    """

    deadline_ns: int
    tokens_left: int
    perhaps: bool = False

    def spoke(self, tail: str, tokens: int) -> bool:
        """A delta was delivered; True if the turn is to end here."""
        self.tokens_left -= tokens
        found = boundary(tail)
        self.perhaps = found is Boundary.PERHAPS
        return found is Boundary.CERTAIN or self.tokens_left <= 0
