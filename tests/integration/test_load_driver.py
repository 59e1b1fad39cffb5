"""The load driver of `make bench`, by every door: it asks what it was told to, and counts right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from bench.compare import WAYS, Way
from bench.driver import Demand, drive
from bench.servers import Cores, Target, backchannel, bare, bare_sse, free_port

pytestmark = [pytest.mark.needs("load-driver"), pytest.mark.timeout(120)]

DEMAND = Demand(sessions=3, rate=200.0, tokens=10, turns=2, stops=1, ramp_s=0.1)
DOORS = {way.door: way for way in WAYS}


@asynccontextmanager
async def serving(way: Way) -> AsyncIterator[Target]:
    kinds = {"bare-grpc": bare, "bare-sse": bare_sse}
    if way.is_bare:
        async with kinds[way.door]() as target:
            yield target
    else:
        async with backchannel(log="memory", edge=way.door != "grpc") as target:
            yield target


@pytest.mark.parametrize("way", DOORS.values(), ids=DOORS.keys())
async def test_it_asks_what_it_was_told_to_and_counts_every_token(way: Way) -> None:
    demand = replace(DEMAND, stops=0) if way.is_bare else DEMAND
    async with serving(way) as target:
        seen = await drive(target, way.door, demand, Cores(), seed=1)
    assert seen.tokens == 3 * 2 * 10
    assert 0 < seen.frames <= seen.tokens
    assert len(seen.added) == len(seen.way) == seen.tokens
    assert len(seen.ttft) == len(seen.late) == 3 * 2
    assert len(seen.stops) == (0 if way.is_bare else 3)
    # Two turns of 50 ms, and 100 ms between them: nobody is asked sooner than planned.
    assert seen.wall_s >= 0.2
    assert seen.idle_mib > 0
    assert (seen.idle_envoy_mib > 0) == (way.door in ("web", "sse"))


async def test_it_says_what_it_could_not_do() -> None:
    async with backchannel(log="memory") as target:
        nowhere = replace(target, edge=f"127.0.0.1:{free_port()}")
        with pytest.raises(RuntimeError, match=r"the load driver failed at sse: .*refused"):
            await drive(nowhere, "sse", DEMAND, Cores(), seed=1)


async def test_a_server_that_stood_still_has_no_late_token_forgiven() -> None:
    """Open loop: what was due meanwhile counts, each token with the whole of its wait."""
    demand = Demand(sessions=3, rate=200.0, tokens=400, turns=1, ramp_s=0.05)
    async with bare() as target, asyncio.TaskGroup() as group:
        driving = group.create_task(drive(target, "bare-grpc", demand, Cores(), seed=1))
        await asyncio.sleep(0.8)
        target.process.suspend()
        await asyncio.sleep(0.5)
        target.process.resume()
    seen = driving.result()
    assert seen.tokens == 3 * 400
    # Of half a second the first 0.3 s are at least 0.2 s late: 60 tokens of each, 15 % of all.
    assert seen.added.at_ms(100 - 12) >= 200
    # By the server's own timestamps nothing was: it made them late, too.
    assert seen.way.at_ms(100 - 12) < 200
