from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backchannel.host.tail import Tail


@given(
    st.lists(st.lists(st.integers(1, 60), max_size=8), max_size=40),
    st.integers(1, 20),
    st.integers(10, 300),
    st.integers(1, 6),
    st.integers(1, 150),
)
def test_every_event_is_in_the_tail_or_before_it_and_frames_lose_none(
    sizes: list[list[int]], max_events: int, max_bytes: int, frame_events: int, frame_bytes: int
) -> None:
    tail = Tail(1, max_events=max_events, max_bytes=max_bytes)
    every: list[bytes] = []
    for batch in sizes:
        frames = [bytes([len(every) + place & 0xFF]) * size for place, size in enumerate(batch)]
        every += frames
        tail.extend(frames)
        kept = every[tail.first_seq - 1 :]
        assert len(kept) <= max(1, max_events + max_events // 8)
        assert sum(map(len, kept)) <= max_bytes + max_bytes // 8 or len(kept) == 1
        assert not tail.has(tail.first_seq - 1)
        assert not tail.has(len(every) + 1)
        seq, got = tail.first_seq, b""
        while tail.has(seq):
            frame, last = tail.frame(seq, max_events=frame_events, max_bytes=frame_bytes)
            assert last - seq < frame_events
            assert len(frame) <= frame_bytes or last == seq
            got += frame
            seq = last + 1
        assert got == b"".join(kept)
        assert seq == len(every) + 1


def test_a_reader_that_keeps_up_gets_the_very_bytes() -> None:
    tail = Tail(5, max_events=10, max_bytes=100)
    event = b"x" * 20
    tail.extend([event])
    frame, last = tail.frame(5, max_events=10, max_bytes=100)
    assert frame is event
    assert last == 5
