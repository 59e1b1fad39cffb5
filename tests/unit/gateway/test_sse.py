"""Events as server-sent events: the bytes."""

from __future__ import annotations

import json

from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from backchannel.errors import BackchannelError, Reason
from backchannel.session.framing import framed
from backchannel.v1 import event_pb2, frame_pb2, session_pb2
from backchannel_gateway import sse


def delta(seq: int, text: str, frame_id: str = "") -> bytes:
    said = event_pb2.OutputDelta(turn_id="t", text=text)
    return event_pb2.Event(seq=seq, frame_id=frame_id, output_delta=said).SerializeToString()


@given(text=st.text(), frame_id=st.text(), seq=st.integers(1, 2**64 - 1))
def test_an_event_is_three_lines_whatever_it_says(text: str, frame_id: str, seq: int) -> None:
    raw = delta(seq, text, frame_id)
    rendered = sse.Rendered(1)(raw)
    head, name, data, *end = rendered.split(b"\n")
    assert (head, name, end) == (b"id: %d" % seq, b"event: output_delta", [b"", b""])
    assert not set(rendered) & {0x0D, 0x00}
    told = json_format.Parse(data.removeprefix(b"data: "), event_pb2.Event())
    assert told == event_pb2.Event.FromString(raw)


@given(sizes=st.lists(st.sampled_from([0, 1, 100, 127, 128, 16_383, 16_384, 70_000]), max_size=6))
def test_a_frame_is_cut_into_the_events_it_was_laid_of(sizes: list[int]) -> None:
    events = [delta(seq, "x" * size) for seq, size in enumerate(sizes, 1)]
    assert list(sse.events_of(b"".join(map(framed, events)))) == events


def test_an_event_is_rendered_once_for_all_readers() -> None:
    rendered = sse.Rendered(10_000)
    first = rendered(delta(1, "one"))
    assert rendered(delta(1, "one")) is first
    assert rendered(delta(1, "two")) is not first


def test_what_is_kept_is_bounded() -> None:
    rendered = sse.Rendered(10_000)
    for seq in range(1000):
        rendered(delta(seq, "x" * 100))
        assert rendered._bytes <= 10_000
        assert rendered._bytes == sum(len(a) + len(b) for a, b in rendered._known.items())
    rendered(delta(1, "x" * 20_000))
    assert not rendered._known


def test_control_messages_have_no_number() -> None:
    frames = [
        frame_pb2.ServerFrame(heartbeat=frame_pb2.Heartbeat(seq=7)),
        frame_pb2.ServerFrame(receipt=frame_pb2.Receipt(frame_id="a\nb", seq=7)),
        frame_pb2.ServerFrame(go_away=frame_pb2.GoAway(reason="x")),
        # More of it follows: a browser that is cut here has not got it.
        frame_pb2.ServerFrame(snapshot=frame_pb2.Snapshot(seq=7, more=True)),
    ]
    names = ["heartbeat", "receipt", "go_away", "snapshot"]
    for frame, name in zip(frames, names, strict=True):
        lines = sse.control(frame).decode().split("\n")
        assert lines[0] == f"event: {name}"
        assert lines[1].startswith("data: {")
        assert lines[2:] == ["", ""]
        assert not list(sse.events_of(frame.SerializeToString()))


def test_the_last_part_of_a_snapshot_sets_the_cursor() -> None:
    snapshot = frame_pb2.Snapshot(seq=7, session=session_pb2.Session(session_id="s"))
    frame = frame_pb2.ServerFrame(snapshot=snapshot)
    assert sse.control(frame).startswith(b"id: 7\nevent: snapshot\n")


def test_an_error_has_its_details() -> None:
    error = BackchannelError(Reason.DRAINING, "leaving\n\nid: 3")
    lines = sse.error(error.to_status()).decode().split("\n")
    assert lines[0] == "event: error"
    status = json.loads(lines[1].removeprefix("data: "))
    assert status["code"] == 14
    assert status["details"][0]["reason"] == "DRAINING"
    assert lines[2:] == ["", ""]


def test_a_kind_of_a_newer_version_counts() -> None:
    assert sse.Rendered(1)(event_pb2.Event(seq=3).SerializeToString()).startswith(
        b"id: 3\nevent: unknown\n"
    )
