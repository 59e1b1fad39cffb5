"""What was not sent when a server is told to leave is sent before it is gone."""

from __future__ import annotations

import socket
import time

import pytest

from backchannel.telemetry.telemetry import CLOSE_S
from tests.support.otlp import collector
from tests.support.server import ServerProcess, connected
from tests.support.stream import create, say


@pytest.mark.parametrize(
    ("log", "failed"), [("memory", "disconnected"), ("", "DRAINING")], ids=["memory", "sqlite"]
)
async def test_a_turn_that_a_signal_hits_is_told_with_its_end(
    server_command: ServerProcess, log: str, failed: str
) -> None:
    async with collector() as taken:
        more = ("--log", log) if log else ()
        server_command.arguments = (
            *("--metrics-listen", "off", "--otlp-endpoint", taken.address),
            *("--drain-grace", "0.5", *more),
        )
        await server_command.start()
        async with connected(server_command.address) as client:
            opening = create(model="scripted/count", engine_options={"rate": "5"})
            async with client.converse(opening, say("go")) as stream:
                await stream.event("output_delta", 2)
                assert await server_command.stop() == 0
        # The process is gone: nothing comes any more.
        turn = taken.one("turn")
        assert turn.failed == turn.attributes["error.type"] == failed
        assert taken.one("chat").trace == turn.trace
        assert taken.named("backchannel.v1.ConversationService/Converse")


async def test_with_nobody_to_take_them_it_leaves_all_the_same(
    server_command: ServerProcess,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        server_command.arguments = (
            *("--metrics-listen", "off", "--otlp-endpoint", f"http://127.0.0.1:{port}"),
            *("--drain-grace", "0.5"),
        )
        await server_command.start()
        async with connected(server_command.address) as client:
            async with client.converse(create(model="scripted/echo"), say("one")) as stream:
                await stream.event("turn_finished")
            begun_s = time.monotonic()
            assert await server_command.stop() == 0
            took_s = time.monotonic() - begun_s
    # The drain, the exporters' share, and what a busy machine needs to end a process.
    assert took_s < 0.5 + CLOSE_S + 2
