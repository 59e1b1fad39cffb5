"""An event framed by hand is what a protobuf library reads, whatever its length."""

from __future__ import annotations

import pytest

from backchannel.session.framing import framed
from backchannel.v1 import event_pb2, frame_pb2

# Where the length of an event takes one byte more: 2^7, 2^14, 2^21.
EDGES = [0, 1, 127, 128, 129, 300, 16_383, 16_384, 70_000, 2_097_151, 2_097_152]


def of_size(size: int, seq: int) -> event_pb2.Event:
    """An event whose bytes are so many, or the next number that there can be."""
    event = event_pb2.Event(seq=seq) if size else event_pb2.Event()
    while event.ByteSize() < size:
        event.frame_digest += b"\0" * max(1, size - event.ByteSize() - 6)
    return event


@pytest.mark.parametrize("size", EDGES)
def test_one_event_is_a_frame(size: int) -> None:
    event = of_size(size, 7)
    assert size <= event.ByteSize() <= size + 2
    raw = event.SerializeToString()
    assert framed(raw) == frame_pb2.ServerFrame(events=[event]).SerializeToString()


def test_frames_end_to_end_are_one_frame() -> None:
    events = [of_size(size, seq) for seq, size in enumerate(EDGES, 1)]
    joined = b"".join(framed(event.SerializeToString()) for event in events)
    assert list(frame_pb2.ServerFrame.FromString(joined).events) == events
