"""What the comparison with the reference has found, as plain examples."""

from __future__ import annotations

from backchannel.v1 import session_pb2
from tests.unit.session.driver import (
    ACCEPTED,
    CANCEL_NOW,
    CANCELLED,
    DISCONNECTED,
    Driver,
    limits,
    policy,
    tool,
)

QUEUE = session_pb2.DELIVERY_QUEUE
STEER = session_pb2.DELIVERY_STEER
INTERRUPT = session_pb2.DELIVERY_INTERRUPT


def test_a_message_without_an_id_is_told_how_it_met_the_session() -> None:
    driver = Driver()
    assert driver.say(frame_id="").delivery == QUEUE
    driver.text("Once ")
    assert driver.say(frame_id="").delivery == QUEUE
    assert driver.say(frame_id="", delivery=STEER).delivery == STEER
    assert driver.say(frame_id="", delivery=INTERRUPT).delivery == INTERRUPT


def test_a_steer_that_comes_too_late_cuts_nothing() -> None:
    driver = Driver()
    driver.answer("one ", "two ")
    receipt = driver.say(delivery=STEER, displayed_offset=4)
    assert receipt.delivery == QUEUE
    assert driver.kinds()[-2:] == ["input_accepted", "turn_started"]
    assert not driver.of("turn_truncated")


def test_who_acknowledges_slowly_is_there() -> None:
    driver = Driver(limits=limits(max_unacked_chars=4), on_disconnect=policy(CANCEL_NOW))
    driver.say()
    driver.text("a" * 100)
    for shown in (10, 20, 30):
        driver.advance(29)
        assert driver.ack(offset=shown).status == ACCEPTED
    assert driver.running is not None
    driver.advance(29)
    assert driver.running is not None
    driver.advance(1)
    driver.finish("stopped")
    assert driver.ending.finish_reason == DISCONNECTED


def test_a_call_that_a_lost_process_had_cancelled_was_told_to_stop() -> None:
    driver = Driver(tools=[tool("look", blocking=False)], limits=limits(max_tool_rounds=1))
    driver.say()
    driver.call()
    driver.finish("tool_calls")
    driver.begin_call()  # One round too many: the open call is cancelled, the engine is stopped.
    assert driver.of("tool_call_cancelled")
    driver.lose()
    assert driver.running is not None
    driver.interrupt()
    (stopped,) = driver.of("turn_interrupted")
    assert [one.state for one in stopped.tools] == [session_pb2.ToolOutcome.STATE_CANCEL_SENT]


def test_a_session_that_is_closed_says_what_its_model_went_on_without() -> None:
    driver = Driver(tools=[tool("look", blocking=False)])
    driver.say()
    driver.call()
    driver.finish("tool_calls")  # The next round is at work.
    driver.close()
    (ended,) = driver.of("tool_call_finished")
    assert (ended.outcome, ended.scheduling) == (CANCELLED, session_pb2.SCHEDULING_SILENT)
