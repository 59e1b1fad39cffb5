"""What a turn cost is told at every ending, by every engine, and adds up in the session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from backchannel.cli.statement import Statement
from backchannel.rpc.server import Server
from backchannel.v1 import event_pb2, session_pb2
from backchannel.v1.session_pb2 import FinishReason
from tests.support.server import ServerProcess, config, connected
from tests.support.stream import Client, Stream, check_log, create, interrupt, say

STOP = FinishReason.FINISH_REASON_STOP
LENGTH = FinishReason.FINISH_REASON_LENGTH
TOOL_CALLS = FinishReason.FINISH_REASON_TOOL_CALLS
INTERRUPTED = FinishReason.FINISH_REASON_INTERRUPTED
DISCONNECTED = FinishReason.FINISH_REASON_DISCONNECTED
DEADLINE = FinishReason.FINISH_REASON_DEADLINE
ERROR = FinishReason.FINISH_REASON_ERROR
OWNER_LOST = FinishReason.FINISH_REASON_OWNER_LOST

CANCEL_NOW = session_pb2.DisconnectPolicy(action=session_pb2.DisconnectPolicy.ACTION_CANCEL_NOW)
TOOL = session_pb2.ToolSpec(
    name="calculator",
    description="Works out a sum.",
    parameters_json_schema=(
        '{"type":"object","properties":{"expression":{"type":"string","maxLength":12}},'
        '"required":["expression"]}'
    ),
)


def after(seconds: float) -> session_pb2.Limits:
    limit = Duration()
    limit.FromMilliseconds(round(seconds * 1000))
    return session_pb2.Limits(max_turn_duration=limit)


@dataclass(frozen=True)
class Asked:
    """A session to open, and what to say in it."""

    config: Mapping[str, Any]
    text: str = "go"
    more: Mapping[str, Any] = field(default_factory=dict)


def scripted(model: str, text: str = "go", **more: Any) -> Asked:
    return Asked({"model": f"scripted/{model}", **more}, text)


def house(text: str, *, sings: bool = False, **more: Any) -> Asked:
    """The house model; when it sings it goes on and on."""
    song = {"response_format": {"grammar": 'root ::= ("la "){1,900}'}} if sings else {}
    return Asked({"model": "llama/house", **more}, text, song)


SLOW = {"rate": "50"}
ENDINGS: dict[str, dict[FinishReason.ValueType, Asked]] = {
    "scripted": {
        STOP: scripted("echo", "one two three"),
        LENGTH: scripted("echo", "one two three", sampling={"max_tokens": 2}),
        TOOL_CALLS: scripted("tool", tools=[TOOL], limits={"max_tool_rounds": 0}),
        INTERRUPTED: scripted("count", engine_options=SLOW),
        DISCONNECTED: scripted("count", engine_options=SLOW, on_disconnect=CANCEL_NOW),
        DEADLINE: scripted("count", engine_options=SLOW, limits=after(0.2)),
        ERROR: scripted("fail"),
        OWNER_LOST: scripted("count", engine_options=SLOW, on_disconnect=CANCEL_NOW),
    },
    "llama": {
        STOP: house("What are you?"),
        LENGTH: house("What are you?", sampling={"max_tokens": 3}),
        TOOL_CALLS: house("What is 12 * 7?", tools=[TOOL], limits={"max_tool_rounds": 0}),
        INTERRUPTED: house("Sing.", sings=True),
        DISCONNECTED: house("Sing.", sings=True, on_disconnect=CANCEL_NOW),
        DEADLINE: house("Sing.", sings=True, limits=after(0.2)),
        ERROR: house("what is it " * 2000),
        OWNER_LOST: house("Sing.", sings=True, on_disconnect=CANCEL_NOW),
    },
}
# The engine could not confirm: it failed in the middle, or its process died.
ESTIMATED = {("scripted", ERROR), ("scripted", OWNER_LOST), ("llama", OWNER_LOST)}
# Ended before its first token: a prompt that is too long, a call that may not even begin.
SILENT = {("llama", ERROR), ("scripted", TOOL_CALLS)}
HERE = [
    (engine, ending) for engine in ENDINGS for ending in ENDINGS[engine] if ending != OWNER_LOST
]


def name_of(value: object) -> str | None:
    return FinishReason.Name(value) if isinstance(value, int) else None  # type: ignore[arg-type]  # a number is one


@asynccontextmanager
async def serving(engine: str) -> AsyncIterator[Server]:
    if engine == "llama":
        pytest.importorskip("xllamacpp", reason="the embedded engine has no wheel here")
    async with Server(config(engine=(engine,))) as server:
        yield server


async def begin(stream: Stream, asked: Asked) -> str:
    """Say it, and see two words of what may come; the session's id."""
    await stream.send(say(asked.text, "m1", **asked.more))
    await stream.until(
        lambda seen: len(seen.of("output_delta")) > 1 or seen.of("turn_finished"),
    )
    return stream.events[0].session_opened.session.session_id


async def check(
    client: Client, session_id: str, engine: str, ending: FinishReason.ValueType
) -> session_pb2.Usage:
    """The one turn of the session has ended so, and its bill is right."""
    events = await client.events(session_id)
    check_log(events)
    statement = Statement()
    for event in events:
        statement.feed(event)
    session = await client.get(session_id)
    assert statement.problems(session.total_usage) == []
    (finished,) = [event.turn_finished for event in events if event.HasField("turn_finished")]
    usage = finished.usage
    assert finished.finish_reason == ending
    assert session.total_usage == usage
    assert usage.generated_tokens == usage.delivered_tokens + usage.wasted_tokens
    assert max(usage.displayed_tokens, usage.kept_tokens) <= usage.delivered_tokens
    assert usage.estimated is ((engine, ending) in ESTIMATED)
    assert (usage.generated_tokens > 0) is ((engine, ending) not in SILENT)
    if usage.generated_tokens and not usage.estimated:
        assert usage.prompt_tokens > 0
    if ending in (STOP, LENGTH, ERROR):
        assert usage.wasted_tokens == 0
    if ending != INTERRUPTED:  # All others keep what was delivered.
        assert usage.kept_tokens == usage.delivered_tokens
    return usage


@pytest.mark.parametrize(("engine", "ending"), HERE, ids=name_of)
async def test_every_ending_tells_what_the_turn_cost(
    engine: str, ending: FinishReason.ValueType
) -> None:
    asked = ENDINGS[engine][ending]
    async with serving(engine) as server, connected(server.address) as client:
        async with client.converse(create(**asked.config)) as stream:
            session_id = await begin(stream, asked)
            seen = stream.events[-1].seq
            if ending == INTERRUPTED:
                turn_id = stream.of("turn_started")[0].turn_started.turn_id
                stop = interrupt(turn_id, "i1", displayed_seq=seen, keep=event_pb2.KEEP_DISPLAYED)
                await stream.send(stop)
            if ending != DISCONNECTED:
                await stream.event("turn_finished")
        if ending == DISCONNECTED:
            async with asyncio.timeout(5):
                while (await client.get(session_id)).running_turn_id:  # noqa: ASYNC110 (who reads would keep it running)
                    await asyncio.sleep(0.01)
        usage = await check(client, session_id, engine, ending)
        if ending == INTERRUPTED:
            assert usage.displayed_tokens == usage.kept_tokens > 0


@pytest.mark.parametrize("engine", ENDINGS)
async def test_a_turn_that_lost_its_process_tells_what_is_in_the_log(
    tmp_path: Path, engine: str
) -> None:
    if engine == "llama":
        pytest.importorskip("xllamacpp", reason="the embedded engine has no wheel here")
    asked = ENDINGS[engine][OWNER_LOST]
    server = ServerProcess(tmp_path, arguments=("--engine", engine))
    try:
        await server.start()
        async with (
            connected(server.address) as client,
            client.converse(create(**asked.config)) as stream,
        ):
            session_id = await begin(stream, asked)
            delivered = sum(one.output_delta.token_count for one in stream.of("output_delta"))
            server.kill()
            await stream.end()
        await server.start()
        async with connected(server.address) as client:
            usage = await check(client, session_id, engine, OWNER_LOST)
            assert usage.delivered_tokens >= delivered
            assert usage.generated_tokens == usage.delivered_tokens
    finally:
        server.kill()
