"""Servers to measure, each a process of its own."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import psutil


@dataclass(frozen=True, slots=True)
class Target:
    """A server under measurement.

    Attributes:
        address: Where it listens.
        process: Whose CPU time counts.
    """

    address: str
    process: psutil.Process

    def cpu_s(self) -> float:
        """CPU seconds used so far, user and system."""
        times = self.process.cpu_times()
        return times.user + times.system

    def rss_mib(self) -> float:
        """Resident memory now."""
        return self.process.memory_info().rss / 2**20


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def _running(arguments: list[str], port: int) -> AsyncIterator[Target]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        address = f"127.0.0.1:{port}"
        async with grpc.aio.insecure_channel(address) as channel:
            await asyncio.wait_for(channel.channel_ready(), timeout=60)
        yield Target(address, psutil.Process(process.pid))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def backchannel(*, log: str, engine: str = "scripted") -> AsyncIterator[Target]:
    """The service, as people run it."""
    port = free_port()
    arguments = ["-m", "backchannel", "serve", "--listen", f"127.0.0.1:{port}"]
    arguments += ["--engine", engine, "--log", log, "--log-level", "warning", "--no-edge"]
    async with _running(arguments, port) as target:
        yield target


@asynccontextmanager
async def bare() -> AsyncIterator[Target]:
    """The yardstick."""
    port = free_port()
    async with _running(["-m", "bench.bare", str(port)], port) as target:
        yield target
