"""The credit window: generation waits for a reader who says how far they are."""

from __future__ import annotations

import pytest

from backchannel.v1 import session_pb2
from tests.unit.session.driver import (
    CANCEL_NOW,
    CONTINUE,
    DEADLINE,
    DISCONNECTED,
    INTERRUPTED,
    MS,
    Driver,
    limits,
    policy,
    seconds,
    tool,
)


def short(window: int = 4, **config: object) -> Driver:
    """A turn whose reader has no credit left: six characters said, none seen."""
    driver = Driver(limits=limits(max_unacked_chars=window), **config)  # type: ignore[arg-type]
    driver.say()
    driver.admit()
    driver.text("ab", "cd")
    assert not held(driver)
    driver.text("ef")
    assert held(driver)
    return driver


def held(driver: Driver) -> bool:
    return driver.live is not None and driver.live.held


def test_it_waits_beyond_the_window_and_goes_on_with_an_ack() -> None:
    driver = short()
    driver.advance(3)
    driver.ack(offset=1)
    assert held(driver)
    driver.ack(offset=2)
    assert not held(driver)
    driver.text("gh")
    assert held(driver)
    driver.advance(1)
    driver.ack(driver.session.view().last_seq)
    assert not held(driver)
    driver.finish()
    timing = driver.ending.timing
    assert timing.paused.ToMilliseconds() == 4000
    assert timing.max_gap.ToMilliseconds() < 10
    assert timing.total.ToMilliseconds() == 4000


def test_without_a_window_nothing_waits() -> None:
    driver = Driver()
    driver.say()
    driver.text("x" * 1000)
    assert not held(driver)
    driver.finish()
    assert not driver.ending.timing.HasField("paused")


def test_the_next_round_waits_too() -> None:
    driver = Driver(limits=limits(max_unacked_chars=4), tools=[tool()])
    driver.say()
    driver.text("abcdef")
    assert held(driver)
    call_id = driver.call()  # What it had computed already.
    driver.finish("tool_calls")
    driver.result(call_id)
    assert held(driver)
    driver.ack(offset=6)
    assert not held(driver)


@pytest.mark.parametrize("how", ["interrupt", "deadline", "drain", "close", "lose"])
def test_every_ending_works_while_it_waits(how: str) -> None:
    driver = short(on_disconnect=policy(CONTINUE))
    driver.advance(2)
    match how:
        case "interrupt":
            driver.interrupt(displayed_offset=3)
            driver.finish("stopped", silent=2)
            assert driver.of("turn_interrupted")[0].kept_chars == 3
            assert driver.ending.finish_reason == INTERRUPTED
            assert driver.usage.wasted_tokens == 2
        case "deadline":
            driver.advance(599)
            driver.finish("stopped")
            assert driver.ending.finish_reason == DEADLINE
        case "drain":
            driver.drain(survives=False)
            driver.finish("stopped")
            assert driver.ending.finish_reason == DISCONNECTED
        case "close":
            driver.close()
        case "lose":
            driver.lose(engine_continues=True)
            driver.attach()
            assert not held(driver), "the new owner sees when the next word comes"
            driver.text("gh")
            assert held(driver)
            return
    assert driver.ending.timing.paused.ToMilliseconds() >= 2000
    driver.session.view()


@pytest.mark.parametrize(
    ("action", "grace_s", "after_s"),
    [(0, 10, 10), (CANCEL_NOW, None, 30), (0, 0, 30), (CONTINUE, None, None)],
)
def test_acks_never_come(action: int, grace_s: float | None, after_s: float | None) -> None:
    driver = short(on_disconnect=policy(action, grace_s))
    if after_s is None:
        driver.advance(500)
        assert not driver.told_to_stop()
        return
    driver.advance(after_s - 0.1)
    assert not driver.told_to_stop()
    driver.advance(0.2)
    assert driver.told_to_stop()
    driver.finish("stopped")
    assert driver.ending.finish_reason == DISCONNECTED


def test_a_pause_begins_anew() -> None:
    driver = short(on_disconnect=policy(0, 10))
    driver.advance(9)
    driver.ack(offset=6)
    driver.text("ghijkl")
    driver.advance(9)
    assert not driver.told_to_stop()
    driver.advance(2)
    assert driver.told_to_stop()


def test_the_next_turn_begins_with_full_credit() -> None:
    driver = short()
    driver.interrupt()
    driver.finish("stopped")
    driver.say("next")
    driver.text("ab")
    assert not held(driver)
    assert driver.timer_ns is not None
    assert driver.timer_ns - driver.now_ns > 1000 * MS


def test_a_window_of_nothing_is_none() -> None:
    driver = Driver(limits=session_pb2.Limits(max_turn_duration=seconds(5)))
    assert driver.state.credit_window == 0
