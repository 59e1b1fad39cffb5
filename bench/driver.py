"""The load driver (bench/load, in Go), and what it tells: counts, and histograms of times.

It runs as a process of its own, which costs a fraction of what the server costs, and stops at
marks (all sessions open; all turns over), so that the server's CPU time and memory are read with
nothing under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench.servers import Cores, Target, pin
from scripts import tools

# What a driver that has failed to end by itself is given.
_LONGEST_S = 300.0


@dataclass(frozen=True, slots=True)
class Demand:
    """What a server is asked for, at times that are fixed before the first of them.

    Attributes:
        sessions: At the same time.
        rate: Tokens a second of each.
        tokens: Of each turn.
        turns: Of each session.
        stops: Turns of each session that are stopped, after the others.
        ramp_s: First turns begin at random within it.
    """

    sessions: int = 40
    rate: float = 50.0
    tokens: int = 100
    turns: int = 3
    stops: int = 0
    ramp_s: float = 1.0

    def flags(self) -> list[str]:
        """For the driver."""
        said = {
            "sessions": self.sessions,
            "rate": self.rate,
            "tokens": self.tokens,
            "turns": self.turns,
            "stops": self.stops,
            "ramp": f"{self.ramp_s}s",
        }
        return [f"-{name}={value}" for name, value in said.items()]


class Times:
    """Times in microseconds, as many as there were; three digits of each count.

    Args:
        bars: Pairs of a time and how often it was seen.
    """

    def __init__(self, bars: Iterable[Sequence[int]] = ()) -> None:
        self._seen: Counter[int] = Counter()
        for time_us, count in bars:
            self._seen[time_us] += count

    @classmethod
    def together(cls, several: Iterable[Times]) -> Times:
        """All of several."""
        whole = cls()
        for one in several:
            whole._seen += one._seen  # noqa: SLF001 - of the same class
        return whole

    def __len__(self) -> int:
        return self._seen.total()

    def at_ms(self, percent: float) -> float:
        """The least time that this share of all times does not exceed; NaN if there are none."""
        wanted = math.ceil(percent / 100 * len(self))
        so_far = 0
        for time_us in sorted(self._seen):
            so_far += self._seen[time_us]
            if so_far >= wanted:
                return time_us / 1000
        return math.nan


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of the driver against one server.

    Attributes:
        cpu_s: Of the server, while turns ran.
        envoy_cpu_s: Of its Envoy.
        driver_cpu_s: Of the driver.
        wall_s: How long turns ran.
        tokens: That were read.
        frames: In so many messages; server-sent events are one each.
        idle_mib: What the server held in memory when all sessions were open.
        spoken_mib: When all had had their turns.
        idle_envoy_mib: Of its Envoy.
        spoken_envoy_mib: Of its Envoy.
        added: Each token, from when it was due by the turn's own due time and the rate until it was
            read.
        way: Each token, from the server's own timestamp until it was read.
        ttft: Each turn's first token, from when the turn was due to be asked.
        late: By how much the driver asked too late.
        stops: From when a stop was due to be sent until `TurnInterrupted` was read.
    """

    cpu_s: float
    envoy_cpu_s: float
    driver_cpu_s: float
    wall_s: float
    tokens: int
    frames: int
    idle_mib: float
    spoken_mib: float
    idle_envoy_mib: float
    spoken_envoy_mib: float
    added: Times = field(default_factory=Times)
    way: Times = field(default_factory=Times)
    ttft: Times = field(default_factory=Times)
    late: Times = field(default_factory=Times)
    stops: Times = field(default_factory=Times)

    @property
    def us_per_token(self) -> float:
        """CPU microseconds of the server for each token."""
        return self.cpu_s / self.tokens * 1e6

    @property
    def envoy_us_per_token(self) -> float:
        """The same of its Envoy."""
        return self.envoy_cpu_s / self.tokens * 1e6


@functools.cache
def _program() -> Path:
    """As it is at the first use, also if its sources change while it is used.

    Raises:
        RuntimeError: It is not built.
    """
    program = tools.find_load_driver()
    if program is None:
        raise RuntimeError(f"needs the load driver: {tools.why_missing('load-driver')}")
    return program


async def drive(target: Target, door: str, demand: Demand, cores: Cores, seed: int) -> Measured:
    """Load a server.

    Args:
        target: Which.
        door: `grpc`, `web`, `sse`, `bare-grpc` or `bare-sse`.
        demand: How much.
        cores: Where the driver runs.
        seed: Of all that is random.

    Raises:
        RuntimeError: Something went otherwise than asked: a call failed, a token is missing, an
            event came twice or in the wrong place.
    """
    process = await asyncio.create_subprocess_exec(
        _program(),
        *(f"-door={door}", f"-server={target.address}", f"-edge={target.edge}", f"-seed={seed}"),
        *demand.flags(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=2**24,
    )
    try:
        async with asyncio.timeout(_LONGEST_S):
            measured = await _watch(process, target, door, cores)
            await process.wait()
            return measured
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _watch(
    process: asyncio.subprocess.Process, target: Target, door: str, cores: Cores
) -> Measured:
    assert process.stdin is not None

    await _mark(process, door, b"ready\n")
    pin(psutil.Process(process.pid), cores.others)
    idle_mib, idle_envoy_mib = target.rss_mib(), target.envoy_rss_mib()
    cpu_s, envoy_cpu_s = target.cpu_s(), target.envoy_cpu_s()
    process.stdin.write(b"\n")
    await _mark(process, door, b"done\n")
    cpu_s, envoy_cpu_s = target.cpu_s() - cpu_s, target.envoy_cpu_s() - envoy_cpu_s
    spoken_mib, spoken_envoy_mib = target.rss_mib(), target.envoy_rss_mib()
    process.stdin.write(b"\n")
    said: dict[str, Any] = json.loads(await _mark(process, door))
    return Measured(
        cpu_s,
        envoy_cpu_s,
        said["driver_cpu_s"],
        said["wall_s"],
        said["tokens"],
        said["frames"],
        idle_mib,
        spoken_mib,
        idle_envoy_mib,
        spoken_envoy_mib,
        *(Times(said[f"{name}_us"]) for name in ("added", "way", "ttft", "late", "stops")),
    )


async def _mark(process: asyncio.subprocess.Process, door: str, wanted: bytes = b"") -> bytes:
    """The driver's next line."""
    assert process.stdout is not None
    assert process.stderr is not None
    line = await process.stdout.readline()
    if not line or (wanted and line != wanted):
        complaint = (await process.stderr.read()).decode(errors="replace").strip()
        raise RuntimeError(f"the load driver failed at {door}: {complaint or line!r}")
    return line
