"""The metrics: one table, from which instruments, documentation and checks are made.

No label holds an id of a session, a turn or a user, nor a name that a client may choose. `model`
is the whole name, `engine/name`, where the conventions split it in two.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    """What a metric is to a collector."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: As OpenTelemetry has it.
        kind: What it is.
        unit: In UCUM, https://ucum.org.
        labels: Attributes of each value.
        meaning: One or two sentences.
        buckets: Upper bounds, for a histogram.
        known: Series that are there from the beginning, with 0: of a counter that is born with 1
            no rate ever tells that first time.
    """

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    meaning: str
    buckets: tuple[float, ...] = ()
    known: tuple[tuple[str, ...], ...] = ()

    @property
    def prometheus_name(self) -> str:
        """As Prometheus has it (https://opentelemetry.io/docs/specs/otel/compatibility/)."""
        name = self.name.replace(".", "_")
        suffix = {"s": "_seconds", "By": "_bytes"}.get(self.unit, "")
        if suffix and not name.endswith(suffix):
            name += suffix
        return name + ("_total" if self.kind is Kind.COUNTER else "")


_COUNTER, _GAUGE, _HISTOGRAM = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM
# The conventions' own bounds.
_TTFT: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
_PER_TOKEN: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_DURATION: Final = (
    *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
)
_GAP: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0),
)
_FAST: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
)
_WAIT: Final = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_BATCH: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_MODEL: Final = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model")

TTFT: Final = Metric(
    "gen_ai.server.time_to_first_token",
    *(_HISTOGRAM, "s", _MODEL),
    "From a message's acceptance to the first output of its turn in the log.",
    _TTFT,
)
PER_TOKEN: Final = Metric(
    "gen_ai.server.time_per_output_token",
    *(_HISTOGRAM, "s", _MODEL),
    "Mean time of each token after the first, once for each turn.",
    _PER_TOKEN,
)
DURATION: Final = Metric(
    "gen_ai.server.request.duration",
    *(_HISTOGRAM, "s", (*_MODEL, "error.type")),
    "From a message's acceptance to the end of its turn, tools included. `error.type` is empty for"
    " a turn that ended by itself.",
    _DURATION,
)
GAP: Final = Metric(
    "backchannel.output.gap",
    *(_HISTOGRAM, "s", ("model",)),
    "Between one output of an engine and the next of the same answer: what a user sees as a"
    " stutter.",
    _GAP,
)
QUEUE_WAIT: Final = Metric(
    "backchannel.queue.wait",
    *(_HISTOGRAM, "s", ("model",)),
    "From a message's acceptance until an engine takes it up.",
    _WAIT,
)
TOKENS: Final = Metric(
    "backchannel.tokens",
    *(_COUNTER, "{token}", ("fate", "model")),
    "Output tokens by what became of them: `delivered` into the log or `wasted` (computed, never"
    " delivered); of the delivered ones also `displayed` and `kept` in the context.",
)
TURNS: Final = Metric(
    "backchannel.turns",
    *(_COUNTER, "{turn}", ("ending", "model")),
    "Turns by their ending (`FinishReason` in lower case).",
)
RUNNING: Final = Metric(
    "backchannel.turns.running", _GAUGE, "{turn}", (), "Turns that have begun and not ended."
)
TOOL_CALLS: Final = Metric(
    "backchannel.tool.calls",
    *(_COUNTER, "{call}", ("outcome",)),
    "Tool calls by their outcome; `late` for a result that came after the call's end.",
    known=(
        *(("completed",), ("failed",), ("timed_out",), ("cancelled",), ("unknown",), ("late",)),
    ),
)
TOOL_WAIT: Final = Metric(
    "backchannel.tool.wait",
    *(_HISTOGRAM, "s", ("outcome",)),
    "From the announcement of a tool call to its end.",
    _WAIT,
)
TOOLS_OPEN: Final = Metric(
    "backchannel.tool.open", _GAUGE, "{call}", (), "Tool calls that wait for their result."
)
TOOLS_OLDEST: Final = Metric(
    "backchannel.tool.oldest", _GAUGE, "s", (), "How long the oldest open tool call has waited."
)
INTERRUPTS: Final = Metric(
    "backchannel.interrupts", _COUNTER, "{interrupt}", (), "Turns that a client has stopped."
)
REFUSED: Final = Metric(
    "backchannel.frames.refused",
    *(_COUNTER, "{frame}", ("reason",)),
    "Frames that a session refused, by why: `ENGINE_BUSY` and `QUEUE_FULL` are people who are"
    " turned away.",
    known=(("ENGINE_BUSY",), ("QUEUE_FULL",)),
)
STOP: Final = Metric(
    "backchannel.engine.stop",
    *(_HISTOGRAM, "s", ("gen_ai.provider.name",)),
    "From the moment that an engine is told to stop until it has: what it computes meanwhile is"
    " wasted.",
    _FAST,
)
SESSIONS: Final = Metric(
    "backchannel.sessions", _GAUGE, "{session}", (), "Sessions in this process's memory."
)
READERS: Final = Metric(
    "backchannel.readers", _GAUGE, "{reader}", ("rpc.method",), "Readers attached, by their door."
)
READER_LAG: Final = Metric(
    "backchannel.reader.lag",
    *(_GAUGE, "{event}", ()),
    "How many events the slowest reader is behind.",
)
RESUMES: Final = Metric(
    "backchannel.resumes",
    *(_COUNTER, "{resume}", ("from",)),
    "Readers that began with a session's past: from a `cursor`, or from a `snapshot`.",
    known=(("cursor",), ("snapshot",)),
)
REPLAYED: Final = Metric(
    "backchannel.replayed", _COUNTER, "{event}", (), "Events that resumed readers had missed."
)
HEARTBEATS: Final = Metric(
    "backchannel.heartbeats", _COUNTER, "{heartbeat}", (), "Heartbeats handed out to readers."
)
COMMIT: Final = Metric(
    "backchannel.commit.duration",
    *(_HISTOGRAM, "s", ()),
    "How long the log takes for one append.",
    _FAST,
)
COMMIT_EVENTS: Final = Metric(
    "backchannel.commit.events", _HISTOGRAM, "{event}", (), "Events in one append.", _BATCH
)
COMMIT_ERRORS: Final = Metric(
    "backchannel.commit.errors",
    *(_COUNTER, "{error}", ("reason",)),
    "Appends that the log refused.",
    known=(("LOG_UNAVAILABLE",), ("LOG_CORRUPT",), ("conflict",), ("broke",)),
)
BACKLOG: Final = Metric(
    "backchannel.commit.backlog", _GAUGE, "By", (), "Events that are decided and not committed."
)
LOOP_LAG: Final = Metric(
    "backchannel.event_loop.lag",
    *(_HISTOGRAM, "s", ()),
    "How much later than asked the event loop wakes a timer, looked at ten times a second.",
    _FAST,
)
ENGINE_RUNNING: Final = Metric(
    "backchannel.engine.running",
    *(_GAUGE, "{generation}", ("gen_ai.provider.name",)),
    "Generations that have a place with an engine.",
)
ENGINE_WAITING: Final = Metric(
    "backchannel.engine.waiting",
    *(_GAUGE, "{generation}", ("gen_ai.provider.name",)),
    "Generations that wait for one.",
)
ENGINE_LIMIT: Final = Metric(
    "backchannel.engine.limit",
    *(_GAUGE, "{generation}", ("gen_ai.provider.name",)),
    "How many generations an engine, or the model asked last, may run at once. Not told where there"
    " is no limit.",
)
ENGINE_ERRORS: Final = Metric(
    "backchannel.engine.errors",
    *(_COUNTER, "{error}", ("gen_ai.provider.name", "error.type")),
    "Failures of engines by their reason, those included that another model made good.",
)
CALLS: Final = Metric(
    "rpc.server.call.duration",
    *(_HISTOGRAM, "s", ("rpc.method", "outcome", "rpc.response.status_code")),
    "RPCs, from the first byte to the end of the stream, by how they really ended: `ok`, `abort`,"
    " `exception`, `cancel`, `deadline`.",
    _DURATION,
)

METRICS: Final = (
    *(TTFT, PER_TOKEN, DURATION, GAP, QUEUE_WAIT, TOKENS, TURNS, RUNNING),
    *(TOOL_CALLS, TOOL_WAIT, TOOLS_OPEN, TOOLS_OLDEST, INTERRUPTS, STOP, REFUSED),
    *(SESSIONS, READERS, READER_LAG, RESUMES, REPLAYED, HEARTBEATS),
    *(COMMIT, COMMIT_EVENTS, COMMIT_ERRORS, BACKLOG, LOOP_LAG),
    *(ENGINE_RUNNING, ENGINE_WAITING, ENGINE_LIMIT, ENGINE_ERRORS, CALLS),
)
