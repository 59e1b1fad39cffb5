"""`backchannel top` as people and programs use it, before a real server under load."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from backchannel.v1 import session_pb2
from tests.integration.test_chat import backchannel
from tests.support.server import ServerProcess, connected
from tests.support.stream import Client, interrupt, say
from tests.support.terminal import Terminal

LOOK = session_pb2.ToolSpec(name="look")


@pytest.fixture
async def metrics(server_command: ServerProcess) -> str:
    """Where a server tells its metrics."""
    server_command.arguments = ("--metrics-listen", "127.0.0.1:0")
    await server_command.start()
    found = re.search(r"http://(127\.0\.0\.1:\d+)/metrics", server_command.output)
    assert found, server_command.output
    return found[1]


async def talk(client: Client) -> None:
    """Answers without end, every third of them stopped."""
    number = 0
    while True:
        number += 1
        made = await client.create(model="scripted/count", engine_options={"rate": "200"})
        async with client.attach(made.session_id) as stream:
            sampling = session_pb2.Sampling(max_tokens=40)
            await client.send(made.session_id, say("go", sampling=sampling))
            if number % 3 == 0:
                turn_id = (await stream.event("turn_started")).turn_started.turn_id
                await stream.event("output_delta", 10)
                await client.send(made.session_id, interrupt(turn_id, displayed_seq=8))
            await stream.event("turn_finished")


@contextlib.asynccontextmanager
async def load(server: ServerProcess) -> AsyncIterator[None]:
    """Three who talk, and one call that nobody answers."""
    async with connected(server.address) as client, asyncio.TaskGroup() as group:
        made = await client.create(model="scripted/tool", tools=[LOOK])
        async with client.attach(made.session_id) as stream:
            await client.send(made.session_id, say("look"))
            await stream.event("tool_call_ready")
            tasks = [group.create_task(talk(client)) for _ in range(3)]
            yield
            for task in tasks:
                task.cancel()


async def values(*arguments: str) -> Any:
    done = await backchannel("top", "--once", "--json", *arguments)
    assert (done.code, done.err) == (0, "")
    return json.loads(done.out)


async def test_figures_for_programs(server_command: ServerProcess, metrics: str) -> None:
    async with load(server_command):
        told = await values("--interval", "3", metrics)
    (server,) = told["servers"]
    everything = told["all"]
    assert server == {"address": metrics, **everything}
    assert everything["seconds"] == pytest.approx(3, abs=1.5)
    assert everything["sessions"] > 3
    assert everything["readers"] >= 1
    assert 1 <= everything["turns"] <= 4
    assert everything["tools"] == 1
    assert everything["oldest_tool_s"] > 0
    assert 50 < everything["tokens_per_s"] <= 610
    assert everything["turns_by_ending"].keys() == {"stop", "interrupted"}
    assert everything["interrupts"] > 0
    assert everything["engines"]["scripted"]["running"] <= 3
    spreads = everything["spreads"]
    assert spreads["gap"]["p50"] == pytest.approx(0.005, abs=0.004)
    assert 0 < spreads["commit"]["p50"] <= spreads["commit"]["p99"]
    assert spreads["stop"]["count"] > 0
    assert spreads["first_token"]["count"] > 0


async def test_nothing_that_has_not_happened_is_zero(metrics: str) -> None:
    told = (await values("--interval", "0.2", metrics))["all"]
    assert (told["sessions"], told["turns_by_ending"]) == (0, {})
    assert told["tokens_per_s"] is None
    assert told["wasted_share"] is None
    assert (told["spreads"]["gap"] or {"p99": None})["p99"] is None
    shown = await backchannel("top", "--once", "--interval", "0.2", metrics)
    assert re.search(r"first token +– +– +–", shown.out)


async def test_several_servers(server_command: ServerProcess, metrics: str) -> None:
    async with load(server_command):
        done = await backchannel("top", "--once", "--json", metrics, f"http://{metrics}/metrics")
        told = json.loads(done.out)
        assert told["all"]["tools"] == 2
        assert [server["tools"] for server in told["servers"]] == [1, 1]
        shown = await backchannel("top", "--once", metrics, "127.0.0.1:9")
    assert shown.code == 1
    assert "127.0.0.1:9: Connection refused" in shown.out
    assert "first token" in shown.out


async def test_live_at_a_terminal(server_command: ServerProcess, metrics: str) -> None:
    async with load(server_command), Terminal("top", "--interval", "0.3", metrics) as terminal:
        await terminal.expect("1 server · now; rates come with the second look")
        await terminal.expect(r"the last \d+ s")
        await terminal.expect(rf"{metrics} +[1-9]\d* +[1-4] +[\d.,]+ +[1-9]")
        await terminal.expect(r"between outputs +[\d.]+ ms")
        await terminal.expect(r"the last [2-9] s")
        terminal.type("\x03")
        assert await terminal.ended() == 130
        assert "Traceback" not in terminal.text
        # The screen is the one that was there before.
        assert terminal._raw.rstrip().endswith(b"\x1b[?25h\x1b[?1049l")


async def test_a_server_that_goes_is_said_and_comes_back(
    server_command: ServerProcess, metrics: str
) -> None:
    async with Terminal("top", "--interval", "0.2", metrics) as terminal:
        await terminal.expect(r"the last \d+ s")
        server_command.kill()
        await terminal.expect(f"{metrics}: Connection refused")
        server_command.arguments = ("--metrics-listen", metrics)
        await server_command.start()
        await terminal.expect("now; rates come with the second look")
        await terminal.expect(r"the last \d+ s")


@pytest.mark.parametrize("columns", [40, 60, 80])
async def test_narrow_terminals(metrics: str, columns: int) -> None:
    environment = {"COLUMNS": str(columns)}
    arguments = ("top", "--once", "--interval", "0.1", metrics)
    async with Terminal(*arguments, environment=environment) as terminal:
        assert await terminal.ended() == 0
        await terminal.expect("to commit")
        assert max(map(len, terminal.text.splitlines())) <= columns


async def test_without_metrics_it_says_what_to_do(server_process: ServerProcess) -> None:
    nobody = await backchannel("top", "--once", "127.0.0.1:9")
    assert (nobody.code, nobody.out) == (1, "")
    assert "No metrics at http://127.0.0.1:9/metrics: Connection refused." in nobody.err
    assert "--metrics-listen" in nobody.err
    # gRPC's own port is the likeliest mistake.
    other = await backchannel("top", "--once", server_process.address)
    assert (other.code, other.out) == (1, "")
    assert "No metrics at" in other.err


async def test_what_makes_no_sense() -> None:
    piped = await backchannel("top")
    assert (piped.code, piped.out) == (2, "")
    assert "--once" in piped.err
    wrong = await backchannel("top", "--once", "ftp://x")
    assert (wrong.code, wrong.out) == (2, "")
    assert "no address" in wrong.err
