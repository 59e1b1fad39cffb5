"""Answers that keep to a schema or a grammar, by the bundled model, which would say other things.

Also that what is taken here is what llama.cpp takes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from backchannel.engines.llama.engine import LlamaEngine
from backchannel.engines.protocol import Capability, Prompt, StopCause
from backchannel.errors import BackchannelError, Reason
from backchannel.v1 import session_pb2
from backchannel.v1.session_pb2 import ResponseFormat
from tests.scale import scale
from tests.unit.engines.support import CALCULATOR, Run, collect, user
from tests.unit.engines.test_llama_grammar import GOOD as GRAMMARS

QUESTION = user("What is Backchannel?")

SCHEMAS: dict[str, dict[str, Any]] = {
    "object": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": -3, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "enum": {"enum": ["yes", "no", 7, None]},
    "const": {"const": {"a": [1, None, 'x"y']}},
    "choice": {"anyOf": [{"type": "boolean"}, {"type": "array", "items": {"type": "null"},
               "minItems": 1, "maxItems": 2}]},
    "reference": {
        "type": "object",
        "properties": {"k": {"$ref": "#/$defs/kind"}},
        "required": ["k"],
        "$defs": {"kind": {"type": ["boolean", "null"]}},
    },
    "lengths": {"type": "string", "minLength": 3, "maxLength": 5},
    "pattern": {"type": "string", "pattern": "^(a|bc)-[0-9]{2,3}\\.[A-F x]?$"},
    "date": {"type": "string", "format": "date"},
    "bounds": {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 6},
    "tuple": {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}]},
    "key": {"type": "object", "properties": {'a"\n\u00e9': {"type": "null"}},
            "required": ['a"\n\u00e9'], "additionalProperties": False},
}  # fmt: skip


async def ask(
    llama: LlamaEngine,
    wanted: ResponseFormat,
    seed: int = 0,
    tools: tuple[session_pb2.ToolSpec, ...] = (),
) -> Run:
    return await collect(
        llama.start(
            Prompt(
                "house",
                "",
                [QUESTION],
                tools,
                session_pb2.Sampling(temperature=1.5, seed=seed, max_tokens=300),
                response_format=wanted,
            )
        )
    )


def test_it_says_that_it_can(llama: LlamaEngine) -> None:
    assert {Capability.JSON_SCHEMA, Capability.GRAMMAR} < llama.models()[0].capabilities


@pytest.mark.parametrize("name", SCHEMAS)
async def test_an_answer_is_valid_whatever_the_seed(llama: LlamaEngine, name: str) -> None:
    schema = SCHEMAS[name]
    for seed in range(scale(8, 200)):
        run = await ask(llama, ResponseFormat(json_schema=json.dumps(schema)), seed)
        assert run.end.cause is StopCause.STOP
        Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(
            json.loads(run.text)
        )
        assert run.tokens == run.end.usage.output_tokens


def random_schema(rng: random.Random, deep: int = 0) -> dict[str, Any]:
    """Something that can be said in a few words."""

    def inner() -> dict[str, Any]:
        return random_schema(rng, deep + 1)

    count, more = rng.randint(0, 4), rng.randint(0, 3)
    simple: list[Callable[[], dict[str, Any]]] = [
        lambda: {"type": rng.choice(["boolean", "null", ["null", "integer"]])},
        lambda: {"type": "string", "minLength": count, "maxLength": count + more},
        lambda: {"type": "integer", "minimum": count - 99, "exclusiveMaximum": 99 * more + 5},
        lambda: {"enum": rng.sample(["a", 'b"', 1.5, None, True, {"x": [1]}, "\u00e9\n"], 2)},
        lambda: {"const": rng.choice(["a", {"a": {}}, [], -0.5])},
        lambda: {"type": "string", "format": rng.choice(["date", "time", "date-time", "uuid"])},
        lambda: {
            "type": "string",
            "pattern": f"^{''.join(rng.choices(PATTERNS, k=count))}$",
        },
    ]
    nested: list[Callable[[], dict[str, Any]]] = [
        lambda: {"anyOf": [inner() for _ in range(1 + more)]},
        lambda: {"type": "array", "prefixItems": [inner() for _ in range(1 + more)]},
        lambda: {
            "type": "array",
            "items": inner(),
            "minItems": more,
            "maxItems": more + 1,
        },
        lambda: {
            "type": "object",
            "properties": (found := {key: inner() for key in rng.sample(KEYS, count)}),
            "required": [key for key in found if rng.random() < 0.7],
            "additionalProperties": False,
        },
    ]
    return rng.choice(simple + nested if deep < 3 else simple)()


PATTERNS = [
    *("a", "[b-d]", "(x|yz)", "\\.", "[0-9]{2}", "e{1,3}", "f?", "g{0,4}", "(h[ij])?"),
    *(" ", "-", "\\$", "[A-Z_.]"),
]
KEYS = ["a", "b c", "\u00e9", '"', "\\", "$x"]


@pytest.mark.parametrize("seed", range(scale(25, 1000)))
async def test_an_answer_is_valid_whatever_the_schema(llama: LlamaEngine, seed: int) -> None:
    schema = random_schema(random.Random(seed))
    run = await ask(llama, ResponseFormat(json_schema=json.dumps(schema)), seed)
    if run.end.cause is not StopCause.LENGTH:
        Draft202012Validator(schema).validate(json.loads(run.text))


@pytest.mark.parametrize(
    ("grammar", "allowed"),
    [
        ('root ::= "yes" | "no"', {"yes", "no"}),
        ("root ::= digit{2}\ndigit ::= [01]", {"00", "01", "10", "11"}),
        ('root ::= "\u00e9\U0001f642" # nothing else', {"\u00e9\U0001f642"}),
    ],
)
async def test_an_answer_keeps_to_a_grammar(
    llama: LlamaEngine, grammar: str, allowed: set[str]
) -> None:
    for seed in range(scale(5, 50)):
        assert (await ask(llama, ResponseFormat(grammar=grammar), seed)).text in allowed


@pytest.mark.parametrize("grammar", GRAMMARS)
async def test_llama_cpp_takes_the_grammars_that_pass(llama: LlamaEngine, grammar: str) -> None:
    assert (await ask(llama, ResponseFormat(grammar=grammar))).end.cause in (
        StopCause.STOP,
        StopCause.LENGTH,
    )


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        (ResponseFormat(grammar='root ::= root "a"'), "response_format.grammar"),
        (
            ResponseFormat(json_schema='{"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/a"}}}'),
            "response_format.json_schema",
        ),
    ],
)
async def test_what_only_llama_cpp_can_tell_is_the_formats_fault_too(
    llama: LlamaEngine, wanted: ResponseFormat, field: str
) -> None:
    """A rule that begins with itself."""
    with pytest.raises(BackchannelError, match="cannot keep an answer to it") as caught:
        await ask(llama, wanted)
    assert (caught.value.reason, caught.value.field) == (Reason.FIELD_INVALID, field)
    assert (await ask(llama, ResponseFormat(grammar='root ::= "x"'))).text == "x", (
        "it does not go on"
    )


async def test_beside_tools_the_format_wins_and_the_prompt_is_the_same(llama: LlamaEngine) -> None:
    """The tools still stand in the prompt, so the cache holds from turn to turn."""
    free = await collect(
        llama.start(
            Prompt("house", "", [QUESTION], [CALCULATOR], session_pb2.Sampling(max_tokens=1))
        )
    )
    for wanted in (
        ResponseFormat(grammar='root ::= "yes"'),
        ResponseFormat(json_schema='{"const":"yes"}'),
    ):
        run = await ask(llama, wanted, 0, (CALCULATOR,))
        assert run.text.strip('"') == "yes"
        assert run.calls == []
        assert run.end.usage.prompt_tokens == free.end.usage.prompt_tokens
        assert run.end.usage.cached_prompt_tokens == run.end.usage.prompt_tokens - 1
