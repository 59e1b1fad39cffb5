"""The adapter against an upstream that says what a test wants it to say."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path

import pytest

from backchannel.engines.protocol import Capability, Prompt, StopCause, TextChunk
from backchannel.engines.registry import EngineRegistry
from backchannel.errors import BackchannelError, Reason
from backchannel.v1 import event_pb2, session_pb2
from tests.support.hostile_upstream import (
    Answer,
    HostileUpstream,
    Wire,
    delta,
    never,
    replies,
    says,
    streams,
    usage,
)
from tests.unit.engines.openai_support import KEY, PROMPT, SECRET, opened
from tests.unit.engines.support import CALCULATOR, Run, collect, user

# --- what goes well


async def test_a_plain_answer(upstream: HostileUpstream) -> None:
    async with opened(upstream) as engine:
        run = await collect(engine.start(PROMPT))
    assert (run.text, run.tokens, run.end.cause) == ("Hello there.", 3, StopCause.STOP)
    assert run.end.usage.exact
    assert (run.end.usage.prompt_tokens, run.end.usage.cached_prompt_tokens) == (7, 3)
    (request,) = upstream.requests
    assert request.json["model"] == "m"
    assert request.json["messages"] == [{"role": "user", "content": SECRET}]
    assert request.json["stream_options"] == {"include_usage": True}
    assert "authorization" not in request.headers


async def test_a_connection_is_used_again(upstream: HostileUpstream) -> None:
    async with opened(upstream) as engine:
        for _ in range(3):
            await collect(engine.start(PROMPT))
    assert len(upstream.requests) == 3
    assert upstream.connections == 1


async def test_the_key_comes_from_where_it_is_said(
    upstream: HostileUpstream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-you")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-not-for-you")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-not-for-you")
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    for settings in ({"api_key_env": "SOME_KEY"}, {"api_key_file": str(file)}, {}):
        async with opened(upstream, **settings) as engine:
            await collect(engine.start(PROMPT))
    named, filed, none = upstream.requests
    assert named.headers["authorization"] == filed.headers["authorization"] == f"Bearer {KEY}"
    assert "authorization" not in none.headers
    for request in upstream.requests:
        assert not [value for value in request.headers.values() if "not-for-you" in value]


async def test_tokens_that_no_delta_had_ride_on_the_last(upstream: HostileUpstream) -> None:
    upstream.will(says("one", "two", total=12))
    async with opened(upstream) as engine:
        run = await collect(engine.start(PROMPT))
    assert run.tokens == run.end.usage.output_tokens == 12
    assert run.end.usage.exact


async def test_counts_are_the_upstreams_where_it_counts_as_it_goes(
    upstream: HostileUpstream,
) -> None:
    events = [
        delta(content=text) | {"usage": {"prompt_tokens": 5, "completion_tokens": count}}
        for text, count in (("a", 1), ("b", 4), ("", 6), ("c", 9))
    ]
    upstream.will(streams(*events, delta("stop"), usage(5, 10), "[DONE]"))
    async with opened(upstream) as engine:
        run = Run()
        async for item in engine.start(PROMPT):
            run.add(item)
    assert run.tokens == run.end.usage.output_tokens == 10
    assert run.end.usage.exact


async def test_without_usage_the_count_is_an_estimate(upstream: HostileUpstream) -> None:
    upstream.will(streams(delta(content="a"), delta(content="b"), delta("stop"), "[DONE]"))
    async with opened(upstream) as engine:
        run = await collect(engine.start(PROMPT))
    assert run.end.usage.output_tokens == run.tokens == 2
    assert not run.end.usage.exact


async def test_a_usage_smaller_than_what_came_is_not_believed(upstream: HostileUpstream) -> None:
    upstream.will(says("a", "b", "c", total=1))
    async with opened(upstream) as engine:
        run = await collect(engine.start(PROMPT))
    assert run.end.usage.output_tokens == run.tokens == 3
    assert not run.end.usage.exact


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
async def test_reasoning_has_its_own_channel(upstream: HostileUpstream, key: str) -> None:
    thought = delta()
    thought["choices"][0]["delta"] = {key: "Hmm. "}
    upstream.will(streams(thought, delta(content="Yes."), delta("stop"), usage(1, 2), "[DONE]"))
    async with opened(upstream) as engine:
        run = await collect(engine.start(PROMPT))
    texts = [(c.channel, c.text) for c in run.chunks if isinstance(c, TextChunk) and c.text]
    assert texts == [(event_pb2.CHANNEL_REASONING, "Hmm. "), (event_pb2.CHANNEL_TEXT, "Yes.")]


async def test_log_probabilities(upstream: HostileUpstream) -> None:
    entry = {"token": "Yes", "logprob": -0.5, "top_logprobs": [{"token": "No", "logprob": -1.5}]}
    chunk = delta(content="Yes")
    chunk["choices"][0]["logprobs"] = {"content": [entry]}
    upstream.will(streams(chunk, delta("stop"), usage(1, 1), "[DONE]"))
    sampling = session_pb2.Sampling(logprobs=1)
    async with opened(upstream) as engine:
        run = await collect(engine.start(Prompt("m", "", [user("?")], sampling=sampling)))
    (first, *_) = run.chunks
    assert isinstance(first, TextChunk)
    (found,) = first.logprobs
    assert (found.token, found.logprob) == ("Yes", -0.5)
    assert [(top.token, top.logprob) for top in found.top] == [("No", -1.5)]
    assert upstream.requests[0].json["top_logprobs"] == 1


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
async def test_a_stream_may_be_cut_anywhere(upstream: HostileUpstream, size: int) -> None:
    text = "Grüße, 世界 🦜!"
    events = [delta(content=character) for character in text]
    body = b": a comment\r\n\r\nevent: message\r\nid: 7\r\nretry: 5\r\n" + b"".join(
        b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\r\n\r\n"
        for event in (*events, delta("stop"), usage(1, len(text)))
    )

    async def answer(wire: Wire) -> None:
        await wire.head()
        whole = body + b"data: [DONE]\n\n"
        for at in range(0, len(whole), size):
            await wire.send(whole[at : at + size])
        await wire.end()

    upstream.will(answer)
    async with opened(upstream) as engine:
        run = await collect(engine.start(PROMPT))
    assert (run.text, run.tokens) == (text, len(text))


async def test_half_characters_are_joined_or_replaced(upstream: HostileUpstream) -> None:
    pieces = ("a\\ud83e", "\\udd9c", "\\ud83e", "b", "\\udd9c", "\\ud83e")
    halves = [f'{{"choices":[{{"delta":{{"content":"{piece}"}}}}]}}' for piece in pieces]
    upstream.will(streams(*halves, delta("stop"), usage(1, 6), "[DONE]"))
    async with opened(upstream) as engine:
        run = await collect(engine.start(PROMPT))
    assert run.text == "a🦜\ufffdb\ufffd\ufffd"
    assert run.tokens == 6


async def test_what_comes_after_the_end_is_not_heard(upstream: HostileUpstream) -> None:
    async def answer(wire: Wire) -> None:
        await wire.head()
        await wire.event(delta(content="Yes."), delta("stop"), delta("stop"), delta(content="No!"))
        await wire.event(usage(1, 1), usage(1, 1), "[DONE]", "[DONE]", delta(content="Never!"))
        await wire.send(b"\x00garbage\xff\n\n{")
        await wire.end()

    upstream.will(answer)
    async with opened(upstream) as engine:
        run = await collect(engine.start(PROMPT))
    assert (run.text, run.tokens, run.end.cause) == ("Yes.", 1, StopCause.STOP)


async def test_an_answer_whose_tail_is_missing_is_whole(upstream: HostileUpstream) -> None:
    upstream.will(streams(delta(content="Yes."), delta("length")))
    async with opened(upstream) as engine:
        run = await collect(engine.start(PROMPT))
    assert (run.text, run.end.cause, run.end.usage.exact) == ("Yes.", StopCause.LENGTH, False)


async def test_a_tail_that_does_not_come_is_not_waited_for(
    upstream: HostileUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backchannel.engines.openai.answer._TAIL_S", 0.05)

    async def answer(wire: Wire) -> None:
        await wire.head()
        await wire.event(delta(content="Yes."), delta("stop"))
        while True:
            await wire.send(b": still here\n\n")
            await asyncio.sleep(0.01)

    upstream.will(answer)
    async with opened(upstream) as engine:
        run = await collect(engine.start(PROMPT))
        await upstream.until(lambda: upstream.running == 0)
    assert (run.text, run.end.cause, run.end.usage.exact) == ("Yes.", StopCause.STOP, False)


async def test_other_answers_beside_the_first_are_left_out(upstream: HostileUpstream) -> None:
    both = [delta(content="A"), delta(content="B", index=1), delta("stop", index=1), delta("stop")]
    upstream.will(streams(*both, usage(1, 1), "[DONE]"))
    async with opened(upstream) as engine:
        assert (await collect(engine.start(PROMPT))).text == "A"


async def test_a_slow_reader_holds_the_upstream_back(upstream: HostileUpstream) -> None:
    sent = 0

    async def answer(wire: Wire) -> None:
        nonlocal sent
        await wire.head()
        while True:
            await wire.event(delta(content="x" * 10_000))
            sent += 1

    upstream.will(answer)
    async with opened(upstream) as engine:
        generation = engine.start(PROMPT)
        await anext(aiter(generation))
        seen = -1
        while seen != sent:  # Until nothing moves any more.
            seen = sent
            for _ in range(200):
                await asyncio.sleep(0)
        # Our share, and what the sockets hold.
        assert sent * 10_000 < 30 * 2**20
        await generation.aclose()
        await upstream.until(lambda: upstream.running == 0)


# --- stops


@pytest.mark.parametrize("phase", ["connected", "header", "first token", "mid-stream", "arguments"])
async def test_a_stop_ends_the_upstreams_work(upstream: HostileUpstream, phase: str) -> None:
    reached = asyncio.Event()

    async def answer(wire: Wire) -> None:
        if phase != "connected":
            await wire.head()
        if phase in ("first token", "mid-stream"):
            await wire.event(delta(content="One"))
        if phase == "mid-stream":
            await wire.event(*(delta(content=" more") for _ in range(5)))
        if phase == "arguments":
            function = {"name": "calculator", "arguments": '{"expr'}
            await wire.event(delta(tool_calls=[{"index": 0, "id": "a", "function": function}]))
        reached.set()
        await never(wire)

    upstream.will(answer)
    async with opened(upstream) as engine:
        generation = engine.start(PROMPT)
        taking = asyncio.ensure_future(collect(generation))
        await reached.wait()
        assert upstream.running == 1
        generation.stop()
        run = await taking
        await upstream.until(lambda: upstream.running == 0)
    assert upstream.closed == 1
    assert run.end.cause is StopCause.STOPPED
    assert not run.end.usage.exact
    assert run.end.usage.output_tokens is not None
    assert run.end.usage.output_tokens >= run.tokens


async def test_a_stop_does_not_wait_for_a_retry(upstream: HostileUpstream) -> None:
    upstream.will(replies("429 Too Many Requests", retry_after="15"))
    async with opened(upstream, retries=3) as engine:
        generation = engine.start(PROMPT)
        taking = asyncio.ensure_future(collect(generation))
        await upstream.until(lambda: len(upstream.requests) == 1 and upstream.running == 0)
        generation.stop()
        async with asyncio.timeout(5):
            run = await taking
    assert run.end.cause is StopCause.STOPPED
    assert run.end.usage.output_tokens == 0


# --- its models


async def test_models_and_what_is_told_of_them(upstream: HostileUpstream) -> None:
    upstream.models = replies(
        "200 OK",
        {
            "data": [
                {"id": "Qwen/Qwen3-4B", "owned_by": "vllm", "max_model_len": 40960},
                {"id": "bad\nname", "owned_by": "vllm"},
                {"id": "", "owned_by": "vllm"},
                {"id": 7, "owned_by": "vllm"},
            ]
        },
    )
    async with opened(upstream) as engine:
        (card,) = engine.models()
    assert (card.name, card.max_context_tokens) == ("Qwen/Qwen3-4B", 40960)
    assert Capability.CONTINUE_PARTIAL in card.capabilities
    assert Capability.GRAMMAR in card.capabilities


@pytest.mark.parametrize(
    "models",
    [
        never,
        replies("500 Internal Server Error"),
        replies("200 OK", b"{"),
        replies("200 OK", {"data": 7}),
        replies("200 OK", b"x" * (5 * 2**20)),
    ],
)
async def test_an_upstream_that_is_not_ready_serves_later(
    upstream: HostileUpstream, models: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backchannel.engines.openai.upstream._AGAIN_S", 0.01)
    monkeypatch.setattr("backchannel.engines.openai.upstream._LIST_S", 0.2)
    well, upstream.models = upstream.models, models
    async with opened(upstream) as engine:
        assert list(engine.models()) == []
        with pytest.raises(BackchannelError, match="not told its models"):
            engine.start(PROMPT)
        upstream.models = well
        while not engine.models():  # noqa: ASYNC110 - the test's time limit is the bound
            await asyncio.sleep(0.005)
        assert (await collect(engine.start(PROMPT))).text == "Hello there."


async def test_models_are_asked_for_again(upstream: HostileUpstream) -> None:
    async with opened(upstream, refresh_s=0.01) as engine:
        upstream.models = replies("200 OK", {"data": [{"id": "new", "owned_by": "nobody"}]})
        while [card.name for card in engine.models()] != ["new"]:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.005)


async def test_an_error_lists_a_few_models_of_many(upstream: HostileUpstream) -> None:
    entries = [{"id": f"model-{number}", "owned_by": "x"} for number in range(900)]
    upstream.models = replies("200 OK", {"data": entries})
    settings = {"adapter": "openai", "base_url": upstream.base_url}
    async with EngineRegistry({"up": settings}) as registry:
        engine = registry.resolve("up/model-0").engine
        with pytest.raises(BackchannelError, match=r" and 8\d+ more") as by_registry:
            registry.route("up/nobody")
        with pytest.raises(BackchannelError, match=" and 880 more") as by_engine:
            engine.check(Prompt("nobody", "", []))
        assert len(registry.models()) > 900
    for caught in (by_registry, by_engine):
        assert caught.value.reason is Reason.MODEL_NOT_FOUND
        assert len(caught.value.message) < 1000


async def test_models_that_are_named_need_no_list(upstream: HostileUpstream) -> None:
    upstream.models = replies("404 Not Found")
    async with opened(upstream, models=["m", "n"], max_context_tokens=99) as engine:
        assert [card.name for card in engine.models()] == ["m", "n"]
        assert engine.models()[0].max_context_tokens == 99
        assert (await collect(engine.start(PROMPT))).text == "Hello there."


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (replies("401 Unauthorized"), "key"),
        (replies("404 Not Found"), "/v1"),
        (replies("200 OK", b"<!doctype html>", "text/html"), "web page"),
    ],
)
async def test_what_can_never_serve_is_told_at_the_start(
    upstream: HostileUpstream, models: Answer, words: str
) -> None:
    upstream.models = models
    with pytest.raises(BackchannelError) as caught:
        async with opened(upstream):
            pass
    assert caught.value.reason is Reason.ENGINE_UNAVAILABLE
    assert words in caught.value.message
    assert upstream.base_url in caught.value.message


async def test_several_upstreams_by_name(upstream: HostileUpstream) -> None:
    async with HostileUpstream() as other:
        other.will(says("I am the other."))
        engines = {
            name: {"adapter": "openai", "base_url": where.base_url}
            for name, where in (("one", upstream), ("two", other))
        }
        async with EngineRegistry(engines) as registry:
            texts = []
            for name in ("one/m", "two/m"):
                target = registry.resolve(name)
                assert target.engine.name == name.partition("/")[0]
                texts.append((await collect(target.engine.start(PROMPT))).text)
    assert texts == ["Hello there.", "I am the other."]


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        (Prompt("m", "", [], [CALCULATOR]), "tools"),
        (Prompt("m", "", [], sampling=session_pb2.Sampling(logprobs=0)), "sampling.logprobs"),
        (
            Prompt("m", "", [], response_format=session_pb2.ResponseFormat(json_schema="{}")),
            "response_format.json_schema",
        ),
        (
            Prompt("m", "", [], response_format=session_pb2.ResponseFormat(grammar="x")),
            "response_format.grammar",
        ),
        (Prompt("m", "", [], continue_text="Once"), "continue_text"),
    ],
)
async def test_what_the_settings_say_it_cannot_is_refused(
    upstream: HostileUpstream, prompt: Prompt, field: str
) -> None:
    async with opened(upstream, capabilities=["seed"]) as engine:
        with pytest.raises(BackchannelError) as caught:
            engine.check(prompt)
    assert caught.value.reason is Reason.CAPABILITY_MISSING
    assert caught.value.field == field


# --- tools


async def test_calls_side_by_side(upstream: HostileUpstream) -> None:
    def part(index: int, **entry: object) -> object:
        return delta(tool_calls=[{"index": index, **entry}])

    upstream.will(
        streams(
            delta(content="Let me see."),
            part(0, id="a", type="function", function={"name": "calculator", "arguments": ""}),
            part(1, id="b", type="function", function={"name": "clock", "arguments": ""}),
            part(0, function={"arguments": '{"expression":'}),
            part(1, function={"arguments": "{"}),
            part(0, function={"arguments": ' "1+1"}'}),
            part(1, function={"arguments": "}"}),
            delta("tool_calls"),
            usage(9, 30),
            "[DONE]",
        )
    )
    async with opened(upstream) as engine:
        run = await collect(engine.start(Prompt("m", "", [user("?")], [CALCULATOR])))
    assert run.calls == [("calculator", '{"expression": "1+1"}'), ("clock", "{}")]
    assert run.end.cause is StopCause.TOOL_CALLS
    assert run.tokens == 30
    request = upstream.requests[0].json
    assert request["tools"][0]["function"]["name"] == "calculator"
    assert request["parallel_tool_calls"] is True


# --- what is not said


async def test_logs_hold_neither_words_nor_key(
    upstream: HostileUpstream,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    said = {"error": {"message": f"You said '{SECRET}' with {KEY}"}}
    with caplog.at_level(logging.DEBUG):
        async with opened(upstream, api_key_env="SOME_KEY") as engine:
            upstream.will(says("pink giraffe"))
            await collect(engine.start(PROMPT))
            for answer in (replies("400 No", said), streams(said)):
                upstream.will(answer)
                with pytest.raises(BackchannelError):
                    await collect(engine.start(PROMPT))
    written = caplog.text + "".join(capsys.readouterr())
    assert "upstream_failed" in written
    for secret in ("elephant", "giraffe", KEY, KEY[3:20]):
        assert secret not in written


async def test_without_the_sdk_the_remedy_is_told(
    upstream: HostileUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(BackchannelError, match=r"pip install 'backchannel\[openai\]'") as caught:
        async with opened(upstream):
            pass
    assert caught.value.reason is Reason.ENGINE_UNAVAILABLE
