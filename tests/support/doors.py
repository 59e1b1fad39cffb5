"""All the doors of a session, each opened in the same way and read one event at a time."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TypeAlias

from backchannel.v1 import event_pb2, frame_pb2
from tests.support import edge
from tests.support.edge import Site, attach
from tests.support.server import connected
from tests.support.stream import Stream, resume

Events: TypeAlias = AsyncIterator[event_pb2.Event]
Door: TypeAlias = Callable[[Site, str], contextlib.AbstractAsyncContextManager[Events]]


async def _of_call(call: Stream) -> Events:
    while (frame := await call.next()) is not None:
        for event in frame.events:
            yield event


def native(*, through_envoy: bool) -> Door:
    """`Attach` over gRPC."""

    @contextlib.asynccontextmanager
    async def door(site: Site, session_id: str) -> AsyncIterator[Events]:
        address = site.edge.address if through_envoy else site.server.address
        async with connected(address) as client, client.attach(session_id) as call:
            yield _of_call(call)

    return door


def duplex(*, through_envoy: bool) -> Door:
    """`Converse` over gRPC."""

    @contextlib.asynccontextmanager
    async def door(site: Site, session_id: str) -> AsyncIterator[Events]:
        address = site.edge.address if through_envoy else site.server.address
        async with connected(address) as client, client.converse(resume(session_id)) as call:
            yield _of_call(call)

    return door


def web(version: int, *, text: bool) -> Door:
    """gRPC-Web."""

    async def each(call: edge.WebStream) -> Events:
        while (raw := await call.next()) is not None:
            for event in frame_pb2.ServerFrame.FromString(raw).events:
                yield event

    @contextlib.asynccontextmanager
    async def door(site: Site, session_id: str) -> AsyncIterator[Events]:
        async with (
            site.client(version) as client,
            edge.web_call(client, "Attach", attach(session_id), text=text) as call,
        ):
            yield each(call)

    return door


def sse(version: int) -> Door:
    """Server-sent events."""

    async def each(stream: edge.EventStream) -> Events:
        last = ""
        while (sent := await stream.next()) is not None:
            # What has no id of its own (a heartbeat) bears the last one's.
            if sent.last_event_id != last:
                last = sent.last_event_id
                yield sent.event

    @contextlib.asynccontextmanager
    async def door(site: Site, session_id: str) -> AsyncIterator[Events]:
        async with site.client(version) as client, edge.events(client, session_id) as stream:
            yield each(stream)

    return door


DIRECT = {
    "gRPC": native(through_envoy=False),
    "duplex": duplex(through_envoy=False),
}
THROUGH_ENVOY = {
    "gRPC through Envoy": native(through_envoy=True),
    "duplex through Envoy": duplex(through_envoy=True),
    **{
        f"gRPC-Web{'-Text' if text else ''}, {name}": web(version, text=text)
        for text in (False, True)
        for version, name in ((1, "HTTP/1.1"), (2, "HTTP/2"))
    },
    "SSE, HTTP/1.1": sse(1),
    "SSE, HTTP/2": sse(2),
}
DOORS = DIRECT | THROUGH_ENVOY
