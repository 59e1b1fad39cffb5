"""Text from JSON that may hold half a character."""

from __future__ import annotations

import re
from typing import Final

_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class Halves:
    """Joins characters whose two UTF-16 halves come in different pieces of a text.

    JSON may escape a character beyond U+FFFF as two halves, and servers that cut a text by tokens
    cut between them. A half that stays alone becomes U+FFFD, for no UTF-8 has it.
    """

    def __init__(self) -> None:
        self._high = ""

    def feed(self, text: str) -> str:
        """The text so far as it is certain; half a character at its end is held back."""
        if not self._high and not _SURROGATE.search(text):
            return text
        text = self._high + text
        self._high = text[-1] if text and "\ud800" <= text[-1] <= "\udbff" else ""
        return whole(text.removesuffix(self._high))

    def rest(self) -> str:
        """What is left of a text that has ended."""
        high, self._high = self._high, ""
        return "\ufffd" if high else ""


def whole(text: str) -> str:
    """The text with halves joined and lone ones replaced."""
    if not _SURROGATE.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
