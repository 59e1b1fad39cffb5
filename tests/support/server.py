"""Servers to test against: one in this process, one as people run it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2

from backchannel.config import ServeConfig
from tests.support.stream import Client

# What a busy machine may need. Nothing waits so long unless it fails.
START_S = 30.0
# A slow client is slow with its buffers full: keep them small, and the lane of one test apart
# from the lane of the next.
CHANNEL = (("grpc.use_local_subchannel_pool", 1),)


def config(**more: object) -> ServeConfig:
    """The configuration of a server for tests: in memory, scripted models, a free port."""
    given = {
        "listen": "127.0.0.1:0",
        "log": "memory",
        "engine": ("scripted",),
        "drain_grace_s": 0.5,
        **more,
    }
    return ServeConfig.load(given)


@contextlib.asynccontextmanager
async def connected(address: object, *options: tuple[str, int]) -> AsyncIterator[Client]:
    """A client on a connection of its own."""
    async with grpc.aio.insecure_channel(str(address), options=(*CHANNEL, *options)) as channel:
        yield Client(channel)


async def healthy(client: Client, service: str = "") -> bool:
    """Whether the server says that it serves."""
    request = health_pb2.HealthCheckRequest(service=service)
    raw = await client.raw("/grpc.health.v1.Health/Check", request)
    status = health_pb2.HealthCheckResponse.FromString(raw).status
    return status == health_pb2.HealthCheckResponse.SERVING


@dataclass
class ServerProcess:
    """`backchannel serve` in a process of its own, with a log that survives it."""

    folder: Path
    arguments: tuple[str, ...] = ()
    engines: tuple[str, ...] = ("--engine", "scripted")
    environment: Mapping[str, str] = field(default_factory=dict)
    # Envoy only where it is wanted: most tests want the port of gRPC.
    edge: tuple[str, ...] = ("--no-edge",)
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def output(self) -> str:
        return (self.folder / "stdout").read_text() + (self.folder / "stderr").read_text()

    async def start(self) -> None:
        """Start, or start again at the same port, and wait until it serves."""
        command = [
            *(sys.executable, "-m", "backchannel", "serve"),
            *("--listen", f"127.0.0.1:{self.port}", *self.engines),
            *self.edge,
            *("--log", f"sqlite:///{self.folder / 'log.db'}", "--log-format", "json"),
            *self.arguments,
        ]
        with (
            (self.folder / "stdout").open("wb") as out,
            (self.folder / "stderr").open("wb") as err,
        ):
            # Forking does not wait for anything; asyncio's own kind dies with the event loop.
            self.process = subprocess.Popen(  # noqa: ASYNC220
                command, stdout=out, stderr=err, env={**os.environ, **self.environment}
            )
        async with asyncio.timeout(START_S):
            await self._serving()

    async def _serving(self) -> None:
        assert self.process is not None
        while True:
            assert self.process.poll() is None, f"it died:\n{self.output}"
            for line in (self.folder / "stdout").read_text().splitlines():
                if "listens on" in line:
                    self.port = int(line.rpartition(":")[2])
            if self.port:
                async with connected(self.address) as client:
                    with contextlib.suppress(grpc.aio.AioRpcError):
                        if await healthy(client):
                            return
            await asyncio.sleep(0.02)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return await asyncio.to_thread(self.process.wait, START_S)

    def kill(self) -> None:
        """As if the power had gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
