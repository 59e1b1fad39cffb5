"""Ways to the same tokens, side by side: the service by each of its doors, and two bare servers.

All servers run at once and are loaded one after the other, round after round, so that whatever else
the machine does hits all of them alike. Ratios are taken within a round.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from bench.driver import Demand, Measured, Times, drive
from bench.servers import Cores, Target, backchannel, bare, bare_sse

Progress = Callable[[str], None]

BARE_GRPC = "bare grpc.aio loop"
BARE_SSE = "bare uvicorn, server-sent events"


@dataclass(frozen=True, slots=True)
class Way:
    """A way from a server to its clients.

    Attributes:
        name: For people.
        door: As the driver calls it.
        server: Which server: `grpc`, `sse`, `memory` or `sqlite`.
        yardstick: The way it is compared with; its own name for a yardstick.
    """

    name: str
    door: str
    server: str
    yardstick: str

    @property
    def is_bare(self) -> bool:
        """Whether it is a yardstick, which has no sessions and cannot be stopped."""
        return self.name == self.yardstick


WAYS = (
    Way(BARE_GRPC, "bare-grpc", "grpc", BARE_GRPC),
    Way("gRPC, memory log", "grpc", "memory", BARE_GRPC),
    Way("gRPC, SQLite log", "grpc", "sqlite", BARE_GRPC),
    Way("gRPC-Web through Envoy, SQLite log", "web", "sqlite", BARE_GRPC),
    Way(BARE_SSE, "bare-sse", "sse", BARE_SSE),
    Way("server-sent events through Envoy, SQLite log", "sse", "sqlite", BARE_SSE),
)

Found = Mapping[str, Sequence[Measured]]
"""By a way's name what each round has found."""


@asynccontextmanager
async def _servers(cores: Cores) -> AsyncIterator[dict[str, Target]]:
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        log = f"sqlite:///{folder}/load.db"
        yield {
            "grpc": await stack.enter_async_context(bare(cores)),
            "sse": await stack.enter_async_context(bare_sse(cores)),
            "memory": await stack.enter_async_context(backchannel(log="memory", cores=cores)),
            "sqlite": await stack.enter_async_context(backchannel(log=log, edge=True, cores=cores)),
        }


async def _rounds(
    ways: Sequence[Way],
    servers: Mapping[str, Target],
    demand: Demand,
    rounds: int,
    cores: Cores,
    seed: int,
    progress: Progress,
) -> Found:
    found: dict[str, list[Measured]] = {way.name: [] for way in ways}
    for number in range(rounds):
        for way in ways:
            progress(f"round {number + 1} of {rounds}: {way.name}")
            asked = replace(demand, stops=0) if way.is_bare else demand
            # The same seed for all ways of a round: the same moments.
            measured = await drive(servers[way.server], way.door, asked, cores, seed + number)
            found[way.name].append(measured)
    return found


async def compare(
    demand: Demand,
    overload: Demand,
    rounds: int,
    cores: Cores,
    seed: int,
    progress: Progress,
) -> tuple[Found, Found]:
    """Measure all ways under a load they can bear, then some under one they cannot.

    Args:
        demand: What they can bear.
        overload: What they cannot.
        rounds: Of the first; of the second there are two.
        cores: Who runs where.
        seed: Of the moments at which turns are asked.
        progress: Told what is being done.
    """
    async with _servers(cores) as servers:
        brief = replace(demand, turns=1, stops=0)
        await _rounds(
            WAYS, servers, brief, 1, cores, seed, lambda what: progress(f"warming up, {what}")
        )
        found = await _rounds(WAYS, servers, demand, rounds, cores, seed, progress)
        ways = [way for way in WAYS if way.door != "web"]
        most = await _rounds(
            ways, servers, overload, 2, cores, seed, lambda what: progress(f"overload, {what}")
        )
    return found, most


# --- figures ----------------------------------------------------------------------------------


def ratios(found: Found, way: Way, figure: Callable[[Measured], float]) -> list[float]:
    """A figure of each round, in units of the yardstick's in the same round."""
    base = found[way.yardstick]
    return [figure(one) / figure(unit) for one, unit in zip(found[way.name], base, strict=True)]


def together(several: Sequence[Measured], which: str) -> Times:
    """The times of all rounds."""
    return Times.together(getattr(one, which) for one in several)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The least and the most."""
    return f"{min(values):.{digits}f}-{max(values):.{digits}f}"


def cost_rows(found: Found) -> list[list[str]]:
    """What a token costs."""
    rows = []
    for way in WAYS:
        several = found[way.name]
        costs = [one.us_per_token for one in several]
        times = ratios(found, way, lambda one: one.us_per_token)
        envoy = statistics.median(one.envoy_us_per_token for one in several)
        merged = sum(one.tokens for one in several) / sum(one.frames for one in several)
        rows.append(
            [
                way.name,
                f"{statistics.median(costs):.1f}",
                spread(costs, 1),
                f"{1e6 / statistics.median(costs):,.0f}",
                f"{statistics.median(times):.2f}",
                spread(times),
                f"{envoy:.1f}" if way.door in ("web", "sse") else "-",
                f"{merged:.2f}",
            ]
        )
    return rows


def latency_rows(found: Found) -> list[list[str]]:
    """How late tokens are."""
    rows = []
    for way in WAYS:
        several = found[way.name]
        added, ttft, sent = (together(several, name) for name in ("added", "ttft", "way"))
        medians = ratios(found, way, lambda one: one.added.at_ms(50))
        rows.append(
            [
                way.name,
                f"{len(added):,}",
                *(f"{added.at_ms(percent):.2f}" for percent in (50, 99, 99.9)),
                f"{statistics.median(medians):.2f}",
                spread(medians),
                *(f"{sent.at_ms(percent):.2f}" for percent in (50, 99, 99.9)),
                *(f"{ttft.at_ms(percent):.2f}" for percent in (50, 99)),
            ]
        )
    return rows


def stop_rows(found: Found) -> list[list[str]]:
    """How fast stops take hold."""
    rows = []
    for way in WAYS:
        if way.is_bare:
            continue
        stops = together(found[way.name], "stops")
        cells = [f"{stops.at_ms(percent):.2f}" for percent in (50, 99, 100)]
        rows.append([way.name, str(len(stops)), *cells])
    return rows


def driver_rows(found: Found) -> list[list[str]]:
    """Whether the driver was in the way."""
    rows = []
    for way in WAYS:
        several = found[way.name]
        late = together(several, "late")
        shares = [one.driver_cpu_s / one.wall_s for one in several]
        servers = [one.cpu_s / one.wall_s for one in several]
        rows.append(
            [
                way.name,
                f"{statistics.median(servers):.0%}",
                f"{statistics.median(shares):.0%}",
                f"{late.at_ms(50):.2f}",
                f"{late.at_ms(99):.2f}",
            ]
        )
    return rows


def overload_rows(most: Found) -> list[list[str]]:
    """What comes through when more is asked than a core can do."""
    rows = []
    for way in WAYS:
        if way.name not in most:
            continue
        several = most[way.name]
        through = [one.tokens / one.wall_s for one in several]
        rows.append(
            [
                way.name,
                f"{statistics.median(through):,.0f}",
                f"{statistics.median(one.cpu_s / one.wall_s for one in several):.0%}",
                f"{statistics.median(one.us_per_token for one in several):.1f}",
                f"{statistics.median(one.tokens / one.frames for one in several):.2f}",
                f"{statistics.median(one.driver_cpu_s / one.wall_s for one in several):.0%}",
            ]
        )
    return rows
