"""`grpc.health.v1`: whether the service takes calls; one name for each service, and the empty one.

Source: https://github.com/grpc/grpc/blob/master/doc/health-checking.md
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as SERVICE
from grpc_health.v1.health import aio

__all__ = ["SERVICE", "Health"]

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """The health of all services together: they serve and stop as one.

    Args:
        services: Full names of the services.
    """

    def __init__(self, services: Sequence[str]) -> None:
        self._names = ("", SERVICE, *services)
        self._servicer = aio.HealthServicer()

    def register(self, server: grpc.aio.Server) -> None:
        """Add the service to a server that has not started."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def starting(self) -> None:
        """Not yet."""
        for name in self._names:
            await self._servicer.set(name, NOT_SERVING)

    async def serving(self) -> None:
        """From now on, unless it is leaving already."""
        for name in self._names:
            await self._servicer.set(name, SERVING)

    async def leaving(self, timeout_s: float) -> None:
        """Never again.

        Args:
            timeout_s: How long to wait for watchers. One that has stopped reading holds the lock
                under which the others are told.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._servicer.enter_graceful_shutdown()
        except TimeoutError:
            return
