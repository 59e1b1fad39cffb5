"""The transition table, its picture, and the figures at the end of a turn."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from backchannel.session.state import SessionState
from backchannel.session.table import TRANSITIONS, Guard, Phase
from backchannel.v1 import event_pb2, session_pb2
from tests.unit.session.driver import MS, Driver, raises_reason

ROOT = Path(__file__).resolve().parents[3]
KINDS = [field.name for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["kind"].fields]


def test_the_picture_is_of_this_table() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "backchannel.session.table"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT / "service",
    ).stdout
    page = (ROOT / "docs" / "states.md").read_text()
    assert made == page, "docs/states.md: python -m backchannel.session.table > docs/states.md"
    for (phase, kind), target in TRANSITIONS.items():
        assert kind in made
        assert phase.value in made
        assert isinstance(target, Guard) or target.value in made


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_in_the_table_cannot_happen(phase: Phase, kind: str) -> None:
    if (phase, kind) in TRANSITIONS:
        return
    state = SessionState(phase=phase)
    event = event_pb2.Event(seq=1)
    getattr(event, kind).SetInParent()
    assert raises_reason(lambda: state.apply(event)) == "LOG_CORRUPT"


def test_every_phase_can_be_reached_and_all_but_the_last_left() -> None:
    targets = {target for target in TRANSITIONS.values() if isinstance(target, Phase)}
    assert targets == set(Phase) - {Phase.NEW}
    assert {phase for phase, _ in TRANSITIONS} == set(Phase) - {Phase.CLOSED}


def test_where_the_time_of_a_turn_went() -> None:
    driver = Driver()
    driver.say("one")
    driver.say("two")
    driver.advance(1)
    driver.admit()
    driver.finish()
    driver.advance(0.5)
    driver.admit()
    for gap_ms in (250, 10, 20, 30):
        driver.now_ns += gap_ms * MS
        driver.text("x ", tokens=2)
    driver.advance(0.04)
    driver.finish()
    timing = driver.ending.timing
    assert timing.queued.ToMilliseconds() == 1500
    assert timing.time_to_first_token.ToMilliseconds() == 1750
    assert timing.time_per_output_token.ToMilliseconds() == 10
    assert timing.max_gap.ToMilliseconds() == 30
    assert timing.total.ToMilliseconds() == 500 + 310 + 40


def test_a_turn_without_a_word_has_no_times_for_words() -> None:
    driver = Driver()
    driver.say()
    driver.finish()
    timing = driver.ending.timing
    assert timing.HasField("total")
    for name in ("queued", "time_to_first_token", "time_per_output_token", "max_gap"):
        assert not timing.HasField(name)


@pytest.mark.parametrize(
    ("output_tokens", "exact", "generated", "estimated"),
    [
        (4, True, 4, False),
        (2, True, 2, False),
        (1, True, 2, True),
        (None, True, 2, True),
        (4, False, 4, True),
    ],
)
def test_tokens_without_text_are_counted_and_doubt_is_said(
    output_tokens: int | None, exact: bool, generated: int, estimated: bool
) -> None:
    driver = Driver()
    driver.say()
    driver.text("a", "b")
    at = len(driver.events)
    driver.finish(output_tokens=output_tokens, exact=exact)
    usage = driver.usage
    assert (usage.generated_tokens, usage.estimated) == (generated, estimated)
    assert usage.delivered_tokens == usage.kept_tokens == generated
    assert len(driver.events) - at == (2 if generated > 2 else 1)


def test_the_usage_of_a_session_is_the_sum_of_its_turns() -> None:
    driver = Driver()
    driver.answer("a", "b")
    driver.say()
    driver.text("c")
    driver.interrupt()
    driver.finish("stopped", silent=2)
    assert driver.session.view().total_usage == session_pb2.Usage(
        prompt_tokens=20,
        cached_prompt_tokens=8,
        generated_tokens=5,
        delivered_tokens=3,
        kept_tokens=2,
        wasted_tokens=2,
    )
