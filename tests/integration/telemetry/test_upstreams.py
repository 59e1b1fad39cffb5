"""What goes out to an upstream belongs to the trace of the turn that asks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from backchannel.rpc.server import Server
from backchannel.telemetry.config import TelemetryConfig
from backchannel.telemetry.telemetry import Telemetry
from backchannel.v1 import session_pb2
from tests.support.hostile_upstream import HostileUpstream, says
from tests.support.otlp import Collector, collector
from tests.support.server import config, connected
from tests.support.smg_peer import SmgPeer
from tests.support.stream import create, say


async def asked(taken: Collector, model: str, **engine: Any) -> str:
    """What a traceparent of the call's span begins with, after one turn."""
    settings = TelemetryConfig(
        metrics_listen="off", otlp_metrics=False, otlp_endpoint=taken.address
    )
    async with (
        Telemetry(settings) as telemetry,
        Server(config(engine=("up",), engine_options={"up": engine}), observer=telemetry) as server,
        connected(server.address) as client,
    ):
        sampling = session_pb2.Sampling(max_tokens=5)
        opening = create(model=f"up/{model}" if model else "", sampling=sampling)
        async with client.converse(opening, say("hi")) as s:
            await s.event("turn_finished")
        async with asyncio.timeout(10):
            while not taken.named("chat"):
                await telemetry.flush()
                await asyncio.sleep(0.02)
    chat = taken.one("chat")
    return f"00-{chat.trace}-{chat.id}-"


async def test_over_http() -> None:
    async with collector() as taken, HostileUpstream() as upstream:
        upstream.will(says("Hello", "you"))
        sent = await asked(taken, "m", adapter="openai", base_url=upstream.base_url)
        (request,) = upstream.requests
    assert request.headers["traceparent"].startswith(sent)


async def test_over_grpc(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[dict[str, str]] = []
    generate = SmgPeer.Generate

    async def remembering(self: SmgPeer, request: Any, context: Any) -> Any:
        got.append(dict(context.invocation_metadata()))
        async for one in generate(self, request, context):
            yield one

    monkeypatch.setattr(SmgPeer, "Generate", remembering)
    async with collector() as taken, SmgPeer().serve() as peer:
        sent = await asked(taken, "", adapter="smg", target=peer.target)
    (headers,) = got
    assert headers["traceparent"].startswith(sent)
