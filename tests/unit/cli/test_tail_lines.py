"""Events as lines for people."""

from __future__ import annotations

from typing import Any

import pytest

from backchannel.cli.event_lines import JOIN_CHARS, EventLines, Line
from backchannel.v1 import event_pb2, session_pb2
from backchannel.v1.event_pb2 import Event
from tests.unit.session.driver import Driver, tool

SECOND_NS = 1_000_000_000
MS_NS = 1_000_000


def delta(seq: int, text: str, at_ns: int = 0, turn_id: str = "t", **fields: Any) -> Event:
    event = Event(seq=seq)
    event.time.FromNanoseconds(at_ns)
    said = event_pb2.OutputDelta(turn_id=turn_id, text=text, token_count=1, **fields)
    event.output_delta.CopyFrom(said)
    return event


def told(*events: Event, **options: bool) -> list[Line]:
    lines = EventLines(**options)
    found = [line for event in events for line in lines.feed(event)]
    assert lines.pending is bool(events and events[-1].HasField("output_delta"))
    return [*found, *lines.flush()]


def seqs_and_texts(lines: list[Line]) -> list[tuple[str, str]]:
    return [(line.seqs, line.text) for line in lines]


def a_session() -> Driver:
    """One in which nearly everything happens."""
    driver = Driver(tools=[tool("look")])
    driver.say("what is it?")
    driver.admit()
    driver.text("Let", " me")
    call_id = driver.call()
    driver.finish("tool_calls")
    driver.advance(0.4)
    driver.result(call_id)
    driver.text(" see")
    driver.finish()
    driver.say("and now?")
    driver.text("No", "thing")
    driver.interrupt()
    driver.finish("stopped")
    return driver


def test_a_session_reads_as_it_went() -> None:
    lines = told(*a_session().events)
    assert [line.what for line in lines] == [
        *("opened", "message", "turn", "says", "calls", "writes", "tool", "result", "says"),
        *("finished", "message", "turn", "says", "stopped", "finished"),
    ]
    texts = {line.what: line.text for line in lines}
    assert texts["says"].startswith('"Nothing" · 2 tokens')
    assert texts["message"] == '"and now?"'
    assert texts["result"].startswith("look completed after 400 ms · ")
    assert texts["stopped"].startswith("kept 0 characters, dropped 7")
    assert texts["finished"].startswith("stopped · 2 tokens: 2 delivered")


def test_every_event_is_told_once_and_in_order() -> None:
    events = a_session().events
    for options in ({}, {"join": False}, {"text": False}, {"whole": True}):
        lines = told(*events, **options)
        spans = [range(line.first_seq, line.last_seq + 1) for line in lines]
        assert [seq for span in spans for seq in span] == [event.seq for event in events]


@pytest.mark.parametrize("kind", [field.name for field in Event.DESCRIPTOR.oneofs[0].fields])
def test_every_kind_of_event_is_known(kind: str) -> None:
    event = Event(seq=1)
    getattr(event, kind).SetInParent()
    (line,) = told(event) if kind not in ("output_delta", "tool_call_delta") else flushed(event)
    assert line.what not in ("", "unknown")


def flushed(event: Event) -> list[Line]:
    lines = EventLines()
    assert lines.feed(event) == []
    return lines.flush()


def test_a_kind_of_tomorrow_is_told_as_such() -> None:
    (line,) = told(Event(seq=3))
    assert (line.seqs, line.what) == ("3", "unknown")


def test_deltas_join_until_a_second_has_passed() -> None:
    lines = told(delta(1, "a"), delta(2, "b", SECOND_NS), delta(3, "c", SECOND_NS + 1))
    assert seqs_and_texts(lines) == [("1-2", '"ab" · 2 tokens'), ("3", '"c" · 1 token')]


def test_deltas_join_until_the_line_ends_or_is_long() -> None:
    long = "x" * JOIN_CHARS
    lines = told(delta(1, "a"), delta(2, "b\n"), delta(3, long), delta(4, "c"))
    assert [line.seqs for line in lines] == ["1-2", "3", "4"]
    assert lines[0].text == '"ab\\n" · 2 tokens'


def test_deltas_of_another_voice_or_turn_do_not_join() -> None:
    reasoning = event_pb2.CHANNEL_REASONING
    events = [delta(1, "a", channel=reasoning), delta(2, "b"), delta(3, "c", turn_id="u")]
    assert [line.what for line in told(*events)] == ["thinks", "says", "says"]


def test_raw_is_a_line_for_each_event_with_nothing_cut() -> None:
    long = Event(seq=3)
    long.input_accepted.message.parts.add(text="y" * 2000)
    raw = told(delta(1, "a"), delta(2, "b"), long, join=False, whole=True)
    assert [line.seqs for line in raw] == ["1", "2", "3"]
    assert raw[2].text.count("y") == 2000
    assert told(long)[0].text.count("y") < 500


def test_nothing_said_is_in_a_line_without_text() -> None:
    driver = a_session()
    words = ("what is", "Let", "see", "No", "thing", "input")
    with_text = " ".join(line.text for line in told(*driver.events))
    without = " ".join(line.text for line in told(*driver.events, text=False))
    assert any(word in with_text for word in words)
    assert not any(word in without for word in words)
    assert "11 characters" in without


def test_an_error_is_told_without_its_words_but_with_its_reason() -> None:
    event = Event(seq=1)
    event.turn_finished.finish_reason = session_pb2.FINISH_REASON_ERROR
    event.turn_finished.error.message = "it said secret"
    assert "secret" in told(event)[0].text
    assert "secret" not in told(event, text=False)[0].text


def test_what_is_said_cannot_move_the_cursor_or_end_the_line() -> None:
    event = Event(seq=1)
    event.tool_call_ready.name = "evil\x1b[2J"
    event.tool_call_ready.arguments_json = '{"a":\n\t"\u202e"}'
    for options in ({}, {"whole": True}):
        (line,) = told(delta(2, "x\x1b[2J\r\n"), **options)
        (call,) = told(event, **options)
        for text in (line.text, call.text):
            assert not set("\x1b\r\n\t\u202e") & set(text)


def test_names_of_calls_are_forgotten_in_the_end() -> None:
    lines = EventLines()
    for number in range(1100):
        event = Event(seq=number + 1)
        event.tool_call_started.call_id = f"c{number}"
        event.tool_call_started.name = f"n{number}"
        lines.feed(event)
    late = Event(seq=2000)
    late.tool_call_cancelled.call_id = "c1"
    assert lines.feed(late)[0].text.startswith("c1 ")
    late.tool_call_cancelled.call_id = "c1099"
    assert lines.feed(late)[0].text.startswith("n1099 ")
