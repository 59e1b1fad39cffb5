"""The adapter against a real server: llama.cpp's, in a process of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from backchannel.engines.openai.engine import OpenAIEngine
from backchannel.engines.openai.factory import create
from backchannel.engines.protocol import Capability, Prompt, StopCause, TextChunk
from backchannel.errors import BackchannelError, Reason
from backchannel.v1 import session_pb2
from tests.support.llama_peer import KEY, PARALLEL, LlamaPeer, free_port, llama_peer
from tests.unit.engines.support import CALCULATOR, Run, assistant, collect, user

QUESTION = "What can you do?"
REUSED = 0.9
"""The share of a prompt and its kept answer that must not be computed again."""


@asynccontextmanager
async def opened(peer: LlamaPeer, **settings: object) -> AsyncIterator[OpenAIEngine]:
    """An engine called `peer` in front of it."""
    options = {"base_url": peer.base_url, "api_key_env": "PEER_KEY", **settings}
    async with create("peer", options) as engine:
        yield engine


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEER_KEY", KEY)


def asks(*messages: session_pb2.Message, **more: object) -> Prompt:
    """A prompt that has one answer."""
    sampling = session_pb2.Sampling(temperature=0.0, max_tokens=120)
    fields = {"sampling": sampling, **more}
    return Prompt("house", "", messages or [user(QUESTION)], **fields)  # type: ignore[arg-type]  # as they come


async def busy(peer: LlamaPeer, count: int) -> None:
    """Wait until it works on so many; the test's time limit is the bound."""
    while await asyncio.to_thread(peer.busy) != count:  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0.01)


async def stopped_after(engine: OpenAIEngine, prompt: Prompt, tokens: int) -> Run:
    """Take so many tokens and stop."""
    generation = engine.start(prompt)
    run = Run()
    async for item in generation:
        run.add(item)
        if run.tokens >= tokens:
            generation.stop()
    await generation.aclose()
    return run


async def test_what_it_tells_of_itself(peer: LlamaPeer) -> None:
    async with opened(peer) as engine:
        (card,) = engine.models()
    assert (card.name, card.max_context_tokens, card.parallel) == ("house", 2048, PARALLEL)
    assert card.capabilities >= {
        Capability.TOOLS,
        Capability.CONTINUE_PARTIAL,
        Capability.GRAMMAR,
        Capability.JSON_SCHEMA,
        Capability.LOGPROBS,
        Capability.SEED,
    }
    assert "llama" in card.description


async def test_after_an_interrupt_the_kept_text_is_not_computed_again(peer: LlamaPeer) -> None:
    async with opened(peer) as engine:
        before = await stopped_after(engine, asks(), 12)
        assert before.end.cause is StopCause.STOPPED
        kept_tokens = before.end.usage.prompt_tokens + before.tokens
        await busy(peer, 0)  # A place that is still being left has nothing for the next.
        after = await collect(
            engine.start(asks(user(QUESTION), assistant(before.text), user("What is 2 + 2?")))
        )
    assert after.end.usage.exact
    assert after.end.usage.cached_prompt_tokens >= REUSED * kept_tokens
    assert after.end.usage.cached_prompt_tokens < after.end.usage.prompt_tokens


async def test_a_partial_answer_is_gone_on_from(peer: LlamaPeer) -> None:
    async with opened(peer) as engine:
        whole = await collect(engine.start(asks()))
        part = await stopped_after(engine, asks(), 8)
        assert whole.text.startswith(part.text)
        assert part.text
        await busy(peer, 0)
        rest = await collect(engine.start(asks(continue_text=part.text)))
    assert part.text + rest.text == whole.text
    assert part.tokens + rest.tokens == whole.tokens
    usage = rest.end.usage
    assert usage.cached_prompt_tokens >= REUSED * usage.prompt_tokens


async def test_stopping_what_waits_for_a_place_there(peer: LlamaPeer) -> None:
    async with opened(peer, extra_body={"ignore_eos": True}) as engine:
        long = session_pb2.Sampling(temperature=0.0, max_tokens=1500)
        generations = [engine.start(asks(sampling=long)) for _ in range(PARALLEL + 2)]
        taking = [asyncio.ensure_future(collect(generation)) for generation in generations]
        await busy(peer, PARALLEL)
        for generation in reversed(generations):
            generation.stop()
        runs = await asyncio.gather(*taking)
        assert {run.end.cause for run in runs} == {StopCause.STOPPED}
        await busy(peer, 0)
        assert (await collect(engine.start(asks()))).text


async def test_a_schema_and_a_grammar_hold(peer: LlamaPeer) -> None:
    schema = {
        "type": "object",
        "properties": {"ready": {"type": "boolean"}, "name": {"enum": ["a", "b"]}},
        "required": ["ready", "name"],
        "additionalProperties": False,
    }
    json_schema = session_pb2.ResponseFormat(json_schema=json.dumps(schema))
    grammar = session_pb2.ResponseFormat(grammar='root ::= "yes" | "no"')
    async with opened(peer) as engine:
        shaped = await collect(engine.start(asks(response_format=json_schema)))
        ruled = await collect(engine.start(asks(response_format=grammar)))
    answer = json.loads(shaped.text)
    assert isinstance(answer["ready"], bool)
    assert answer["name"] in ("a", "b")
    assert ruled.text in ("yes", "no")


async def test_a_grammar_that_is_none_is_refused(peer: LlamaPeer) -> None:
    grammar = session_pb2.ResponseFormat(grammar="root ::= ((((")
    async with opened(peer, retries=0) as engine:
        with pytest.raises(BackchannelError) as caught:
            await collect(engine.start(asks(response_format=grammar)))
    assert caught.value.reason in (Reason.UPSTREAM_REFUSED, Reason.UPSTREAM_FAILED)


async def test_log_probabilities(peer: LlamaPeer) -> None:
    sampling = session_pb2.Sampling(temperature=0.0, max_tokens=5, logprobs=3)
    async with opened(peer) as engine:
        run = await collect(engine.start(asks(sampling=sampling)))
    entries = [
        one for chunk in run.chunks if isinstance(chunk, TextChunk) for one in chunk.logprobs
    ]
    assert "".join(one.token for one in entries) == run.text
    assert all(one.logprob <= 0 and len(one.top) == 3 for one in entries)


async def test_a_seed_holds(peer: LlamaPeer) -> None:
    async with opened(peer) as engine:

        async def sampled(seed: int) -> str:
            sampling = session_pb2.Sampling(
                temperature=2.0, top_p=1.0, top_k=1000, min_p=0.0, max_tokens=40, seed=seed
            )
            return (await collect(engine.start(asks(sampling=sampling)))).text

        once, again, other = [await sampled(seed) for seed in (2**63 + 1, 2**63 + 1, 2)]
    assert once == again != other


async def test_a_tool_is_called(peer: LlamaPeer) -> None:
    async with opened(peer) as engine:
        run = await collect(engine.start(asks(user("What is 17 * 3?"), tools=[CALCULATOR])))
    assert run.end.cause is StopCause.TOOL_CALLS
    ((name, arguments),) = run.calls
    assert name == "calculator"
    assert "17" in json.loads(arguments)["expression"]


async def test_too_long_a_prompt_says_both_numbers(peer: LlamaPeer) -> None:
    async with opened(peer) as engine:
        with pytest.raises(BackchannelError) as caught:
            await collect(engine.start(asks(user("what is it " * 2000))))
    assert caught.value.reason is Reason.PROMPT_TOO_LONG
    assert int(caught.value.metadata["prompt_tokens"]) > 2048
    assert caught.value.metadata["max_context_tokens"] == "2048"


async def test_a_wrong_key(peer: LlamaPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(peer) as engine:
        assert engine.models()
    monkeypatch.setenv("PEER_KEY", "wrong-key-9876543210")
    for settings, words in (({}, "api_key_env"), ({"api_key_env": ""}, "none is configured")):
        with pytest.raises(BackchannelError) as caught:
            async with opened(peer, **settings):
                pass
        assert caught.value.reason is Reason.ENGINE_UNAVAILABLE
        assert words in caught.value.message
        assert "wrong-key" not in caught.value.message


async def test_a_wrong_address(peer: LlamaPeer) -> None:
    with pytest.raises(BackchannelError) as caught:
        async with opened(peer, base_url=f"{peer.root}/v7"):
            pass
    assert "usually ends in /v1" in caught.value.message


async def test_the_server_dies_and_comes_back() -> None:
    port = free_port()
    with llama_peer(port=port) as first:
        async with opened(first, retry_wait_s=0.05, extra_body={"ignore_eos": True}) as engine:
            long = session_pb2.Sampling(temperature=0.0, max_tokens=1500)
            generation = engine.start(asks(sampling=long))
            await anext(aiter(generation))
            first.kill()
            with pytest.raises(BackchannelError) as caught:
                await collect(generation)
            assert caught.value.reason is Reason.UPSTREAM_BROKE_OFF
            with pytest.raises(BackchannelError) as caught:
                await collect(engine.start(asks()))
            assert caught.value.reason is Reason.UPSTREAM_UNREACHABLE
            with llama_peer(port=port):
                assert (await collect(engine.start(asks()))).text
