"""How servers do, from two looks at their metrics each. What nobody knows is None, never 0."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from backchannel.cli.exposition import Window, quantile

SPREADS: Final[Mapping[str, str]] = {
    "first_token": "gen_ai_server_time_to_first_token_seconds",
    "gap": "backchannel_output_gap_seconds",
    "queue": "backchannel_queue_wait_seconds",
    "tool": "backchannel_tool_wait_seconds",
    "stop": "backchannel_engine_stop_seconds",
    "commit": "backchannel_commit_duration_seconds",
    "loop_lag": "backchannel_event_loop_lag_seconds",
}
"""Histograms that are told by their percentiles."""

OURS: Final = "backchannel_sessions"
"""A metric that every server of ours has."""

_PROVIDER: Final = "gen_ai_provider_name"


@dataclass(frozen=True, slots=True)
class Spread:
    """How values were spread.

    Attributes:
        count: How many there were.
        p50: Half of them were not above, in seconds; infinite where it was beyond all buckets.
        p95: Nor 95 % of them above this.
        p99: Nor 99 %.
        most: The highest bound that is measured.
    """

    count: int
    p50: float | None
    p95: float | None
    p99: float | None
    most: float = 0.0

    @classmethod
    def of(cls, windows: Iterable[Window], name: str) -> Spread | None:
        """Of all servers together; None if none of them tells."""
        counts: dict[float, float] = {}
        for window in windows:
            for bound, count in window.buckets(name).items():
                counts[bound] = counts.get(bound, 0.0) + count
        if not counts:
            return None
        total = round(counts.get(float("inf"), 0.0))
        p50, p95, p99 = (quantile(counts, share) for share in (0.50, 0.95, 0.99))
        most = max((bound for bound in counts if bound != float("inf")), default=0.0)
        return cls(total, p50, p95, p99, most)


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine's places.

    Attributes:
        running: Generations that have one.
        waiting: Generations that wait for one.
        limit: How many there are; None if there is no limit.
    """

    running: int | None
    waiting: int | None
    limit: int | None


@dataclass(frozen=True, slots=True)
class Vitals:
    """How one server does, or several together.

    Attributes:
        seconds: The time that rates, counts and percentiles are about.
        sessions: In memory.
        turns: That run.
        tokens_per_s: Generated ones that got into the log.
        wasted_share: Of the generated tokens, how many did not.
        readers: Attached.
        reader_lag: How many events the slowest of them is behind.
        tools: Calls that wait for their result.
        oldest_tool_s: How long the oldest of them has waited.
        interrupts: Turns stopped by their users.
        turns_by_ending: Turns that ended.
        tools_by_outcome: Calls that ended.
        engine_errors: By their reason.
        commit_errors: Appends that the log refused.
        backlog_bytes: Decided and not yet in the log.
        engines: By their name.
        spreads: Percentiles; by the names in `SPREADS`.
    """

    seconds: float
    sessions: int | None
    turns: int | None
    tokens_per_s: float | None
    wasted_share: float | None
    readers: int | None
    reader_lag: int | None
    tools: int | None
    oldest_tool_s: float | None
    interrupts: int | None
    turns_by_ending: Mapping[str, int]
    tools_by_outcome: Mapping[str, int]
    engine_errors: Mapping[str, int]
    commit_errors: int | None
    backlog_bytes: int | None
    engines: Mapping[str, Engine]
    spreads: Mapping[str, Spread | None]

    @classmethod
    def of(cls, windows: Sequence[Window]) -> Vitals:
        """Of these servers together."""
        lengths = [window.length_s for window in windows if window.first is not None]
        delivered = _grew(windows, "backchannel_tokens_total", fate="delivered")
        wasted = _grew(windows, "backchannel_tokens_total", fate="wasted")
        generated = None if delivered is None else delivered + (wasted or 0.0)
        return cls(
            seconds=max(lengths, default=0.0),
            sessions=_whole(_now(windows, OURS)),
            turns=_whole(_now(windows, "backchannel_turns_running")),
            tokens_per_s=_rate(windows),
            wasted_share=(wasted or 0.0) / generated if generated else None,
            readers=_whole(_now(windows, "backchannel_readers")),
            reader_lag=_whole(_now(windows, "backchannel_reader_lag", max)),
            tools=_whole(_now(windows, "backchannel_tool_open")),
            oldest_tool_s=_now(windows, "backchannel_tool_oldest_seconds", max),
            interrupts=_whole(_grew(windows, "backchannel_interrupts_total")),
            turns_by_ending=_by(windows, "backchannel_turns_total", "ending"),
            tools_by_outcome=_by(windows, "backchannel_tool_calls_total", "outcome"),
            engine_errors=_by(windows, "backchannel_engine_errors_total", "error_type"),
            commit_errors=_whole(_grew(windows, "backchannel_commit_errors_total")),
            backlog_bytes=_whole(_now(windows, "backchannel_commit_backlog_bytes")),
            engines=_engines(windows),
            spreads={short: Spread.of(windows, name) for short, name in SPREADS.items()},
        )

    def as_json(self) -> dict[str, Any]:
        """For programs: what is beyond all buckets is told as null, like what nobody knows."""
        values = asdict(self)
        for spread in values["spreads"].values():
            for name, value in (spread or {}).items():
                if value == float("inf"):
                    spread[name] = None
        return values


def _rate(windows: Sequence[Window]) -> float | None:
    """Tokens a second. Servers are looked at for as long as each has been there."""
    rates = [
        grown / window.length_s
        for window in windows
        if window.length_s > 0
        and (grown := _grew([window], "backchannel_tokens_total", fate="delivered")) is not None
    ]
    return sum(rates) if rates else None


def _grew(windows: Iterable[Window], name: str, **labels: str) -> float | None:
    def wanted(given: Mapping[str, str]) -> bool:
        return all(given.get(name) == value for name, value in labels.items())

    return _joined((window.grew(name, wanted) for window in windows), sum)


def _now(
    windows: Iterable[Window], name: str, join: Callable[[list[float]], float] = sum
) -> float | None:
    return _joined((window.now(name) for window in windows), join)


def _joined(values: Iterable[float | None], join: Callable[[list[float]], float]) -> float | None:
    known = [value for value in values if value is not None]
    return join(known) if known else None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _by(windows: Iterable[Window], name: str, label: str) -> dict[str, int]:
    """What grew, by one label, the most first; what did not grow is left out."""
    counts: dict[str, float] = {}
    for window in windows:
        for labels, grown in window.growth(name).items():
            key = dict(labels).get(label, "")
            counts[key] = counts.get(key, 0.0) + grown
    whole = {key: round(count) for key, count in counts.items() if count}
    return dict(sorted(whole.items(), key=lambda item: (-item[1], item[0])))


def _engines(windows: Iterable[Window]) -> dict[str, Engine]:
    found: dict[str, dict[str, int]] = {}
    for window in windows:
        for what in ("running", "waiting", "limit"):
            for labels, value in window.last.series(f"backchannel_engine_{what}"):
                places = found.setdefault(dict(labels).get(_PROVIDER, ""), {})
                places[what] = places.get(what, 0) + round(value)
    return {
        name: Engine(places.get("running"), places.get("waiting"), places.get("limit"))
        for name, places in sorted(found.items())
    }
