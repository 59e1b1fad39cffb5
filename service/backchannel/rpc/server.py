"""The server: everything that has to be there for sessions to run, opened and closed in order.

async with Server(config) as server:
    print(server.address)
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

import grpc
import structlog

from backchannel.config import ServeConfig
from backchannel.engines.registry import EngineRegistry
from backchannel.host.host import Host
from backchannel.listen import Address
from backchannel.log.registry import open_log
from backchannel.observer import SILENT, Observer
from backchannel.rpc import conversation, reflection, settings
from backchannel.rpc.conversation import Conversations
from backchannel.rpc.health import SERVICE as HEALTH
from backchannel.rpc.health import Health
from backchannel.rpc.interceptor import Guard
from backchannel.rpc.models import Models
from backchannel.rpc.probe import Probe
from backchannel.v1 import (
    model_service_pb2,
    model_service_pb2_grpc,
    probe_service_pb2,
    probe_service_pb2_grpc,
)

SERVICES: Final = (
    conversation.SERVICE,
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
    probe_service_pb2.DESCRIPTOR.services_by_name["ProbeService"].full_name,
)

# Of the time that a stop may take: what running answers get. The rest is for telling readers,
# for calls that are nearly done, and for closing what is open.
_TURNS_SHARE: Final = 0.8
# After the sessions have ended their streams, what is left are calls that nobody reads.
_STRAGGLERS_S: Final = 1.0

# What Linux has room for; unix(7). macOS has three bytes less.
_SOCKET_PATH_BYTES: Final = 107

_log = structlog.get_logger(__name__)


class ListenError(Exception):
    """The address cannot be listened at; the message says why and what to do."""


class Door(Protocol):
    """A further service on the same port: a module, or anything else that has these."""

    SERVICE: str

    def register(self, server: grpc.aio.Server, host: Host, /) -> None:
        """Add the service to a server that has not started."""
        ...


class Server:
    """One process of the service. An async context manager: inside the block it serves.

    Args:
        config: How it is to run.
        doors: What it offers beside its own services.
        observer: Watches all it does.
    """

    def __init__(
        self, config: ServeConfig, doors: Sequence[Door] = (), observer: Observer = SILENT
    ) -> None:
        self._observer = observer
        self.config = config
        self._doors = doors
        self._exits = AsyncExitStack()
        self._health = Health((*SERVICES, *(door.SERVICE for door in doors)))
        self._leaving = False

    address: Address
    """Where it listens, with the port that was really taken."""
    host: Host
    """Where the sessions run."""
    engines: EngineRegistry
    """What can be talked to."""
    log_address: str
    """Where sessions are kept, for people."""

    @property
    def port(self) -> int:
        """The TCP port that was really taken.

        Raises:
            ValueError: It listens on a Unix socket.
        """
        if self.address.port is None:
            raise ValueError(f"{self.address} has no port")
        return self.address.port

    async def __aenter__(self) -> Self:
        """Open everything, take up what a process before this one left, and serve.

        Raises:
            ListenError: The address is taken, or not this machine's.
            BackchannelError: The log or an engine cannot be opened; says what to do.
        """
        async with AsyncExitStack() as exits:
            self._grpc = grpc.aio.server(
                interceptors=(Guard(self._observer),),
                options=settings.server_options(self.config),
                maximum_concurrent_rpcs=self.config.max_calls,
            )
            # First what fails fastest: a port that is taken, before seconds of loading a model.
            self.address = _bind(self._grpc, self.config.address)
            exits.push_async_callback(self._grpc.stop, None)
            log = await exits.enter_async_context(open_log(self.config.log))
            self.log_address = log.address
            with self._observer.channels():
                self.engines = await exits.enter_async_context(settings.engines(self.config))
            self.host = await exits.enter_async_context(
                Host(
                    log=log,
                    engines=self.engines,
                    config=self.config.sessions,
                    observer=self._observer,
                )
            )
            await exits.enter_async_context(self._observer.watching(self.host))
            self._register()
            await self._health.starting()
            await self._grpc.start()
            await self.host.recover()
            await self._health.serving()
            self._exits = exits.pop_all()
        _log.info(
            "serving",
            address=str(self.address),
            log=self.log_address,
            model=self.engines.default_model,
        )
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Drain with the configured grace and close everything."""
        try:
            await self.drain(self.config.drain_grace_s)
        finally:
            await self._exits.aclose()

    async def drain(self, grace_s: float) -> None:
        """Leave politely: no new work, running answers to their end, readers sent elsewhere.

        gRPC's own way of stopping tells nobody in time: handlers cannot see it, and at its end it
        cuts what is left. So the streams are ended here first, each with its status.

        Args:
            grace_s: How long it may take in all.
        """
        if self._leaving:
            return
        self._leaving = True
        end_s = asyncio.get_running_loop().time() + grace_s
        _log.info("draining", grace_s=grace_s)
        await self._health.leaving(timeout_s=0.1 * grace_s)
        await self.host.drain(_TURNS_SHARE * grace_s)
        left_s = max(0.0, end_s - asyncio.get_running_loop().time())
        await self._grpc.stop(min(_STRAGGLERS_S, left_s))
        _log.info("drained")

    def _register(self) -> None:
        server = self._grpc
        config = self.config
        conversations = Conversations(
            self.host.sessions,
            open_timeout_s=config.open_timeout_s,
            list_for_browsers=not config.edge_hosts and config.edge_address.is_local,
        )
        server.add_generic_rpc_handlers((conversations.handlers(),))
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(Models(self.engines), server)
        probe_service_pb2_grpc.add_ProbeServiceServicer_to_server(Probe(), server)
        for door in self._doors:
            door.register(server, self.host)
        self._health.register(server)
        shown = (*SERVICES, *(door.SERVICE for door in self._doors), HEALTH)
        reflection.register(server, sorted(shown))


def _bind(server: grpc.aio.Server, address: Address) -> Address:
    """Take the port."""
    if address.port is None and _answers(Path(address.host)):
        # gRPC would unlink the socket and bind its own: the other server would run on, unheard.
        raise ListenError(
            f"cannot listen on {address}: Address already in use; choose another with --listen, or"
            " stop the program that has it"
        )
    try:
        port = server.add_insecure_port(str(address))
    except RuntimeError:
        raise ListenError(
            f"cannot listen on {address}: {_why_not(address)}; choose another with --listen (port 0"
            " takes a free one), or stop the program that has it"
        ) from None
    return address.with_port(port)


def _answers(path: Path) -> bool:
    """Whether a program listens on a Unix socket; the file alone may be what a killed one left."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # A queue that is full shows a listener as well as one with room.
        probe.setblocking(False)
        try:
            return probe.connect_ex(str(path)) in (0, errno.EAGAIN, errno.EINPROGRESS)
        except OSError:
            # Too long to be one; gRPC says so too.
            return False


def _why_not(address: Address) -> str:
    """The reason, which gRPC keeps to itself."""
    if address.port is None:
        if len(os.fsencode(address.host)) > _SOCKET_PATH_BYTES:
            return "its path is longer than a Unix socket's may be"
        folder = Path(address.host).parent
        return "its folder cannot be written" if folder.is_dir() else f"there is no {folder}"
    try:
        family, kind, proto, _, place = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, proto) as probe:
            probe.bind(place)
    except OSError as error:
        return error.strerror or str(error)
    return "gRPC could not bind it"
