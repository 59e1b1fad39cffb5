"""Tool rounds: calls, results, the two deadlines, and what the model is told."""

from __future__ import annotations

from typing import Any

import pytest

from backchannel.v1 import session_pb2
from tests.unit.session.driver import (
    ACCEPTED,
    COMPLETED,
    DUPLICATE,
    ERROR,
    FAILED,
    LENGTH,
    SECOND,
    STALE,
    STOP,
    TIMED_OUT,
    TOOL_CALLS,
    Driver,
    kind_of,
    limits,
    refusal,
    seconds,
    spoken,
    tool,
)

NESTED = "[" * 128 + "]" * 128


def asking(*, calls: int = 1, **config: Any) -> tuple[Driver, list[str]]:
    """A turn that waits for the results of its calls."""
    driver = Driver(tools=[tool(), tool("other")], **config)
    driver.say("Look")
    ids = [driver.call() for _ in range(calls)]
    driver.finish("tool_calls")
    return driver, ids


def test_a_round_from_the_call_to_the_answer() -> None:
    driver = Driver(tools=[tool("look", idle_timeout=seconds(5), timeout=seconds(20))])
    driver.say("Look", "m1")
    driver.text("Let me see. ")
    at = len(driver.events)
    call_id = driver.call("look", '{"a": 1}')
    assert driver.kinds(at) == [
        "tool_call_started",
        "tool_call_delta",
        "tool_call_delta",
        "tool_call_ready",
    ]
    assert "".join(one.arguments_fragment for one in driver.of("tool_call_delta")) == '{"a": 1}'
    ready = driver.of("tool_call_ready")[0]
    assert (ready.name, ready.arguments_json) == ("look", '{"a": 1}')
    assert ready.idle_deadline.ToNanoseconds() == driver.now_ns + 5 * SECOND
    assert ready.deadline.ToNanoseconds() == driver.now_ns + 20 * SECOND
    assert driver.session.view().state == session_pb2.Session.STATE_GENERATING
    driver.finish("tool_calls")
    assert driver.session.view().state == session_pb2.Session.STATE_WAITING_FOR_TOOLS
    assert [one.call_id for one in driver.session.view().open_tool_calls] == [call_id]

    receipt = driver.result(call_id, "r1", json='{"b": [1, "\u00e9"]}')
    assert (receipt.status, receipt.turn_id) == (ACCEPTED, driver.turns[0].turn_id)
    finished = driver.events[receipt.seq - 1]
    assert finished.frame_id == "r1"
    assert finished.tool_call_finished.outcome == COMPLETED
    assert not finished.tool_call_finished.late
    assert spoken(driver.asked.messages) == [
        ("user", "Look"),
        ("assistant", 'Let me see. look({"a": 1})'),
        ("tool", '{"b":[1,"\u00e9"]}'),
    ]
    driver.text("It is 1.")
    driver.finish(silent=1)
    assert driver.ending.finish_reason == STOP
    assert driver.usage == session_pb2.Usage(
        prompt_tokens=20,
        cached_prompt_tokens=8,
        generated_tokens=5,
        delivered_tokens=5,
        kept_tokens=5,
    )
    driver.say("next")
    assert spoken(driver.asked.messages)[3:] == [("assistant", "It is 1."), ("user", "next")]


@pytest.mark.parametrize(
    ("outcome", "end", "told"),
    [
        ({"json": " [1, 2.50] "}, COMPLETED, "[1,2.5]"),
        ({"json": '"\\ud83d\\ude00"'}, COMPLETED, '"\U0001f600"'),
        ({"json": '{"half": "\\ud800"}'}, COMPLETED, '{"half":"\\ud800"}'),
        ({"json": NESTED}, COMPLETED, NESTED),
        (
            {
                "content": session_pb2.Content(
                    parts=[session_pb2.Part(text="a\n"), session_pb2.Part(text="b")]
                )
            },
            COMPLETED,
            '"a\\nb"',
        ),
        ({"content": session_pb2.Content()}, COMPLETED, '""'),
        ({"error": session_pb2.ToolError(message="no", code="E")}, FAILED, '{"error":"no"}'),
        ({"error": session_pb2.ToolError(code="E")}, FAILED, '{"error":"E"}'),
    ],
)
def test_every_kind_of_result(outcome: dict[str, Any], end: int, told: str) -> None:
    driver, (call_id,) = asking()
    driver.result(call_id, **outcome)
    assert driver.of("tool_call_finished")[0].outcome == end
    assert spoken(driver.asked.messages)[-1] == ("tool", told)


@pytest.mark.parametrize(
    "json", ["{", "NaN", "1e999", "[1]]", "[" * 129 + "]" * 129, "[" * 5000 + "]" * 5000]
)
def test_a_result_that_could_not_be_passed_on_is_refused(json: str) -> None:
    driver, (call_id,) = asking()
    assert refusal(driver.result(call_id, json=json)) == "FIELD_INVALID"
    assert driver.result(call_id, json="1").status == ACCEPTED


def test_half_a_surrogate_pair_in_a_result_does_not_break_the_session() -> None:
    # It is taken while another call is open, and comes into a prompt only later.
    driver, (first, second) = asking(calls=2)
    driver.result(first, json='"\\ud800"')
    driver.result(second, json="2")
    assert spoken(driver.asked.messages)[-2:] == [("tool", '"\\ud800"'), ("tool", "2")]


def test_a_result_for_a_call_that_never_was_is_refused() -> None:
    driver = Driver(tools=[tool()])
    driver.say()
    index = driver.begin_call()
    assert refusal(driver.result("no-such-call")) == "TOOL_CALL_NOT_FOUND"
    started = driver.of("tool_call_started")[0].call_id
    assert refusal(driver.result(started)) == "TOOL_CALL_NOT_FOUND"
    assert refusal(driver.progress(started)) == "TOOL_CALL_NOT_FOUND"
    driver.end_call(index)
    assert driver.result(started).status == ACCEPTED


def test_the_engine_is_asked_again_when_all_calls_are_answered() -> None:
    driver, (first, second) = asking(calls=2)
    driver.result(second, json="2")
    assert len(driver.runs) == 1
    driver.result(first, json="1")
    assert len(driver.runs) == 2
    assert spoken(driver.asked.messages)[1:] == [
        ("assistant", 'look({"a":1})look({"a":1})'),
        ("tool", "1"),
        ("tool", "2"),
    ]
    calls = driver.asked.messages[1].tool_calls
    assert [one.call_id for one in calls] == [first, second]
    assert [one.call_id for one in driver.asked.messages[2:]] == [first, second]


def test_a_result_in_the_middle_of_a_round_does_not_begin_another() -> None:
    """What the model wrote in one go is told as one message, also after a crash."""
    driver = Driver(tools=[tool(), tool("other")], limits=limits(max_tool_rounds=1))
    driver.say("Look")
    first = driver.call("look")
    driver.result(first, "r1", json="1")
    driver.text("And the other. ")
    second = driver.call("other")
    driver.finish("tool_calls")
    driver.lose()
    driver.result(second, "r2", json="2")
    assert spoken(driver.asked.messages) == [
        ("user", "Look"),
        ("assistant", 'And the other. look({"a":1})other({"a":1})'),
        ("tool", "1"),
        ("tool", "2"),
    ]
    # It was one round, so one more call is one too many.
    driver.text("Done")
    assert driver.of("output_delta")[-1].round == 1
    driver.begin_call()
    driver.finish("stopped")
    assert driver.ending.finish_reason == TOOL_CALLS


def test_results_may_come_while_the_model_still_writes() -> None:
    driver = Driver(tools=[tool()])
    driver.say("Look")
    first = driver.call()
    driver.result(first, json="1")
    assert len(driver.runs) == 1
    second = driver.call()
    driver.finish("tool_calls")
    assert driver.live is None
    driver.result(second, json="2")
    assert len(driver.runs) == 2
    told = spoken(driver.asked.messages)
    assert [one for one in told if one[0] == "tool"] == [("tool", "1"), ("tool", "2")]
    assert [text for role, text in told if role == "assistant"]


def test_results_that_all_came_early_are_told_when_the_engine_has_finished() -> None:
    driver = Driver(tools=[tool()])
    driver.say("Look")
    driver.result(driver.call(), json="1")
    driver.finish("tool_calls", silent=1)
    assert len(driver.runs) == 2
    assert spoken(driver.asked.messages)[-1] == ("tool", "1")


def test_several_rounds() -> None:
    driver = Driver(tools=[tool()])
    driver.say("Look")
    for number in range(3):
        driver.text(f"{number}. ")
        call_id = driver.call()
        driver.finish("tool_calls", silent=1)
        driver.result(call_id, json=str(number))
    assert spoken(driver.asked.messages)[1:] == [
        said
        for number in range(3)
        for said in (("assistant", f'{number}. look({{"a":1}})'), ("tool", str(number)))
    ]
    driver.finish()
    assert driver.ending.finish_reason == STOP


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("nothing", "{}", "there is no tool named 'nothing'"),
        ("look", "[1]", "the arguments are not one JSON object"),
        ("look", "{oops", "the arguments are not one JSON object"),
    ],
)
def test_a_call_that_cannot_be_run_fails_at_once_and_the_model_is_told(
    name: str, arguments: str, told: str
) -> None:
    driver = Driver(tools=[tool()])
    driver.say("Look")
    index = driver.begin_call(name)
    driver.fragment(index, arguments)
    at = len(driver.events)
    driver.end_call(index)
    assert driver.kinds(at) == ["tool_call_ready", "tool_call_finished"]
    assert driver.of("tool_call_finished")[0].outcome == FAILED
    driver.finish("tool_calls")
    assert told in spoken(driver.asked.messages)[-1][1]


def test_a_call_without_arguments_has_an_empty_object() -> None:
    driver = Driver(tools=[tool()])
    driver.say("Look")
    driver.end_call(driver.begin_call())
    assert driver.of("tool_call_ready")[0].arguments_json == "{}"


def test_a_call_that_is_cut_off_by_the_length_is_dropped() -> None:
    driver = Driver(tools=[tool()])
    driver.say("Look")
    driver.fragment(driver.begin_call(), '{"a')
    driver.finish("length")
    assert driver.ending.finish_reason == LENGTH
    assert (driver.usage.delivered_tokens, driver.usage.kept_tokens) == (1, 0)
    driver.say("next")
    assert spoken(driver.asked.messages) == [("user", "Look"), ("user", "next")]


# --- deadlines and progress ----------------------------------------------------------------------


def impatient(**config: Any) -> tuple[Driver, str]:
    driver = Driver(tools=[tool(idle_timeout=seconds(5), timeout=seconds(12))], **config)
    driver.say("Look")
    call_id = driver.call()
    driver.finish("tool_calls")
    return driver, call_id


def test_a_silent_call_times_out_and_the_turn_goes_on() -> None:
    driver, call_id = impatient()
    assert not driver.advance(4.9)
    assert [kind_of(event) for event in driver.advance(0.1)] == ["tool_call_finished"]
    finished = driver.of("tool_call_finished")[0]
    assert (finished.call_id, finished.outcome, finished.late) == (call_id, TIMED_OUT, False)
    assert not finished.HasField("result")
    assert spoken(driver.asked.messages)[-1] == ("tool", '{"error":"timed out"}')
    driver.text("Sorry.")
    driver.finish()
    assert driver.ending.finish_reason == STOP


def test_progress_moves_the_idle_deadline_but_not_the_other() -> None:
    driver, call_id = impatient()
    for _ in range(3):
        driver.advance(3)
        receipt = driver.progress(call_id, fraction=0.5, note="half")
        assert receipt.status == ACCEPTED
        assert receipt.turn_id == driver.turns[0].turn_id
        event = driver.events[receipt.seq - 1]
        assert event.frame_id == receipt.frame_id
        progressed = event.tool_call_progressed
        assert (progressed.fraction, progressed.note) == (0.5, "half")
        expected_ns = min(driver.now_ns + 5 * SECOND, driver.turns[0].started_ns + 12 * SECOND)
        assert progressed.idle_deadline.ToNanoseconds() == expected_ns
    assert not driver.advance(2.9)
    driver.advance(0.1)
    assert driver.of("tool_call_finished")[0].outcome == TIMED_OUT


def test_progress_is_logged_at_most_once_a_second_and_the_newest_then() -> None:
    driver, call_id = impatient()
    driver.progress(call_id, note="1")
    for note in ("2", "3"):
        driver.advance(0.3)
        receipt = driver.progress(call_id, f"p{note}", note=note)
        assert (receipt.status, receipt.seq) == (ACCEPTED, 0)
    assert driver.progress(call_id, "p3", note="3").status == DUPLICATE
    assert not driver.advance(0.3)
    moved_ns = driver.now_ns - 3 * SECOND // 10 + 5 * SECOND
    (event,) = driver.advance(0.1)
    assert event.tool_call_progressed.note == "3"
    assert event.tool_call_progressed.idle_deadline.ToNanoseconds() == moved_ns
    assert event.frame_id == ""
    driver.advance(4.5)
    assert not driver.of("tool_call_finished")
    driver.advance(0.1)
    assert driver.of("tool_call_finished")[0].outcome == TIMED_OUT


def test_progress_of_a_call_that_has_ended_is_stale() -> None:
    driver, call_id = impatient()
    driver.result(call_id)
    assert driver.progress(call_id).status == STALE


def test_late_results_are_kept_and_the_first_is_told_to_the_next_turn() -> None:
    driver, call_id = impatient()
    driver.advance(5)
    at = len(driver.events)
    for number in range(4):
        receipt = driver.result(call_id, f"r{number}", json=str(number))
        assert receipt.status == ACCEPTED
        assert receipt.turn_id == driver.turns[0].turn_id
    assert refusal(driver.result(call_id, json="9")) == "LATE_RESULTS_FULL"
    assert driver.kinds(at) == ["tool_call_finished"] * 4
    late = driver.of("tool_call_finished")[1:]
    assert [(one.late, one.result.json) for one in late] == [(True, str(n)) for n in range(4)]
    driver.finish()
    driver.say("next")
    said = spoken(driver.asked.messages)
    assert [one for one in said if one[0] == "tool"] == [
        ("tool", '{"error":"timed out"}'),
        ("tool", "0"),
    ]
    assert said[-3:] == [("assistant", 'look({"a":1})'), ("tool", "0"), ("user", "next")]
    assert list(driver.last("turn_started").turn_started.call_ids) == [call_id]
    driver.finish()
    driver.say("and now")
    assert not driver.last("turn_started").turn_started.call_ids
    assert spoken(driver.asked.messages)[: len(said)] == said


def test_the_first_result_counts_though_another_reader_sends_a_better_one() -> None:
    driver, (call_id,) = asking()
    driver.result(call_id, json="1")
    driver.result(call_id, json="2")
    assert [one.late for one in driver.of("tool_call_finished")] == [False, True]
    driver.finish()
    driver.say("next")
    assert ("tool", "1") in spoken(driver.asked.messages)
    assert driver.session.snapshots()[0].turns[0].tool_calls[0].result.json == "1"


def test_the_same_result_twice_is_one_result() -> None:
    driver, (call_id,) = asking()
    first = driver.result(call_id, "r1")
    again = driver.result(call_id, "r1")
    assert (again.status, again.seq, again.turn_id) == (DUPLICATE, first.seq, first.turn_id)
    assert len(driver.of("tool_call_finished")) == 1
    assert len(driver.runs) == 2


# --- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_one_round_more_than_allowed_ends_the_turn(rounds: int) -> None:
    driver = Driver(tools=[tool()], limits=limits(max_tool_rounds=rounds))
    driver.say("Look")
    for _ in range(rounds):
        first, second = driver.call(), driver.call()
        driver.finish("tool_calls")
        driver.result(first)
        driver.result(second)
    driver.text("more")
    index = driver.begin_call()
    assert driver.live is not None
    assert driver.live.stopped
    driver.fragment(index, "{}", 3)
    driver.finish("stopped")
    assert driver.ending.finish_reason == TOOL_CALLS
    assert driver.usage.wasted_tokens == 3
    assert len(driver.of("tool_call_started")) == 2 * rounds


def test_max_tokens_are_for_all_rounds_together() -> None:
    driver = Driver(tools=[tool()], sampling=session_pb2.Sampling(max_tokens=6))
    driver.say("Look")
    driver.text("a ", "b ")
    call_id = driver.call()
    driver.finish("tool_calls", silent=1)
    driver.result(call_id)
    assert driver.asked.sampling.max_tokens == 1
    call_id = driver.call("look", "{}")
    driver.finish("tool_calls")
    driver.result(call_id)
    assert driver.ending.finish_reason == LENGTH
    assert driver.running is None


def test_an_engine_that_fails_between_calls_closes_them() -> None:
    driver = Driver(tools=[tool()])
    driver.say("Look")
    driver.call()
    driver.fail()
    assert driver.kinds()[-3:] == ["tool_call_cancelled", "tool_call_finished", "turn_finished"]
    assert driver.last("tool_call_cancelled").tool_call_cancelled.reason == "ERROR"
    assert driver.ending.finish_reason == ERROR


def test_a_timeout_longer_than_the_other_is_cut_to_it() -> None:
    driver = Driver(tools=[tool(idle_timeout=seconds(50), timeout=seconds(10))])
    driver.say()
    driver.call()
    ready = driver.of("tool_call_ready")[0]
    assert ready.idle_deadline == ready.deadline
