"""What is kept of a checkpoint for the next one is what would be made anew."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from backchannel.errors import BackchannelError, Reason
from backchannel.session import checkpoint, turn_record
from backchannel.session.state import SessionState
from backchannel.session.turn import Turn
from backchannel.session.turn_book import TurnBook
from tests.unit.session.driver import ACCEPTED, DUPLICATE, Driver, refusal, tool
from tests.unit.session.golden_files import Golden
from tests.unit.session.test_context import long, too_long


def forgetful(state: SessionState) -> SessionState:
    """The state with nothing kept."""
    bare = replace(state, config_line=b"", turns=TurnBook())
    for turn in state.turns:
        bare.turns.append(replace(turn, line=b""))
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
    assert len(driver.state.dropped) > 2
    check(driver)


def test_the_last_turn_may_still_be_cut() -> None:
    driver = Driver()
    driver.answer("one ", "two ", "three")
    check(driver)
    before = checkpoint.lines(driver.state)
    driver.interrupt(driver.turns[-1].turn_id, displayed_seq=driver.events[2].seq)
    driver.answer("fine")
    check(driver)
    assert checkpoint.lines(driver.state)[3] != before[3]


def of_many(turns: int = 200) -> Driver:
    """Many turns, each fifth with a call."""
    driver = Driver(tools=[tool()])
    for number in range(turns):
        driver.say(str(number), f"m{number}")
        if number % 5 == 0:
            driver.result(driver.call(), f"r{number}")
            driver.finish("tool_calls")
        driver.text("fine")
        driver.finish()
    return driver


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The lines of turns that are read."""
    lines: list[bytes] = []
    read = turn_record.read

    def counted(line: bytes) -> Turn:
        lines.append(line)
        return read(line)

    monkeypatch.setattr(turn_record, "read", counted)
    return lines


def test_a_checkpoint_is_read_without_its_turns(reads: list[bytes]) -> None:
    driver = of_many()
    data = driver.session.checkpoint()
    first, again = driver.turns[0], driver.session.snapshots()
    driver.session = driver.folded(data, len(driver.events))
    assert len(reads) == 1, "the last turn may still be cut"
    driver.session.view()
    driver.session.checkpoint()
    driver.interrupt(first.turn_id)
    driver.interrupt("turn-of-nobody")
    assert driver.say("0", "m0").status == DUPLICATE
    assert refusal(driver.result("call-of-nobody")) == "TOOL_CALL_NOT_FOUND"
    assert len(reads) == 1
    driver.result(first.calls[0].call_id)
    assert driver.state.calls[first.calls[0].call_id].late_results == 1
    assert len(reads) == 2, "a result that came late is its own turn's"
    driver.ack(seq=first.ended_seq)
    assert len(reads) < 12, "a turn is found by halves"
    assert driver.session.snapshots()[0].turns[1:] == again[0].turns[1:]
    assert len(reads) == 200
    check(driver)


def test_a_position_is_judged_by_the_turn_that_holds_it() -> None:
    driver = Driver()
    for number in range(1, 9):
        driver.answer("a" * number)
    turns = list(driver.turns)
    driver.session = driver.folded(driver.session.checkpoint(), len(driver.events))
    for chars, turn in enumerate(turns, 1):
        for seq in (turn.started_seq, turn.ended_seq):
            assert driver.ack(seq, offset=chars).status == ACCEPTED
            assert refusal(driver.ack(seq, offset=chars + 1)) == "POSITION_BEYOND_END"
    # What lies between two turns belongs to the last.
    assert driver.ack(turns[2].ended_seq + 1, offset=8).status == ACCEPTED
    assert driver.ack(0, offset=8).status == ACCEPTED


def test_a_prompt_reads_each_turn_once_and_none_that_it_leaves_out(reads: list[bytes]) -> None:
    driver = long(10)
    too_long(driver, 1200)
    driver.text("fine")
    driver.finish()
    left = len(driver.turns) - len(driver.state.dropped)
    driver.session = driver.folded(driver.session.checkpoint(), len(driver.events))
    driver.attach()
    assert 0 < left < 10
    for question in ("more?", "and more?"):
        driver.answer("fine", question=question)
        assert len(reads) == left


def test_a_damaged_line_is_found_when_its_turn_or_frame_is_asked_for() -> None:
    driver = of_many(5)
    lines = driver.session.checkpoint()[8:].split(b"\n")
    for place, text in ((3, b"{}"), (3, b"\xff"), (3, b"[" * 100_000), (8, b"[]")):
        state = checkpoint.load(checkpoint.packed([*lines[:place], text, *lines[place + 1 :]]))
        with pytest.raises(BackchannelError) as caught:
            (list(state.turns) if place == 3 else list(state.frames.applied()))
        assert caught.value.reason is Reason.LOG_CORRUPT
    places = json.loads(lines[2])
    places["calls"] = dict.fromkeys(places["calls"], 1)
    lines[2] = json.dumps(places).encode()
    state = checkpoint.load(checkpoint.packed(lines))
    with pytest.raises(BackchannelError, match="damaged"):
        _ = state.calls[next(iter(state.calls))]


def test_frames_of_long_ago_are_not_in_the_next_checkpoint() -> None:
    driver = of_many(3)
    driver.advance(12 * 3600)
    driver.answer("fine")
    driver.session = driver.folded(driver.session.checkpoint(), len(driver.events))
    driver.attach()
    driver.advance(12.5 * 3600)
    driver.say("now", "m9")
    driver.text("fine")
    driver.finish()
    left = [
        frame_id for frame_id, _ in checkpoint.load(driver.session.checkpoint()).frames.applied()
    ]
    assert len(left) == 2
    assert left[-1] == "m9"


def test_reading_a_checkpoint_goes_in_steps() -> None:
    golden = Golden("tools_version_4")
    assert list(checkpoint.loading(golden.checkpoint_file.read_bytes()))
    driver = of_many()
    steps = len(list(checkpoint.loading(driver.session.checkpoint())))
    driver.answer("long" * 1_000_000)
    assert len(list(checkpoint.loading(driver.session.checkpoint()))) == steps + 3


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
