"""Messages that redirect a running turn at a safe boundary."""

from __future__ import annotations

import pytest

from backchannel.session.steering import TAIL_CHARS, Boundary, boundary
from backchannel.v1 import session_pb2
from tests.unit.session.driver import (
    ACCEPTED,
    DUPLICATE,
    INTERRUPTED,
    OWNER_LOST,
    REASONING,
    STOP,
    Driver,
    limits,
    seconds,
    spoken,
    tool,
)

STEER = session_pb2.DELIVERY_STEER
STEERED = session_pb2.FINISH_REASON_STEERED


@pytest.mark.parametrize(
    ("tail", "found"),
    [
        ("Hello", Boundary.NONE),
        ("Hello,", Boundary.NONE),
        ("Hello.", Boundary.PERHAPS),
        ("Hello. ", Boundary.CERTAIN),
        ("Hello.\n", Boundary.CERTAIN),
        ("one\n\n", Boundary.CERTAIN),
        ('"Is it?" ', Boundary.CERTAIN),
        ("(It is.)", Boundary.PERHAPS),
        ("**Done!**", Boundary.PERHAPS),
        ("Wait...", Boundary.PERHAPS),
        ("そうです。", Boundary.CERTAIN),
        ("「本当。」", Boundary.CERTAIN),
        ("1.", Boundary.NONE),
        ("first\n2. ", Boundary.NONE),
        ("It is 3.", Boundary.PERHAPS),
        ("Dr. ", Boundary.NONE),
        ("e.g. ", Boundary.NONE),
        ("", Boundary.NONE),
    ],
)
def test_where_a_sentence_ends(tail: str, found: Boundary) -> None:
    assert boundary(tail) is found


def test_a_long_tail_is_judged_in_no_time() -> None:
    for tail in ("." * TAIL_CHARS, " \n" * TAIL_CHARS, '."' * TAIL_CHARS, "a." * TAIL_CHARS):
        boundary(tail)


def steering(*words: str) -> Driver:
    driver = Driver()
    driver.say("tell me")
    driver.text(*words)
    return driver


def test_a_turn_ends_with_its_sentence_and_what_steers_it_is_answered() -> None:
    driver = steering("One", " and")
    receipt = driver.say("shorter", "s1", delivery=STEER)
    assert (receipt.status, receipt.turn_id, receipt.delivery) == (ACCEPTED, "", STEER)
    assert not driver.told_to_stop()
    driver.text(" two.")
    assert not driver.told_to_stop(), "it may be half a number"
    driver.text(" Three")
    assert driver.told_to_stop()
    driver.finish("stopped", silent=1)
    ended = driver.of("turn_finished")[-1]
    assert ended.finish_reason == STEERED
    assert not ended.HasField("error")
    usage = ended.usage
    assert (usage.delivered_tokens, usage.wasted_tokens, usage.kept_tokens) == (3, 2, 3)
    assert not driver.of("turn_interrupted")
    started = driver.last("turn_started").turn_started
    assert (started.frame_id, list(started.frame_ids)) == ("s1", ["s1"])
    assert spoken(driver.asked.messages) == [
        ("user", "tell me"),
        ("assistant", "One and two."),
        ("user", "shorter"),
    ]
    again = driver.say("shorter", "s1", delivery=STEER)
    assert (again.status, again.delivery, again.seq) == (DUPLICATE, STEER, receipt.seq)


@pytest.mark.parametrize("ending", [" two.\n", " two!\n\n", " two。"])
def test_a_boundary_that_is_certain_is_not_waited_behind(ending: str) -> None:
    driver = steering("One")
    driver.say(delivery=STEER)
    driver.text(ending)
    assert driver.told_to_stop()


def test_it_stands_at_a_boundary_already() -> None:
    driver = steering("One. ")
    driver.say(delivery=STEER)
    assert driver.told_to_stop()
    perhaps = steering("One.")
    perhaps.say(delivery=STEER)
    assert not perhaps.told_to_stop()
    perhaps.text(" Two")
    assert perhaps.told_to_stop()
    number = steering("3.")
    number.say(delivery=STEER)
    number.text("14")
    assert not number.told_to_stop()


def test_nothing_was_said_yet() -> None:
    driver = steering()
    driver.say("another thing", delivery=STEER)
    assert driver.told_to_stop()
    driver.finish("stopped")
    assert spoken(driver.asked.messages) == [("user", "tell me"), ("user", "another thing")]


def test_reasoning_has_sentences_too() -> None:
    driver = steering()
    driver.think("Hm")
    driver.say(delivery=STEER)
    assert not driver.told_to_stop()
    driver.text(" right.\n", channel=REASONING)
    assert driver.told_to_stop()


def test_no_more_tokens_than_that() -> None:
    driver = Driver(limits=limits(max_steer_tokens=3))
    driver.say()
    driver.text("a")
    driver.say(delivery=STEER)
    driver.text("b", "c")
    assert not driver.told_to_stop()
    driver.text("d")
    assert driver.told_to_stop()


def test_no_longer_than_that() -> None:
    driver = Driver(limits=limits(max_steer_delay=seconds(2)))
    driver.say()
    driver.text("a")
    driver.say(delivery=STEER)
    driver.advance(1.9)
    assert not driver.told_to_stop()
    driver.advance(0.2)
    assert driver.told_to_stop()


def test_several_are_taken_together_before_what_waits() -> None:
    driver = steering("One")
    driver.say("later", "q1")
    driver.say("first", "s1", delivery=STEER)
    driver.say("second", "s2", delivery=STEER)
    driver.text(" two.\n")
    driver.say("third", "s3", delivery=STEER)  # While the engine is being stopped.
    driver.finish("stopped")
    assert list(driver.last("turn_started").turn_started.frame_ids) == ["s1", "s2", "s3"]
    assert [text for role, text in spoken(driver.asked.messages) if role == "user"] == [
        "tell me",
        "first",
        "second",
        "third",
    ]
    turn = driver.session.snapshots()[0].turns[-1]
    assert turn.input.parts[0].text == "first"
    assert [one.parts[0].text for one in turn.further_inputs] == ["second", "third"]
    driver.finish()
    assert list(driver.last("turn_started").turn_started.frame_ids) == ["q1"]


def test_a_steer_that_comes_too_late_is_an_ordinary_message() -> None:
    driver = steering("One.")
    driver.finish()
    receipt = driver.say("more", "s1", delivery=STEER)
    assert receipt.delivery == session_pb2.DELIVERY_QUEUE
    assert receipt.turn_id == driver.turns[-1].turn_id


def test_the_turn_ends_by_itself_first() -> None:
    driver = steering("One")
    assert driver.say("more", "s1", delivery=STEER).delivery == STEER
    driver.finish()
    assert driver.of("turn_finished")[-1].finish_reason == STOP
    assert driver.last("turn_started").turn_started.frame_id == "s1"
    driver.text("fine")
    assert not driver.told_to_stop()


def test_tools_are_waited_for_and_not_run_again() -> None:
    driver = Driver(tools=[tool()])
    driver.say("look it up")
    driver.text("Let me see.")
    call_id = driver.call()
    driver.say("in French", "s1", delivery=STEER)
    assert not driver.told_to_stop()
    driver.finish("tool_calls")
    assert driver.running is not None
    driver.advance(30)
    driver.result(call_id, json="7")
    assert driver.of("turn_finished")[-1].finish_reason == STEERED
    assert driver.last("turn_started").turn_started.frame_id == "s1"
    assert spoken(driver.asked.messages) == [
        ("user", "look it up"),
        ("assistant", 'Let me see.look({"a":1})'),
        ("tool", "7"),
        ("user", "in French"),
    ]
    assert len(driver.of("tool_call_ready")) == 1


def test_a_call_in_the_making_is_not_torn() -> None:
    driver = Driver(tools=[tool()], limits=limits(max_steer_tokens=1))
    driver.say()
    index = driver.begin_call()
    driver.say("other", delivery=STEER)
    driver.fragment(index, "{}")
    driver.advance(10)
    assert not driver.told_to_stop()
    assert not driver.of("turn_finished")


def test_time_does_not_end_a_turn_whose_calls_are_owed() -> None:
    driver = Driver(tools=[tool()], limits=limits(max_steer_delay=seconds(2)))
    driver.say()
    driver.text("Let me see")
    call_id = driver.call()
    driver.say("other", delivery=STEER)
    driver.advance(10)
    assert not driver.told_to_stop()
    assert not driver.of("turn_finished")
    driver.result(call_id, json="7")
    driver.advance(10)
    assert not driver.told_to_stop()
    assert not driver.of("turn_finished")
    driver.finish("tool_calls")
    assert driver.ending.finish_reason == STEERED


def test_it_is_withdrawn() -> None:
    driver = steering("One")
    driver.say("more", "s1", delivery=STEER)
    driver.interrupt(target_frame_id="s1")
    driver.text(" two.\n", " three")
    assert not driver.told_to_stop()
    driver.finish()
    assert driver.ending.finish_reason == STOP


def test_an_interrupt_overtakes_it() -> None:
    driver = steering("One")
    driver.say("more", "s1", delivery=STEER)
    driver.interrupt()
    driver.finish("stopped")
    assert driver.of("turn_finished")[-1].finish_reason == INTERRUPTED
    assert driver.last("turn_started").turn_started.frame_id == "s1"


def test_its_process_is_lost() -> None:
    driver = steering("One")
    driver.say("more", "s1", delivery=STEER)
    driver.lose(engine_continues=True)
    assert driver.of("turn_finished")[-1].finish_reason == OWNER_LOST
    assert driver.last("turn_started").turn_started.frame_id == "s1"
    waiting = Driver(tools=[tool()])
    waiting.say()
    call_id = waiting.call()
    waiting.finish("tool_calls")
    waiting.say("more", "s1", delivery=STEER)
    waiting.lose()
    waiting.result(call_id)
    assert waiting.of("turn_finished")[-1].finish_reason == STEERED
