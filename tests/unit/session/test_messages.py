"""Creating a session, queueing messages, and what an engine is told."""

from __future__ import annotations

import pytest

from backchannel.session.configuration import config_digest
from backchannel.session.decision import StopEngine
from backchannel.v1 import event_pb2, frame_pb2, session_pb2
from tests.unit.session.driver import (
    ACCEPTED,
    AFTER_GRACE,
    CANCEL_NOW,
    CONTENT_FILTER,
    DUPLICATE,
    ERROR,
    INTERRUPT,
    INTERRUPTED,
    LENGTH,
    REJECTED,
    SESSION_ID,
    START_NS,
    STOP,
    Driver,
    kind_of,
    limits,
    policy,
    refusal,
    seconds,
    spoken,
    tool,
    user,
)


def test_the_first_event_tells_the_configuration_in_force() -> None:
    driver = Driver(tools=[tool()], system="Be brief.", frame_id="open-1", readers=0)
    (event,) = driver.events
    opened = event.session_opened.session
    assert (event.seq, event.frame_id) == (1, "open-1")
    assert event.time.ToNanoseconds() == START_NS
    assert opened.session_id == SESSION_ID
    assert opened.state == session_pb2.Session.STATE_IDLE
    assert opened.config.model == "scripted/echo"
    assert opened.config.limits.max_turn_duration == seconds(600)
    assert opened.config.limits.max_tool_rounds == 8
    assert opened.config.limits.max_queued_messages == 16
    assert opened.config.on_disconnect == policy(AFTER_GRACE, 30)
    assert opened.config.tools[0].idle_timeout == seconds(60)
    assert opened.config.tools[0].timeout == seconds(300)
    assert opened.config.tools[0].blocking
    assert opened.config == driver.session.view().config


def test_a_repeated_creation_is_known_by_what_was_sent() -> None:
    driver = Driver(system="Be brief.")
    sent = session_pb2.SessionConfig(system="Be brief.")
    assert driver.session.config_matches(config_digest(sent))
    assert not driver.session.config_matches(config_digest(session_pb2.SessionConfig()))
    assert driver.folded().config_matches(config_digest(sent))


def test_a_message_starts_a_turn_with_its_own_append() -> None:
    driver = Driver()
    receipt = driver.say("Hello", "m1")
    assert driver.kinds(1) == ["input_accepted", "turn_started"]
    accepted, started = driver.events[1:]
    assert receipt == frame_pb2.Receipt(
        frame_id="m1",
        status=ACCEPTED,
        seq=2,
        turn_id=started.turn_started.turn_id,
        delivery=session_pb2.DELIVERY_QUEUE,
    )
    assert accepted.frame_id == started.frame_id == "m1"
    assert accepted.frame_digest == started.frame_digest
    assert list(started.turn_started.frame_ids) == ["m1"]
    assert started.turn_started.model == "scripted/echo"


def test_deltas_tell_where_they_begin_in_characters() -> None:
    driver = Driver()
    driver.say()
    driver.think("hm", "m")
    driver.text("a\U0001f600", "b")
    driver.think("!")
    offsets = [(delta.channel, delta.offset) for delta in driver.of("output_delta")]
    text, reasoning = event_pb2.CHANNEL_TEXT, event_pb2.CHANNEL_REASONING
    assert offsets == [(reasoning, 0), (reasoning, 2), (text, 0), (text, 2), (reasoning, 3)]


def test_messages_wait_in_order_and_receipts_name_no_turn_yet() -> None:
    driver = Driver()
    driver.say("one", "m1")
    assert driver.say("two", "m2").turn_id == ""
    driver.say("three", "m3")
    driver.finish()
    assert driver.of("turn_started")[-1].frame_id == "m2"
    driver.finish()
    assert driver.of("turn_started")[-1].frame_id == "m3"
    # The receipt of a message does not change when its turn has come.
    repeated = driver.say("two", "m2")
    assert (repeated.status, repeated.turn_id) == (DUPLICATE, "")
    assert driver.folded().state.frames.find("m2") is not None


def test_a_message_without_an_id_is_not_told_the_turn_of_another_one() -> None:
    driver = Driver(readers=0)
    driver.say("one", "m1")
    driver.text("x")
    driver.say("two", "m2")
    driver.advance(40)
    assert [queued.frame_id for queued in driver.state.queue] == ["m2"]
    receipt = driver.say("three", "")
    assert driver.of("turn_started")[-1].frame_id == "m2"
    assert (receipt.status, receipt.turn_id) == (ACCEPTED, "")


def test_the_queue_is_bounded_but_an_interrupting_message_still_gets_through() -> None:
    driver = Driver(limits=limits(max_queued_messages=2))
    driver.say()
    driver.say("a", "a")
    driver.say("b")
    assert refusal(driver.say("c")) == "QUEUE_FULL"
    assert driver.say("stop!", delivery=INTERRUPT).status == ACCEPTED
    driver.interrupt("", target_frame_id="a")
    assert driver.say("c").status == ACCEPTED


def test_an_interrupting_message_stops_the_turn_and_goes_first() -> None:
    driver = Driver()
    driver.say("one", "m1")
    driver.say("two", "m2")
    driver.text("a ", "b ", "c ")
    run = driver.live
    at = len(driver.events)
    receipt = driver.say("no!", "m3", delivery=INTERRUPT, displayed_offset=3)
    assert driver.kinds(at) == ["input_accepted", "turn_interrupted"]
    assert all(event.frame_id == "m3" for event in driver.events[at:])
    assert receipt.seq == at + 1
    assert receipt.turn_id == ""
    assert run is not None
    assert StopEngine(run.run_id) in driver.decisions[-1].effects
    cut = driver.last("turn_interrupted").turn_interrupted
    assert (cut.kept_chars, cut.dropped_chars, cut.frame_id) == (3, 3, "m3")
    driver.finish("stopped")
    assert driver.ending.finish_reason == INTERRUPTED
    assert driver.of("turn_started")[-1].frame_id == "m3"
    assert spoken(driver.asked.messages) == [
        ("user", "one"),
        ("assistant", "a b"),
        ("user", "no!"),
    ]
    driver.finish()
    assert driver.of("turn_started")[-1].frame_id == "m2"


def test_expected_turn_id_must_be_the_running_or_last_turn() -> None:
    driver = Driver()
    assert refusal(driver.say(expected_turn_id="turn-0")) == "TURN_MISMATCH"
    turn_id = driver.answer("one")
    driver.say(expected_turn_id=turn_id)
    receipt = driver.say(expected_turn_id=turn_id)
    assert refusal(receipt) == "TURN_MISMATCH"
    assert driver.say(expected_turn_id=driver.turns[-1].turn_id).status == ACCEPTED


@pytest.mark.parametrize(
    ("cause", "reason"),
    [("stop", STOP), ("length", LENGTH), ("content_filter", CONTENT_FILTER), ("tool_calls", STOP)],
)
def test_how_an_engine_ends_is_how_the_turn_ends(cause: str, reason: int) -> None:
    driver = Driver()
    driver.say()
    driver.text("x")
    driver.finish(cause)
    assert driver.ending.finish_reason == reason
    assert driver.usage.kept_tokens == 1


def test_an_engine_that_fails_ends_its_turn_with_its_error_and_the_next_one_starts() -> None:
    driver = Driver()
    driver.say()
    driver.say("next", "m2")
    driver.text("x", "y")
    driver.fail()
    assert driver.ending.finish_reason == ERROR
    assert driver.ending.error.code
    assert driver.usage.estimated
    assert (driver.usage.delivered_tokens, driver.usage.kept_tokens) == (2, 2)
    assert driver.of("turn_started")[-1].frame_id == "m2"
    assert spoken(driver.asked.messages)[1] == ("assistant", "xy")


def test_an_engine_that_stops_by_itself_has_failed() -> None:
    driver = Driver()
    driver.say()
    driver.finish("stopped")
    assert driver.ending.finish_reason == ERROR
    assert not driver.usage.estimated


def test_an_empty_answer_is_left_out_of_the_transcript() -> None:
    driver = Driver()
    driver.answer(question="one")
    driver.say("two")
    assert spoken(driver.asked.messages) == [("user", "one"), ("user", "two")]


def test_the_sampling_of_a_message_wins_field_by_field() -> None:
    base = session_pb2.Sampling(max_tokens=9, temperature=0.5, stop=["a", "b"])
    driver = Driver(sampling=base)
    driver.say(sampling=session_pb2.Sampling(max_tokens=3, stop=["c"]))
    assert driver.asked.sampling == session_pb2.Sampling(max_tokens=3, temperature=0.5, stop=["c"])
    driver.finish()
    driver.say()
    assert driver.asked.sampling == base


def test_a_session_that_is_full_takes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backchannel.session.inputs.MAX_CONTENT_BYTES", 60)
    driver = Driver()
    driver.say("x" * 40)
    assert refusal(driver.say("x" * 40)) == "SESSION_FULL"


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ({"message": user("x", delivery=session_pb2.Delivery.ValueType(9))}, "FIELD_INVALID"),
        (
            {"message": user("x", response_format=session_pb2.ResponseFormat(json_schema="[]"))},
            "FIELD_INVALID",
        ),
        (
            {"message": user("x", response_format=session_pb2.ResponseFormat(grammar=""))},
            "FIELD_REQUIRED",
        ),
        ({"message": user("x", response_format=session_pb2.ResponseFormat())}, "FIELD_REQUIRED"),
        (
            {"tool_result": session_pb2.ToolResult(call_id="c", json="1", partial=True)},
            "TOOL_CALL_NOT_FOUND",
        ),
        ({"open": frame_pb2.Open()}, "FRAME_NOT_FOR_SEND"),
        ({"close": frame_pb2.Close()}, "FRAME_NOT_FOR_SEND"),
        ({"message": session_pb2.UserMessage()}, "FIELD_REQUIRED"),
        ({}, "FIELD_REQUIRED"),
        ({"interrupt": frame_pb2.Interrupt()}, "FIELD_REQUIRED"),
        ({"ack": frame_pb2.Ack(displayed_seq=99)}, "POSITION_BEYOND_END"),
        ({"ack": frame_pb2.Ack(displayed_offset=1)}, "POSITION_BEYOND_END"),
    ],
)
def test_what_is_wrong_or_comes_later_is_refused_and_changes_nothing(
    frame: dict[str, object], reason: str
) -> None:
    driver = Driver()
    receipt = driver.frame("f", **frame)
    assert refusal(receipt) == reason
    assert not driver.decisions[-1].events
    assert not driver.decisions[-1].effects
    # It is not remembered: the same id may be used for something better.
    assert driver.say("Hello", "f").status == ACCEPTED


def test_a_held_back_queue_starts_when_a_reader_comes() -> None:
    driver = Driver(readers=0, on_disconnect=policy(CANCEL_NOW))
    assert driver.say("one", "m1").turn_id == ""
    assert kind_of(driver.events[-1]) == "input_accepted"
    assert driver.timer_ns is None
    driver.attach()
    assert driver.of("turn_started")[-1].frame_id == "m1"


def test_a_closed_session_takes_nothing_but_remembers_its_frames() -> None:
    driver = Driver()
    first = driver.say("one", "m1")
    driver.close()
    assert driver.kinds()[-2:] == ["turn_finished", "session_closed"]
    assert refusal(driver.say("two")) == "SESSION_CLOSED"
    assert driver.frame(ping=frame_pb2.Ping()).status == REJECTED
    assert driver.say("one", "m1").seq == first.seq
    assert driver.session.view().state == session_pb2.Session.STATE_CLOSED
    assert not driver.close().events
    assert not driver.attach(2).events
