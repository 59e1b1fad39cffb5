"""A day of the real service at its most talkative, with secrets planted everywhere: none is logged.

Every secret begins with the same word, and has one of its own behind it that tells what leaked.
Whatever the service, Envoy or a library writes is in what is looked through.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.duration_pb2 import Duration

from backchannel.host.turn_log import session_digest
from backchannel.v1 import conversation_service_pb2 as pb
from backchannel.v1 import frame_pb2, session_pb2
from tests.support.hostile_upstream import (
    Answer,
    HostileUpstream,
    Wire,
    delta,
    replies,
    says,
    streams,
    usage,
)
from tests.support.server import ServerProcess, connected, healthy
from tests.support.stream import Client, Stream, create, interrupt, say

PLANTED = "sesame"
PATIENCE_S = 20.0
CARELESS = Path(__file__).with_name("careless")
SETTINGS = """
engine = ["scripted", "careless", "up"]
model = "scripted/echo"

[engine_options.up]
adapter = "openai"
base_url = "{base_url}"
api_key_env = "UP_KEY"
retries = 1
retry_wait_s = 0.01
token_timeout_s = 1.0
first_token_timeout_s = 1.0
"""


def secret(name: str) -> str:
    """To be planted."""
    return f"{PLANTED}-{name}-{os.urandom(4).hex()}"


@dataclass
class Day:
    """A service, and what its sessions are called.

    Attributes:
        told: What it has said before it was started again.
        ids: Of its sessions, which are secrets too.
    """

    service: ServerProcess
    client: Client
    upstream: HostileUpstream
    web: str = ""
    told: str = ""
    ids: list[str] = field(default_factory=list)

    @property
    def output(self) -> str:
        return self.told + self.service.output

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The log, as programs read it."""
        return [json.loads(line) for line in self.output.splitlines() if line.startswith("{")]

    def named(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == event]

    async def until(self, found: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not found():  # noqa: ASYNC110 - another process's doing
                await asyncio.sleep(0.02)

    @contextlib.asynccontextmanager
    async def session(self, model: str, **fields: Any) -> AsyncIterator[tuple[str, Stream]]:
        """A session with secrets wherever there is room for words, and a reader."""
        given: dict[str, Any] = {
            "system": secret("system"),
            "labels": {"label": secret("label")},
            "history": [
                session_pb2.Message(
                    role=session_pb2.ROLE_USER, parts=[session_pb2.Part(text=secret("history"))]
                )
            ],
            **fields,
        }
        made = await self.client.create(model=model, **given)
        self.ids.append(made.session_id)
        async with self.client.attach(made.session_id) as stream:
            yield made.session_id, stream

    async def ask(self, model: str, **fields: Any) -> Stream:
        """A turn, to its end."""
        async with self.session(model, **fields) as (session_id, stream):
            await self.client.send(session_id, say(secret("prompt")))
            await stream.event("turn_finished")
            return stream


@pytest.fixture
async def day(
    server_command: ServerProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> AsyncIterator[Day]:
    async with HostileUpstream() as upstream:
        upstream.will(says("hello"))
        path = tmp_path / "backchannel.toml"
        path.write_text(SETTINGS.format(base_url=upstream.base_url))
        server_command.engines = ()
        server_command.edge = ("--edge", "--edge-listen", "127.0.0.1:0")
        server_command.arguments = ("--config", str(path), "--log-level", "debug")
        server_command.environment = {"PYTHONPATH": str(CARELESS), "UP_KEY": secret("key")}
        await server_command.start()
        async with connected(server_command.address) as client:
            yield Day(server_command, client, upstream, web_address(server_command))


def web_address(service: ServerProcess) -> str:
    """Where Envoy is, as the service says at its start."""
    found = re.search(r"Open (http://\S+) in a browser", service.output)
    assert found, service.output
    return found[1]


def seconds(number: float) -> Duration:
    return Duration(nanos=round(number * 1e9) % 10**9, seconds=int(number))


# --- scenarios -------------------------------------------------------------------------------


async def endings(day: Day) -> None:
    """A turn of each finish reason but for the one that takes a death."""
    await day.ask("scripted/echo")
    await day.ask("scripted/fail")
    limits = session_pb2.Limits(max_turn_duration=seconds(0.2))
    await day.ask("scripted/stall", limits=limits)
    tools = [session_pb2.ToolSpec(name="look", description=secret("description"))]
    await day.ask("scripted/tool", tools=tools, limits=session_pb2.Limits(max_tool_rounds=0))
    for reason in ("length", "content_filter"):
        day.upstream.will(says(secret("answer"), finish_reason=reason))
        await day.ask("up/m")
    async with day.session("scripted/stall") as (session_id, stream):
        await day.client.send(session_id, say(secret("prompt")))
        await stream.event("output_delta", 5)
        turn_id = (await stream.event("turn_started")).turn_started.turn_id
        await day.client.send(session_id, interrupt(turn_id))
        await stream.event("turn_finished")
    slow = {"rate": "50"}
    async with day.session("scripted/echo", engine_options=slow) as (session_id, stream):
        await day.client.send(session_id, say(f"{secret('prompt')}. " * 200))
        await stream.event("output_delta")
        steer = say(secret("steer"), delivery=session_pb2.DELIVERY_STEER)
        await day.client.send(session_id, steer)
        await stream.event("turn_finished")
    policy = session_pb2.DisconnectPolicy(action=session_pb2.DisconnectPolicy.ACTION_CANCEL_NOW)
    async with day.session("scripted/stall", on_disconnect=policy) as (session_id, stream):
        await day.client.send(session_id, say(secret("prompt")))
        await stream.event("output_delta", 5)


async def tools(day: Day) -> None:
    """Calls that are answered, reported on, failed, late, in parts and timed out."""
    specs = [
        session_pb2.ToolSpec(name="look", parameters_json_schema=json.dumps({"title": secret("x")}))
    ]
    outcomes: list[dict[str, Any]] = [
        {"json": json.dumps(secret("result"))},
        {"content": session_pb2.Content(parts=[session_pb2.Part(text=secret("content"))])},
        {"error": session_pb2.ToolError(message=secret("tool-error"), code=secret("code"))},
        {"json": f'{{"{secret("no-json")}'},
    ]
    for outcome in outcomes:
        async with day.session("scripted/tool", tools=specs) as (session_id, stream):
            await day.client.send(session_id, say(secret("prompt")))
            call_id = (await stream.event("tool_call_ready")).tool_call_ready.call_id
            progress = frame_pb2.ToolProgress(call_id=call_id, note=secret("note"))
            await day.client.send(session_id, frame_pb2.ClientFrame(tool_progress=progress))
            result = session_pb2.ToolResult(call_id=call_id, **outcome)
            for _ in range(2):  # The second one is late.
                await day.client.send(session_id, frame_pb2.ClientFrame(tool_result=result))
    specs[0].idle_timeout.CopyFrom(seconds(0.05))
    await day.ask("scripted/tool", tools=specs)


async def bad_inputs(day: Day) -> None:
    """Wrong in every part, with a secret right there."""
    word = secret("bad")
    tool = session_pb2.ToolSpec
    configs: list[dict[str, Any]] = [
        {"model": word},
        {"model": f"scripted/{word}"},
        {"session_id": f"{word} {word}"},
        {"tools": [tool(name=f"{word} {word}")]},
        {"tools": [tool(name="a", parameters_json_schema=f'{{"{word}')]},
        {"tools": [tool(name="a", parameters_json_schema=f'{{"type": "{word}"}}')]},
        {"labels": {word.upper(): word}},
        {"labels": {"a": word * 20}},
        {"engine_options": {word: word}},
        {"engine_options": {"rate": word}},
        {"sampling": session_pb2.Sampling(stop=[word * 100])},
        {"response_format": session_pb2.ResponseFormat(json_schema=f'{{"{word}"')},
        {"response_format": session_pb2.ResponseFormat(grammar=word)},
    ]
    for config in configs:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await day.client.create(**config)
            raise AssertionError(f"{config} was taken")
    session_id = (await day.client.create(model="scripted/echo")).session_id
    day.ids.append(session_id)
    frames = [
        say("x", word * 20),
        say(word, expected_turn_id=word),
        say(word, sampling=session_pb2.Sampling(temperature=float("nan"))),
        interrupt(word),
        frame_pb2.ClientFrame(tool_result=session_pb2.ToolResult(call_id=word, json=word)),
    ]
    for frame in frames:
        frame.frame_id = frame.frame_id or word
        await day.client.send(session_id, frame)
    wires: list[list[frame_pb2.ClientFrame | bytes]] = [
        [b"\xff" + word.encode()],
        [say(word)],
        [create(model="scripted/echo"), b"\x0a" + word.encode()],
        [create(model="scripted/echo"), say(word * 400_000)],
    ]
    for wire in wires:
        async with day.client.converse(*wire) as stream:
            await stream.end()
    for method in ("GetSession", "Attach", "Send", "DeleteSession", word):
        with contextlib.suppress(grpc.aio.AioRpcError):
            await day.client.raw(method, pb.GetSessionRequest(session_id=word))


async def upstream_failures(day: Day) -> None:
    """Every way an upstream can fail, with secrets in its heads, bodies and addresses."""
    word = secret("upstream")
    said = {"error": {"message": word, "type": word, "code": word, "param": word}}

    async def cut(wire: Wire) -> None:
        await wire.head(x_secret=word)
        await wire.event(delta(content=word))
        wire.cut()

    async def hang(wire: Wire) -> None:
        await wire.head(set_cookie=word)
        await wire.event(delta(content=word))
        await asyncio.Event().wait()

    async def garbage(wire: Wire) -> None:
        await wire.raw(f"HTTP/9 {word}\r\n\r\n".encode())

    call = {"index": 0, "id": word, "function": {"name": word, "arguments": f'{{"{word}'}}
    answers: list[Answer] = [
        *(replies(f"{status} {word}", said) for status in (400, 401, 403, 404, 413, 422, 429)),
        *(replies(f"{status} {word}", said) for status in (500, 502, 503, 529)),
        replies("500 Oops", word.encode(), "text/html", www_authenticate=word),
        replies("302 Found", said, location=f"http://{word}:{word}@127.0.0.1:9/v1?key={word}"),
        replies("200 OK", said),
        replies("200 OK", word.encode()),
        streams(f'{{"{word}'),
        streams(said),
        streams(delta(content=word), said),
        streams(delta(content=word), delta("tool_calls", tool_calls=[call]), "[DONE]"),
        streams(delta(content=word), delta(word), usage(-1, 10**12), "[DONE]"),
        streams(delta(content=word)),
        *(cut, hang, garbage),
    ]
    for answer in answers:
        day.upstream.will(answer)
        await day.ask("up/m")
    assert any(PLANTED in request.headers["authorization"] for request in day.upstream.requests)


async def crashes(day: Day) -> None:
    """Bugs, with what was said in their messages."""
    for way in ("start", "first", "later", "cause", "group", "task", "thread", "nowhere", "loop"):
        await day.ask(f"careless/{way}")
    await day.ask("careless/logs")


async def browsers(day: Day) -> None:
    """What comes through Envoy: keys in queries and headers, words in bodies, ids in paths."""
    word = secret("web")
    headers = {"authorization": f"Bearer {word}", "cookie": f"k={word}", "referer": word}
    async with httpx.AsyncClient(base_url=day.web, headers=headers) as browser:
        await browser.post(f"/v1/sessions?key={word}", json={"config": {}})
        made = await browser.post("/v1/sessions", json={"config": {"system": word}})
        assert made.status_code == 200, (made.status_code, made.text, made.headers)
        session_id = made.json()["session"]["sessionId"]
        day.ids.append(session_id)
        message = {"message": {"parts": [{"text": word}]}}
        for body in (message, {"message": {"words": word}}, {word: word}):
            await browser.post(f"/v1/sessions/{session_id}/frames", json=body)
        await browser.post(f"/v1/sessions/{session_id}/frames", content=f'{{"{word}'.encode())
        for path in (
            f"/v1/sessions/{session_id}",
            f"/v1/sessions/{session_id}?{word}",
            f"/v1/sessions/{session_id}/nothing",
            f"/v1/models?{word}",
            f"/?{word}",
        ):
            await browser.get(path)
            await browser.get(path, headers={"origin": f"https://{word}.example"})
        async with browser.stream("GET", f"/v1/sessions/{session_id}/events") as events:
            async for line in events.aiter_lines():
                if "turn_finished" in line:
                    break
        await browser.delete(f"/v1/sessions/{session_id}")


async def garbage(day: Day) -> None:
    """Bytes that are no gRPC, at its port."""
    reader, writer = await asyncio.open_connection("127.0.0.1", day.service.port)
    writer.write(
        f"GET /{secret('raw')} HTTP/1.1\r\nauthorization: {secret('raw')}\r\n\r\n".encode()
    )
    await writer.drain()
    await reader.read()
    writer.close()


async def a_death(day: Day) -> None:
    """The process dies in the middle of an answer, and its successor ends it."""
    async with day.session("scripted/stall") as (session_id, stream):
        await day.client.send(session_id, say(secret("prompt")))
        await stream.event("output_delta", 5)
        day.told = day.service.output
        day.service.kill()
        await day.service.start()


# --- what is looked for ----------------------------------------------------------------------


@pytest.mark.timeout(180)
async def test_a_day_in_which_everything_happens_leaves_no_secret_in_the_log(day: Day) -> None:
    for scenario in (endings, tools, bad_inputs, crashes, upstream_failures, browsers, garbage):
        await scenario(day)
    await a_death(day)
    async with connected(day.service.address) as client:
        assert await healthy(client)
    await day.until(lambda: any(line["ending"] == "owner_lost" for line in day.named(TURN)))
    await day.service.stop()

    # It has all been through the service, and the service has told of it.
    kept = b"".join(path.read_bytes() for path in day.service.folder.glob("log.db*"))
    assert kept.count(PLANTED.encode()) > 100
    reasons = {name.removeprefix("FINISH_REASON_").lower() for name in REASONS}
    assert {line["ending"] for line in day.named(TURN)} == reasons
    told = {line["event"] for line in day.lines}
    assert told >= {"engine_failed", "engine_broke", "request", "exception_escaped", "draining"}
    assert told >= {"Task exception was never retrieved"}

    leaks = [line for line in day.output.splitlines() if PLANTED in line]
    assert not leaks, "\n".join(leaks)
    for session_id in day.ids:
        assert session_id not in day.output
    assert "Traceback" not in "".join(line for line in day.output.splitlines() if line[:1] != "{")


TURN = "turn_finished"
REASONS = [value.name for value in session_pb2.FinishReason.DESCRIPTOR.values if value.number]


async def test_one_line_a_turn_with_its_figures(day: Day) -> None:
    stream = await day.ask("scripted/echo")
    (line,) = day.named(TURN)
    ended = stream.events[-1].turn_finished
    assert line["session"] == session_digest(day.ids[0])
    assert (line["turn_id"], line["ending"]) == (ended.turn_id, "stop")
    assert line["generated_tokens"] == ended.usage.generated_tokens > 0
    assert line["first_token_ms"] > 0
    assert line["logger"] == "backchannel.host.turn_log"


async def test_the_level_changes_by_signals_while_it_runs(server_process: ServerProcess) -> None:
    async def turns(number: int) -> int:
        """How many of the turns that were taken so far are in the log."""
        async with connected(server_process.address) as client:
            made = await client.create(model="scripted/fail")
            async with client.attach(made.session_id) as stream:
                await client.send(made.session_id, say("go"))
                await stream.event("turn_finished")
        return server_process.output.count('"event": "turn_finished"')

    async def told(what: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while what not in server_process.output:  # noqa: ASYNC110 - another process's doing
                await asyncio.sleep(0.01)

    process = server_process.process
    assert process is not None
    process.send_signal(signal.SIGUSR1)
    await told('"to": "debug"')
    assert await turns(1) == 1
    process.send_signal(signal.SIGUSR2)
    await told('"to": "info"')
    assert process.poll() is None


async def test_a_turns_line_bears_its_trace(server_command: ServerProcess) -> None:
    server_command.arguments = ("--otlp-endpoint", "http://127.0.0.1:9")  # Nobody takes them.
    await server_command.start()
    async with connected(server_command.address) as client:
        made = await client.create(model="scripted/echo")
        async with client.attach(made.session_id) as stream:
            await client.send(made.session_id, say("go"))
            await stream.event("turn_finished")
    await server_command.stop()
    lines = [json.loads(line) for line in server_command.output.splitlines() if line[:1] == "{"]
    (line,) = [line for line in lines if line["event"] == TURN]
    assert len(line["trace_id"]) == 32
    assert len(line["span_id"]) == 16
    assert int(line["trace_id"], 16)
