"""`backchannel serve` as people run it, and what it says of its metrics."""

from __future__ import annotations

import re
import subprocess
import sys

import httpx
import pytest

from backchannel.telemetry import table
from tests.support.otlp import collector
from tests.support.server import ServerProcess, connected
from tests.support.stream import create, say


async def test_it_serves_its_metrics_and_sends_its_traces(server_command: ServerProcess) -> None:
    async with collector() as taken:
        server_command.arguments = (
            *("--metrics-listen", "127.0.0.1:0"),
            *("--otlp-endpoint", taken.address),
        )
        await server_command.start()
        async with connected(server_command.address) as client:
            async with client.converse(create(model="scripted/echo"), say("one two")) as stream:
                await stream.event("turn_finished")
            url = re.search(r"metrics (http://127\.0\.0\.1:\d+/metrics)", server_command.output)
            assert url is not None, server_command.output
            async with httpx.AsyncClient() as browser:
                text = (await browser.get(url[1])).text
        name = table.TURNS.prometheus_name
        assert re.search(rf'^{name}\{{ending="stop",model="scripted/echo"\}} 1\.0$', text, re.M)
        assert await server_command.stop() == 0
        # What was not sent yet is sent at the end.
        assert taken.one("turn").attributes["backchannel.turn.ending"] == "stop"
        assert "backchannel.turns" in taken.metrics


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--metrics-listen", "unix:/tmp/metrics"), "--metrics-listen: metrics_listen: Prometheus"),
        (("--otlp-endpoint", "collector:4317"), "--otlp-endpoint: otlp_endpoint: write http://"),
    ],
)
def test_a_wrong_address_is_refused(arguments: tuple[str, ...], said: str) -> None:
    command = [sys.executable, "-m", "backchannel", "serve", "--log", "memory", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert ran.returncode == 2
    assert ran.stderr.startswith(f"Error: {said}"), ran.stderr
