"""A server with Envoy in front, and what browsers and their libraries do with the answers."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import struct
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import h2.connection
import h2.errors
import h2.events
import httpx
from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status

from backchannel import errors
from backchannel.edge.process import Edge
from backchannel.edge.rendering import LOOPBACK_HOSTS, Placement
from backchannel.listen import Address
from backchannel.observer import SILENT, Observer
from backchannel.rpc.server import Server
from backchannel.v1 import conversation_service_pb2 as pb
from backchannel.v1 import event_pb2, frame_pb2
from backchannel_gateway import doors
from tests.support.server import config
from tests.support.stream import CONVERSATION, PATIENCE_S

TRAILERS = 0x80


def placement(*upstreams: Address, **more: Any) -> Placement:
    """An Envoy at any free port."""
    given = {
        "listen": Address("127.0.0.1", 0),
        "upstreams": upstreams,
        "admin": Address("127.0.0.1", 0),
        "descriptors": "",
        "hosts": LOOPBACK_HOSTS,
        **more,
    }
    return Placement(**given)


@dataclass
class Site:
    """A server and the Envoy in front of it."""

    server: Server
    edge: Edge

    @property
    def address(self) -> str:
        return str(self.edge.address)

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def client(self, version: int = 1, **more: Any) -> httpx.AsyncClient:
        """An HTTP client that speaks 1.1, or 2 without TLS and without asking first."""
        return httpx.AsyncClient(
            base_url=self.url,
            http1=version == 1,
            http2=version == 2,
            timeout=PATIENCE_S,
            **more,
        )


@contextlib.asynccontextmanager
async def site(
    *, server: dict[str, Any] | None = None, observer: Observer = SILENT, **more: Any
) -> AsyncIterator[Site]:
    """A server in this process with a real Envoy in front."""
    async with (
        Server(config(**(server or {})), doors=[doors], observer=observer) as running,
        Edge(placement(running.address, **more), drain_s=1, threads=1) as edge,
    ):
        await edge.start()
        yield Site(running, edge)


# --- server-sent events -----------------------------------------------------------------------


@dataclass(frozen=True)
class Sent:
    """One server-sent event, as the HTML standard has it dispatched."""

    name: str
    data: str
    last_event_id: str

    @property
    def event(self) -> event_pb2.Event:
        return json_format.Parse(self.data, event_pb2.Event())

    @property
    def json(self) -> Any:
        return json.loads(self.data)


class EventStream:
    """Parses a stream by the standard's own steps, and keeps the chunks as they came.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    """

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.retry_ms: int | None = None
        self.last_event_id = ""
        self.chunks: list[bytes] = []
        self.seen: list[Sent] = []
        self._ready: list[Sent] = []
        self._pending = b""
        self._id = ""
        self._name = ""
        self._data: list[str] = []
        self._source = response.aiter_raw()

    async def next(self) -> Sent | None:
        """The next event; None at the end."""
        async with asyncio.timeout(PATIENCE_S):
            while not self._ready:
                chunk = await anext(self._source, None)
                if chunk is None:
                    return None
                self.chunks.append(chunk)
                self._take(chunk)
        sent = self._ready.pop(0)
        self.seen.append(sent)
        self.last_event_id = sent.last_event_id
        return sent

    async def until(self, name: str, nth: int = 1) -> Sent:
        """Read until the nth event of a name since now."""
        while (sent := await self.next()) is not None:
            if sent.name == name:
                nth -= 1
                if nth == 0:
                    return sent
        raise AssertionError(f"the stream ended before {name}: {self.seen[-3:]}")

    async def rest(self) -> list[Sent]:
        """All that still comes."""
        while await self.next() is not None:
            pass
        return self.seen

    @property
    def events(self) -> list[event_pb2.Event]:
        """The session's events among what was seen."""
        kinds = {field.name for field in event_pb2.Event.DESCRIPTOR.oneofs[0].fields}
        return [sent.event for sent in self.seen if sent.name in kinds]

    def _take(self, chunk: bytes) -> None:
        *lines, self._pending = (self._pending + chunk).split(b"\n")
        for raw in lines:
            line = raw.decode()
            assert "\r" not in line
            assert "\0" not in line
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not line:
                self._dispatch()
            elif field == "id":
                self._id = value
            elif field == "event":
                self._name = value
            elif field == "data":
                self._data.append(value)
            elif field == "retry":
                self.retry_ms = int(value)
            elif not field:
                pass  # A comment.
            else:
                raise AssertionError(f"not of ours: {line!r}")

    def _dispatch(self) -> None:
        if self._data:
            data = "\n".join(self._data)
            self._ready.append(Sent(self._name or "message", data, self._id))
        self._name, self._data = "", []


@contextlib.asynccontextmanager
async def events(
    client: httpx.AsyncClient,
    session_id: str,
    query: str = "",
    headers: dict[str, str] | None = None,
) -> AsyncIterator[EventStream]:
    """A session as an `EventSource` would open it."""
    path = f"/v1/sessions/{session_id}/events{query}"
    accept = {"accept": "text/event-stream"}
    async with client.stream("GET", path, headers={**accept, **(headers or {})}) as response:
        yield EventStream(response)


class RawH2:
    """One HTTP/2 connection without TLS, frame by frame: sees trailers, and can reset a stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.http = h2.connection.H2Connection()
        self.http.initiate_connection()

    @classmethod
    @contextlib.asynccontextmanager
    async def connected(cls, address: Address) -> AsyncIterator[RawH2]:
        reader, writer = await asyncio.open_connection(address.host, address.port)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()

    def get(self, path: str) -> int:
        """Ask; the stream's number."""
        stream = self.http.get_next_available_stream_id()
        headers = {":method": "GET", ":scheme": "http", ":authority": "localhost", ":path": path}
        self.http.send_headers(stream, list(headers.items()), end_stream=True)
        self._writer.write(self.http.data_to_send())
        return stream

    def reset(self, stream: int) -> None:
        """Cancel one stream; the connection goes on."""
        self.http.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
        self._writer.write(self.http.data_to_send())

    async def next(self) -> list[Any]:
        """What came with the next piece; empty at the end."""
        async with asyncio.timeout(PATIENCE_S):
            data = await self._reader.read(65536)
        found = self.http.receive_data(data) if data else []
        for event in found:
            if isinstance(event, h2.events.DataReceived):
                size = event.flow_controlled_length or 0
                self.http.acknowledge_received_data(size, event.stream_id or 0)
        self._writer.write(self.http.data_to_send())
        return list(found)


# --- gRPC-Web ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class WebEnding:
    """How a gRPC-Web call ended."""

    code: int
    status: Status

    @property
    def reason(self) -> str:
        return errors.reason_of(self.status)


class WebStream:
    """The answer to a gRPC-Web call, one message at a time.

    Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md
    """

    def __init__(self, response: httpx.Response, *, text: bool) -> None:
        self.response = response
        self.chunks = 0
        self.ending: WebEnding | None = None
        self._text = text
        self._encoded = b""
        self._buffer = b""
        self._source = response.aiter_raw()

    async def next(self) -> bytes | None:
        """The next message; None at the end, after which `ending` is set."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                frame = self._cut()
                if frame is None:
                    chunk = await anext(self._source, None)
                    if chunk is None:
                        if self.ending is None:
                            self.ending = web_ending(dict(self.response.headers))
                        return None
                    self.chunks += 1
                    self._feed(chunk)
                elif frame[0] & TRAILERS:
                    lines = frame[1].decode().split("\r\n")
                    pairs = (line.partition(":") for line in lines if line)
                    self.ending = web_ending(
                        {key.strip(): value.strip() for key, _, value in pairs}
                    )
                else:
                    return frame[1]

    async def __aiter__(self) -> AsyncIterator[frame_pb2.ServerFrame]:
        while (raw := await self.next()) is not None:
            yield frame_pb2.ServerFrame.FromString(raw)

    def _feed(self, chunk: bytes) -> None:
        if not self._text:
            self._buffer += chunk
            return
        # Base64 of pieces, each with its own padding: quanta of 4 may end anywhere in a chunk.
        self._encoded += chunk
        whole = len(self._encoded) // 4 * 4
        for at in range(0, whole, 4):
            self._buffer += base64.b64decode(self._encoded[at : at + 4])
        self._encoded = self._encoded[whole:]

    def _cut(self) -> tuple[int, bytes] | None:
        if len(self._buffer) < 5:
            return None
        flags, size = struct.unpack(">BI", self._buffer[:5])
        if len(self._buffer) < 5 + size:
            return None
        message, self._buffer = self._buffer[5 : 5 + size], self._buffer[5 + size :]
        return flags, message


def web_ending(trailers: dict[str, str]) -> WebEnding:
    status = Status()
    if details := trailers.get("grpc-status-details-bin"):
        status.ParseFromString(base64.b64decode(details + "=" * (-len(details) % 4)))
    return WebEnding(int(trailers.get("grpc-status", "-1")), status)


@contextlib.asynccontextmanager
async def web_call(
    client: httpx.AsyncClient,
    method: str,
    request: Message,
    *,
    text: bool = False,
    headers: dict[str, str] | None = None,
) -> AsyncIterator[WebStream]:
    """A gRPC-Web call, as a browser makes it."""
    raw = request.SerializeToString()
    body = struct.pack(">BI", 0, len(raw)) + raw
    kind = f"application/grpc-web{'-text' if text else ''}+proto"
    path = method if method.startswith("/") else CONVERSATION + method
    given = {"content-type": kind, "accept": kind, "x-grpc-web": "1", **(headers or {})}
    content = base64.b64encode(body) if text else body
    async with client.stream("POST", path, content=content, headers=given) as response:
        yield WebStream(response, text=text)


async def web_unary(
    client: httpx.AsyncClient, method: str, request: Message, **more: Any
) -> tuple[bytes, WebEnding]:
    """A unary gRPC-Web call: its message and its ending."""
    async with web_call(client, method, request, **more) as call:
        message = await call.next()
        while await call.next() is not None:
            pass
        assert call.ending is not None
        return message or b"", call.ending


# --- REST -------------------------------------------------------------------------------------


async def create(client: httpx.AsyncClient, **fields: Any) -> str:
    """A session; its id."""
    response = await client.post("/v1/sessions", json=fields)
    assert response.status_code == 200, response.text
    session_id: str = response.json()["session"]["sessionId"]
    return session_id


async def say(client: httpx.AsyncClient, session_id: str, text: str, **more: Any) -> Any:
    """A message; its receipt."""
    frame = {"message": {"parts": [{"text": text}]}, **more}
    response = await client.post(f"/v1/sessions/{session_id}/frames", json=frame)
    assert response.status_code == 200, response.text
    return response.json()["receipt"]


def readers(server: Server, session_id: str) -> Sequence[Any]:
    """Who is attached to a session of a server in this process."""
    live = server.host.residents.find(session_id)
    return [] if live is None else list(live.audience.readers)


async def gone(server: Server, session_id: str) -> None:
    """Wait until nobody reads a session any more."""
    async with asyncio.timeout(PATIENCE_S):
        while readers(server, session_id):  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.001)


def attach(session_id: str, after_seq: int = 0) -> pb.AttachRequest:
    return pb.AttachRequest(session_id=session_id, after_seq=after_seq)
