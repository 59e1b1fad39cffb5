"""Many streams through one Envoy, and readers that have stopped reading.

The service runs as people run it, with Envoy as its child, so that what they hold in memory is
theirs alone.
"""

from __future__ import annotations

import asyncio
import re
import resource
import time
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from tests.scale import scale
from tests.support.edge import EventStream, WebStream, create, say
from tests.support.many import Many, Weight, read_on, seqs
from tests.support.server import ServerProcess
from tests.support.stream import PATIENCE_S

# Of each kind. Together more than Envoy's own limit of 1,024 in any case.
STREAMS = scale(520, 1500)
READERS_A_SESSION = 60
STOPPED = 40
MIB = 2**20


@pytest.fixture
async def serving(server_command: ServerProcess) -> AsyncIterator[tuple[ServerProcess, str]]:
    """The command with an Envoy, and its URL."""
    server_command.edge = ("--edge", "--edge-listen", "127.0.0.1:0")
    server_command.arguments = ("--log-level", "warning")
    await server_command.start()
    async with asyncio.timeout(PATIENCE_S):
        while "Open " not in server_command.output:  # noqa: ASYNC110 - another process's doing
            await asyncio.sleep(0.01)
    (url,) = re.findall(r"Open (http://\S+)", server_command.output)
    yield server_command, url.rstrip("/")
    assert await server_command.stop() == 0


def many(url: str) -> Many:
    host, _, port = url.removeprefix("http://").partition(":")
    return Many(host, int(port))


def room_for(descriptors: int) -> None:
    """Let this process open so many; each stream is a socket of its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < descriptors:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(descriptors, hard), hard))


@pytest.mark.timeout(scale(120, 600))
async def test_no_stream_of_so_many_is_refused(
    serving: tuple[ServerProcess, str], record_property: Callable[..., None]
) -> None:
    command, url = serving
    room_for(2 * STREAMS + 256)
    weight = Weight.of(command)
    async with (
        httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as browser,
        many(url) as connections,
        asyncio.timeout(scale(100, 500)),
    ):
        sessions = [
            await create(browser, model="scripted/echo")
            for _ in range(-(-2 * STREAMS // READERS_A_SESSION))
        ]
        before = weight.take()
        start_s = time.perf_counter()
        streams: list[EventStream | WebStream] = []
        for start in range(0, STREAMS, 25):
            places = [sessions[n % len(sessions)] for n in range(start, min(start + 25, STREAMS))]
            # Side by side, and each kind in both encodings or none.
            streams += await asyncio.gather(
                *(connections.sse(place) for place in places),
                *(connections.web(place, text=bool(n % 2)) for n, place in enumerate(places)),
            )
        assert len(streams) == 2 * STREAMS
        # All are open at once; then there is something to say.
        opened = await asyncio.gather(*(seqs(stream, "session_opened") for stream in streams))
        opened_s = time.perf_counter() - start_s
        assert all(found == [1] for found in opened)
        held = weight.take() - before
        for session_id in sessions:
            await say(browser, session_id, "one two three")
        finished = await asyncio.gather(*(seqs(stream, "turn_finished") for stream in streams))
        assert all(found == list(range(2, 8)) for found in finished)
    record_property("streams", 2 * STREAMS)
    record_property("opened_in_s", round(opened_s, 1))
    record_property("rss_kib_a_stream", round(held / 1024 / len(streams), 1))
    record_property("envoy_rss_mib", round(weight.envoy / MIB))
    record_property("service_rss_mib", round(weight.service / MIB))


@pytest.mark.timeout(scale(120, 600))
async def test_who_stops_reading_costs_little_and_delays_nobody(
    serving: tuple[ServerProcess, str], record_property: Callable[..., None]
) -> None:
    command, url = serving
    weight = Weight.of(command)
    # Each event has some kilobytes, all of them far more than is under way to anybody. (Of an
    # event a reader may hold the whole, so one of a megabyte would be the cost.)
    answer = " ".join(f"{number:04}" + "x" * 4000 for number in range(16))
    turns = scale(60, 250)
    async with (
        httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as browser,
        many(url) as connections,
        asyncio.timeout(scale(100, 500)),
    ):

        async def talk(session_id: str) -> list[int]:
            """Turns, each said when both readers have the whole of the last."""
            reading: list[EventStream | WebStream] = [
                await connections.sse(session_id),
                await connections.web(session_id),
            ]
            seen: list[list[int]] = [[], []]
            for _ in range(turns):
                await say(browser, session_id, answer)
                found = await asyncio.gather(*(seqs(one, "turn_finished") for one in reading))
                for all_of, more in zip(seen, found, strict=True):
                    all_of += more
            assert seen[0] == seen[1] == list(range(1, len(seen[0]) + 1))
            return seen[0]

        # What a session of this size costs by itself is not the stopped readers' doing; nor what
        # the first one costs.
        alone = 0
        for _ in range(2):
            before = weight.take()
            async with weight.watched():
                await talk(await create(browser, model="scripted/echo"))
            alone = weight.most - before
        before = weight.take()
        session_id = await create(browser, model="scripted/echo")
        stopped: list[EventStream | WebStream] = []
        for _ in range(STOPPED // 2):
            stopped.append(await connections.sse(session_id, small=True))
            stopped.append(await connections.web(session_id, small=True))
        async with weight.watched():
            truth = await talk(session_id)
        cost = (weight.most - before - alone) / STOPPED
        record_property("rss_mib_of_such_a_session", round(alone / MIB, 1))
        record_property("streamed_mib", round(2 * turns * len(answer) / MIB, 1))
        record_property("rss_kib_a_stopped_reader", round(cost / 1024))
        assert cost <= MIB
        # They are behind, not lost: who reads again gets all of it, in its order.
        for one in stopped[:2]:
            read_on(one)
            assert await seqs(one, "turn_finished", turns) == truth
