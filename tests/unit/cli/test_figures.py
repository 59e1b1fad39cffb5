"""The line at the end of a turn."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration

from backchannel.cli.figures import ENDINGS, span, turn_line
from backchannel.v1.event_pb2 import TurnFinished
from backchannel.v1.session_pb2 import FinishReason, Timing, Usage


def ms(milliseconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(milliseconds * 1e6))
    return duration


TIMING = Timing(
    queued=ms(3), time_to_first_token=ms(41), time_per_output_token=ms(20), max_gap=ms(1530)
)
USAGE = Usage(generated_tokens=1060, delivered_tokens=1057, displayed_tokens=1040, wasted_tokens=3)


def test_a_turn_that_ended_well() -> None:
    finished = TurnFinished(
        finish_reason=FinishReason.FINISH_REASON_STOP, timing=TIMING, usage=USAGE
    )
    assert turn_line(finished, all_shown=True) == (
        "queued 3.0 ms · first token 41 ms · 50.0 tok/s · longest gap 1.5 s"
        " · 1,060 tokens: 1,057 shown, 3 wasted"
    )


def test_a_turn_that_was_stopped_counts_what_was_displayed() -> None:
    finished = TurnFinished(
        finish_reason=FinishReason.FINISH_REASON_INTERRUPTED, timing=TIMING, usage=USAGE
    )
    line = turn_line(finished, all_shown=False)
    assert line.startswith("stopped · queued")
    assert line.endswith("1,060 tokens: 1,040 shown, 3 wasted")


def test_what_is_not_known_is_left_out_and_a_guess_is_called_one() -> None:
    finished = TurnFinished(
        finish_reason=FinishReason.FINISH_REASON_OWNER_LOST,
        usage=Usage(generated_tokens=2, estimated=True),
    )
    assert turn_line(finished, all_shown=False) == (
        "cut off: the server process that ran it died · about 2 tokens: 0 shown, 0 wasted"
    )


def test_every_ending_but_the_usual_one_is_told() -> None:
    usual = {FinishReason.FINISH_REASON_UNSPECIFIED, FinishReason.FINISH_REASON_STOP}
    assert set(ENDINGS) == set(FinishReason.values()) - usual


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0004, "0.4 ms"),
        (0.0099, "10 ms"),
        (0.0412, "41 ms"),
        (0.9996, "1.0 s"),
        (2.34, "2.3 s"),
        (200, "3 min 20 s"),
    ],
)
def test_spans_are_said_as_people_do(seconds: float, said: str) -> None:
    assert span(seconds) == said
