"""Exporters in trouble are nobody's trouble but their own."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from backchannel.observer import SILENT, Observer
from backchannel.rpc.server import Server
from backchannel.telemetry import table
from backchannel.telemetry.config import TelemetryConfig
from backchannel.telemetry.opening import TelemetryError, watched
from backchannel.telemetry.telemetry import CLOSE_S, Telemetry
from tests.support.otlp import collector
from tests.support.server import config, connected
from tests.support.stream import create, say

TURNS = 40


@asynccontextmanager
async def dead() -> AsyncIterator[str]:
    """Nobody listens there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{probe.getsockname()[1]}"


@asynccontextmanager
async def silent() -> AsyncIterator[str]:
    """Connections are taken, and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@asynccontextmanager
async def slow() -> AsyncIterator[str]:
    """Each export takes longer than it may."""
    async with collector(delay_s=30) as taken:
        yield taken.address


async def serve_some(observer: Observer) -> float:
    """How long some turns take, one after the other, in seconds."""
    async with (
        Server(config(), observer=observer) as server,
        connected(server.address) as client,
        client.converse(create(model="scripted/echo")) as stream,
    ):
        await stream.event("session_opened")
        begun_s = time.perf_counter()
        for number in range(1, TURNS + 1):
            await stream.send(say("one two three four five six seven eight"))
            await stream.event("turn_finished", number)
        return time.perf_counter() - begun_s


@pytest.mark.parametrize("endpoint", [dead, silent, slow])
async def test_serving_does_not_wait_for_a_collector(
    endpoint: Callable[[], AbstractAsyncContextManager[str]],
) -> None:
    without_s = await serve_some(SILENT)
    async with endpoint() as address:
        settings = TelemetryConfig(metrics_listen="off", otlp_endpoint=address, otlp_interval_s=0.1)
        async with Telemetry(settings) as telemetry:
            with_s = await serve_some(telemetry)
            turns = telemetry.figures.number(table.TURNS).read()
            closing_s = time.perf_counter()
    closed_s = time.perf_counter() - closing_s
    assert turns == [(("stop", "scripted/echo"), TURNS)]
    # Each export would take seconds. A busy machine has its moods, but not such ones.
    assert with_s < 3 * without_s + 1
    assert closed_s < CLOSE_S + 1


async def test_metrics_reach_a_collector_too() -> None:
    async with collector() as taken:
        settings = TelemetryConfig(
            metrics_listen="off", otlp_endpoint=taken.address, otlp_interval_s=0.1
        )
        async with Telemetry(settings) as telemetry:
            await serve_some(telemetry)
            await telemetry.flush()
    assert {"backchannel.tokens", "backchannel.turns", "backchannel.sessions"} <= set(taken.metrics)
    gaps = taken.metrics["backchannel.output.gap"].histogram.data_points
    assert sum(point.count for point in gaps) == TURNS * 7
    (ttft,) = taken.metrics["gen_ai.server.time_to_first_token"].histogram.data_points
    assert ttft.count == TURNS == sum(ttft.bucket_counts)
    assert ttft.min <= ttft.sum / TURNS <= ttft.max
    assert tuple(ttft.explicit_bounds) == table.TTFT.buckets


# --- the port ---------------------------------------------------------------------------------


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


async def test_a_port_that_was_asked_for_and_is_taken_is_an_error(taken_port: int) -> None:
    settings = TelemetryConfig(metrics_listen=f"127.0.0.1:{taken_port}", otlp_endpoint="")
    with pytest.raises(TelemetryError, match=r"Address already in use.*--metrics-listen"):
        async with watched(settings):
            pass


async def test_the_usual_port_is_done_without_where_it_is_taken(
    taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = "backchannel.telemetry.config.METRICS_LISTEN"
    monkeypatch.setattr(usual, f"127.0.0.1:{taken_port}")
    async with watched(TelemetryConfig(otlp_endpoint="")) as observer:
        assert observer is SILENT


async def test_off_is_off() -> None:
    async with watched(TelemetryConfig(metrics_listen="off", otlp_endpoint="")) as observer:
        assert observer is SILENT


async def test_the_event_loop_is_free_while_it_closes() -> None:
    async with silent() as address:
        telemetry = Telemetry(TelemetryConfig(metrics_listen="off", otlp_endpoint=address))
        beats = 0

        async def beat() -> None:
            nonlocal beats
            while True:
                await asyncio.sleep(0.01)
                beats += 1

        async with telemetry:
            await serve_some(telemetry)
            beating = asyncio.create_task(beat())
            begun_s = time.perf_counter()
        took_s = time.perf_counter() - begun_s
        beating.cancel()
    assert beats > took_s / 0.01 / 4
