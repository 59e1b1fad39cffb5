"""A turn whose process is lost while it generates: gone on with where that can be, else ended."""

from __future__ import annotations

import pytest

from backchannel.errors import BackchannelError, Reason
from backchannel.session.turns import MAX_RECOVERIES
from backchannel.v1 import session_pb2
from tests.unit.session.driver import (
    CANCEL_NOW,
    DISCONNECTED,
    ERROR,
    LENGTH,
    OWNER_LOST,
    STOP,
    Driver,
    limits,
    policy,
    seconds,
    spoken,
    tool,
)

SCHEMA = session_pb2.ResponseFormat(json_schema='{"type": "string"}')


def test_an_engine_that_can_goes_on_from_the_last_committed_token() -> None:
    driver = Driver(sampling=session_pb2.Sampling(max_tokens=10))
    driver.answer("hi")
    driver.say("tell me")
    driver.text("one ", "two ")
    driver.lose(engine_continues=True)
    recovered = driver.last("turn_recovered")
    assert recovered.turn_recovered.turn_id == driver.turns[-1].turn_id
    assert recovered.turn_recovered.from_seq == recovered.seq
    assert recovered.turn_recovered.reason == "OWNER_LOST"
    assert driver.asked.continue_text == "one two "
    # The beginning is not told twice.
    assert spoken(driver.asked.messages) == [
        ("user", "Hello"),
        ("assistant", "hi"),
        ("user", "tell me"),
    ]
    assert driver.asked.sampling.max_tokens == 8
    driver.attach()
    driver.text("three")
    assert driver.last("output_delta").output_delta.offset == len("one two ")
    driver.finish()
    assert driver.turns[-1].text == "one two three"
    assert driver.ending.finish_reason == STOP
    assert driver.usage.estimated
    assert (driver.usage.generated_tokens, driver.usage.delivered_tokens) == (3, 3)
    # Nobody knows any more when the first owner's engine took it up.
    assert not driver.ending.timing.HasField("queued")


def test_what_max_tokens_allows_is_used_up_already() -> None:
    driver = Driver(sampling=session_pb2.Sampling(max_tokens=2))
    driver.say()
    driver.text("one ", "two")
    driver.lose(engine_continues=True)
    assert driver.ending.finish_reason == LENGTH
    assert driver.live is None


@pytest.mark.parametrize("continues", [True, False])
def test_a_question_without_any_answer_yet_is_asked_again(continues: bool) -> None:
    driver = Driver()
    driver.say("tell me")
    driver.lose(engine_continues=continues)
    assert driver.of("turn_recovered")
    assert driver.asked.continue_text == ""
    assert spoken(driver.asked.messages) == [("user", "tell me")]


@pytest.mark.parametrize("continues", [True, False])
def test_a_round_that_has_all_its_results_is_followed_by_the_next(continues: bool) -> None:
    driver = Driver(tools=[tool()])
    driver.say("tell me")
    driver.text("Let me look. ")
    call_id = driver.call()
    driver.finish("tool_calls")
    driver.result(call_id, json="7")
    driver.lose(engine_continues=continues)
    assert driver.of("turn_recovered")
    assert driver.asked.continue_text == ""
    assert spoken(driver.asked.messages)[-2:] == [
        ("assistant", 'Let me look. look({"a":1})'),
        ("tool", "7"),
    ]
    driver.text("Seven.")
    assert driver.last("output_delta").output_delta.round == 1


def test_only_the_running_round_is_gone_on_from() -> None:
    driver = Driver(tools=[tool()])
    driver.say("tell me")
    driver.text("Let me look. ")
    call_id = driver.call()
    driver.finish("tool_calls")
    driver.result(call_id, json="7")
    driver.text("It is ")
    driver.lose(engine_continues=True)
    assert driver.asked.continue_text == "It is "
    assert spoken(driver.asked.messages)[-1] == ("tool", "7")


def test_a_call_that_was_not_ready_is_left_out() -> None:
    driver = Driver(tools=[tool()])
    driver.say()
    driver.text("Well, ")
    index = driver.begin_call()
    driver.fragment(index, '{"a"')
    driver.lose(engine_continues=True)
    assert driver.asked.continue_text == "Well, "
    lost = driver.turns[-1].calls[0].call_id
    call_id = driver.call()
    assert call_id != lost
    driver.finish("tool_calls")
    driver.result(call_id, json="1")
    said = spoken(driver.asked.messages)
    assert said[1:] == [("assistant", 'Well, look({"a":1})'), ("tool", "1")]


def ends_lost(driver: Driver) -> None:
    driver.lose(engine_continues=True)
    assert not driver.of("turn_recovered")
    assert driver.ending.finish_reason == OWNER_LOST


def test_an_answer_under_a_schema_is_never_gone_on_with() -> None:
    whole = Driver(response_format=SCHEMA)
    whole.say()
    whole.text('"on')
    ends_lost(whole)
    alone = Driver()
    alone.say(response_format=SCHEMA)
    ends_lost(alone)


def test_a_thought_is_nothing_to_go_on_from() -> None:
    driver = Driver()
    driver.say()
    driver.think("hm")
    ends_lost(driver)


def test_nobody_is_to_be_waited_for() -> None:
    driver = Driver(on_disconnect=policy(CANCEL_NOW))
    driver.say()
    driver.text("one")
    ends_lost(driver)


def test_its_time_was_up_meanwhile() -> None:
    driver = Driver(limits=limits(max_turn_duration=seconds(60)))
    driver.say()
    driver.text("one")
    driver.now_ns += 61 * 10**9
    ends_lost(driver)


def test_a_turn_that_takes_its_process_along_does_so_a_few_times_only() -> None:
    driver = Driver()
    driver.say()
    driver.text("one")
    for _ in range(MAX_RECOVERIES):
        driver.lose(engine_continues=True)
    assert len(driver.of("turn_recovered")) == MAX_RECOVERIES
    driver.lose(engine_continues=True)
    assert len(driver.of("turn_recovered")) == MAX_RECOVERIES
    assert driver.ending.finish_reason == OWNER_LOST


def test_a_refused_write_ends_the_turn_all_the_same() -> None:
    driver = Driver()
    driver.say()
    driver.text("one")
    lost = BackchannelError(Reason.LOG_UNAVAILABLE, "full")
    driver.lose(engine_continues=True, lost=lost)
    assert driver.ending.finish_reason == ERROR


def test_nobody_comes_back_for_it() -> None:
    driver = Driver()
    driver.say()
    driver.text("one")
    driver.lose(engine_continues=True)
    driver.advance(29)
    assert not driver.told_to_stop()
    driver.advance(2)
    assert driver.told_to_stop()
    driver.finish("stopped")
    assert driver.ending.finish_reason == DISCONNECTED


def test_a_message_has_its_own_response_format() -> None:
    whole = session_pb2.ResponseFormat(grammar="root ::= [a-z]")
    driver = Driver(response_format=whole)
    driver.answer("x")
    assert driver.asked.response_format == whole
    driver.say(response_format=SCHEMA)
    assert driver.asked.response_format == SCHEMA
    free = Driver()
    free.say()
    assert free.asked.response_format is None
