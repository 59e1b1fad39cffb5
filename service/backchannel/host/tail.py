"""The newest committed events of a session, as bytes, for the readers that are not far behind."""

from __future__ import annotations

from collections.abc import Sequence


class Tail:
    """A window onto the end of a session's log; what slides out of it is read from the log.

    Args:
        first_seq: The seq of the first event that will be put in.
        max_events: At most so many events are kept.
        max_bytes: At most so many bytes are kept, but always the newest event.
    """

    __slots__ = ("_bytes", "_frames", "_max_bytes", "_max_events", "first_seq")

    def __init__(self, first_seq: int, *, max_events: int, max_bytes: int) -> None:
        self.first_seq = first_seq
        self._frames: list[bytes] = []
        self._bytes = 0
        self._max_events = max_events
        self._max_bytes = max_bytes

    def extend(self, frames: Sequence[bytes]) -> None:
        """Put in the next events, each framed."""
        self._frames += frames
        for frame in frames:
            self._bytes += len(frame)
        # An eighth more than allowed, so that a list is shifted rarely and not at each event.
        if len(self._frames) > self._max_events + (
            self._max_events >> 3
        ) or self._bytes > self._max_bytes + (self._max_bytes >> 3):
            self._cut()

    def _cut(self) -> None:
        gone = 0
        left = len(self._frames)
        while left - gone > 1 and (left - gone > self._max_events or self._bytes > self._max_bytes):
            self._bytes -= len(self._frames[gone])
            gone += 1
        del self._frames[:gone]
        self.first_seq += gone

    def has(self, seq: int) -> bool:
        """Whether the event is here."""
        return self.first_seq <= seq < self.first_seq + len(self._frames)

    def frame(self, seq: int, *, max_events: int, max_bytes: int) -> tuple[bytes, int]:
        """As many events as fit from `seq` on, which must be here, and the seq of the last one."""
        frames = self._frames
        start = seq - self.first_seq
        here = len(frames)
        if start + 1 == here:  # The reader keeps up: no copy.
            return frames[start], seq
        end = start + 1
        size = len(frames[start])
        last = min(here, start + max_events)
        while end < last:
            size += len(frames[end])
            if size > max_bytes:
                break
            end += 1
        return b"".join(frames[start:end]), self.first_seq + end - 1
