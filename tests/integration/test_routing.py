"""Several engines in one server: names, aliases, fallbacks, limits. One of them has no upstream."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import grpc
import pytest

from backchannel import errors
from backchannel.v1 import model_service_pb2, session_pb2
from tests.support.server import START_S, ServerProcess, connected, healthy
from tests.support.stream import Client, Refused, Stream, check_log, create, say

SETTINGS = """
engine = ["down", "narrow"]
model = "fast"

[model_aliases]
fast = ["down/qwen", "scripted/echo"]
lost = ["down/qwen"]
wide = ["narrow/count", "scripted/echo"]

[engine_options.down]
adapter = "openai"
base_url = "http://127.0.0.1:{port}/v1"
models = ["qwen"]
retries = 0

[engine_options.narrow]
adapter = "scripted"
max_parallel = 1
max_waiting = 1
"""


@pytest.fixture
def nobodys_port() -> Iterator[int]:
    """A port at which every connection is refused, as long as the test runs."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # Bound and not listening.
        yield bound.getsockname()[1]


@pytest.fixture
async def routed(server_command: ServerProcess, nobodys_port: int) -> ServerProcess:
    """A server with three engines, one of them without its upstream."""
    path = server_command.folder / "backchannel.toml"
    path.write_text(SETTINGS.format(port=nobodys_port))
    server_command.engines = ()
    server_command.arguments = ("--config", str(path))
    await server_command.start()
    return server_command


@pytest.fixture
async def client(routed: ServerProcess) -> AsyncIterator[Client]:
    async with connected(routed.address) as one:
        yield one


async def models(client: Client) -> list[tuple[str, str]]:
    raw = await client.raw(
        "/backchannel.v1.ModelService/ListModels", model_service_pb2.ListModelsRequest()
    )
    listed = model_service_pb2.ListModelsResponse.FromString(raw).models
    return [(model.name, model.description) for model in listed]


async def test_a_server_whose_upstream_is_down_is_healthy_and_answers_by_its_alias(
    routed: ServerProcess, client: Client
) -> None:
    assert await healthy(client)
    async with client.converse(create(), say("still here", "m")) as stream:
        opened = await stream.event("session_opened")
        assert opened.session_opened.session.config.model == "fast"
        finished = (await stream.event("turn_finished")).turn_finished
        assert (stream.text, finished.finish_reason) == (
            "still here",
            session_pb2.FINISH_REASON_STOP,
        )
        check_log(stream.events)
    lines = [json.loads(line) for line in routed.output.splitlines() if line.startswith("{")]
    (passed,) = [line for line in lines if line["event"] == "engine_passed_over"]
    assert passed["target"] == "down/qwen"
    assert passed["reason"] == "UPSTREAM_UNREACHABLE"
    assert passed["next"] == "scripted/echo"
    assert "still here" not in routed.output


async def test_a_model_whose_upstream_is_down_ends_the_turn_and_says_when_to_try_again(
    client: Client,
) -> None:
    for model in ("down/qwen", "lost"):
        async with client.converse(create(model=model), say("hello")) as stream:
            finished = (await stream.event("turn_finished")).turn_finished
            assert finished.finish_reason == session_pb2.FINISH_REASON_ERROR
            assert errors.reason_of(finished.error) == "UPSTREAM_UNREACHABLE"
            assert errors.retry_after_s(finished.error)
    assert await healthy(client)


async def test_the_default_and_the_aliases_are_listed_first(
    routed: ServerProcess, client: Client
) -> None:
    listed = await models(client)
    assert listed[0] == ("fast", "Asks down/qwen, then scripted/echo.")
    assert [name for name, _ in listed[1:3]] == ["lost", "wide"]
    assert {"down/qwen", "narrow/echo", "scripted/echo"} <= {name for name, _ in listed}
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "backchannel", "models", "--server", routed.address],
        capture_output=True,
        text=True,
        timeout=START_S,
        check=True,
    )
    first = done.stdout.splitlines()[0].split("\t")
    assert (first[0], first[-1]) == ("fast (default)", "Asks down/qwen, then scripted/echo.")


async def test_an_engine_works_on_as_much_as_it_may_and_the_alias_goes_around_it(
    client: Client,
) -> None:
    slow = {"rate": "1"}
    async with AsyncExitStack() as stack:

        async def ask(model: str) -> Stream:
            opening = create(model=model, engine_options=slow)
            return await stack.enter_async_context(client.converse(opening, say("go", "m")))

        first = await ask("narrow/count")
        await first.event("output_delta")
        second = await ask("narrow/echo")  # Another model of the engine.
        await second.event("turn_started")
        third = await ask("narrow/count")
        error = (await third.receipt("m")).error
        assert (error.code, errors.reason_of(error)) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED.value[0],
            "ENGINE_BUSY",
        )
        assert errors.retry_after_s(error)
        fourth = await ask("wide")
        await fourth.event("turn_finished")
        assert fourth.text == "go"
        assert "output_delta" not in second.kinds()


async def test_an_unknown_alias_is_not_found(client: Client) -> None:
    with Refused() as refused:
        await client.create(model="faster")
    assert refused.ending is not None
    assert refused.ending.code is grpc.StatusCode.NOT_FOUND
    assert "there are: fast, lost, wide, down/qwen" in refused.ending.message
