"""Native gRPC through the same port of the same Envoy."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import grpc
import pytest

from backchannel.rpc.server import SERVICES
from backchannel.v1 import conversation_service_pb2 as pb
from tests.support.edge import Site, gone, readers
from tests.support.server import connected, healthy
from tests.support.stream import (
    Refused,
    check_log,
    create,
    interrupt,
    say,
    server_stream,
)


async def test_the_full_duplex(edge: Site) -> None:
    async with (
        connected(edge.edge.address) as client,
        client.converse(create("c", model="scripted/count", engine_options={"rate": "50"})) as call,
    ):
        await call.receipt("c")
        # Both ways at once: a stop goes up while the answer comes down.
        await call.send(say("go", "m"))
        started = await call.event("turn_started")
        await call.event("output_delta", 3)
        await call.send(interrupt(started.turn_started.turn_id, "i"))
        await call.event("turn_interrupted")
        await call.event("turn_finished")
        check_log(call.events)


async def test_errors_come_with_their_details(edge: Site) -> None:
    async with connected(edge.edge.address) as client:
        with Refused() as refused:
            await client.get("nobody-has-ever-made-this")
        assert refused.ending is not None
        assert refused.ending.code is grpc.StatusCode.NOT_FOUND
        assert refused.ending.reason == "SESSION_NOT_FOUND"


async def test_envoys_own_errors_are_gRPCs(edge: Site) -> None:  # noqa: N802 - its name
    await edge.server.drain(0)
    async with connected(edge.edge.address) as client:
        with Refused() as refused:
            await client.get("nobody-has-ever-made-this")
        assert refused.ending is not None
        assert refused.ending.code is grpc.StatusCode.UNAVAILABLE
        # Not the JSON that REST gets.
        assert "{" not in refused.ending.message


async def test_a_cancel_reaches_the_service(edge: Site) -> None:
    async with connected(edge.edge.address) as client:
        session = await client.create(model="scripted/echo")
        async with client.attach(session.session_id) as call:
            await call.event("session_opened")
            assert len(readers(edge.server, session.session_id)) == 1
            await call.close()
            # One stream of a connection that stays.
            await gone(edge.server, session.session_id)
            assert await healthy(client)


async def test_a_clients_deadline_holds(edge: Site) -> None:
    async with connected(edge.edge.address) as client:
        session = await client.create(model="scripted/echo")
        request = pb.AttachRequest(session_id=session.session_id)
        method = server_stream(client.channel, "/backchannel.v1.ConversationService/Attach")
        call = method(request.SerializeToString(), timeout=0.2)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await gone(edge.server, session.session_id)


async def test_health(edge: Site) -> None:
    async with connected(edge.edge.address) as client:
        assert await healthy(client)
        assert await healthy(client, "backchannel.v1.ConversationService")
        assert await healthy(client, "backchannel.v1.BrowserService")


@pytest.mark.needs("grpcurl")
async def test_reflection(edge: Site, grpcurl: Path) -> None:
    async def ask(*words: str) -> list[str]:
        command = [str(grpcurl), "-plaintext", edge.address, *words]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()

    # Everything that health knows by name, and what tells of it.
    assert await ask("list") == [
        "backchannel.v1.BrowserService",
        *sorted(SERVICES),
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ]
    assert await ask("list", "backchannel.v1.BrowserService") == [
        "backchannel.v1.BrowserService.GetAsset",
        "backchannel.v1.BrowserService.StreamEvents",
    ]
