"""The adapter's parts: settings, dialects, requests, events, and calls in every odd order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backchannel.engines.openai.config import OpenAIConfig
from backchannel.engines.openai.dialect import DIALECTS, DialectName, dialect_of
from backchannel.engines.openai.request import check, request
from backchannel.engines.openai.sse import EventData, EventTooLongError
from backchannel.engines.openai.stream import OpenAIStream, UnreadableAnswerError
from backchannel.engines.openai.tool_calls import MOST_CALLS, MOST_CHARS
from backchannel.engines.protocol import Capability, Finished, Prompt, StopCause
from backchannel.errors import BackchannelError, Reason
from backchannel.v1 import session_pb2
from tests.support.hostile_upstream import delta, usage
from tests.unit.engines.support import CALCULATOR, Run, user

URL = "http://127.0.0.1:8000/v1"

# --- calls


def entry(arguments: object = None, name: str = "", **more: object) -> dict[str, Any]:
    """One entry of `delta.tool_calls`."""
    function: dict[str, object] = {}
    if name:
        function["name"] = name
    if arguments is not None:
        function["arguments"] = arguments
    return {"function": function, **more}


def read(*entries: Sequence[dict[str, Any]], reason: str = "tool_calls") -> Run:
    """A whole answer of these entries, one list a chunk."""
    stream = OpenAIStream()
    run = Run()
    events = [delta(tool_calls=list(one)) for one in entries]
    for event in (*events, delta(reason), usage(1, 50)):
        for chunk in stream.feed(json.dumps(event).encode()):
            run.add(chunk)
    for chunk in stream.finish():
        run.add(chunk)
    run.add(Finished(stream.cause, stream.usage()))
    return run


ONE = ("calculator", '{"expression":"1+1"}')
TWO = ("clock", '{"zone":"UTC"}')

ODD: Mapping[str, Sequence[Sequence[dict[str, Any]]]] = {
    "as documented": [
        [entry("", ONE[0], index=0, id="a")],
        [entry(ONE[1][:9], index=0)],
        [entry(ONE[1][9:], index=0)],
        [entry("", TWO[0], index=1, id="b")],
        [entry(TWO[1], index=1)],
    ],
    "whole, one a chunk": [
        [entry(ONE[1], ONE[0], index=0, id="a")],
        [entry(TWO[1], TWO[0], index=1, id="b")],
    ],
    "whole, in one chunk": [
        [entry(ONE[1], ONE[0], index=0, id="a"), entry(TWO[1], TWO[0], index=1, id="b")],
    ],
    "no index": [
        [entry(ONE[1], ONE[0], id="a")],
        [entry(TWO[1], TWO[0], id="b")],
    ],
    "neither index nor identity": [
        [entry(ONE[1][:5], ONE[0])],
        [entry(ONE[1][5:])],
        [entry(TWO[1], TWO[0])],
    ],
    "one index for all": [
        [entry(ONE[1], ONE[0], index=0, id="a")],
        [entry(TWO[1], TWO[0], index=0, id="b")],
    ],
    "one index for all, in pieces": [
        [entry(ONE[1][:5], ONE[0], index=0, id="a")],
        [entry(ONE[1][5:], index=0, id="a")],
        [entry(TWO[1][:5], TWO[0], index=0, id="b")],
        [entry(TWO[1][5:], index=0, id="b")],
    ],
    "an identity for each fragment": [
        [entry("", ONE[0], index=0, id="a")],
        [entry(ONE[1][:9], index=0, id="b")],
        [entry(ONE[1][9:], index=0, id="c")],
        [entry("", TWO[0], index=1, id="d")],
        [entry(TWO[1], index=1, id="e")],
    ],
    "by turns": [
        [entry("", ONE[0], index=0, id="a")],
        [entry("", TWO[0], index=1, id="b")],
        [entry(TWO[1][:4], index=1)],
        [entry(ONE[1][:9], index=0)],
        [entry(TWO[1][4:], index=1)],
        [entry(ONE[1][9:], index=0)],
    ],
    "the name last": [
        [entry(ONE[1][:9], index=0, id="a")],
        [entry(ONE[1][9:], index=0)],
        [entry(None, ONE[0], index=0)],
        [entry(TWO[1], TWO[0], index=1, id="b")],
    ],
    "the name again and again": [
        [entry("", ONE[0], index=0, id="a")],
        [entry(ONE[1][:9], ONE[0], index=0, id="a")],
        [entry(ONE[1][9:], ONE[0], index=0, id="a")],
        [entry(TWO[1], TWO[0], index=1, id="b")],
    ],
    "arguments as an object": [
        [entry(json.loads(ONE[1]), ONE[0], index=0, id="a")],
        [entry(json.loads(TWO[1]), TWO[0], index=1, id="b")],
    ],
    "indexes with gaps, backwards": [
        [entry(ONE[1], ONE[0], index=7, id="a")],
        [entry(TWO[1], TWO[0], index=2, id="b")],
    ],
    "each call said twice": [
        [entry(ONE[1][:9], ONE[0], index=0, id="a")],
        [entry(ONE[1][9:], index=0)],
        [entry(TWO[1], TWO[0], index=1, id="b")],
        [entry(ONE[1], ONE[0], index=0, id="a"), entry(TWO[1], TWO[0], index=1, id="b")],
    ],
    "white space behind the end": [
        [entry(ONE[1], ONE[0], index=0, id="a")],
        [entry(TWO[1], TWO[0], index=1, id="b")],
        [entry("\n", index=0)],
    ],
    "empty entries": [
        [{"index": 0, "id": "a"}],
        [entry(ONE[1], ONE[0], index=0)],
        [{"index": 0, "function": None}],
        [entry(TWO[1], TWO[0], index=1, id="b")],
    ],
}


@pytest.mark.parametrize("order", ODD)
@pytest.mark.parametrize("reason", ["tool_calls", "stop", "function_call"])
def test_the_same_calls_in_whatever_order(order: str, reason: str) -> None:
    run = read(*ODD[order], reason=reason)
    calls = [(name, json.loads(arguments)) for name, arguments in run.calls]
    assert calls == [(name, json.loads(arguments)) for name, arguments in (ONE, TWO)]
    assert run.end.cause is StopCause.TOOL_CALLS
    assert run.tokens == run.end.usage.output_tokens == 50
    kinds = [type(chunk).__name__ for chunk in run.chunks]
    assert kinds.count("ToolCallStart") == kinds.count("ToolCallEnd") == 2


def test_a_whole_call_does_not_wait_for_the_next() -> None:
    run = read(*ODD["as documented"])
    kinds = [type(chunk).__name__ for chunk in run.chunks]
    assert kinds.index("ToolCallEnd") < len(kinds) - 1 - kinds[::-1].index("ToolCallStart")


def test_a_call_without_arguments() -> None:
    run = read([entry("", "clock", index=0, id="a")], [entry("", "clock", index=1, id="b")])
    assert run.calls == [("clock", ""), ("clock", "")]


def test_a_call_that_is_cut_off_stays_open() -> None:
    run = read(*ODD["as documented"], reason="length")
    kinds = [type(chunk).__name__ for chunk in run.chunks]
    assert kinds.count("ToolCallEnd") == 1
    assert run.end.cause is StopCause.LENGTH


@pytest.mark.parametrize(
    "entries",
    [
        [[entry(ONE[1], index=0, id="a")]],
        [
            [entry(ONE[1], ONE[0], index=0, id="a")],
            [entry("", "x", index=1)],
            [entry("?", index=0)],
        ],
        [["no entry"]],
        [[entry("", ONE[0], index=[])]],
        [[entry(None, "x", id=str(number)) for number in range(MOST_CALLS + 1)]],
        [[entry("x" * (MOST_CHARS + 1), "x", index=0)]],
    ],
)
def test_what_is_no_call(entries: Any) -> None:
    with pytest.raises(UnreadableAnswerError):
        read(*entries)


# --- events


@given(st.lists(st.text(max_size=20)), st.integers(1, 9), st.sampled_from(["\n", "\r\n"]))
def test_events_come_whole_however_they_are_cut(texts: list[str], size: int, newline: str) -> None:
    data = [json.dumps(text, ensure_ascii=False).encode() for text in texts]
    lines = "".join(f":c{newline}event: x{newline}data: %s{newline}{newline}" for _ in data)
    body = lines.encode() % tuple(data) if data else b""
    events = EventData(1000)
    found = [one for at in range(0, len(body), size) for one in events.feed(body[at : at + size])]
    assert found == data


def test_lines_of_one_event_are_joined() -> None:
    assert EventData(99).feed(b"\xef\xbb\xbfdata: {\ndata:}\n\ndata\n\n\n") == [b"{\n}"]
    assert EventData(99).feed(b'error: {"code":7}\n\n') == [b'{"error":{"code":7}}']


def test_an_event_has_a_bound() -> None:
    assert EventData(20).feed(b"data: 0123\n\n" * 100) == [b"0123"] * 100
    with pytest.raises(EventTooLongError):  # One line that is too long,
        EventData(20).feed(b"data: 01234567890123456789\n\n")
    with pytest.raises(EventTooLongError):  # too many lines,
        EventData(20).feed(b"data: 0123\n" * 100)
    events = EventData(20)
    assert [events.feed(b"x") for _ in range(20)] == [[]] * 20
    with pytest.raises(EventTooLongError):  # and a line without end.
        events.feed(b"x")


# --- dialects and requests


@pytest.mark.parametrize(
    ("owners", "host", "name"),
    [
        (["vllm"], "gpu", "vllm"),
        (["sglang"], "gpu", "sglang"),
        (["llamacpp"], "gpu", "llama"),
        (["library", "library"], "gpu", "ollama"),
        (["system", "openai-internal"], "api.openai.com", "openai"),
        (["openai"], "gateway", "generic"),
        (["vllm", "openai"], "gateway", "generic"),
        (["someone"], "gpu", "generic"),
        ([], "gpu", "generic"),
    ],
)
def test_whose_ways_a_server_has(owners: list[str], host: str, name: str) -> None:
    assert dialect_of(owners, host).name == name


def body_of(dialect: str, prompt: Prompt, **extra: object) -> dict[str, Any]:
    return request(prompt, DIALECTS[DialectName(dialect)], extra)


SAMPLING = session_pb2.Sampling(
    max_tokens=9, temperature=0.5, top_p=0.9, seed=2**64 - 1, stop=["x"], logprobs=0
)


def test_sampling_in_each_dialect() -> None:
    prompt = Prompt("m", "Be brief.", [user("?")], sampling=SAMPLING)
    for name in DIALECTS:
        body = body_of(name, prompt)
        limit = "max_completion_tokens" if name == "openai" else "max_tokens"
        assert body[limit] == 9
        assert body["messages"][0] == {"role": "system", "content": "Be brief."}
        assert (body["temperature"], body["top_p"], body["stop"]) == (0.5, 0.9, ["x"])
        assert (body["logprobs"], body["top_logprobs"]) == (True, 1)
        assert 0 <= body["seed"] < (2**32 - 1 if name == "llama" else 2**63)
        assert ("continuous_usage_stats" in body["stream_options"]) == (name in ("vllm", "sglang"))
        assert body.get("timings_per_token", False) == (name == "llama")


def test_a_partial_answer_is_gone_on_from_in_each_way() -> None:
    prompt = Prompt("m", "", [user("?")], continue_text="The answer is")
    for name, dialect in DIALECTS.items():
        body = body_of(name, prompt)
        can = Capability.CONTINUE_PARTIAL in dialect.capabilities
        assert can == (name in ("vllm", "sglang", "llama"))
        assert body["messages"][-1] == {"role": "assistant", "content": "The answer is"}
        assert body.get("continue_final_message", False) == (name in ("vllm", "sglang"))
        assert body.get("add_generation_prompt", True) == (name != "vllm")
        assert "continue_final_message" not in body_of(name, Prompt("m", "", [user("?")]))


def test_formats_in_each_way() -> None:
    schema = session_pb2.ResponseFormat(json_schema='{"type":"object"}')
    prompt = Prompt("m", "", [user("?")], response_format=schema)
    for name in DIALECTS:
        form = body_of(name, prompt)["response_format"]
        assert form["type"] == "json_schema"
        assert form["json_schema"]["schema"] == {"type": "object"}
    grammar = session_pb2.ResponseFormat(grammar='root ::= "yes"')
    prompt = Prompt("m", "", [user("?")], response_format=grammar)
    assert body_of("llama", prompt)["grammar"] == 'root ::= "yes"'
    assert body_of("vllm", prompt)["structured_outputs"] == {"grammar": 'root ::= "yes"'}
    assert body_of("sglang", prompt)["ebnf"] == 'root ::= "yes"'
    for name, dialect in DIALECTS.items():
        assert (Capability.GRAMMAR in dialect.capabilities) == bool(dialect.grammar), name


def test_what_the_settings_add() -> None:
    prompt = Prompt("m", "", [user("?")], [CALCULATOR], options={"reasoning_effort": "low"})
    body = body_of("vllm", prompt, chat_template_kwargs={"enable_thinking": False})
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert body["reasoning_effort"] == "low"


@pytest.mark.parametrize(
    ("dialect", "prompt", "field"),
    [
        ("openai", Prompt("m", "", [], sampling=session_pb2.Sampling(top_k=3)), "sampling.top_k"),
        ("ollama", Prompt("m", "", [], sampling=session_pb2.Sampling(min_p=0.1)), "sampling.min_p"),
        (
            "openai",
            Prompt("m", "", [], sampling=session_pb2.Sampling(stop="abcde")),
            "sampling.stop",
        ),
        ("vllm", Prompt("m", "", [], options={"rate": "1"}), 'engine_options["rate"]'),
        (
            "vllm",
            Prompt("m", "", [], options={"reasoning_effort": "immense"}),
            'engine_options["reasoning_effort"]',
        ),
        (
            "vllm",
            Prompt("m", "", [], response_format=session_pb2.ResponseFormat(json_schema="[")),
            "response_format.json_schema",
        ),
        (
            "vllm",
            Prompt("m", "", [], response_format=session_pb2.ResponseFormat(json_schema="true")),
            "response_format.json_schema",
        ),
        # Also where the settings say that its models can.
        (
            "generic",
            Prompt("m", "", [], response_format=session_pb2.ResponseFormat(grammar="root ::= x")),
            "response_format.grammar",
        ),
    ],
)
def test_what_a_server_has_not_is_refused(dialect: str, prompt: Prompt, field: str) -> None:
    with pytest.raises(BackchannelError) as caught:
        check("up", prompt, DIALECTS[DialectName(dialect)])
    assert caught.value.field == field


# --- settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "base_url: is missing"),
        ({"base_ulr": URL}, "base_ulr: "),
        ({"base_url": "127.0.0.1:8000"}, "http://"),
        ({"base_url": "ftp://host/v1"}, "http://"),
        ({"base_url": "http:///v1"}, "host"),
        ({"base_url": "http://host:99999/v1"}, "URL"),
        ({"base_url": "http://me:secret@host/v1"}, "api_key_env"),
        ({"base_url": "http://host/v1?key=secret"}, "api_key_env"),
        ({"base_url": URL, "api_key": "secret"}, "no such setting; there are api_key_env"),
        ({"base_url": URL, "api_key_env": "A", "api_key_file": "b"}, "exclude"),
        ({"base_url": URL, "dialect": "klingon"}, "dialect"),
        ({"base_url": URL, "models": ["m", "m"]}, "twice"),
        ({"base_url": URL, "models": [""]}, "models.0"),
        ({"base_url": URL, "capabilities": ["flying"]}, "capabilities"),
        ({"base_url": URL, "retries": 99}, "retries"),
        ({"base_url": URL, "connect_timeout_s": 0}, "connect_timeout_s"),
        ({"base_url": URL, "extra_body": {"messages": []}}, "extra_body.messages"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, object], words: str) -> None:
    with pytest.raises(BackchannelError) as caught:
        OpenAIConfig.of("vllm", settings)
    assert caught.value.reason is Reason.FIELD_INVALID
    assert "the engine vllm" in caught.value.message
    assert words in caught.value.message
    assert "secret" not in caught.value.message


def test_settings_as_a_file_gives_them() -> None:
    config = OpenAIConfig.of(
        "vllm",
        {
            "base_url": f"{URL}/",
            "dialect": "vllm",
            "models": ["a", "b/c"],
            "capabilities": ["tools", "seed"],
            "connect_timeout_s": 3,
        },
    )
    assert config.root == "http://127.0.0.1:8000"
    assert config.models == ("a", "b/c")
    assert config.capabilities == frozenset({Capability.TOOLS, Capability.SEED})


def test_a_key_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    config = OpenAIConfig(URL, api_key_env="NO_SUCH_KEY")
    with pytest.raises(BackchannelError, match="NO_SUCH_KEY") as caught:
        config.key("vllm")
    assert caught.value.reason is Reason.ENGINE_UNAVAILABLE
    monkeypatch.setenv("NO_SUCH_KEY", "two\nlines")
    with pytest.raises(BackchannelError, match="one line"):
        config.key("vllm")
    with pytest.raises(BackchannelError, match="/no/such/file"):
        OpenAIConfig(URL, api_key_file="/no/such/file").key("vllm")
