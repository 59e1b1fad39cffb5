"""Each measurement as the rows of a table: stops, engines, lag, tokens, doors."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence

from backchannel.engines import scripted
from backchannel.engines.llama import engine as llama
from bench.doors import DoorFigures
from bench.engines import EngineCase, EngineStop, engine_stops
from bench.lag import lag
from bench.servers import backchannel, bare
from bench.stops import Case, Stop, stops
from bench.tokens import Cost, Load, bare_cost, session_cost

HOUSE_PROMPT = "Explain in detail what Backchannel is and how it works."
# Ten tokens at 50 a second: a stop meets every phase of one.
LONGEST_WAIT_S = 0.2


def _percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _stop_row(name: str, taken: Sequence[Stop]) -> list[str]:
    times = [stop.interrupted_ms for stop in taken]
    finished = [stop.finished_ms for stop in taken]
    waste = [float(stop.wasted_tokens) for stop in taken]
    return [
        name,
        str(len(taken)),
        f"{statistics.median(times):.2f}",
        f"{_percentile(times, 0.99):.2f}",
        f"{_percentile(finished, 0.99):.2f}",
        f"{_percentile(waste, 0.99):.0f}",
        f"{max(waste):.0f}",
        "yes" if all(stop.balanced for stop in taken) else "NO",
    ]


def _engine_row(name: str, taken: Sequence[EngineStop]) -> list[str]:
    told = [float(stop.since_told) for stop in taken]
    stopped = [float(stop.since_stop) for stop in taken]
    return [
        name,
        str(len(taken)),
        f"{statistics.mean(told):.2f}",
        f"{_percentile(told, 0.99):.0f}",
        f"{max(told):.0f}",
        f"{statistics.mean(stopped):.2f}",
        f"{_percentile(stopped, 0.99):.0f}",
        f"{max(stopped):.0f}",
        f"{sum(stop.exact for stop in taken) / len(taken):.0%}",
    ]


def _cost_row(name: str, costs: Sequence[Cost], yardstick: Sequence[Cost]) -> list[str]:
    ratios = [
        cost.us_per_token / base.us_per_token for cost, base in zip(costs, yardstick, strict=True)
    ]
    return [
        name,
        f"{statistics.median(cost.us_per_token for cost in costs):.1f}",
        f"{statistics.median(ratios):.2f}",
        f"{min(ratios):.2f}-{max(ratios):.2f}",
        f"{statistics.mean(cost.events_per_frame for cost in costs):.2f}",
    ]


def door_row(name: str, door: DoorFigures) -> list[str]:
    cells = [name, str(len(door.gap_errors_ms)), str(len(door.cancels_ms))]
    for values in (door.gap_errors_ms, door.ways_ms, door.cancels_ms):
        cells += [f"{statistics.median(values):.1f}", f"{_percentile(values, 0.99):.1f}"]
    return cells


async def measure_stops(count: int, seed: int, house: bool) -> list[list[str]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        async with backchannel(log=f"sqlite:///{folder}/stops.db") as target:
            for background in (0, 16):
                case = Case("scripted/count", "count", {"rate": "50"}, background, LONGEST_WAIT_S)
                name = f"scripted, 50 tok/s, {background} other turns"
                rows.append(_stop_row(name, await stops(target, case, count, seed)))
    if house:
        with tempfile.TemporaryDirectory() as folder:
            log = f"sqlite:///{folder}/stops.db"
            async with backchannel(log=log, engine="llama") as target:
                for background in (0, 4):
                    case = Case("llama/house", HOUSE_PROMPT, {}, background, 0.02)
                    name = f"house model, {background} other turns"
                    rows.append(_stop_row(name, await stops(target, case, count, seed)))
    return rows


async def measure_engines(count: int, seed: int, house: bool) -> list[list[str]]:
    cases = {
        f"scripted, 50 tok/s, {others} other generations": EngineCase(
            lambda: scripted.create("scripted", {}),
            "count",
            "count",
            {"rate": "50"},
            others,
            LONGEST_WAIT_S,
        )
        for others in (0, 16)
    }
    if house:
        cases |= {
            f"house model, {others} other generations": EngineCase(
                lambda: llama.create("llama", {}), "house", HOUSE_PROMPT, {}, others, 0.02
            )
            for others in (0, 4)
        }
    return [
        _engine_row(name, await engine_stops(case, count, seed)) for name, case in cases.items()
    ]


async def measure_lag(seconds: float) -> list[list[str]]:
    rows = []
    for sessions in (0, 1, 16):
        found = await lag(sessions, HOUSE_PROMPT, seconds)
        rows.append(
            [
                f"{sessions}, {'idle' if not sessions else 'house model'}",
                f"{found.tokens_per_s:.0f}",
                str(len(found.late_ms)),
                f"{statistics.median(found.late_ms):.2f}",
                f"{_percentile(found.late_ms, 0.99):.2f}",
                f"{max(found.late_ms):.2f}",
            ]
        )
    return rows


async def measure_tokens(load: Load, rounds: int) -> list[list[str]]:
    yardstick: list[Cost] = []
    memory: list[Cost] = []
    sqlite: list[Cost] = []
    with tempfile.TemporaryDirectory() as folder:
        log = f"sqlite:///{folder}/tokens.db"
        async with (
            bare() as plain,
            backchannel(log="memory") as in_memory,
            backchannel(log=log) as in_sqlite,
        ):
            for turn in range(rounds + 1):
                costs = (
                    await bare_cost(plain, load),
                    await session_cost(in_memory, load),
                    await session_cost(in_sqlite, load),
                )
                if turn:  # The first round warms up.
                    yardstick.append(costs[0])
                    memory.append(costs[1])
                    sqlite.append(costs[2])
    return [
        _cost_row("bare grpc.aio loop", yardstick, yardstick),
        _cost_row("Backchannel, memory log", memory, yardstick),
        _cost_row("Backchannel, SQLite log", sqlite, yardstick),
    ]


STOP_COLUMNS = (
    "stops of",
    "samples",
    "to TurnInterrupted p50 ms",
    "p99 ms",
    "to TurnFinished p99 ms",
    "wasted tokens p99",
    "most",
    "bill balances",
)
ENGINE_COLUMNS = (
    "stops of",
    "samples",
    "steps since told: mean",
    "p99",
    "most",
    "since stop(): mean",
    "p99",
    "most",
    "exact",
)
LAG_COLUMNS = ("sessions", "tokens/s", "timers", "late by p50 ms", "p99 ms", "most ms")
DOOR_COLUMNS = (
    "door",
    "tokens",
    "leavings",
    "gap error p50 ms",
    "p99 ms",
    "commit to reader p50 ms",
    "p99 ms",
    "leaving noticed p50 ms",
    "p99 ms",
)
COST_COLUMNS = ("server", "CPU µs a token", "ratio to bare", "range", "events a frame")
