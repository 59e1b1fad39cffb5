"""The parts of a bench: each measures one thing and says it in tables, pictures and a few words."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from bench import plots, tables, telemetry
from bench.compare import (
    BARE_GRPC,
    BARE_SSE,
    WAYS,
    Found,
    Progress,
    compare,
    cost_rows,
    driver_rows,
    latency_rows,
    overload_rows,
    ratios,
    stop_rows,
    together,
)
from bench.doors import door_figures
from bench.driver import Demand
from bench.memory import memory_rows, weigh
from bench.page import Outcome, Section
from bench.profiling import OWNERS, profile
from bench.servers import Cores
from bench.tokens import Load

_GRPC: Final = "gRPC, SQLite log"
_SSE: Final = "server-sent events through Envoy, SQLite log"
_PERCENTS: Final = (
    *range(0, 100, 5),
    *(96, 97, 98, 99, 99.25, 99.5, 99.75, 99.9, 99.925, 99.95, 99.975, 99.99),
)


@dataclass(frozen=True, slots=True)
class Options:
    """How much is measured; see `python -m bench --help`."""

    seed: int = 1
    house: bool = True
    sessions: int = 40
    rate: float = 50.0
    rounds: int = 4
    turns: int = 2
    turn_tokens: int = 100
    heap: int = 1000
    samples: int = 120
    seconds: float = 6.0
    streams: int = 40
    tokens: int = 200
    hurry: bool = False

    def quick(self) -> Options:
        """The same, but a little of each."""
        return dataclasses.replace(
            self,
            sessions=10,
            rounds=1,
            turns=1,
            turn_tokens=20,
            heap=100,
            samples=5,
            seconds=1.0,
            streams=10,
            tokens=20,
            hurry=True,
        )


async def load_part(options: Options, progress: Progress) -> Outcome:
    """All ways under the same load."""
    cores = Cores.of_this_machine()
    demand = Demand(
        options.sessions, options.rate, options.turn_tokens, options.turns, stops=1, ramp_s=1.0
    )
    # More than any of them can do.
    overload = Demand(40, 1000.0, 100 if options.hurry else 1000, 1, ramp_s=0.2)
    found, most = await compare(demand, overload, options.rounds, cores, options.seed, progress)
    load = (
        f"{demand.sessions} sessions, {demand.turns} turns of {demand.tokens} tokens at "
        f"{demand.rate:g} tok/s each, {options.rounds} interleaved rounds; {cores.words}"
    )
    sections = [
        Section(
            "What a token costs the server",
            "cost",
            (
                "way",
                "CPU µs a token",
                "range",
                "tokens/s a core",
                "ratio to bare",
                "range",
                "Envoy's CPU µs",
                "tokens a message",
            ),
            cost_rows(found),
            load,
            ("cost",),
        ),
        Section(
            "How late a token is",
            "latency",
            (
                "way",
                "tokens",
                "added p50 ms",
                "p99 ms",
                "p99.9 ms",
                "p50, ratio to bare",
                "range",
                "on its way p50 ms",
                "p99 ms",
                "p99.9 ms",
                "TTFT added p50 ms",
                "p99 ms",
            ),
            latency_rows(found),
            load,
            ("latency",),
        ),
        Section(
            "How fast a stop takes hold, by door",
            "door stops",
            ("way", "stops", "p50 ms", "p99 ms", "most ms"),
            stop_rows(found),
            load,
        ),
        Section(
            "What one core can do",
            "overload",
            (
                "way",
                "tokens/s",
                "the server's CPU",
                "CPU µs a token",
                "tokens a message",
                "the driver's CPU",
            ),
            overload_rows(most),
            f"{overload.sessions} sessions at {overload.rate:g} tok/s each, far more than comes "
            f"through; median of 2 rounds; {cores.words}",
        ),
        Section(
            "Whether the load driver was in the way",
            "driver",
            ("way", "the server's CPU", "the driver's CPU", "asked late p50 ms", "p99 ms"),
            driver_rows(found),
            load,
        ),
    ]
    drawn = {
        "cost": plots.bars(
            "CPU of the server for each token, median and range",
            "µs",
            [
                (
                    way.name,
                    statistics.median(costs := [one.us_per_token for one in found[way.name]]),
                    min(costs),
                    max(costs),
                )
                for way in WAYS
            ],
        ),
        "latency": plots.curves(
            "Added latency of tokens, from when each was due",
            {way.name: _curve(found, way.name) for way in WAYS},
            (BARE_GRPC, BARE_SSE),
        ),
    }
    return Outcome(sections, _load_words(found, most), _load_figures(found, most), drawn)


def _curve(found: Found, name: str) -> list[tuple[float, float]]:
    added = together(found[name], "added")
    # Beyond that a percentile is one token.
    last = 100 * (1 - 2 / len(added))
    return [(percent, added.at_ms(percent)) for percent in _PERCENTS if percent <= last]


def _load_words(found: Found, most: Found) -> list[str]:
    grpc, sse = (next(way for way in WAYS if way.name == name) for name in (_GRPC, _SSE))
    cost = statistics.median(one.us_per_token for one in found[_GRPC])
    bare = statistics.median(one.us_per_token for one in found[BARE_GRPC])
    times = statistics.median(ratios(found, grpc, lambda one: one.us_per_token))
    web = statistics.median(one.us_per_token for one in found[_SSE])
    web_times = statistics.median(ratios(found, sse, lambda one: one.us_per_token))
    added, base = (together(found[name], "added") for name in (_GRPC, BARE_GRPC))
    ttft, stops = (together(found[_GRPC], name) for name in ("ttft", "stops"))
    through = statistics.median(one.tokens / one.wall_s for one in most[_GRPC])
    readers = 1e6 / cost / 50
    return [
        (
            f"**A token costs {cost:.0f} µs** of the server's CPU over gRPC with the SQLite log, "
            f"{times:.2f} times a bare grpc.aio loop ({bare:.0f} µs), which has no session, no log "
            f"and no stop. One core streams to about {readers:.0f} people at 50 tokens a second "
            "each, a message a token; asked for more it puts tokens together: "
            f"{through:,.0f} tokens a second."
        ),
        (
            f"**To a browser** (server-sent events) it costs {web:.0f} µs, {web_times:.2f} times a "
            "bare uvicorn application; Envoy's work comes on top."
        ),
        (
            f"**A token is {added.at_ms(50):.1f} ms late** in the median, {added.at_ms(99):.1f} ms "
            f"at p99 and {added.at_ms(99.9):.1f} ms at p99.9 (the bare loop: {base.at_ms(50):.1f}, "
            f"{base.at_ms(99):.1f}, {base.at_ms(99.9):.1f}); a turn's first token comes "
            f"{ttft.at_ms(50):.1f} ms after it was asked for, {ttft.at_ms(99):.1f} ms at p99."
        ),
        (
            f"**A stop takes hold in {stops.at_ms(50):.1f} ms**, {stops.at_ms(99):.1f} ms at p99, "
            "under the same load."
        ),
    ]


def _load_figures(found: Found, most: Found) -> Mapping[str, object]:
    def figures(all_of: Found) -> dict[str, object]:
        return {
            name: {
                "us_per_token": [round(one.us_per_token, 2) for one in several],
                "envoy_us_per_token": [round(one.envoy_us_per_token, 2) for one in several],
                "driver_cpu_share": [round(one.driver_cpu_s / one.wall_s, 3) for one in several],
                "tokens_per_s": [round(one.tokens / one.wall_s, 1) for one in several],
                "tokens_per_message": [round(one.tokens / one.frames, 3) for one in several],
                **{
                    f"{which}_ms": {
                        f"p{percent:g}": together(several, which).at_ms(percent)
                        for percent in (50, 90, 99, 99.9, 100)
                    }
                    for which in ("added", "way", "ttft", "late", "stops")
                    if len(together(several, which))
                },
            }
            for name, several in all_of.items()
        }

    return {"load": figures(found), "overload": figures(most)}


async def memory_part(options: Options, progress: Progress) -> Outcome:
    """What a session weighs."""
    cores = Cores.of_this_machine()
    demand = Demand(options.heap, 20.0, 20, 1, ramp_s=1.0 if options.hurry else 5.0)
    found = await weigh(demand, cores, options.seed, progress)
    rows = memory_rows(found, demand.sessions)
    section = Section(
        "What a session costs in memory",
        "memory",
        (
            "way",
            "sessions",
            "before MiB",
            "KiB each, open",
            "KiB each, after a turn",
            "Envoy, KiB each",
        ),
        rows,
        f"one reader each, a turn of {demand.tokens} tokens",
    )
    each = rows[1][4]
    return Outcome(
        [section],
        [f"**A session costs {each} KiB** of the server's memory, with a reader, after a turn."],
        {row[0]: dict(zip(section.columns[1:], row[1:], strict=True)) for row in rows},
    )


async def profile_part(options: Options, progress: Progress) -> Outcome:
    """Where the time goes."""
    progress("sampling")
    demand = Demand(40, 100.0, 100 if options.hurry else 1500, 1, ramp_s=0.5)
    found = await profile(demand, Cores.of_this_machine(), options.seed)
    names = [name for name, _ in found.samples.most_common()]
    rows = [[name, f"{found.share(name):.0%}", OWNERS.get(name, "")] for name in names]
    section = Section(
        "Where a token's time goes",
        "profile",
        ("whose work", "share", "what it is, why it is there, how it could go"),
        rows,
        f"over gRPC, SQLite log, {demand.sessions} sessions at {demand.rate:g} tok/s; "
        f"{found.samples.total()} samples",
        ("profile",),
    )
    three = ", ".join(f"{name} ({found.share(name):.0%})" for name in names[:3])
    drawn = plots.bars(
        "Share of the server's CPU time",
        "%",
        [(name, share := 100 * found.share(name), share, share) for name in names],
    )
    return Outcome(
        [section],
        [f"**The three largest costs** of a token: {three}."],
        {name: round(found.share(name), 4) for name in names},
        {"profile": drawn},
    )


async def stops_part(options: Options, progress: Progress) -> Outcome:
    """How fast stops are, with other turns and with a model."""
    progress("client's view")
    rows = await tables.measure_stops(options.samples, options.seed, options.house)
    title = "How fast a stop takes hold (SQLite log, client's view)"
    sections = [Section(title, "stops", tables.STOP_COLUMNS, rows)]
    progress("engine's view")
    rows = await tables.measure_engines(options.samples, options.seed, options.house)
    title = "What an engine computes after it was told to stop (its own count)"
    sections.append(Section(title, "engines", tables.ENGINE_COLUMNS, rows))
    return Outcome(sections)


async def lag_part(options: Options, progress: Progress) -> Outcome:
    """How long the event loop keeps others waiting."""
    if not options.house:
        return Outcome([])
    progress("watching")
    rows = await tables.measure_lag(options.seconds)
    title = "How long the server's event loop makes others wait (SQLite log)"
    return Outcome([Section(title, "lag", tables.LAG_COLUMNS, rows)])


async def tokens_part(options: Options, progress: Progress) -> Outcome:
    """What a whole stream costs, its beginning and end included."""
    progress("streaming")
    load = Load(options.streams, options.rate, options.tokens)
    rows = await tables.measure_tokens(load, options.rounds)
    title = "What a token costs when a stream's beginning and end count too"
    how = (
        f"{load.streams} streams of {load.tokens} tokens at {load.rate:g} tok/s, "
        f"{options.rounds} interleaved rounds"
    )
    return Outcome([Section(title, "tokens", tables.COST_COLUMNS, rows, how)])


async def telemetry_part(options: Options, progress: Progress) -> Outcome:
    """What watching costs."""
    load = Load(options.streams, options.rate, options.tokens)
    rounds = options.rounds if options.hurry else options.rounds + 1
    cores = Cores.of_this_machine()
    found = await telemetry.costs(load, rounds, cores, progress)
    rows = telemetry.rows(found)
    how = (
        f"over gRPC, memory log, {load.streams} streams of {load.tokens} tokens at "
        f"{load.rate:g} tok/s, {rounds} interleaved rounds; {cores.words}"
    )
    columns = ("watched", "CPU µs a token", "ratio to off", "range")
    section = Section("What metrics and traces cost", "telemetry", columns, rows, how)
    more = (float(rows[-1][2]) - 1) * 100
    return Outcome(
        [section],
        [f"**Metrics and traces** of every turn together cost {more:+.1f} % CPU for each token."],
        found,
    )


async def doors_part(options: Options, progress: Progress) -> Outcome:
    """What a door takes with a single reader."""
    progress("opening")
    doors = await door_figures(options.rate, options.tokens, options.samples)
    rows = [tables.door_row(name, door) for name, door in doors.items()]
    title = f"What a door takes (one reader, {options.rate:g} tok/s)"
    return Outcome([Section(title, "doors", tables.DOOR_COLUMNS, rows)])


PARTS: Final[Mapping[str, Callable[[Options, Progress], Awaitable[Outcome]]]] = {
    "load": load_part,
    "memory": memory_part,
    "profile": profile_part,
    "stops": stops_part,
    "lag": lag_part,
    "telemetry": telemetry_part,
    "tokens": tokens_part,
    "doors": doors_part,
}
"""In the order of the page."""

DEFAULT: Final = ("load", "memory", "profile", "telemetry", "stops", "lag")
