"""Calls that a turn does not wait for: declared so, or left to finish by a stop."""

from __future__ import annotations

from typing import Any

import pytest

from backchannel.session.session import Session
from backchannel.session.tools import MAX_PARTS
from backchannel.v1 import session_pb2
from tests.unit.session.driver import (
    ACCEPTED,
    CANCELLED,
    COMPLETED,
    DEADLINE,
    FAILED,
    INTERRUPTED,
    STALE,
    STOP,
    TIMED_OUT,
    Driver,
    limits,
    policy,
    refusal,
    seconds,
    spoken,
    tool,
)

SILENT = session_pb2.SCHEDULING_SILENT
WHEN_IDLE = session_pb2.SCHEDULING_WHEN_IDLE
AT_ONCE = session_pb2.SCHEDULING_INTERRUPT
LET_FINISH = session_pb2.TOOL_DISPOSITION_LET_FINISH
CANCEL = session_pb2.TOOL_DISPOSITION_CANCEL
States = session_pb2.ToolOutcome
RUNNING = ("tool", '{"status":"running"}')


def asked(**spec: object) -> tuple[Driver, str]:
    """A turn that goes on while its tool runs."""
    driver = Driver(tools=[tool("look", blocking=False, **spec), tool("wait")])
    driver.say("look it up")
    call_id = driver.call()
    driver.finish("tool_calls")
    return driver, call_id


def rested(**spec: object) -> tuple[Driver, str]:
    """A session at rest, but for its tool."""
    driver, call_id = asked(**spec)
    driver.text("On it.")
    driver.finish()
    assert driver.running is None
    return driver, call_id


def test_the_model_is_asked_again_at_once() -> None:
    driver, call_id = asked()
    assert len(driver.runs) == 2
    assert spoken(driver.asked.messages)[-1] == RUNNING
    assert driver.session.view().state == session_pb2.Session.STATE_GENERATING
    assert [one.call_id for one in driver.session.view().open_tool_calls] == [call_id]


def test_a_result_at_rest_starts_a_turn_of_its_own() -> None:
    driver, call_id = rested()
    receipt = driver.result(call_id, "r1", json='{"n": 7}')
    assert (receipt.status, receipt.turn_id) == (ACCEPTED, driver.turns[0].turn_id)
    started = driver.last("turn_started")
    assert list(started.turn_started.call_ids) == [call_id]
    assert not started.turn_started.frame_ids
    assert not started.turn_started.frame_id
    assert not started.frame_id
    assert spoken(driver.asked.messages) == [
        ("user", "look it up"),
        ("assistant", 'look({"a":1})'),
        RUNNING,
        ("assistant", "On it."),
        ("assistant", 'look({"a":1})'),
        ("tool", '{"n":7}'),
    ]
    first, second = (one for one in driver.asked.messages if one.tool_calls)
    assert first.tool_calls[0].call_id != second.tool_calls[0].call_id
    assert second.tool_calls[0].call_id == driver.asked.messages[-1].call_id
    driver.text("Seven.")
    driver.finish()
    assert driver.ending.finish_reason == STOP
    shown = driver.session.snapshots()[0].turns[-1]
    assert not shown.HasField("input")
    assert list(shown.call_ids) == [call_id]


def test_a_silent_result_waits_for_something_else() -> None:
    driver, call_id = rested()
    driver.result(call_id, json="7", scheduling=SILENT)
    assert driver.running is None
    driver.say("and?")
    started = driver.last("turn_started").turn_started
    assert list(started.call_ids) == [call_id]
    assert spoken(driver.asked.messages)[-2:] == [("tool", "7"), ("user", "and?")]


def test_a_result_while_the_turn_runs_waits_for_its_end() -> None:
    driver, call_id = asked()
    driver.text("On it, ")
    driver.result(call_id, json="7")
    assert not driver.told_to_stop()
    assert driver.of("tool_call_finished")[0].scheduling == WHEN_IDLE
    driver.text("please wait.")
    driver.finish()
    assert list(driver.last("turn_started").turn_started.call_ids) == [call_id]


def test_a_result_may_stop_the_running_turn() -> None:
    driver, call_id = asked()
    driver.text("On it, ", "please")
    receipt = driver.result(call_id, "r1", json="7", scheduling=AT_ONCE)
    assert driver.told_to_stop()
    cut = driver.of("turn_interrupted")[0]
    assert (cut.frame_id, cut.kept_chars, cut.dropped_chars) == ("r1", len("On it, please"), 0)
    assert [(one.call_id, one.state) for one in cut.tools] == [(call_id, States.STATE_COMPLETED)]
    assert driver.events[receipt.seq - 1].tool_call_finished.call_id == call_id
    driver.finish("stopped")
    assert driver.of("turn_finished")[0].finish_reason == INTERRUPTED
    assert spoken(driver.asked.messages)[-3:] == [
        ("assistant", "On it, please"),
        ("assistant", 'look({"a":1})'),
        ("tool", "7"),
    ]
    again = driver.result(call_id, "r1", json="7", scheduling=AT_ONCE)
    assert (again.seq, again.turn_id) == (receipt.seq, receipt.turn_id)


def test_a_result_in_time_stands_in_its_place() -> None:
    driver = Driver(tools=[tool("look", blocking=False), tool("wait")])
    driver.say()
    call_id = driver.call()
    waited = driver.call("wait")
    driver.finish("tool_calls")
    assert len(driver.runs) == 1
    driver.result(call_id, json="7", scheduling=AT_ONCE)
    assert driver.of("tool_call_finished")[0].scheduling == session_pb2.SCHEDULING_UNSPECIFIED
    driver.result(waited, json="8")
    assert spoken(driver.asked.messages)[-2:] == [("tool", "7"), ("tool", "8")]
    driver.finish()
    assert driver.running is None
    assert not driver.state.deferred


def test_nobody_is_there_to_read_what_a_result_would_start() -> None:
    driver = Driver(readers=0, tools=[tool(blocking=False)], on_disconnect=policy(1, 5))
    driver.say()
    call_id = driver.call()
    driver.finish("tool_calls")
    driver.finish()
    driver.advance(20)
    driver.result(call_id, json="7")
    assert driver.running is None
    driver.attach()
    assert list(driver.last("turn_started").turn_started.call_ids) == [call_id]


def test_its_time_runs_out_long_after_its_turn() -> None:
    driver, call_id = rested(timeout=seconds(50), idle_timeout=seconds(50))
    driver.advance(30)
    assert driver.progress(call_id, note="still there").status == ACCEPTED
    driver.advance(25)
    ended = driver.of("tool_call_finished")[0]
    assert (ended.outcome, ended.scheduling) == (TIMED_OUT, WHEN_IDLE)
    assert spoken(driver.asked.messages)[-1] == ("tool", '{"error":"timed out"}')


def test_no_checkpoint_while_it_is_open() -> None:
    driver, call_id = rested()
    assert (driver.session.active, driver.session.quiescent) == (True, False)
    with pytest.raises(ValueError, match="1 calls open"):
        driver.session.checkpoint()
    driver.result(call_id, json="7", scheduling=SILENT)
    assert driver.session.quiescent
    data = driver.session.checkpoint()
    loaded = Session.fold(data, (), ids=driver.new_id)
    assert loaded.state.deferred == driver.state.deferred
    driver.session = loaded
    driver.attach()
    driver.say("and?")
    assert spoken(driver.asked.messages)[-2:] == [("tool", "7"), ("user", "and?")]
    assert spoken(driver.asked.messages)[2] == RUNNING


def test_it_outlives_its_process_too() -> None:
    driver, call_id = rested(timeout=seconds(50))
    driver.lose(away_s=10)
    driver.attach()
    driver.result(call_id, json="7")
    assert list(driver.last("turn_started").turn_started.call_ids) == [call_id]
    late, late_id = rested(timeout=seconds(50))
    late.lose(away_s=100)
    late.attach()
    late.advance(4)
    assert not late.of("tool_call_finished")
    late.advance(2)
    assert late.of("tool_call_finished")[0].outcome == TIMED_OUT
    assert late_id


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize("said", [False, True])
def test_a_stop_leaves_calls_to_finish_if_it_or_the_tool_says_so(
    declared: bool, said: bool
) -> None:
    kept = LET_FINISH if declared else CANCEL
    driver = Driver(tools=[tool("look", on_interrupt=kept, side_effect=3)])
    driver.say("do it")
    call_id = driver.call()
    driver.finish("tool_calls")
    driver.interrupt(tools=LET_FINISH if said else session_pb2.TOOL_DISPOSITION_UNSPECIFIED)
    cut = driver.of("turn_interrupted")[0]
    left = declared or said
    told = States.STATE_STILL_RUNNING if left else States.STATE_CANCEL_SENT
    assert [(one.state, one.side_effect) for one in cut.tools] == [(told, 3)]
    assert bool(driver.of("tool_call_cancelled")) != left
    assert driver.running is None
    receipt = driver.result(call_id, json="7")
    assert receipt.status == ACCEPTED
    ended = driver.of("tool_call_finished")[-1]
    assert (ended.late, ended.outcome, ended.scheduling) == (not left, COMPLETED, SILENT)
    assert driver.running is None, "nobody waited for it"
    driver.say("what became of it?")
    place = '{"status":"running"}' if left else '{"error":"cancelled; it may or may not have run"}'
    assert spoken(driver.asked.messages) == [
        ("user", "do it"),
        ("assistant", 'look({"a":1})'),
        ("tool", place),
        ("assistant", 'look({"a":1})'),
        ("tool", "7"),
        ("user", "what became of it?"),
    ]


def test_a_stop_may_cancel_what_the_tool_would_let_finish() -> None:
    driver = Driver(tools=[tool("look", on_interrupt=LET_FINISH)])
    driver.say()
    driver.call()
    driver.finish("tool_calls")
    driver.interrupt(tools=CANCEL)
    assert driver.of("tool_call_finished")[0].outcome == CANCELLED


@pytest.mark.parametrize("result_first", [True, False])
def test_a_result_races_the_stop(result_first: bool) -> None:
    driver = Driver(tools=[tool()])
    driver.say()
    call_id = driver.call()
    driver.call()
    driver.finish("tool_calls")
    if result_first:
        driver.result(call_id, json="7")
        driver.interrupt()
    else:
        driver.interrupt()
        driver.result(call_id, json="7")
    cut = driver.of("turn_interrupted")[0]
    first = States.STATE_COMPLETED if result_first else States.STATE_CANCEL_SENT
    assert [one.state for one in cut.tools] == [first, States.STATE_CANCEL_SENT]
    late = [one.late for one in driver.of("tool_call_finished") if one.call_id == call_id]
    assert late == ([False] if result_first else [False, True])


def test_a_stop_cancels_a_call_that_the_turn_had_gone_on_without() -> None:
    driver, call_id = asked()
    driver.text("On it")
    driver.interrupt()
    driver.finish("stopped")
    assert driver.of("tool_call_cancelled")[0].call_id == call_id
    driver.say("well?")
    said = spoken(driver.asked.messages)
    assert said[2] == RUNNING, "what was told stays as it was told"
    assert ("tool", '{"error":"cancelled; it may or may not have run"}') in said


def test_other_endings_close_it() -> None:
    driver = Driver(tools=[tool(blocking=False)], limits=limits(max_turn_duration=seconds(5)))
    driver.say()
    call_id = driver.call()
    driver.finish("tool_calls")
    driver.advance(6)
    driver.finish("stopped")
    assert driver.of("turn_finished")[0].finish_reason == DEADLINE
    assert driver.of("tool_call_finished")[0].outcome == CANCELLED
    assert driver.of("tool_call_finished")[0].call_id == call_id


def test_closing_the_session_closes_every_call() -> None:
    driver, call_id = rested()
    driver.close()
    assert driver.kinds()[-3:] == ["tool_call_cancelled", "tool_call_finished", "session_closed"]
    assert driver.of("tool_call_cancelled")[0].reason == "CLOSED"
    assert call_id


# --- results in parts ----------------------------------------------------------------------------


def text(words: str) -> session_pb2.Content:
    return session_pb2.Content(parts=[session_pb2.Part(text=words)])


@pytest.mark.parametrize(
    ("parts", "last", "told"),
    [
        ([{"content": text("one ")}], {"content": text("two")}, '"one two"'),
        ([{"content": text("one ")}], {"content": session_pb2.Content()}, '"one "'),
        ([{"json": "1"}, {"json": '{"a": 2}'}], {"json": "3"}, '[1,{"a":2},3]'),
        ([{"json": "1"}], {"content": text("two")}, '[1,"two"]'),
        ([{"json": '"\\ud800"'}], {"json": '"é"'}, '["\\ud800","\\u00e9"]'),
        ([{"json": "1"}], {"error": session_pb2.ToolError(message="no")}, '{"error":"no"}'),
    ],
)
def test_readers_get_each_part_and_the_model_the_whole(
    parts: list[dict[str, Any]], last: dict[str, Any], told: str
) -> None:
    driver = Driver(tools=[tool(idle_timeout=seconds(10), timeout=seconds(100))])
    driver.say()
    call_id = driver.call()
    driver.finish("tool_calls")
    for index, one in enumerate(parts):
        driver.advance(8)
        receipt = driver.result(call_id, f"p{index}", partial=True, **one)
        assert receipt.status == ACCEPTED
        output = driver.events[receipt.seq - 1].tool_call_output
        assert (output.call_id, output.index) == (call_id, index)
        assert driver.result(call_id, f"p{index}", partial=True, **one).seq == receipt.seq
    driver.advance(8)
    assert not driver.of("tool_call_finished"), "each part is a sign of life"
    driver.lose()
    driver.attach()
    driver.result(call_id, **last)
    assert spoken(driver.asked.messages)[-1] == ("tool", told)
    failed = "error" in last
    assert driver.of("tool_call_finished")[0].outcome == (FAILED if failed else COMPLETED)
    assert driver.result(call_id, partial=True, json="9").status == STALE


def test_parts_are_bounded() -> None:
    driver = Driver(tools=[tool()])
    driver.say()
    call_id = driver.call()
    driver.finish("tool_calls")
    big = '"' + "x" * 600_000 + '"'
    assert driver.result(call_id, partial=True, json=big).status == ACCEPTED
    assert refusal(driver.result(call_id, partial=True, json=big)) == "FIELD_TOO_LONG"
    assert refusal(driver.result(call_id, json=big)) == "FIELD_TOO_LONG"
    error = session_pb2.ToolError(message="too much")
    assert refusal(driver.result(call_id, partial=True, error=error)) == "FIELD_INVALID"
    assert driver.result(call_id, error=error).status == ACCEPTED
    many = Driver(tools=[tool()])
    many.say()
    call_id = many.call()
    many.finish("tool_calls")
    for _ in range(MAX_PARTS - 1):
        many.result(call_id, partial=True, json="1")
    assert refusal(many.result(call_id, partial=True, json="1")) == "FIELD_TOO_LONG"
    assert many.result(call_id, json="1").status == ACCEPTED
