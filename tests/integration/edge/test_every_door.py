"""The same session on every door: the same events, bit by bit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from backchannel.v1 import event_pb2
from tests.support.edge import Site, attach, events, readers, web_call
from tests.support.server import connected
from tests.support.stream import check_log, create, interrupt, resume, say

Events: TypeAlias = list[event_pb2.Event]
SESSION = "one-session-and-every-door"
# Everything that JSON, base64 or a line could spoil.
WORDS = 'naïve "quotes" \\ \n\r\t \0 \u2028 😀 </script> id: 7 event: error'


async def native(site: Site, last_seq: int) -> Events:
    """gRPC, with nothing between."""
    async with connected(site.server.address) as client:
        return await client.events(SESSION)


async def attached(site: Site, last_seq: int) -> Events:
    """gRPC through Envoy."""
    async with connected(site.edge.address) as client:
        return await client.events(SESSION)


async def duplex(site: Site, last_seq: int) -> Events:
    """The full duplex through Envoy."""
    async with connected(site.edge.address) as client, client.converse(resume(SESSION)) as call:
        await call.until(lambda s: s.events and s.events[-1].seq >= last_seq)
        return call.events


def web(version: int, *, text: bool) -> Callable[[Site, int], Awaitable[Events]]:
    """gRPC-Web."""

    async def door(site: Site, last_seq: int) -> Events:
        found: Events = []
        async with (
            site.client(version) as client,
            web_call(client, "Attach", attach(SESSION), text=text) as call,
        ):
            async for frame in call:
                found += frame.events
                if found[-1].seq >= last_seq:
                    break
        return found

    return door


def sse(version: int) -> Callable[[Site, int], Awaitable[Events]]:
    """Server-sent events."""

    async def door(site: Site, last_seq: int) -> Events:
        async with site.client(version) as client, events(client, SESSION) as stream:
            while int(stream.last_event_id or 0) < last_seq:
                await stream.next()
        return stream.events

    return door


DOORS = {
    "gRPC": native,
    "gRPC through Envoy": attached,
    "duplex through Envoy": duplex,
    "gRPC-Web, HTTP/1.1": web(1, text=False),
    "gRPC-Web, h2c": web(2, text=False),
    "gRPC-Web-Text, HTTP/1.1": web(1, text=True),
    "gRPC-Web-Text, h2c": web(2, text=True),
    "SSE, HTTP/1.1": sse(1),
    "SSE, h2c": sse(2),
}


async def test_every_door_tells_the_same(edge: Site) -> None:
    async with connected(edge.server.address) as client:
        opening = create(session_id=SESSION, model="scripted/echo", labels={"a": "\n"})
        async with client.converse(opening, say(WORDS, "m\n1")) as call:
            await call.event("turn_finished")
            await call.send(say(" ".join(["word"] * 50), "m2"))
            started = await call.event("turn_started", 2)
            stop = interrupt(started.turn_started.turn_id, "stop", displayed_seq=started.seq)
            await call.send(stop)
            await call.event("turn_finished", 2)
            await call.receipt("stop")
        truth = await client.events(SESSION)
    check_log(truth)
    assert truth[3].HasField("output_delta")
    told = await asyncio.gather(*(door(edge, truth[-1].seq) for door in DOORS.values()))
    for name, found in zip(DOORS, told, strict=True):
        assert found == truth, name


# The others ask for what there is at the time.
LIVE = [name for name in DOORS if name not in ("gRPC", "gRPC through Envoy")]


async def test_every_door_tells_it_while_it_happens(edge: Site) -> None:
    async with connected(edge.server.address) as client:
        await client.create(
            session_id=SESSION, model="scripted/count", engine_options={"rate": "200"}
        )
        async with asyncio.TaskGroup() as tellers:
            told = {name: tellers.create_task(ear(DOORS[name], edge)) for name in LIVE}
            while len(readers(edge.server, SESSION)) < len(LIVE):  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)
            await client.send(SESSION, say("go"))
        truth = await client.events(SESSION)
        assert truth[-1].HasField("turn_finished")
        for name in LIVE:
            assert told[name].result() == truth, name


async def ear(door: Callable[[Site, int], Awaitable[Events]], site: Site) -> Events:
    """What a door tells of opening, message, start, 100 tokens and the end."""
    return await door(site, 104)
