"""Finds stop strings in a text that comes in pieces."""

from __future__ import annotations

from collections.abc import Iterable


class StopStrings:
    """Lets a text through up to the first stop string; holds back what may become one.

    Args:
        stops: Non-empty strings.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """Take the next piece; return what is certain now, and whether the text ends there."""
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = max(_overlap(text, stop) for stop in self._stops)
        cut = len(text) - keep
        self._held = text[cut:]
        return text[:cut], False

    def rest(self) -> str:
        """What was held back: no stop string after all, for the text has ended."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest beginning of `stop`, short of all of it, that ends `text`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
