"""Events as bytes of a `ServerFrame`, without serialising anything twice.

A `ServerFrame` of events is the repeated field 1: tag, length, bytes, once for each event. So the
frame of several events is their single frames laid end to end.
Source: https://protobuf.dev/programming-guides/encoding/#length-types
"""

from __future__ import annotations

from typing import Final

_TAG: Final = b"\x0a"


def framed(event: bytes) -> bytes:
    """One serialised Event as a serialised ServerFrame; such frames may be joined."""
    size = len(event)
    if size < 0x80:
        return _TAG + bytes((size,)) + event
    if size < 0x4000:
        return _TAG + bytes((size & 0x7F | 0x80, size >> 7)) + event
    length = bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return _TAG + bytes(length) + event
