"""Readers by the thousand, over plain sockets; and what they cost the processes that serve them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import psutil

from backchannel.v1 import frame_pb2
from tests.support.edge import EventStream, WebStream, attach
from tests.support.server import ServerProcess
from tests.support.stream import CONVERSATION, PATIENCE_S

# Of a reader that is to stop: as little room as the kernel gives.
SMALL_BYTES = 4096


class RawResponse:
    """An answer over HTTP/1.1, as far as the parsers of streams want one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer
        self.status_code = 0
        self.headers: dict[str, str] = {}

    async def begin(self) -> None:
        """Read the head."""
        status = await self._reader.readline()
        self.status_code = int(status.split()[1])
        while line := (await self._reader.readline()).decode().strip():
            key, _, value = line.partition(":")
            self.headers[key.lower()] = value.strip()

    async def aiter_raw(self) -> AsyncIterator[bytes]:
        """The chunks."""
        while size := int(await self._reader.readline(), 16):
            yield (await self._reader.readexactly(size + 2))[:-2]


class Many:
    """Streams through one Envoy, each on a connection of its own.

    Args:
        host: Where Envoy listens.
        port: Where Envoy listens.
    """

    def __init__(self, host: str, port: int) -> None:
        self._place = (host, port)
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Many:
        return self

    async def __aexit__(self, *_: object) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def sse(self, session_id: str, *, small: bool = False) -> EventStream:
        """One reader of server-sent events, its head read."""
        head = f"GET /v1/sessions/{session_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
        response: Any = await self._ask(head.encode(), small=small)
        return EventStream(response)

    async def web(self, session_id: str, *, text: bool = False, small: bool = False) -> WebStream:
        """One reader by gRPC-Web, its head read."""
        raw = attach(session_id).SerializeToString()
        body = struct.pack(">BI", 0, len(raw)) + raw
        if text:
            body = base64.b64encode(body)
        kind = f"application/grpc-web{'-text' if text else ''}+proto"
        head = f"POST {CONVERSATION}Attach HTTP/1.1\r\nHost: localhost\r\n"
        head += f"Content-Type: {kind}\r\nAccept: {kind}\r\nX-Grpc-Web: 1\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        response: Any = await self._ask(head.encode() + body, small=small)
        return WebStream(response, text=text)

    async def _ask(self, request: bytes, *, small: bool) -> RawResponse:
        one = socket.socket()
        if small:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BYTES)
        one.setblocking(False)
        await asyncio.get_running_loop().sock_connect(one, self._place)
        limit = SMALL_BYTES if small else 2**16
        reader, writer = await asyncio.open_connection(sock=one, limit=limit)
        self._writers.append(writer)
        writer.write(request)
        response = RawResponse(reader, writer)
        async with asyncio.timeout(PATIENCE_S):
            await response.begin()
        assert response.status_code == 200
        return response


def read_on(stream: EventStream | WebStream) -> None:
    """Give a stopped reader the room that others have; with so little it would take minutes."""
    response: Any = stream.response
    transport = response.writer.get_extra_info("socket")
    transport.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)


async def seqs(stream: EventStream | WebStream, until: str, nth: int = 1) -> list[int]:
    """The numbers of a stream's events, up to the nth of a kind, the last of its message."""
    found: list[int] = []

    def ends(seq: int, kind: str | None) -> bool:
        nonlocal nth
        found.append(seq)
        nth -= kind == until
        return nth == 0

    if isinstance(stream, EventStream):
        while (sent := await stream.next()) is not None:
            # Of thousands of readers nobody wants to keep all.
            stream.seen.clear()
            stream.chunks.clear()
            if sent.name != "heartbeat" and ends(int(sent.last_event_id), sent.name):
                return found
    else:
        while (raw := await stream.next()) is not None:
            events = frame_pb2.ServerFrame.FromString(raw).events
            ended = [ends(event.seq, event.WhichOneof("kind")) for event in events]
            if any(ended):
                return found
    raise AssertionError(f"the stream ended before {until}, after {found[-3:]}")


# --- what it costs ----------------------------------------------------------------------------


@dataclass
class Weight:
    """What the service and its Envoy hold in memory, in bytes.

    Attributes:
        service: Of the service, now.
        envoy: Of Envoy, now.
        most: Of both together, the most that was seen.
    """

    processes: tuple[psutil.Process, psutil.Process]
    service: int = 0
    envoy: int = 0
    most: int = 0

    @classmethod
    def of(cls, command: ServerProcess) -> Weight:
        assert command.process is not None
        service = psutil.Process(command.process.pid)
        (envoy,) = service.children()
        return cls((service, envoy))

    def take(self) -> int:
        """Look; what both hold together."""
        self.service, self.envoy = (one.memory_info().rss for one in self.processes)
        self.most = max(self.most, self.service + self.envoy)
        return self.service + self.envoy

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Look again and again for as long as the block lasts."""

        async def watch() -> None:
            while True:
                self.take()
                await asyncio.sleep(0.05)

        self.most = 0
        watcher = asyncio.create_task(watch())
        try:
            yield
        finally:
            self.take()
            watcher.cancel()
