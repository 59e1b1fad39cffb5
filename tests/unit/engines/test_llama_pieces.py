"""The embedded engine's parts that need no model: requests, the server's messages, settings."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from backchannel.engines.llama.config import HOUSE_FILE, HOUSE_MODEL, LlamaConfig, LlamaModel
from backchannel.engines.llama.request import request
from backchannel.engines.llama.stream import LlamaStream, refusal
from backchannel.engines.merging import merged
from backchannel.engines.protocol import (
    REASONING,
    Chunk,
    EngineUsage,
    Prompt,
    StopCause,
    TextChunk,
    ToolCallEnd,
    ToolCallFragment,
    ToolCallStart,
)
from backchannel.errors import BackchannelError, Reason
from backchannel.v1 import session_pb2
from tests.unit.engines.support import CALCULATOR, CLOCK, assistant, call, result, user


def body(prompt: Prompt, temperature: float | None = None) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(request(prompt, tag=7, temperature=temperature))
    return parsed


# --- requests --------------------------------------------------------------------------------


def test_a_conversation_with_a_tool_round() -> None:
    messages = [
        user("2*3?"),
        assistant("Wait. ", [call("c1", "calculator", '{"expression":"2*3"}')]),
        result("c1", "6"),
        assistant("6."),
        user("Thanks"),
    ]
    sent = body(Prompt("house", "Be short.", messages, [CALCULATOR, CLOCK]))
    assert [message["role"] for message in sent["messages"]] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
    ]
    assert sent["messages"][2]["tool_calls"] == [
        {
            "id": "c1",
            "type": "function",
            "function": {"name": "calculator", "arguments": '{"expression":"2*3"}'},
        }
    ]
    assert sent["messages"][3] == {"role": "tool", "content": "6", "tool_call_id": "c1"}
    assert [tool["function"]["name"] for tool in sent["tools"]] == ["calculator", "clock"]
    assert sent["tools"][1]["function"]["parameters"] == {"type": "object", "properties": {}}


def test_neighbours_of_one_role_are_joined_but_for_tools() -> None:
    messages = [
        user("a"),
        user("b"),
        assistant("c"),
        assistant("d", [call("c1", "clock"), call("c2", "clock")]),
        result("c1", "1"),
        result("c2", "2"),
        assistant("e"),
    ]
    sent = body(Prompt("house", "", messages))["messages"]
    assert [(message["role"], message["content"]) for message in sent] == [
        ("user", "a\nb"),
        ("assistant", "c\nd"),
        ("tool", "1"),
        ("tool", "2"),
        ("assistant", "e"),
    ]
    assert len(sent[1]["tool_calls"]) == 2


def test_a_partial_answer_trails() -> None:
    sent = body(Prompt("house", "", [user("a")], continue_text="Well,"))["messages"]
    assert sent[-1] == {"role": "assistant", "content": "Well,"}


def test_sampling_is_passed_on_and_only_what_was_given() -> None:
    given: dict[str, Any] = {
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 3,
        "min_p": 0.125,
        "presence_penalty": -1.0,
        "frequency_penalty": 1.0,
    }
    sent = body(Prompt("house", "", [], sampling=session_pb2.Sampling(**given)))
    assert {name: sent[name] for name in given} == given
    assert not given.keys() & body(Prompt("house", "", [])).keys()


def test_the_models_temperature_gives_way_to_the_sessions() -> None:
    sampling = session_pb2.Sampling(temperature=0.0)
    assert body(Prompt("house", "", []), 0.7)["temperature"] == 0.7
    assert body(Prompt("house", "", [], sampling=sampling), 0.7)["temperature"] == 0.0


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 2, 2**32 - 1, 2**32, 2**64 - 1])
def test_no_seed_becomes_the_one_that_means_any(seed: int) -> None:
    sent = body(Prompt("house", "", [], sampling=session_pb2.Sampling(seed=seed)))
    assert 0 <= sent["seed"] < 2**32 - 1
    assert seed > 2**32 - 2 or sent["seed"] == seed


def test_logprobs_without_alternatives_are_asked_for_with_one() -> None:
    sent = body(Prompt("house", "", [], sampling=session_pb2.Sampling(logprobs=0)))
    assert (sent["logprobs"], sent["top_logprobs"]) == (True, 1)


# --- the server's messages -------------------------------------------------------------------


def said(computed: int | None = None, finish: str | None = None, **delta: object) -> bytes:
    message: dict[str, Any] = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
    if computed is not None:
        message["timings"] = {"predicted_n": computed}
    return json.dumps(message).encode()


def summed(completion: int, prompt: int = 10, cached: int = 4) -> bytes:
    usage = {
        "completion_tokens": completion,
        "prompt_tokens": prompt,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    return json.dumps({"choices": [], "usage": usage}).encode()


def read(messages: Iterable[bytes], stream: LlamaStream | None = None) -> list[Chunk]:
    stream = stream or LlamaStream()
    return [chunk for message in messages for chunk in stream.feed(message)]


def piece(index: int, arguments: str, name: str | None = None) -> dict[str, Any]:
    function = {"arguments": arguments} | ({"name": name} if name else {})
    return {"tool_calls": [{"index": index, "function": function}]}


def test_tokens_without_text_ride_on_the_next_chunk_or_the_last_empty_one() -> None:
    stream = LlamaStream()
    messages = [
        said(1),
        said(1, content="a"),
        said(4, content="bc"),
        said(finish="stop"),
        summed(6),
    ]
    assert read(messages, stream) == [TextChunk("a", 1), TextChunk("bc", 3), TextChunk("", 2)]
    assert stream.complete
    assert stream.cause is StopCause.STOP
    assert stream.usage() == EngineUsage(10, 4, 6)


def test_tool_calls_are_told_apart_and_closed() -> None:
    messages = [
        said(1, content="x"),
        said(6, **piece(0, "{", "clock")),
        said(8, **piece(0, "}")),
        said(14, **piece(1, '{"a":1}', "calculator")),
        said(finish="tool_calls"),
        summed(17),
    ]
    assert read(messages) == [
        TextChunk("x", 1),
        ToolCallStart(0, "clock"),
        ToolCallFragment(0, "{", 5),
        ToolCallFragment(0, "}", 2),
        ToolCallEnd(0),
        ToolCallStart(1, "calculator"),
        ToolCallFragment(1, '{"a":1}', 6),
        ToolCallFragment(1, "", 3),
        ToolCallEnd(1),
    ]


def test_a_call_that_the_limit_cut_is_not_closed() -> None:
    messages = [said(6, **piece(0, "{", "clock")), said(finish="length"), summed(6)]
    assert read(messages) == [ToolCallStart(0, "clock"), ToolCallFragment(0, "{", 6)]


def test_reasoning_has_its_own_channel() -> None:
    messages = [said(1, reasoning_content="hm"), said(2, content="yes")]
    assert read(messages) == [TextChunk("hm", 1, REASONING), TextChunk("yes", 1)]


def test_the_prefill_tells_the_prompts_length() -> None:
    stream = LlamaStream()
    progress = {"total": 900, "cache": 300, "processed": 556}
    read([json.dumps({"choices": [], "prompt_progress": progress}).encode()], stream)
    assert stream.usage(0) == EngineUsage(900, 300, 0)
    assert not stream.complete


def test_an_estimate_is_marked_unless_the_server_told_the_sum() -> None:
    stream = LlamaStream()
    read([said(3, content="a")], stream)
    assert not stream.usage(3, exact=False).exact
    read([said(finish="stop"), summed(5)], stream)
    assert stream.usage(3, exact=False) == EngineUsage(10, 4, 5)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            {
                "type": "exceed_context_size_error",
                "message": "too long",
                "n_prompt_tokens": 4009,
                "n_ctx": 2048,
            },
            Reason.PROMPT_TOO_LONG,
        ),
        ({"type": "unavailable_error", "message": "loading"}, Reason.ENGINE_UNAVAILABLE),
        ({"type": "server_error", "message": "oops"}, Reason.ENGINE_FAILED),
        ({}, Reason.ENGINE_FAILED),
    ],
)
def test_an_error_in_the_stream(error: dict[str, Any], reason: Reason) -> None:
    with pytest.raises(BackchannelError) as caught:
        read([json.dumps({"error": error}).encode()])
    assert caught.value.reason is reason
    if reason is Reason.PROMPT_TOO_LONG:
        assert "4009" in str(caught.value)
        assert "2048" in str(caught.value)
        assert caught.value.metadata == {"prompt_tokens": "4009", "max_context_tokens": "2048"}


def test_a_refusal() -> None:
    long = refusal(ValueError("request (70 tokens) exceeds the available context size (64 tokens)"))
    assert long.reason is Reason.PROMPT_TOO_LONG
    assert long.metadata == {"prompt_tokens": "70", "max_context_tokens": "64"}
    other = refusal(ValueError("x" * 10_000))
    assert other.reason is Reason.ENGINE_FAILED
    assert len(str(other)) < 1000


def test_what_piled_up_leaves_as_one() -> None:
    chunks: list[Chunk] = [
        TextChunk("a", 1),
        TextChunk("b", 0),
        TextChunk("c", 2, REASONING),
        ToolCallStart(0, "x"),
        ToolCallFragment(0, "{", 1),
        ToolCallFragment(0, "}", 1),
        ToolCallEnd(0),
        TextChunk("d", 1),
        TextChunk("e", 1),
    ]
    assert list(merged(iter(chunks))) == [
        TextChunk("ab", 1),
        TextChunk("c", 2, REASONING),
        ToolCallStart(0, "x"),
        ToolCallFragment(0, "{}", 2),
        ToolCallEnd(0),
        TextChunk("de", 2),
    ]


# --- settings --------------------------------------------------------------------------------


def test_no_settings_are_the_bundled_model() -> None:
    assert LlamaConfig.of({}).models == (HOUSE_MODEL,)
    assert HOUSE_MODEL.file == HOUSE_FILE


def test_the_bundled_model_by_name_beside_another() -> None:
    config = LlamaConfig.of({"models": [{"name": "big", "path": "~/big.gguf"}, {"name": "house"}]})
    assert [model.name for model in config.models] == ["big", "house"]
    assert config.models[1] == HOUSE_MODEL
    assert config.models[0] == LlamaModel("big", "~/big.gguf")
    assert "~" not in str(config.models[0].file)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": []}, "model: there is no such setting; there are models"),
        ({"models": []}, "models"),
        ({"models": [{"path": "x.gguf"}]}, "models.0.name"),
        ({"models": [{"name": "a/b", "path": "x.gguf"}]}, "models.0.name"),
        ({"models": [{"name": "a", "path": "x.gguf", "n_ctx": 0}]}, "models.0.n_ctx"),
        ({"models": [{"name": "a", "path": "x.gguf", "n_parallel": 0}]}, "models.0.n_parallel"),
        ({"models": [{"name": "a", "path": "x.gguf", "threads": 1}]}, "0.threads: there is no"),
        ({"models": [{"name": "a", "path": "x.gguf", "temperature": "nan"}]}, "temperature"),
        ({"models": [{"name": "a"}]}, "only house is bundled"),
        ({"models": [{"name": "house"}, {"name": "house"}]}, "two models have one name"),
    ],
)
def test_bad_settings_are_named(options: dict[str, object], says: str) -> None:
    with pytest.raises(BackchannelError, match="settings of the engine llama") as caught:
        LlamaConfig.of(options)
    assert says in str(caught.value)
