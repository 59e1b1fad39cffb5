"""Stops: what they cut, what they keep, what the engine is told afterwards."""

from __future__ import annotations

from typing import Any

import pytest

from backchannel.v1 import event_pb2, session_pb2
from tests.unit.session.driver import (
    ACCEPTED,
    CANCELLED,
    DEADLINE,
    DUPLICATE,
    INTERRUPT,
    INTERRUPTED,
    SECOND,
    STALE,
    STOP,
    Driver,
    limits,
    refusal,
    seconds,
    spoken,
    tool,
)

DISPLAYED = event_pb2.KEEP_DISPLAYED
GENERATED = event_pb2.KEEP_GENERATED
NOTHING = event_pb2.KEEP_NOTHING


def kept(driver: Driver) -> tuple[int, int]:
    cut = driver.last("turn_interrupted").turn_interrupted
    return cut.kept_chars, cut.dropped_chars


def told_next(driver: Driver) -> list[tuple[str, str]]:
    """What the engine is told with the next message."""
    if driver.live is not None and driver.live.stopped:
        driver.finish("stopped")
    driver.say("next")
    return spoken(driver.asked.messages)


@pytest.mark.parametrize(
    ("keep", "kept_chars", "told"),
    [
        (0, 4, [("assistant", "one ")]),
        (DISPLAYED, 4, [("assistant", "one ")]),
        (GENERATED, 14, [("assistant", "one two three ")]),
        (NOTHING, 0, []),
    ],
)
def test_each_keep(keep: int, kept_chars: int, told: list[tuple[str, str]]) -> None:
    driver = Driver()
    driver.say("Count")
    driver.think("hm ")
    driver.text("one ", "two ", "three ")
    seq = next(event.seq for event in driver.events if event.output_delta.text == "one ")
    receipt = driver.interrupt(frame_id="i", keep=keep, displayed_seq=seq)
    assert (receipt.status, receipt.turn_id) == (ACCEPTED, driver.turns[0].turn_id)
    assert receipt.seq == driver.last("turn_interrupted").seq
    assert kept(driver) == (kept_chars, 14 - kept_chars)
    assert driver.last("turn_interrupted").turn_interrupted.keep == (keep or DISPLAYED)
    assert driver.running is not None
    assert told_next(driver) == [("user", "Count"), *told, ("user", "next")]


def test_no_delta_after_a_stop_and_late_tokens_are_wasted() -> None:
    driver = Driver()
    driver.say()
    driver.text("a ", "b ")
    driver.ack(driver.events[-1].seq)
    driver.interrupt()
    at = len(driver.events)
    driver.text("c ", "d ")
    driver.begin_call()
    driver.finish("stopped", silent=1)
    assert driver.kinds(at) == ["turn_finished"]
    assert driver.ending.finish_reason == INTERRUPTED
    assert driver.usage == session_pb2.Usage(
        prompt_tokens=10,
        cached_prompt_tokens=4,
        generated_tokens=5,
        delivered_tokens=2,
        displayed_tokens=2,
        kept_tokens=2,
        wasted_tokens=3,
    )


def test_a_stop_that_is_not_confirmed_ends_the_turn_after_two_seconds() -> None:
    driver = Driver()
    driver.say()
    driver.text("a ")
    driver.say("next", "m2")
    driver.interrupt()
    run = driver.live
    driver.text("b ")
    assert driver.timer_ns == driver.now_ns + 2 * SECOND
    assert not driver.advance(1.99)
    assert [event.WhichOneof("kind") for event in driver.advance(0.01)] == [
        "turn_finished",
        "turn_started",
    ]
    assert driver.usage.estimated
    assert (driver.usage.generated_tokens, driver.usage.wasted_tokens) == (2, 1)
    # The engine that was given up says something after all; nobody listens.
    at = len(driver.events)
    driver.text("c ", run=run)
    assert run is not None
    driver.session.engine_finished(run.run_id, "stopped", 1, 1, 9, True, driver.now_ns)
    assert len(driver.events) == at


def test_nothing_displayed_keeps_nothing_and_never_cuts_the_turn_before() -> None:
    driver = Driver()
    driver.answer("first ", "answer")
    driver.ack(driver.last("output_delta").seq)
    driver.say("again")
    driver.text("second")
    driver.interrupt()
    assert kept(driver) == (0, 6)
    assert told_next(driver)[1:3] == [("assistant", "first answer"), ("user", "again")]


def test_a_stop_without_text_or_tools() -> None:
    driver = Driver()
    driver.say("one")
    driver.interrupt()
    assert kept(driver) == (0, 0)
    assert told_next(driver) == [("user", "one"), ("user", "next")]


def test_a_cut_falls_between_code_points() -> None:
    driver = Driver()
    driver.say("one")
    driver.text("a\U0001f600", "b\U0001f44b\U0001f3fd")
    driver.interrupt(displayed_offset=4)
    assert kept(driver) == (4, 1)
    assert told_next(driver)[1] == ("assistant", "a\U0001f600b\U0001f44b")


def test_reasoning_stays_as_far_as_the_last_kept_text() -> None:
    driver = Driver()
    driver.say("one")
    driver.think("hm ", "so ")
    driver.text("a ")
    driver.think("then ")
    driver.text("b ")
    driver.interrupt(displayed_offset=2)
    driver.finish("stopped")
    assert driver.turns[0].kept_reasoning_chars == 6
    assert driver.usage.kept_tokens == 3


def test_the_furthest_of_all_readers_counts() -> None:
    driver = Driver(readers=2)
    driver.say()
    driver.text("one ", "two ", "three ")
    first, second, _ = (event.seq for event in driver.events[-3:])
    driver.ack(second)
    driver.ack(first)
    driver.ack(0)
    driver.interrupt(displayed_seq=first)
    assert kept(driver) == (8, 6)


def test_an_offset_wins_over_the_seq_of_the_same_frame() -> None:
    driver = Driver()
    driver.say()
    driver.text("one ", "two ")
    driver.ack(driver.events[-1].seq, offset=2)
    driver.interrupt()
    assert kept(driver) == (2, 6)


def test_whole_tokens_are_counted_as_displayed_and_kept() -> None:
    driver = Driver()
    driver.say()
    driver.text("one ", "two ", "three ")
    driver.interrupt(displayed_offset=6)
    driver.finish("stopped")
    assert (driver.usage.displayed_tokens, driver.usage.kept_tokens) == (1, 1)
    assert kept(driver)[0] == 6


def test_an_offset_counts_in_the_turn_that_holds_the_seq() -> None:
    driver = Driver()
    driver.answer("first answer")
    held = driver.last("output_delta").seq
    driver.say()
    driver.text("ab")
    # In the turn before there were so many characters.
    assert driver.ack(held, offset=10).status == ACCEPTED
    assert refusal(driver.ack(0, offset=10)) == "POSITION_BEYOND_END"
    driver.interrupt()
    assert kept(driver) == (0, 2)


def test_an_offset_with_a_seq_between_turns_counts_in_the_running_turn() -> None:
    driver = Driver()
    driver.say()
    driver.text("one ", "two ")
    accepted = driver.last("input_accepted").seq
    assert driver.ack(accepted, offset=3).status == ACCEPTED
    assert refusal(driver.ack(accepted, offset=9)) == "POSITION_BEYOND_END"
    driver.interrupt()
    assert kept(driver) == (3, 5)


def test_an_offset_where_there_is_no_turn_is_beyond_the_end() -> None:
    driver = Driver()
    assert refusal(driver.ack(1, offset=1)) == "POSITION_BEYOND_END"
    assert refusal(driver.say(displayed_offset=1)) == "POSITION_BEYOND_END"
    assert driver.ack(1, offset=0).status == ACCEPTED


@pytest.mark.parametrize("position", [{"displayed_seq": 99}, {"displayed_offset": 5}])
def test_a_position_beyond_the_end_is_refused_and_stops_nothing(position: dict[str, Any]) -> None:
    driver = Driver()
    driver.say()
    driver.text("one ")
    assert refusal(driver.interrupt(**position)) == "POSITION_BEYOND_END"
    assert driver.live is not None
    assert not driver.live.stopped
    assert refusal(driver.say(delivery=INTERRUPT, **position)) == "POSITION_BEYOND_END"


# --- targets -------------------------------------------------------------------------------------


def test_a_stop_for_a_turn_that_is_over_leaves_the_next_one_alone() -> None:
    driver = Driver()
    turn_id = driver.answer("one")
    driver.say()
    driver.text("two")
    receipt = driver.interrupt(turn_id, displayed_seq=1)
    assert (receipt.status, receipt.seq, receipt.turn_id) == (STALE, 0, turn_id)
    assert not driver.decisions[-1].events
    assert driver.live is not None
    assert not driver.live.stopped


def test_a_stop_for_a_turn_that_never_was_is_stale() -> None:
    driver = Driver()
    assert driver.interrupt("no-such-turn").status == STALE
    driver.say()
    assert driver.interrupt("no-such-turn", displayed_offset=50).status == STALE
    assert driver.interrupt("", target_frame_id="no-such-frame").status == STALE
    assert driver.live is not None
    assert not driver.live.stopped


def test_a_second_stop_is_stale() -> None:
    driver = Driver()
    driver.say()
    driver.text("one")
    assert driver.interrupt(frame_id="i1").status == ACCEPTED
    assert driver.interrupt(frame_id="i2", keep=NOTHING).status == STALE
    driver.finish("stopped")
    assert driver.interrupt(frame_id="i3", displayed_offset=1).status == STALE
    assert driver.interrupt(frame_id="i1").status == DUPLICATE
    assert len(driver.of("turn_interrupted")) == 1


def test_a_queued_message_is_withdrawn_by_its_frame() -> None:
    driver = Driver()
    driver.say("one", "m1")
    driver.say("two", "m2")
    receipt = driver.interrupt(target_frame_id="m2")
    assert (receipt.status, receipt.turn_id) == (ACCEPTED, "")
    assert driver.events[receipt.seq - 1].input_withdrawn.frame_id == "m2"
    assert driver.interrupt(target_frame_id="m2").status == STALE
    assert driver.say("two", "m2").status == DUPLICATE
    driver.finish()
    assert driver.running is None


def test_a_running_turn_is_stopped_by_the_frame_of_its_message() -> None:
    driver = Driver()
    driver.say("one", "m1")
    driver.text("x")
    receipt = driver.interrupt(target_frame_id="m1")
    assert (receipt.status, receipt.turn_id) == (ACCEPTED, driver.turns[0].turn_id)
    assert driver.kinds()[-1] == "turn_interrupted"


def test_a_bare_stop_leaves_the_queue_which_runs_next() -> None:
    driver = Driver()
    driver.say("one", "m1")
    driver.say("two", "m2")
    driver.interrupt()
    driver.finish("stopped")
    assert driver.kinds()[-2:] == ["turn_finished", "turn_started"]
    assert driver.of("turn_started")[-1].frame_id == "m2"
    assert driver.last("turn_started").frame_id == ""


# --- stops and tools -----------------------------------------------------------------------------


def test_one_append_closes_the_open_calls_before_the_stop() -> None:
    driver = Driver(tools=[tool(), tool("write", side_effect=session_pb2.SIDE_EFFECT_IRREVERSIBLE)])
    driver.say("one", "m1")
    driver.text("Let me see. ")
    done = driver.call("look")
    driver.result(done)
    first, second = driver.call("look"), driver.call("write")
    unfinished = driver.begin_call("write")
    driver.fragment(unfinished, "{")
    at = len(driver.events)
    driver.say("stop", "m2", delivery=INTERRUPT)
    assert driver.kinds(at) == [
        "input_accepted",
        *["tool_call_cancelled", "tool_call_finished"] * 2,
        "turn_interrupted",
    ]
    assert {event.frame_id for event in driver.events[at:]} == {"m2"}
    cancelled = [one.tool_call_cancelled for one in driver.events[at + 1 : at + 5 : 2]]
    assert [(one.call_id, one.reason) for one in cancelled] == [
        (first, "INTERRUPTED"),
        (second, "INTERRUPTED"),
    ]
    assert {one.outcome for one in driver.of("tool_call_finished")[1:]} == {CANCELLED}
    outcome = session_pb2.ToolOutcome
    tools = driver.last("turn_interrupted").turn_interrupted.tools
    assert [(one.state, one.side_effect) for one in tools] == [
        (outcome.STATE_COMPLETED, session_pb2.SIDE_EFFECT_NONE),
        (outcome.STATE_CANCEL_SENT, session_pb2.SIDE_EFFECT_NONE),
        (outcome.STATE_CANCEL_SENT, session_pb2.SIDE_EFFECT_IRREVERSIBLE),
        (outcome.STATE_NOT_STARTED, session_pb2.SIDE_EFFECT_IRREVERSIBLE),
    ]


def test_a_stop_while_only_tools_are_waited_for_ends_the_turn_at_once() -> None:
    driver = Driver(tools=[tool()])
    driver.say("one", "m1")
    driver.call()
    driver.finish("tool_calls")
    at = len(driver.events)
    receipt = driver.say("two", "m2", delivery=INTERRUPT)
    assert driver.kinds(at) == [
        "input_accepted",
        "tool_call_cancelled",
        "tool_call_finished",
        "turn_interrupted",
        "turn_finished",
        "turn_started",
    ]
    assert receipt.seq == at + 1
    assert receipt.turn_id == driver.turns[1].turn_id
    assert driver.say("two", "m2", delivery=INTERRUPT).turn_id == receipt.turn_id
    # The call stays a fact, with a result that says what became of it.
    told = spoken(driver.asked.messages)
    assert told == [
        ("user", "one"),
        ("assistant", 'look({"a":1})'),
        ("tool", '{"error":"cancelled; it may or may not have run"}'),
        ("user", "two"),
    ]


def test_finished_calls_stay_under_keep_nothing_and_unfinished_ones_do_not() -> None:
    driver = Driver(tools=[tool()])
    driver.say("one", "m1")
    driver.text("Let me see. ")
    driver.result(driver.call(), json='{"b": [1, 2]}')
    driver.fragment(driver.begin_call(), '{"x')
    driver.interrupt(keep=NOTHING)
    assert told_next(driver) == [
        ("user", "one"),
        ("assistant", 'look({"a":1})'),
        ("tool", '{"b":[1,2]}'),
        ("user", "next"),
    ]
    assert driver.ending.usage.kept_tokens == 2


# --- a stop after the engine was faster than the reader ------------------------------------------


def ended() -> Driver:
    driver = Driver()
    driver.say("Count")
    driver.text("one ", "two ", "three ")
    driver.finish(silent=1)
    assert driver.usage.kept_tokens == 4
    return driver


def test_a_late_stop_cuts_back_what_was_not_displayed() -> None:
    driver = ended()
    receipt = driver.interrupt(displayed_offset=5)
    assert (receipt.status, receipt.turn_id) == (ACCEPTED, driver.turns[0].turn_id)
    event = driver.events[receipt.seq - 1]
    assert event == driver.last("turn_truncated")
    assert (event.turn_truncated.kept_chars, event.turn_truncated.dropped_chars) == (5, 9)
    assert len(driver.of("turn_finished")) == 1
    assert driver.session.view().total_usage.kept_tokens == 1
    assert driver.session.snapshots()[0].turns[0].kept_chars == 5
    assert driver.session.snapshots()[0].turns[0].text == "one two three "
    assert told_next(driver)[1] == ("assistant", "one t")


def test_an_interrupting_message_cuts_back_and_its_turn_knows() -> None:
    driver = ended()
    at = len(driver.events)
    driver.say("no!", "m2", delivery=INTERRUPT, displayed_seq=4)
    assert driver.kinds(at) == ["input_accepted", "turn_truncated", "turn_started"]
    assert {event.frame_id for event in driver.events[at:]} == {"m2"}
    assert spoken(driver.asked.messages)[1] == ("assistant", "one ")


def test_a_position_before_the_turn_cuts_all_of_it() -> None:
    driver = ended()
    driver.say("no!", delivery=INTERRUPT, displayed_seq=1)
    assert driver.of("turn_truncated")[0].kept_chars == 0
    assert spoken(driver.asked.messages) == [("user", "Count"), ("user", "no!")]


def test_acks_count_for_a_late_stop_too() -> None:
    driver = ended()
    driver.ack(5)
    driver.interrupt(displayed_offset=1)
    assert driver.of("turn_truncated")[0].kept_chars == 8


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"displayed_offset": 14},
        {"displayed_seq": 6},
        {"displayed_offset": 3, "keep": GENERATED},
        {"displayed_offset": 3, "keep": NOTHING},
    ],
)
def test_otherwise_a_late_stop_is_stale(fields: dict[str, Any]) -> None:
    driver = ended()
    receipt = driver.interrupt(**fields)
    assert (receipt.status, receipt.seq) == (STALE, 0)
    assert not driver.of("turn_truncated")


def test_a_late_stop_is_stale_once_another_turn_has_started_or_it_was_cut_before() -> None:
    driver = ended()
    turn_id = driver.turns[0].turn_id
    assert driver.interrupt(displayed_offset=3).status == ACCEPTED
    assert driver.interrupt(displayed_offset=1).status == STALE
    driver.say()
    assert driver.interrupt(turn_id, displayed_offset=1).status == STALE
    assert len(driver.of("turn_truncated")) == 1


def test_a_late_stop_of_an_interrupted_turn_is_stale() -> None:
    driver = Driver()
    driver.say()
    driver.text("one two")
    driver.interrupt(displayed_offset=5)
    driver.finish("stopped")
    assert driver.interrupt(displayed_offset=2).status == STALE


def test_the_last_turn_can_still_be_cut_when_its_owner_is_gone() -> None:
    driver = ended()
    data = driver.session.checkpoint()
    driver.lose(checkpoint=data, at_seq=len(driver.events))
    driver.attach()
    assert driver.interrupt(displayed_seq=4).status == ACCEPTED
    assert driver.of("turn_truncated")[0].kept_chars == 4
    assert driver.session.view().total_usage.kept_tokens == 1


# --- deadlines -----------------------------------------------------------------------------------


def test_a_turn_has_a_deadline_and_keeps_what_was_delivered() -> None:
    driver = Driver(tools=[tool()], limits=limits(max_turn_duration=seconds(10)))
    driver.say()
    driver.text("one ")
    call_id = driver.call()
    driver.finish("tool_calls")
    assert not driver.advance(9.9)
    driver.advance(0.1)
    assert driver.kinds()[-3:] == ["tool_call_cancelled", "tool_call_finished", "turn_finished"]
    assert driver.last("tool_call_cancelled").tool_call_cancelled.reason == "DEADLINE"
    assert driver.ending.finish_reason == DEADLINE
    assert driver.usage.kept_tokens == 3
    assert not driver.of("turn_interrupted")
    assert driver.result(call_id).status == ACCEPTED
    assert driver.of("tool_call_finished")[-1].late


def test_a_deadline_stops_the_engine_first() -> None:
    driver = Driver(limits=limits(max_turn_duration=seconds(10)))
    driver.say()
    driver.advance(10)
    assert driver.live is not None
    assert driver.live.stopped
    driver.text("too late")
    driver.finish("stopped")
    assert driver.ending.finish_reason == DEADLINE
    assert driver.usage.wasted_tokens == 1
    driver.say()
    driver.finish()
    assert driver.ending.finish_reason == STOP
