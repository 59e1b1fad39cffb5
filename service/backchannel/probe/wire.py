"""Frames of gRPC-Web and server-sent events, out of bytes cut anywhere."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

_TRAILERS: Final = 0x80
_COMPRESSED: Final = 0x01
MAX_FRAME_BYTES: Final = 1024 * 1024
"""Ours are tiny: who sends more is not Backchannel."""


class WireError(Exception):
    """What came is not what this door speaks."""


@dataclass(slots=True)
class WebFrames:
    """Decodes `application/grpc-web+proto`.

    Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md

    Attributes:
        status: The `grpc-status` of the trailers; None until they came.
        message: Their `grpc-message`.
    """

    status: int | None = None
    message: str = ""
    _pending: bytes = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The messages that are whole now.

        Raises:
            WireError: It is no gRPC-Web.
        """
        self._pending += chunk
        messages = []
        while len(self._pending) >= 5:
            flags, size = struct.unpack(">BI", self._pending[:5])
            if flags & _COMPRESSED or size > MAX_FRAME_BYTES:
                raise WireError("the answer is not gRPC-Web")
            if len(self._pending) < 5 + size:
                break
            body, self._pending = self._pending[5 : 5 + size], self._pending[5 + size :]
            if flags & _TRAILERS:
                self._end(body)
            else:
                messages.append(body)
        return messages

    def _end(self, trailers: bytes) -> None:
        for line in trailers.decode(errors="replace").split("\r\n"):
            name, _, value = line.partition(":")
            if name.strip().lower() == "grpc-status" and value.strip().isdigit():
                self.status = int(value)
            elif name.strip().lower() == "grpc-message":
                self.message = value.strip()


@dataclass(slots=True)
class ServerSentEvents:
    """Decodes `text/event-stream` as Backchannel writes it: lines end with a newline alone.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
    """

    _pending: bytes = b""
    _name: str = ""
    _data: list[str] = field(default_factory=list)

    def feed(self, chunk: bytes) -> list[tuple[str, str]]:
        """Name and data of the events that are whole now.

        Raises:
            WireError: A line without end.
        """
        *lines, self._pending = (self._pending + chunk).split(b"\n")
        if len(self._pending) > MAX_FRAME_BYTES:
            raise WireError("the answer is no stream of events")
        events = []
        for line in lines:
            name, _, value = line.decode(errors="replace").partition(":")
            value = value.removeprefix(" ")
            if name == "event":
                self._name = value
            elif name == "data":
                self._data.append(value)
            elif not line:
                if self._data:
                    events.append((self._name or "message", "\n".join(self._data)))
                self._name, self._data = "", []
        return events
