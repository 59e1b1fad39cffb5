"""What a session cost, told from its events: against the server's own sums, whatever happened."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import settings

from backchannel.cli.statement import Phases, Statement
from backchannel.v1 import event_pb2, session_pb2
from tests.scale import scale
from tests.unit.session.driver import (
    CANCELLED,
    COMPLETED,
    INTERRUPT,
    INTERRUPTED,
    MS,
    OWNER_LOST,
    STOP,
    Driver,
    tool,
)
from tests.unit.session.test_machine import Conversation

STEER = session_pb2.DELIVERY_STEER
IRREVERSIBLE = session_pb2.SIDE_EFFECT_IRREVERSIBLE


def told(events: Iterable[event_pb2.Event]) -> Statement:
    statement = Statement()
    for event in events:
        statement.feed(event)
    return statement


def problems(driver: Driver) -> list[str]:
    return told(driver.events).problems(driver.state.total_usage)


# --- any session -----------------------------------------------------------------------------


class Billed(Conversation):
    """Any conversation there may be; its bill is checked where it breaks off, and at its end."""

    def promises_hold(self) -> None:
        """What a session promises otherwise is checked elsewhere, and takes its time."""

    def teardown(self) -> None:
        if hasattr(self, "driver"):
            self.check_bill()
            super().teardown()
            self.check_bill()

    def check_bill(self) -> None:
        """Seen from the log alone, everything adds up to what the server says."""
        driver = self.driver
        statement = told(driver.events)
        assert statement.problems(driver.state.total_usage) == []
        turns = statement.turns
        assert [turn.turn_id for turn in turns] == [turn.turn_id for turn in driver.turns]
        assert [turn.running for turn in turns[:-1]] == [False] * len(turns[:-1])
        assert [one.frame_id for one in statement.waiting] == [
            one.frame_id for one in driver.state.queue
        ]
        for turn, real in zip(turns, driver.turns, strict=True):
            assert [call.outcome for call in turn.calls] == [call.outcome for call in real.calls]
            phases = turn.phases
            parts = (
                phases.queued_ns,
                phases.first_token_ns,
                phases.generating_ns,
                phases.tools_ns,
                phases.stopping_ns,
            )
            assert min(parts) >= 0
            if not turn.running:
                ended = next(
                    event.time.ToNanoseconds()
                    for event in driver.events
                    if event.turn_finished.turn_id == turn.turn_id
                )
                assert phases.total_ns == ended - real.accepted_ns


def test_a_turn_tells_which_model_answered_behind_an_alias() -> None:
    started = event_pb2.Event(seq=1, turn_started=event_pb2.TurnStarted(turn_id="t", model="fast"))
    ended = event_pb2.Event(
        seq=2,
        turn_finished=event_pb2.TurnFinished(
            turn_id="t", finish_reason=session_pb2.FINISH_REASON_STOP, model="spare/qwen"
        ),
    )
    assert [turn.model for turn in told([started]).turns] == ["fast"]
    assert [turn.model for turn in told([started, ended]).turns] == ["spare/qwen"]


TestBilled = Billed.TestCase
TestBilled.settings = settings(max_examples=scale(25, 2000), stateful_step_count=scale(40, 80))


# --- phases ----------------------------------------------------------------------------------


def test_the_time_of_a_turn_with_tools_is_told_apart() -> None:
    driver = Driver(tools=[tool("look")])
    driver.say()
    driver.advance(0.010)
    driver.admit()
    driver.advance(0.020)
    driver.text("Let", " me")
    driver.advance(0.030)
    call_id = driver.call()
    driver.finish("tool_calls")
    driver.advance(0.400)
    driver.result(call_id)
    driver.advance(0.007)
    driver.text(" see")
    driver.advance(0.050)
    driver.finish()
    (turn,) = told(driver.events).turns
    assert turn.phases == Phases(10 * MS, 27 * MS, 80 * MS, 400 * MS, 0)
    assert (turn.finish_reason, turn.usage) == (STOP, driver.usage)


def test_a_call_that_is_answered_while_the_next_is_written_waits_for_nothing() -> None:
    driver = Driver(tools=[tool("look")])
    driver.say()
    driver.admit()
    first = driver.call()
    driver.advance(0.100)
    driver.result(first)
    driver.advance(0.100)
    second = driver.call()
    driver.finish("tool_calls")
    driver.advance(0.300)
    driver.result(second)
    driver.text("Done")
    driver.finish()
    (turn,) = told(driver.events).turns
    assert turn.phases == Phases(0, 0, 200 * MS, 300 * MS, 0)


def test_a_tool_that_nobody_waits_for_is_no_wait() -> None:
    driver = Driver(tools=[tool("look", blocking=False)])
    driver.say()
    driver.admit()
    call_id = driver.call()
    driver.finish("tool_calls")
    driver.text("Meanwhile")
    driver.advance(0.200)
    driver.result(call_id)
    driver.finish()
    assert told(driver.events).turns[0].phases == Phases(0, 0, 200 * MS, 0, 0)


def test_a_turn_that_a_result_starts_waits_since_that_came() -> None:
    driver = Driver(tools=[tool("look", blocking=False)])
    driver.say()
    call_id = driver.call()
    driver.finish("tool_calls")
    driver.result(call_id)
    driver.advance(0.300)
    driver.finish()
    first, second = told(driver.events).turns
    assert (first.input, second.input) == ("Hello", "")
    assert second.phases == Phases(300 * MS)
    assert problems(driver) == []


def test_stopping_is_from_the_stop_to_its_confirmation() -> None:
    driver = Driver()
    driver.say()
    driver.admit()
    driver.text("One")
    driver.advance(0.010)
    driver.interrupt()
    driver.advance(0.040)
    driver.text(" two")
    driver.finish("stopped")
    (turn,) = told(driver.events).turns
    assert turn.phases == Phases(0, 0, 10 * MS, 0, 40 * MS)
    assert (turn.usage.delivered_tokens, turn.usage.wasted_tokens) == (1, 1)
    assert turn.finish_reason == INTERRUPTED


def test_a_stop_between_two_rounds_is_no_wait_for_tools() -> None:
    driver = Driver(tools=[tool("look")])
    driver.say()
    driver.admit()
    call_id = driver.call()
    driver.finish("tool_calls")
    driver.advance(0.100)
    driver.result(call_id)
    driver.advance(0.020)
    driver.interrupt()
    driver.finish("stopped")
    (turn,) = told(driver.events).turns
    assert turn.phases == Phases(0, 20 * MS, 0, 100 * MS, 0)


def test_what_no_engine_took_up_was_queued() -> None:
    driver = Driver()
    driver.say()
    driver.advance(0.500)
    driver.interrupt()
    driver.finish("stopped", output_tokens=0, prompt=(0, 0))
    (turn,) = told(driver.events).turns
    assert turn.phases == Phases(500 * MS)


@pytest.mark.parametrize("delivery", [INTERRUPT, STEER])
def test_a_message_that_goes_first_is_not_billed_to_the_one_that_waited(
    delivery: session_pb2.Delivery.ValueType,
) -> None:
    driver = Driver()
    driver.say("first", "a")
    driver.text("Well")
    driver.say("second", "b")
    driver.advance(0.100)
    driver.say("third", "c", delivery=delivery)
    if delivery == STEER:
        driver.text(". ", "More")
    driver.finish("stopped")
    driver.advance(0.050)
    driver.text("x")
    statement = told(driver.events)
    assert [turn.input for turn in statement.turns] == ["first", "third"]
    assert statement.turns[-1].phases.total_ns == 50 * MS
    assert [waiting.text for waiting in statement.waiting] == ["second"]


# --- a turn that runs, calls ------------------------------------------------------------------


def test_a_running_turn_is_told_so_far_and_is_in_no_sum() -> None:
    driver = Driver(tools=[tool("look", side_effect=IRREVERSIBLE)])
    driver.answer("One", " two")
    driver.say()
    driver.advance(0.100)
    driver.text("Three")
    driver.call()
    driver.finish("tool_calls")
    statement = told(driver.events)
    running = statement.turns[-1]
    assert running.running
    assert running.usage.delivered_tokens == 3
    assert running.phases.first_token_ns == 100 * MS
    assert statement.total() == driver.state.total_usage
    assert statement.total().generated_tokens == 2
    (call,) = running.calls
    assert (call.name, call.ready, call.outcome) == ("look", True, 0)
    assert call.side_effect == IRREVERSIBLE


def test_calls_are_told_with_their_outcomes() -> None:
    driver = Driver(tools=[tool("look"), tool("pay", side_effect=IRREVERSIBLE)])
    driver.say()
    looked, paid = driver.call("look"), driver.call("pay")
    driver.finish("tool_calls")
    driver.result(looked)
    driver.interrupt()
    driver.result(paid)
    (turn,) = told(driver.events).turns
    assert [(call.name, call.outcome, call.late_results) for call in turn.calls] == [
        ("look", COMPLETED, 0),
        ("pay", CANCELLED, 1),
    ]


def test_a_turn_that_was_lost_is_an_estimate() -> None:
    driver = Driver()
    driver.say()
    driver.text("One")
    driver.lose(away_s=1)
    statement = told(driver.events)
    assert statement.turns[0].finish_reason == OWNER_LOST
    assert statement.total().estimated
    assert problems(driver) == []


# --- trimmed logs ----------------------------------------------------------------------------


def test_what_a_trimmed_log_does_not_tell_is_taken_from_the_snapshot() -> None:
    driver = Driver()
    driver.answer("One", " two")
    driver.advance(1)
    begun = len(driver.events)
    driver.answer("Three")
    (snapshot,) = driver.session.snapshots()
    for trimmed in (begun, begun + 2):  # Between two turns; in the middle of one.
        statement = told(driver.events[trimmed:])
        statement.take_past(snapshot.turns, "scripted/echo")
        assert statement.problems(driver.state.total_usage) == []
        assert [turn.number for turn in statement.turns] == [1, 2]
        assert [turn.model for turn in statement.turns] == ["scripted/echo"] * 2
        assert [turn.complete for turn in statement.turns] == [False, trimmed == begun]
        assert statement.past == (1 if trimmed == begun else 2)


# --- what does not add up ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("generated_tokens", "turn 1: 3 tokens generated are not 2 delivered and 0 wasted"),
        ("delivered_tokens", "turn 1: 2 tokens are in the log, and 3 are billed as delivered"),
        ("kept_tokens", "turn 1: 3 tokens kept, of 2 delivered"),
        ("prompt_tokens", "prompt tokens: the turns add up to 11, and the server's total is 10"),
    ],
)
def test_a_bill_that_is_wrong_is_found_out(field: str, said: str) -> None:
    driver = Driver()
    driver.answer("One", " two")
    assert problems(driver) == []
    usage = driver.last("turn_finished").turn_finished.usage
    setattr(usage, field, getattr(usage, field) + 1)
    assert said in problems(driver)


def test_a_cut_after_the_end_changes_what_is_kept() -> None:
    driver = Driver()
    driver.say()
    driver.think("Hm", " hm")
    driver.text("One", " two", " three")
    driver.finish()
    seen = driver.last("output_delta").seq - 1
    driver.interrupt(displayed_seq=seen)
    statement = told(driver.events)
    assert driver.kinds()[-1] == "turn_truncated"
    assert statement.turns[0].usage.kept_tokens == driver.state.total_usage.kept_tokens == 4
    assert problems(driver) == []
