"""Bytes that are cut anywhere."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backchannel.probe.wire import ServerSentEvents, WebFrames, WireError

CUTS = st.lists(st.integers(0, 80), max_size=8)


def pieces(raw: bytes, cuts: list[int]) -> list[bytes]:
    at = [0, *sorted(cuts), len(raw)]
    return [raw[begin:end] for begin, end in itertools.pairwise(at)]


@given(CUTS)
def test_web_frames(cuts: list[int]) -> None:
    trailers = b"grpc-status:0\r\ngrpc-message:fine\r\n"
    raw = b"".join(
        struct.pack(">BI", flags, len(body)) + body
        for flags, body in [(0, b"one"), (0, b""), (0, b"three"), (0x80, trailers)]
    )
    frames = WebFrames()
    got = [message for piece in pieces(raw, cuts) for message in frames.feed(piece)]
    assert got == [b"one", b"", b"three"]
    assert (frames.status, frames.message) == (0, "fine")


@given(CUTS)
def test_events(cuts: list[int]) -> None:
    raw = b'retry: 1500\n\nid: 7\nevent: output_delta\ndata: {"a":1}\n\n:\n\ndata: x\ndata: y\n\n'
    events = ServerSentEvents()
    got = [event for piece in pieces(raw, cuts) for event in events.feed(piece)]
    assert got == [("output_delta", '{"a":1}'), ("message", "x\ny")]


def test_what_is_something_else() -> None:
    with pytest.raises(WireError):
        WebFrames().feed(b"<html><body>Welcome")
    with pytest.raises(WireError):
        ServerSentEvents().feed(b"x" * (1024 * 1024 + 1))
