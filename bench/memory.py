"""What a session costs in memory: many of them, open and read, on a server of their own."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace

from bench.compare import Progress
from bench.driver import Demand, Measured, drive
from bench.servers import Cores, backchannel

WARM = 50
"""Sessions before the first weighing: what a server needs once is nobody's session."""


async def weigh(
    demand: Demand, cores: Cores, seed: int, progress: Progress
) -> dict[str, tuple[float, float, Measured]]:
    """Weigh the service with so many sessions, for each door.

    Returns:
        By a name what the server and its Envoy held before, in MiB, and what was measured then.
    """
    found = {}
    for name, door, log in (
        ("gRPC, memory log", "grpc", "memory"),
        ("gRPC, SQLite log", "grpc", "sqlite"),
        ("server-sent events through Envoy, SQLite log", "sse", "sqlite"),
    ):
        progress(f"{demand.sessions} sessions: {name}")
        with tempfile.TemporaryDirectory() as folder:
            where = log if log == "memory" else f"sqlite:///{folder}/memory.db"
            async with backchannel(log=where, edge=door == "sse", cores=cores) as target:
                await drive(target, door, replace(demand, sessions=WARM, ramp_s=0.5), cores, seed)
                before, before_envoy = target.rss_mib(), target.envoy_rss_mib()
                measured = await drive(target, door, demand, cores, seed)
                found[name] = (before, before_envoy, measured)
    return found


def memory_rows(
    found: dict[str, tuple[float, float, Measured]], sessions: int
) -> Sequence[Sequence[str]]:
    """As a table."""
    rows = []
    for name, (before, before_envoy, one) in found.items():
        each = [
            (one.idle_mib - before) * 1024 / sessions,
            (one.spoken_mib - before) * 1024 / sessions,
            (one.spoken_envoy_mib - before_envoy) * 1024 / sessions,
        ]
        cells = [f"{kib:.1f}" for kib in each]
        if not one.spoken_envoy_mib:
            cells[-1] = "-"
        rows.append([name, str(sessions), f"{before:.0f}", *cells])
    return rows
