"""Servers to measure, each a process of its own, on a core of its own where there are two."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import httpx
import psutil

# Longer than that is a failure.
START_S = 60.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Target:
    """A server under measurement.

    Attributes:
        address: Where it listens.
        process: Whose CPU time counts.
        edge: Where its Envoy listens, if it has one.
        envoy: The Envoy.
    """

    address: str
    process: psutil.Process
    edge: str = ""
    envoy: psutil.Process | None = None

    def cpu_s(self) -> float:
        """CPU seconds used so far, user and system."""
        return _cpu_s(self.process)

    def envoy_cpu_s(self) -> float:
        """The same of its Envoy; 0 without one."""
        return 0.0 if self.envoy is None else _cpu_s(self.envoy)

    def rss_mib(self) -> float:
        """Resident memory now."""
        return self.process.memory_info().rss / 2**20

    def envoy_rss_mib(self) -> float:
        """The same of its Envoy; 0 without one."""
        return 0.0 if self.envoy is None else self.envoy.memory_info().rss / 2**20


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


@dataclass(frozen=True, slots=True)
class Cores:
    """Who runs where; None for wherever the machine likes.

    Attributes:
        server: The server under measurement.
        others: Everybody else: clients, and Envoy.
    """

    server: Sequence[int] | None = None
    others: Sequence[int] | None = None

    @classmethod
    def of_this_machine(cls) -> Cores:
        """A core for the server, where there are two and processes can be told."""
        if not hasattr(os, "sched_getaffinity"):
            return cls()
        cores = sorted(os.sched_getaffinity(0))
        return cls(cores[:1], cores[1:]) if len(cores) > 1 else cls()

    @property
    def words(self) -> str:
        """For the page."""
        if self.server is None or self.others is None:
            return "server, clients and Envoy share all cores"
        others = ", ".join(map(str, self.others))
        return f"the server has core {self.server[0]} to itself; clients and Envoy have {others}"


def pin(process: psutil.Process, cores: Sequence[int] | None) -> None:
    """Keep a process, with the threads that it has and will have, to these cores."""
    if cores is None:
        return
    for thread in process.threads():
        with contextlib.suppress(ProcessLookupError):  # It has just ended.
            os.sched_setaffinity(thread.id, cores)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def speaks_grpc(address: str) -> None:
    """Wait until a gRPC server answers."""
    async with grpc.aio.insecure_channel(address) as channel:
        await channel.channel_ready()


async def _speaks_http(address: str) -> None:
    async with httpx.AsyncClient() as client:
        while True:
            with contextlib.suppress(httpx.TransportError):
                # A server that has not yet seen what is behind it answers with an error of its own.
                answer = await client.get(f"http://{address}/?rate=1000&tokens=1")
                if answer.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
                    return
            await asyncio.sleep(_POLL_S)


@asynccontextmanager
async def _running(
    arguments: Sequence[str],
    port: int,
    ready: Callable[[str], Awaitable[None]] = speaks_grpc,
    *,
    edge: str = "",
    cores: Cores | None = None,
) -> AsyncIterator[Target]:
    cores = cores or Cores()
    command = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    children: list[psutil.Process] = []
    try:
        address = f"127.0.0.1:{port}"
        async with asyncio.timeout(START_S):
            await ready(address)
            if edge:
                await _speaks_http(edge)
        process = psutil.Process(command.pid)
        children = process.children()
        pin(process, cores.server)
        for child in children:
            pin(child, cores.others)
        yield Target(address, process, edge, children[0] if edge else None)
    finally:
        with contextlib.suppress(ProcessLookupError):
            command.kill()
        for child in children:  # A killed service cannot take its Envoy along.
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        await command.wait()


@asynccontextmanager
async def backchannel(
    *,
    log: str,
    engine: str = "scripted",
    edge: bool = False,
    cores: Cores | None = None,
    more: Sequence[str] = (),
) -> AsyncIterator[Target]:
    """The service, as people run it; `more` are further arguments."""
    port = free_port()
    arguments = ["-m", "backchannel", "serve", "--listen", f"127.0.0.1:{port}"]
    arguments += ["--engine", engine, "--log", log, "--log-level", "warning"]
    # At a port of its own: of several at one port only the first would tell its metrics.
    arguments += ["--metrics-listen", "127.0.0.1:0", *more]
    door = f"127.0.0.1:{free_port()}" if edge else ""
    arguments += ["--edge", "--edge-listen", door] if edge else ["--no-edge"]
    async with _running(arguments, port, edge=door, cores=cores) as target:
        yield target


@asynccontextmanager
async def bare(cores: Cores | None = None) -> AsyncIterator[Target]:
    """The yardstick."""
    port = free_port()
    async with _running(["-m", "bench.bare", str(port)], port, cores=cores) as target:
        yield target


@asynccontextmanager
async def bare_sse(cores: Cores | None = None) -> AsyncIterator[Target]:
    """The yardstick of server-sent events."""
    port = free_port()
    arguments = ["-m", "bench.bare_sse", str(port)]
    async with _running(arguments, port, _speaks_http, cores=cores) as target:
        yield target
