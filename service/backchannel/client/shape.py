"""The shape that answers must have, as one says it in Python."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

import pydantic

from backchannel.v1.session_pb2 import ResponseFormat

AnswerShape: TypeAlias = ResponseFormat | type | Mapping[str, Any]
"""A pydantic model (or another type that pydantic has a JSON schema for), a JSON schema as a
dictionary, or the contract's own message, which can also hold a grammar."""


def response_format_of(shape: AnswerShape | None) -> ResponseFormat | None:
    """The contract's message for a shape.

    Raises:
        TypeError: It is a type that has no JSON schema.
    """
    if shape is None or isinstance(shape, ResponseFormat):
        return shape
    if isinstance(shape, Mapping):
        schema: Mapping[str, Any] = shape
    else:
        try:
            schema = pydantic.TypeAdapter(shape).json_schema(mode="validation")
        except pydantic.PydanticUserError as error:
            raise TypeError(f"{shape!r} has no JSON schema: {error.message}") from error
    return ResponseFormat(json_schema=json.dumps(schema, ensure_ascii=False))
