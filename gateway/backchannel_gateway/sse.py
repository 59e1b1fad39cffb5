"""Server-sent events: what a browser's `EventSource` reads.

    id: 12
    event: output_delta
    data: {"seq":"12",…}

Everything after `data:` is proto-JSON on one line. JSON writes line ends and NUL as escapes, ids
are numbers and names are field names of ours, so nothing that people or models say can end a line.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from backchannel.v1 import event_pb2, frame_pb2

# A status holds its details as Any, and JSON can only be made of types that have been loaded.
_LOADED: Final = error_details_pb2.DESCRIPTOR

CONTENT_TYPE: Final = "text/event-stream"

RETRY_MS: Final = 1500
"""How long a browser waits before it connects again."""

_EVENTS_TAG: Final = 0x0A


def retry(delay_ms: int = RETRY_MS) -> bytes:
    """What a stream begins with.

    Without a first byte the headers would wait too, and with them the browser's `onopen`.
    """
    return b"retry: %d\n\n" % delay_ms


def message(name: str, data: Message, seq: int | None = None) -> bytes:
    """One event of the stream.

    Args:
        name: What listeners listen for.
        data: What they get.
        seq: Moves the cursor from which the browser resumes; None leaves it.
    """
    head = "" if seq is None else f"id: {seq}\n"
    return f"{head}event: {name}\ndata: {to_json(data)}\n\n".encode()


def to_json(data: Message) -> str:
    """Canonical proto-JSON, on one line.

    Source: https://protobuf.dev/programming-guides/json/
    """
    return json.dumps(json_format.MessageToDict(data), ensure_ascii=False, separators=(",", ":"))


def control(frame: frame_pb2.ServerFrame) -> bytes:
    """The control message of a frame.

    It has no id, since it never moves a cursor; but for the snapshot, whose last part sets it. (Its
    other parts do not: a browser that was cut off between two must ask for all of it again.)
    """
    for name in ("heartbeat", "receipt", "go_away"):
        if frame.HasField(name):
            return message(name, getattr(frame, name))
    if frame.HasField("snapshot"):
        snapshot = frame.snapshot
        return message("snapshot", snapshot, None if snapshot.more else snapshot.seq)
    return b""


def error(status: status_pb2.Status) -> bytes:
    """Why a stream ends early. The last event of it."""
    return message("error", status)


def events_of(frame: bytes) -> Iterator[bytes]:
    """The serialised events of a serialised frame; empty for a frame with a control message.

    Cuts along the lengths instead of parsing: most events have been rendered for another reader.
    Source: https://protobuf.dev/programming-guides/encoding/#length-types
    """
    at, end = 0, len(frame)
    while at < end and frame[at] == _EVENTS_TAG:
        at += 1
        size = shift = 0
        while True:
            byte = frame[at]
            at += 1
            size |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
        yield frame[at : at + size]
        at += size


class Rendered:
    """Events as server-sent events, each rendered once for all who read it.

    The bytes of an event tell everything that its rendering depends on, so they are the key, and
    nothing here can be out of date.

    Args:
        max_bytes: Of the newest renderings so many are kept, with their keys.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._known: OrderedDict[bytes, bytes] = OrderedDict()

    def __call__(self, raw: bytes) -> bytes:
        """One serialised Event as a server-sent event."""
        known = self._known.get(raw)
        if known is not None:
            return known
        event = event_pb2.Event.FromString(raw)
        # A kind of a newer version has no name here, but its number counts.
        rendered = message(event.WhichOneof("kind") or "unknown", event, event.seq)
        self._known[raw] = rendered
        self._bytes += len(raw) + len(rendered)
        while self._bytes > self._max_bytes:
            old, text = self._known.popitem(last=False)
            self._bytes -= len(old) + len(text)
        return rendered
