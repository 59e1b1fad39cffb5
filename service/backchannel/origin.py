"""What a browser calls an origin: whose page it is that asks.

Source: https://datatracker.ietf.org/doc/html/rfc6454
"""

from __future__ import annotations

import re
from typing import Final

_ORIGIN: Final = re.compile(r"https?://[^/\s*]+")


def check(text: str) -> None:
    """See that a text is an origin.

    Raises:
        ValueError: It is none; says what to write.
    """
    if not _ORIGIN.fullmatch(text):
        raise ValueError(
            f"{text} is no origin; write scheme and host, and the port if it has one, as"
            " https://chat.example"
        )
