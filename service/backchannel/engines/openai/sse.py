"""Server-sent events in bytes, as far as the OpenAI API uses them: what stands in `data`.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html. Lines end in LF or CR LF;
a lone CR, which no server of this API sends, ends none.
"""

from __future__ import annotations

from typing import Final

_BOM: Final = b"\xef\xbb\xbf"


class EventTooLongError(Exception):
    """An event has more bytes than are taken."""


class EventData:
    """Takes bytes as they come and gives the data of each event that is whole.

    Args:
        limit: The most bytes of an event.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._line: list[bytes] = []  # Pieces of a line that has not ended.
        self._line_bytes = 0
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._begun = False

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that this piece completes, those without data left out.

        Raises:
            EventTooLongError: An event exceeds the limit.
        """
        if not self._begun and piece:
            self._begun = True
            piece = piece.removeprefix(_BOM)
        head, newline, tail = piece.partition(b"\n")
        if not newline:
            self._keep(head)
            return []
        if self._line:
            head = b"".join((*self._line, head))
            self._line, self._line_bytes = [], 0
        found: list[bytes] = []
        self._take(head, found)
        *lines, last = tail.split(b"\n")
        for line in lines:
            self._take(line, found)
        self._keep(last)
        return found

    def _keep(self, piece: bytes) -> None:
        if piece:
            self._line.append(piece)
            self._line_bytes += len(piece)
            self._check(self._line_bytes)

    def _take(self, line: bytes, found: list[bytes]) -> None:
        line = line.removesuffix(b"\r")
        if not line:
            if self._data:
                found.append(b"\n".join(self._data))
                self._data, self._data_bytes = [], 0
            return
        if line.startswith(b"data:"):
            # One space after the colon is no part of the value; JSON does not mind it either.
            data = line[5:].strip()
        elif line.startswith(b"error:"):
            # Not in the standard: how llama-server used to tell of one.
            data = b'{"error":' + line[6:].strip() + b"}"
        else:
            return
        self._data.append(data)
        self._data_bytes += len(data) + 1
        self._check(self._data_bytes)

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise EventTooLongError
