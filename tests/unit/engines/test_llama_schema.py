"""JSON schemas: what is refused before llama.cpp sees it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backchannel.engines.llama.schema import MOST_DEEP, MOST_PROPERTIES, check_schema
from backchannel.errors import BackchannelError, Reason

FIELD = "response_format.json_schema"


def nested(deep: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(deep):
        schema = {"type": "array", "items": schema}
    return schema


def wide(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{at}": {} for at in range(count)}}


GOOD: list[dict[str, Any]] = [
    {},
    {"type": "object"},
    {"title": "T", "description": "D", "type": ["string", "null"], "minLength": 1},
    {"enum": ["a", 1, None]},
    {"type": "string", "enum": ["a"]},
    {"const": {"a": [1]}},
    {"type": "integer", "minimum": -5, "exclusiveMaximum": 12},
    {"type": "string", "format": "email", "maxLength": 9},
    {"type": "string", "pattern": "^(a|bc)+-[0-9]{2,3}\\.$"},
    {"properties": {"not": {"type": "null"}, "if": {}}, "required": ["not"]},
    {"type": "array", "items": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/a"}]}, "$defs": {
        "a": {"type": "boolean"}}},
    {"type": "object", "additionalProperties": False},
    {"type": "array", "prefixItems": [{"type": "null"}]},
    nested(MOST_DEEP - 1),
    wide(MOST_PROPERTIES),
]  # fmt: skip

HARMFUL: list[tuple[dict[str, Any], str]] = [
    ({"type": "string", "minLength": 5, "maxLength": 3}, "minLength 5 above maxLength 3"),
    ({"items": {"minItems": 2, "maxItems": 1}}, "at #/items: has minItems 2 above"),
    ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum 5 above maximum 3"),
    ({"anyOf": [{}, {"minLength": 2, "maxLength": 1}]}, "at #/anyOf/1: has minLength"),
    ({"not": {"minLength": 2, "maxLength": 1}}, "at #/not: has minLength"),
    ({"$defs": {"a": {"minLength": 2, "maxLength": 1}}}, "at #/$defs/a: has minLength"),
    ({"items": [{"minLength": 2, "maxLength": 1}]}, "at #/items/0: has minLength"),
    ({"$ref": "#/x", "x": {"y": {"minLength": 2, "maxLength": 1}}}, "at #/x/y: has minLength"),
    ({"type": "string", "pattern": "^a{5,3}$"}, "repeats something 5 to 3 times"),
    ({"type": "string", "pattern": "^a{9999}$"}, "llama.cpp counts to 1999"),
    (nested(MOST_DEEP + 1), "nested more than 64 deep"),
    (wide(MOST_PROPERTIES + 1), "more than 200 properties"),
]

NOT_HELD: list[tuple[dict[str, Any], str]] = [
    ({"type": "array", "uniqueItems": True}, "has uniqueItems, which llama.cpp does not hold"),
    ({"not": {}}, "has not,"),
    ({"allOf": [{"type": "string"}]}, "has allOf,"),
    ({"type": "number", "minimum": 0}, 'needs "type": "integer"'),
    ({"type": ["integer", "number"], "minimum": 0}, "whole numbers only"),
    ({"type": "integer", "minimum": 0.5}, "whole numbers only"),
    ({"minLength": 3}, 'needs "type": "string"'),
    ({"type": "string", "maxLength": 5000}, "no whole number from 0 to 1999"),
    ({"type": "string", "minLength": -1}, "no whole number"),
    ({"type": "string", "minLength": 2.5}, "no whole number"),
    ({"type": "string", "pattern": "[a-z]"}, "write ^ and $"),
    ({"type": "string", "pattern": "^[^a]$"}, "does not hold whole"),
    ({"type": "string", "pattern": "^.$"}, "does not hold whole"),
    ({"type": "string", "pattern": '^"$'}, "does not hold whole"),
    ({"type": "string", "pattern": "^\\w$"}, "does not hold whole"),
    ({"type": "string", "pattern": "^a|b$"}, "alternatives stand in parentheses"),
    ({"type": "string", "pattern": "^(a$"}, "does not hold whole"),
    ({"type": "string", "pattern": "^a?{2}$"}, "does not hold whole"),
    ({"type": "string", "pattern": "^{2}$"}, "does not hold whole"),
    ({"type": "string", "pattern": "^a\\${2}$"}, "does not hold whole"),
    ({"type": "string", "pattern": "^a+?$"}, "does not hold whole"),
    ({"type": "string", "pattern": "^a$", "minLength": 2}, "minLength beside pattern"),
    ({"type": "string", "format": "date", "maxLength": 9}, "maxLength beside format"),
    ({"$ref": "#/$defs/b", "$defs": {}}, "leads nowhere"),
    ({"$ref": "#"}, "leads nowhere"),
    ({"$ref": "https://example.com/x"}, "leads nowhere"),
    ({"anyOf": [{}], "type": "string"}, "has type beside anyOf"),
    ({"enum": []}, "enum without values"),
    ({"enum": 5}, "no list"),
    ({"type": 5}, "no type"),
    ({"type": "object", "properties": {"a": True}}, "must be an object"),
    ({"type": "object", "properties": {}, "required": ["a"]}, "requires 'a'"),
    ({"type": "object", "required": "a"}, "no list"),
    ({"type": "array", "prefixItems": [{}], "items": {}}, "beside prefixItems"),
    ({"type": "array", "items": [{}]}, "must be an object"),
]


@pytest.mark.parametrize("schema", GOOD)
def test_what_can_be_held(schema: dict[str, Any]) -> None:
    check_schema(json.dumps(schema), FIELD, strictly=True)


@pytest.mark.parametrize(("schema", "says"), [*HARMFUL, *NOT_HELD])
def test_what_cannot(schema: dict[str, Any], says: str) -> None:
    with pytest.raises(BackchannelError) as caught:
        check_schema(json.dumps(schema), FIELD, strictly=True)
    assert says in str(caught.value)
    assert (caught.value.reason, caught.value.field) == (Reason.FIELD_INVALID, FIELD)


@pytest.mark.parametrize(("schema", "says"), HARMFUL)
def test_a_tools_schema_may_do_no_harm(schema: dict[str, Any], says: str) -> None:
    with pytest.raises(BackchannelError) as caught:
        check_schema(json.dumps(schema), FIELD, strictly=False)
    assert says in str(caught.value)


@pytest.mark.parametrize("schema", [schema for schema, _ in NOT_HELD])
def test_a_tools_schema_need_not_be_held(schema: dict[str, Any]) -> None:
    check_schema(json.dumps(schema), FIELD, strictly=False)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", Reason.FIELD_INVALID),
        ("[" * 9000, Reason.FIELD_INVALID),
        ("5", Reason.FIELD_INVALID),
        (json.dumps({"const": "x" * 17_000}), Reason.FIELD_TOO_LONG),
    ],
)
def test_what_is_no_schema(text: str, reason: Reason) -> None:
    with pytest.raises(BackchannelError) as caught:
        check_schema(text, FIELD, strictly=True)
    assert caught.value.reason is reason


KEYWORDS = (
    *("type", "properties", "items", "required", "enum", "pattern", "minLength", "$ref"),
    *("anyOf", "prefixItems", "minimum", "maximum", "format", "additionalProperties"),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYWORDS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON, st.booleans())
def test_nonsense_is_refused_and_nothing_worse(schema: object, strictly: bool) -> None:
    try:
        check_schema(json.dumps(schema), FIELD, strictly=strictly)
    except BackchannelError as error:
        assert error.field == FIELD  # noqa: PT017 - it may be taken, too
