"""A server of the OpenAI API that does whatever a test wants, byte for byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

Answer = Callable[["Wire"], Awaitable[None]]
"""Answers one request."""


@dataclass(frozen=True)
class Request:
    """What came."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """One request and the way back."""

    def __init__(self, request: Request, writer: asyncio.StreamWriter) -> None:
        self.request = request
        self._writer = writer
        self._chunked = False

    async def raw(self, data: bytes) -> None:
        """These bytes, in one piece as far as that goes."""
        self._writer.write(data)
        await self._writer.drain()
        await asyncio.sleep(0)

    async def head(self, status: str = "200 OK", /, **headers: str) -> None:
        """The status and the header; the body follows in chunks, so that a cut shows."""
        fields = {"content_type": "text/event-stream", **headers}
        if "content_length" not in fields:
            fields["transfer_encoding"] = "chunked"
            self._chunked = True
        lines = [f"{name.replace('_', '-').title()}: {value}" for name, value in fields.items()]
        await self.raw("\r\n".join((f"HTTP/1.1 {status}", *lines, "", "")).encode())

    async def send(self, data: bytes) -> None:
        """A piece of the body."""
        await self.raw(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    async def event(self, *data: object) -> None:
        """Events with this data."""
        for one in data:
            text = one if isinstance(one, str) else json.dumps(one)
            await self.send(f"data: {text}\n\n".encode())

    async def end(self) -> None:
        """The end of the body."""
        if self._chunked:
            await self.raw(b"0\r\n\r\n")

    def cut(self) -> None:
        """Break the connection off."""
        self._writer.transport.abort()

    async def reply(
        self, status: str, body: bytes = b"", kind: str = "application/json", /, **headers: str
    ) -> None:
        """A whole response that is no stream."""
        await self.head(status, content_type=kind, content_length=str(len(body)), **headers)
        await self.raw(body)


def delta(finish_reason: str | None = None, *, index: int = 0, **fields: object) -> dict[str, Any]:
    """A chunk of a chat completion."""
    choice = {"index": index, "delta": fields, "finish_reason": finish_reason}
    return {"id": "x", "object": "chat.completion.chunk", "choices": [choice]}


def usage(prompt: int, completion: int, cached: int = 0) -> dict[str, Any]:
    """The chunk behind the last."""
    return {
        "choices": [],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        },
    }


def says(*texts: str, finish_reason: str = "stop", total: int | None = None) -> Answer:
    """A well-behaved answer."""

    async def answer(wire: Wire) -> None:
        await wire.head()
        await wire.event(delta(role="assistant", content=""))
        await wire.event(*(delta(content=text) for text in texts))
        await wire.event(delta(finish_reason))
        await wire.event(usage(7, len(texts) if total is None else total, 3), "[DONE]")
        await wire.end()

    return answer


def streams(*events: object) -> Answer:
    """These events, and then the end of the body."""

    async def answer(wire: Wire) -> None:
        await wire.head()
        await wire.event(*events)
        await wire.end()

    return answer


def replies(
    status: str, body: bytes | object = b"", kind: str = "application/json", **headers: str
) -> Answer:
    """A whole response that is no stream."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def answer(wire: Wire) -> None:
        await wire.reply(status, data, kind, **headers)

    return answer


async def never(wire: Wire) -> None:
    """No byte, for ever."""
    await asyncio.Event().wait()


@dataclass
class HostileUpstream:
    """Serves on a port of its own while it is open.

    Attributes:
        answers: To chat completions, in turn; the last one again and again.
        models: To the list of models.
        requests: The chat completions that came.
        running: How many it works on: until it has answered, or the client is gone.
        closed: How many ended because the client went.
    """

    answers: deque[Answer] = field(default_factory=deque)
    models: Answer = field(
        default_factory=lambda: replies("200 OK", {"data": [{"id": "m", "owned_by": "nobody"}]})
    )
    requests: list[Request] = field(default_factory=list)
    lists: int = 0
    running: int = 0
    connections: int = 0
    closed: int = 0
    port: int = 0

    def __post_init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def will(self, *answers: Answer) -> None:
        """What it answers from now on."""
        self.answers = deque(answers)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds of it; the test's time limit is the bound."""
        async with self._changed:
            await self._changed.wait_for(holds)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._exchange(reader, writer):
                    pass
        finally:
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether the connection can be used for another."""
        head = await reader.readexactly(1)
        if head == b"\x16":  # The beginning of TLS.
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await writer.drain()
            return False
        head += await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        method, path, _ = first.split(" ")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        wire = Wire(Request(method, path, headers, body), writer)
        if path == "/v1/models":
            self.lists += 1
            await self.models(wire)
            return True
        if path != "/v1/chat/completions":
            await wire.reply("404 Not Found", b'{"error":{"message":"File Not Found"}}')
            return True
        self.requests.append(wire.request)
        answer = self.answers.popleft() if len(self.answers) > 1 else self.answers[0]
        await self._work(+1)
        working = asyncio.ensure_future(answer(wire))
        gone = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait([working, gone], return_when=asyncio.FIRST_COMPLETED)
            finished = working.done()
            if finished:
                working.result()
            else:
                self.closed += 1
            return finished and not writer.transport.is_closing() and not gone.done()
        finally:
            for task in (working, gone):
                task.cancel()
            await asyncio.wait([working, gone])
            await self._work(-1)

    async def _work(self, change: int) -> None:
        async with self._changed:
            self.running += change
            self._changed.notify_all()
