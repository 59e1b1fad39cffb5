"""`backchannel bill` as people and programs use it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backchannel.rpc.server import Server
from backchannel.v1 import session_pb2
from tests.integration.test_chat import backchannel
from tests.support.server import config, connected
from tests.support.stream import Client, Stream, create, interrupt, say
from tests.support.terminal import Terminal

PAY = session_pb2.ToolSpec(name="pay", side_effect=session_pb2.SIDE_EFFECT_IRREVERSIBLE)


@pytest.fixture
def address(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("BACKCHANNEL_SERVER", str(server.address))
    return str(server.address)


@pytest.fixture
async def stream(address: str, client: Client) -> AsyncIterator[Stream]:
    """A session with a turn that was stopped while it paid, and one that was answered."""
    opening = create(model="scripted/tool", tools=[PAY])
    async with client.converse(opening, say("to Ann", "m1")) as stream:
        await stream.event("tool_call_ready")
        started = await stream.event("turn_started")
        await stream.send(interrupt(started.turn_started.turn_id, "i1"))
        await stream.send(say("to Bob", "m2"))
        ready = await stream.event("tool_call_ready", 2)
        result = session_pb2.ToolResult(call_id=ready.tool_call_ready.call_id, json="7")
        frame = say("", "r1")
        frame.tool_result.CopyFrom(result)
        await stream.send(frame)
        await stream.event("turn_finished", 2)
        yield stream


def session_of(stream: Stream) -> str:
    return stream.events[0].session_opened.session.session_id


async def test_a_bill_in_a_pipe(stream: Stream) -> None:
    done = await backchannel("bill", session_of(stream))
    assert (done.code, done.err) == (0, "")
    words = [line.split() for line in done.out.splitlines()]
    assert ["1", "scripted/tool", "interrupted", *["2", "0", "3", "3", "0", "3", "0"]] in words
    assert ["2", "scripted/tool", "stop", *["34", "0", "5", "5", "0", "5", "0"]] in words
    assert ["all", *["36", "0", "8", "8", "0", "8", "0"]] in words
    assert ["can't", "be", "taken", "back", "2", "1", "1"] in words
    assert "May have run, and can't be taken back: pay cancelled.\n" in done.out
    assert "\x1b" not in done.out
    assert "Ann" not in done.out


async def test_a_bill_for_programs_agrees_with_the_server(stream: Stream, client: Client) -> None:
    await stream.send(say("to Eve", "m3"))
    await stream.event("tool_call_ready", 3)
    session = await client.get(session_of(stream))
    done = await backchannel("bill", "--json", session.session_id)
    bill = json.loads(done.out)
    assert (done.code, bill["problems"]) == (0, [])
    assert [turn["running"] for turn in bill["turns"]] == [False, False, True]
    total = session.total_usage
    assert bill["totalUsage"] == bill["serverTotalUsage"]
    assert bill["totalUsage"]["generatedTokens"] == total.generated_tokens == 8
    assert [turn["toolCalls"][0]["outcome"] for turn in bill["turns"]] == [
        "TOOL_CALL_OUTCOME_CANCELLED",
        "TOOL_CALL_OUTCOME_COMPLETED",
        "TOOL_CALL_OUTCOME_UNSPECIFIED",
    ]
    assert {turn["toolCalls"][0]["sideEffect"] for turn in bill["turns"]} == {
        "SIDE_EFFECT_IRREVERSIBLE"
    }
    assert "Ann" not in done.out
    asked = await backchannel("bill", "--json", "--text", session.session_id)
    assert [turn["input"] for turn in json.loads(asked.out)["turns"]] == [
        "to Ann",
        "to Bob",
        "to Eve",
    ]


@pytest.mark.parametrize(("columns", "wide"), [(100, True), (48, False)])
async def test_a_bill_fits_its_terminal(stream: Stream, columns: int, wide: bool) -> None:
    environment = {"COLUMNS": str(columns)}
    async with Terminal("bill", session_of(stream), environment=environment) as terminal:
        assert await terminal.ended() == 0
        await terminal.expect("taken back: pay")
        lines = terminal.text.splitlines()
    assert max(map(len, lines)) <= columns
    assert any(line.startswith("tokens  model") for line in lines) is wide
    assert any(line.startswith("tokens: prompt 3") for line in lines) is not wide


async def test_a_trimmed_log_is_told_from_a_snapshot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = f"sqlite:///{tmp_path / 'log.db'}"
    sessions = {"retention": {"max_events": 10}, "sweep_s": 0.05}
    async with Server(config(log=log, sessions=sessions)) as server:
        monkeypatch.setenv("BACKCHANNEL_SERVER", str(server.address))
        async with connected(server.address) as client:
            session = await client.create(model="scripted/count")
            session_id = session.session_id
            async with client.attach(session_id) as stream:
                await client.send(session_id, say("go", "m1"))
                await stream.event("turn_finished")
            async with asyncio.timeout(20):
                while (await client.get(session_id)).earliest_seq == 1:  # noqa: ASYNC110 (a sweep tells nobody)
                    await asyncio.sleep(0.02)
        done = await backchannel("bill", session_id)
    assert (done.code, done.err) == (0, "")
    assert "Turn 1 is told from a snapshot" in done.out
    words = [line.split() for line in done.out.splitlines()]
    assert ["1", "scripted/count", "stop", *["1", "0", "100", "100", "0", "100", "0"]] in words


@pytest.mark.usefixtures("address")
async def test_a_session_that_there_is_not() -> None:
    done = await backchannel("bill", "no-such-session-at-all")
    assert (done.code, done.out) == (1, "")
    assert "no such session" in done.err
    assert "backchannel sessions" in done.err


async def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    done = await backchannel("bill", "x" * 20, "--server", f"unix:{tmp_path / 'nobody'}")
    assert (done.code, done.out) == (1, "")
    assert "No Backchannel server answers" in done.err


async def test_nothing_has_cost_nothing(address: str, client: Client) -> None:
    session = await client.create(model="scripted/echo")
    done = await backchannel("bill", session.session_id, "--server", address)
    assert done.code == 0
    assert "it has cost nothing" in done.out
