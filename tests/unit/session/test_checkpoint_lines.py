"""What is kept of a checkpoint for the next one is what would be made anew."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from backchannel.errors import BackchannelError, Reason
from backchannel.session import checkpoint
from backchannel.session.state import SessionState
from tests.unit.session.driver import Driver, tool
from tests.unit.session.test_context import long, too_long


def forgetful(state: SessionState) -> SessionState:
    """The state with nothing kept."""
    bare = replace(state, config_line=b"", turns=[replace(turn, line=b"") for turn in state.turns])
    for _, frame in state.frames.applied():
        frame.line = b""
    return bare


def kept(state: SessionState) -> Iterator[bytes]:
    yield state.config_line
    yield from (turn.line for turn in state.turns[:-1])
    yield from (frame.line for _, frame in state.frames.applied())


def check(driver: Driver) -> None:
    """What is made with what was kept is what is made without, and both are read alike."""
    made = checkpoint.lines(driver.state)
    assert all(kept(driver.state))
    loaded = checkpoint.load(checkpoint.packed(made))
    assert list(kept(loaded)) == list(kept(driver.state))
    assert checkpoint.lines(loaded) == made
    assert checkpoint.lines(forgetful(driver.state)) == made


def test_a_late_result_of_an_old_turn_is_in_the_next_checkpoint() -> None:
    driver = Driver(tools=[tool()])
    driver.say()
    driver.text("Let me see.")
    call_id = driver.call()
    driver.finish("tool_calls")
    driver.advance(61)
    driver.text("No answer.")
    driver.finish()
    for turn in range(3):
        driver.answer("fine", question=str(turn))
        check(driver)
    for number in range(3):
        driver.result(call_id, json=str(number))
        while driver.running is not None:
            driver.text("so late")
            driver.finish()
        check(driver)
    assert driver.state.calls[call_id].late_results == 3


def test_a_turn_that_is_left_out_of_the_prompt_is_so_in_the_next_checkpoint() -> None:
    driver = long()
    too_long(driver, 1200)
    driver.text("fine")
    driver.finish()
    check(driver)
    driver.say("more")
    too_long(driver, 1200)
    driver.text("fine")
    driver.finish()
    assert sum(turn.dropped for turn in driver.turns) > 2
    check(driver)


def test_the_last_turn_may_still_be_cut() -> None:
    driver = Driver()
    driver.answer("one ", "two ", "three")
    check(driver)
    before = checkpoint.lines(driver.state)
    driver.interrupt(driver.turns[-1].turn_id, displayed_seq=driver.events[2].seq)
    driver.answer("fine")
    check(driver)
    assert checkpoint.lines(driver.state)[2] != before[2]


def test_reading_a_checkpoint_goes_in_steps() -> None:
    driver = Driver()
    for turn in range(200):
        driver.answer("fine", question=str(turn))
    steps = list(checkpoint.loading(driver.session.checkpoint()))
    assert len(steps) == 4


@pytest.mark.parametrize("seed", range(10))
def test_damage_anywhere_is_found(seed: int) -> None:
    driver = Driver()
    for turn in range(5):
        driver.answer("fine", question=str(turn))
    data = bytearray(driver.session.checkpoint())
    data[random.Random(seed).randrange(len(data))] ^= 1
    with pytest.raises(BackchannelError) as caught:
        checkpoint.load(bytes(data))
    assert caught.value.reason is Reason.LOG_CORRUPT
