"""What happens when two things come at the same moment, in either order.

Every pair meets the same session: its turn has said `One. `, which the reader has acknowledged,
has gone on with `Two`, and has made a whole call that it waits for; its engine has not ended the
round. The two things come a nanosecond apart. Then an engine that was told to stop confirms, an
open call gets a result, and an engine that is asked says `Three.`.

`RACES` is what the log tells of it, and docs/races.md is made from it:

    python -m tests.unit.session.test_races > docs/races.md
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

from backchannel.v1 import event_pb2, frame_pb2, session_pb2
from tests.unit.session.driver import (
    CANCEL_NOW,
    SECOND,
    START_NS,
    Driver,
    kind_of,
    limits,
    policy,
    seconds,
    tool,
)
from tests.unit.session.race_table import RACES

PAGE = Path(__file__).resolve().parents[3] / "docs" / "races.md"
MOMENT_NS = 5 * SECOND
FAR_NS = 3600 * SECOND

THINGS = {
    "message": "a message comes",
    "interrupt": "an `Interrupt` comes for the turn",
    "steer": "a message with `DELIVERY_STEER` comes",
    "result": "the call's result comes",
    "timeout": "the call's idle timeout passes",
    "end": "the engine ends its round",
    "failure": "the engine fails",
    "disconnect": "the only reader leaves (`ACTION_CANCEL_NOW`)",
    "resume": "a reader attaches",
    "deadline": "`max_turn_duration` passes",
    "delete": "the session is deleted",
}
PAIRS = list(itertools.combinations_with_replacement(THINGS, 2))


class Race:
    """The session that two things happen to."""

    def __init__(self, first: str, second: str) -> None:
        self.order = (first, second)
        self.driver = driver = Driver(
            tools=[
                tool(
                    "look",
                    idle_timeout=seconds(self.at("timeout") / SECOND),
                    timeout=seconds(FAR_NS / SECOND),
                )
            ],
            on_disconnect=policy(CANCEL_NOW),
            limits=limits(max_turn_duration=seconds(self.at("deadline") / SECOND)),
        )
        self.answers: list[str] = []
        driver.say("go")
        self.turn_id = driver.turns[-1].turn_id
        driver.text("One. ")
        driver.ack(len(driver.events))
        driver.text("Two")
        self.call_id = driver.call("look")
        self.run = driver.live
        self.begun = len(driver.events)
        for place, thing in enumerate(self.order):
            driver.advance((START_NS + MOMENT_NS + place - driver.now_ns) / SECOND)
            if thing not in ("timeout", "deadline"):
                getattr(self, thing)()
        self.go_on()

    def at(self, thing: str) -> int:
        """How long after the start it happens, if it is one of the two."""
        return MOMENT_NS + self.order.index(thing) if thing in self.order else FAR_NS

    def note(self, receipt: frame_pb2.Receipt) -> None:
        status = frame_pb2.ReceiptStatus.Name(receipt.status).removeprefix("RECEIPT_STATUS_")
        self.answers.append(status)
        if receipt.delivery:
            met = session_pb2.Delivery.Name(receipt.delivery).removeprefix("DELIVERY_")
            self.answers[-1] += f" ({met})"

    # --- the things ----------------------------------------------------------------------------

    def message(self) -> None:
        self.note(self.driver.say("more"))

    def interrupt(self) -> None:
        self.note(self.driver.interrupt(self.turn_id))

    def steer(self) -> None:
        self.note(self.driver.say("rather", delivery=session_pb2.DELIVERY_STEER))

    def result(self) -> None:
        self.note(self.driver.result(self.call_id))

    def end(self) -> None:
        if self.run is not None and not self.run.over:
            cause = "stopped" if self.run.stopped else "tool_calls"
            self.driver.finish(cause, run=self.run)

    def failure(self) -> None:
        if self.run is not None and not self.run.over:
            self.driver.fail(run=self.run)

    def disconnect(self) -> None:
        self.driver.detach()

    def resume(self) -> None:
        self.driver.attach(self.driver.readers + 1)

    def delete(self) -> None:
        self.driver.close()

    # --- what comes of it ----------------------------------------------------------------------

    def go_on(self) -> None:
        """Everybody does what is left to do."""
        driver = self.driver
        for _ in range(20):
            running = driver.running
            if driver.live is not None:
                if driver.live.stopped:
                    driver.finish("stopped")
                elif driver.live is self.run:
                    driver.finish("tool_calls")
                else:
                    driver.text("Three.")
                    driver.finish()
            elif running is not None:
                driver.result(running.open_calls[0].call_id)
            else:
                return
        raise AssertionError("it goes on and on")

    def outcome(self) -> str:
        """The receipts, and what the log has since, in short."""
        driver = self.driver
        numbers = {turn.turn_id: str(at) for at, turn in enumerate(driver.turns, start=1)}
        told = [self.short(event, numbers) for event in driver.events[self.begun :]]
        said = "; ".join(one for one in told if one)
        if driver.state.queue and not driver.of("session_closed"):
            said += f"; {len(driver.state.queue)} waiting"
        answers = " + ".join(self.answers)
        return f"{answers}: {said}" if answers else said

    def short(self, event: event_pb2.Event, numbers: dict[str, str]) -> str:
        body = getattr(event, kind_of(event))
        match kind_of(event):
            case "turn_started":
                return f"turn {numbers[body.turn_id]} starts"
            case "turn_finished":
                reason = session_pb2.FinishReason.Name(body.finish_reason)
                return f"turn {numbers[body.turn_id]} ends {reason.removeprefix('FINISH_REASON_')}"
            case "turn_interrupted" | "turn_truncated":
                what = "interrupted" if kind_of(event) == "turn_interrupted" else "cut back"
                return f"turn {numbers[body.turn_id]} {what}, keeps {body.kept_chars}"
            case "tool_call_finished":
                outcome = session_pb2.ToolCallOutcome.Name(body.outcome)
                late = "late, " if body.late else ""
                return f"call {late}{outcome.removeprefix('TOOL_CALL_OUTCOME_')}"
            case "session_closed":
                return "closed"
            case "output_delta":
                return "asked again" if body.round else ""
        return ""


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=map("-".join, PAIRS))
def test_two_things_at_once(first: str, second: str) -> None:
    assert (Race(first, second).outcome(), Race(second, first).outcome()) == RACES[first, second]


def test_all_pairs_are_there() -> None:
    assert list(RACES) == PAIRS


def page() -> str:
    """The table as a page."""
    lines = [
        "# Two things at once",
        "",
        "Made from the table in `tests/unit/session/race_table.py`, which a test holds the session",
        "to, by `python -m tests.unit.session.test_races`; do not edit.",
        "",
        "A turn (number 1) has said `One. ` (5 characters), which its reader has acknowledged, has",
        "gone on with `Two`, and has made a call that it waits for; its engine has not ended the",
        "round. Now two things come within one tick:",
        "",
        *(f"- **{name}**: {what}" for name, what in THINGS.items()),
        "",
        "First the receipts, in order, then what the log has. Afterwards an engine that was told",
        "to stop confirms, a call that is still open gets its result (`COMPLETED`), and an engine",
        "that is asked again answers and ends. `waiting` is what stays in the queue until somebody",
        "reads. Where both orders have the same outcome, the row has it once.",
        "",
        "| first | second | outcome |",
        "|---|---|---|",
    ]
    for (first, second), (one, other) in RACES.items():
        both = one == other and first != second
        lines.append(f"| {first} | {second} | {one}{' (either order)' if both else ''} |")
        if not both and first != second:
            lines.append(f"| {second} | {first} | {other} |")
    return "\n".join([*lines, ""])


def test_the_page_is_made_from_the_table() -> None:
    remedy = "python -m tests.unit.session.test_races > docs/races.md"
    assert PAGE.read_text(encoding="utf-8") == page(), remedy


if __name__ == "__main__":
    sys.stdout.write(page())
