"""What a turn cost, as one line; and numbers as people read them."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from backchannel.v1.event_pb2 import TurnFinished
from backchannel.v1.session_pb2 import FinishReason

# How an ending is told, where it is not the usual one.
ENDINGS = {
    FinishReason.FINISH_REASON_LENGTH: "ended early: the length limit was reached",
    FinishReason.FINISH_REASON_TOOL_CALLS: "ended early: too many rounds of tool calls",
    FinishReason.FINISH_REASON_INTERRUPTED: "stopped",
    FinishReason.FINISH_REASON_STEERED: "went on differently",
    FinishReason.FINISH_REASON_DISCONNECTED: "ended early: nobody was connected any more",
    FinishReason.FINISH_REASON_DEADLINE: "ended early: the time limit was reached",
    FinishReason.FINISH_REASON_ERROR: "failed",
    FinishReason.FINISH_REASON_OWNER_LOST: "cut off: the server process that ran it died",
    FinishReason.FINISH_REASON_CONTENT_FILTER: "ended early: the content filter cut in",
}


def seconds(duration: Duration) -> float:
    """A Duration in seconds."""
    return duration.ToNanoseconds() / 1e9


def span(duration_s: float) -> str:
    """A time as people say it: `41 ms`, `2.3 s`, `3 min 20 s`."""
    if duration_s < 0.0095:
        return f"{duration_s * 1000:.1f} ms"
    if duration_s < 0.9995:
        return f"{duration_s * 1000:.0f} ms"
    if duration_s < 60:
        return f"{duration_s:.1f} s"
    minutes, rest = divmod(round(duration_s), 60)
    return f"{minutes} min {rest} s"


def turn_line(finished: TurnFinished, *, all_shown: bool) -> str:
    """The figures of a turn that has ended.

    Args:
        finished: Its ending.
        all_shown: Whether everything was shown here. What the server counts as displayed at the
            very end lags by what was on the way.
    """
    timing, usage = finished.timing, finished.usage
    parts: list[str] = []
    ending = ENDINGS.get(finished.finish_reason)
    if ending is not None:
        parts.append(ending)
    if timing.HasField("queued"):
        parts.append(f"queued {span(seconds(timing.queued))}")
    if timing.HasField("time_to_first_token"):
        parts.append(f"first token {span(seconds(timing.time_to_first_token))}")
    per_token_s = seconds(timing.time_per_output_token)
    if per_token_s > 0:
        parts.append(f"{1 / per_token_s:,.1f} tok/s")
    if timing.HasField("max_gap"):
        parts.append(f"longest gap {span(seconds(timing.max_gap))}")
    shown = usage.delivered_tokens if all_shown else usage.displayed_tokens
    about = "about " if usage.estimated else ""
    parts.append(
        f"{about}{usage.generated_tokens:,} tokens: {shown:,} shown, {usage.wasted_tokens:,} wasted"
    )
    return " · ".join(parts)
