"""From a function to a ToolSpec, and from a call to a result."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from backchannel.client import (
    Content,
    Part,
    SideEffect,
    ToolContext,
    ToolDisposition,
    ToolFailedError,
    tool,
)
from backchannel.client.tools import Tool
from backchannel.v1.session_pb2 import ToolResult


@dataclass
class Reported:
    fraction: float | None = None
    note: str = ""

    def __call__(self, fraction: float | None, note: str) -> None:
        self.fraction, self.note = fraction, note


async def run(one: Tool, arguments: str, report: Reported | None = None) -> ToolResult:
    context = ToolContext("c1", one.spec.name, report or Reported())
    return await one.run(arguments, context)


class Place(BaseModel):
    city: str
    country: str = "FR"


@tool(timeout_s=90, idle_timeout_s=2.5, side_effect=SideEffect.SIDE_EFFECT_IRREVERSIBLE)
async def book(
    place: Place,
    nights: Annotated[int, Field(ge=1, le=30)] = 1,
    kind: Literal["single", "double"] = "single",
) -> dict[str, object]:
    """Book a room.

    It can't be taken back.

    Args:
        place: Where to,
            in full.
        nights (int): How many.

    Returns:
        The booking.
    """
    return {"city": place.city, "nights": nights, "kind": kind}


def test_the_spec_is_made_of_name_docstring_and_hints() -> None:
    spec = book.spec
    assert spec.name == "book"
    assert spec.description == "Book a room.\n\nIt can't be taken back."
    assert spec.timeout.ToTimedelta().total_seconds() == 90
    assert spec.idle_timeout.ToTimedelta().total_seconds() == 2.5
    assert spec.side_effect == SideEffect.SIDE_EFFECT_IRREVERSIBLE
    assert spec.on_interrupt == ToolDisposition.TOOL_DISPOSITION_UNSPECIFIED
    schema = json.loads(spec.parameters_json_schema)
    assert schema["type"] == "object"
    assert schema["required"] == ["place"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["place"]["description"] == "Where to, in full."
    assert schema["properties"]["nights"] == {
        "default": 1,
        "description": "How many.",
        "maximum": 30,
        "minimum": 1,
        "type": "integer",
    }
    assert "title" not in schema


def test_what_is_left_out_is_left_to_the_server() -> None:
    @tool(name="now", description="Tell the time.")
    def clock() -> str:
        return "12:00"

    assert clock.spec.name == "now"
    assert clock.spec.description == "Tell the time."
    assert not clock.spec.HasField("timeout")
    assert not clock.spec.HasField("idle_timeout")
    assert json.loads(clock.spec.parameters_json_schema)["properties"] == {}
    assert clock() == "12:00"


def test_parameters_without_names_are_refused_at_once() -> None:
    with pytest.raises(TypeError, match="can't be given by name"):

        @tool
        def scatter(*numbers: int) -> int:
            return sum(numbers)


async def test_arguments_arrive_as_what_the_hints_say() -> None:
    result = await run(book, '{"place": {"city": "Paris"}, "nights": 3}')
    assert json.loads(result.json) == {"city": "Paris", "nights": 3, "kind": "single"}
    assert result.call_id == "c1"


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ("{}", "place: Field required"),
        ('{"place": {"city": "Paris"}, "nights": 99}', "nights: .*less than or equal to 30"),
        ('{"place": {"city": "Paris"}, "nigths": 2}', "nigths: Extra inputs are not permitted"),
        ('{"place": ', "Invalid JSON"),
        ("[]", "arguments: "),
    ],
)
async def test_wrong_arguments_are_told_to_the_model(arguments: str, fault: str) -> None:
    error = (await run(book, arguments)).error
    assert error.code == "INVALID_ARGUMENTS"
    with pytest.raises(ValueError, match=fault):
        raise ValueError(error.message)


async def test_what_a_tool_raises_is_told_to_the_model() -> None:
    @tool
    async def fail(how: str) -> object:
        """Fail."""
        if how == "own words":
            raise ToolFailedError("no such room", code="E404")
        if how == "not json":
            return object()
        if how == "time":
            raise TimeoutError
        raise KeyError("x" * 100_000)

    async def error(how: str) -> tuple[str, str]:
        told = (await run(fail, json.dumps({"how": how}))).error
        return told.code, told.message

    assert await error("own words") == ("E404", "no such room")
    assert await error("not json") == ("INVALID_RESULT", "fail returned what is not JSON")
    assert await error("time") == ("EXCEPTION", "TimeoutError: ")
    code, message = await error("other")
    assert code == "EXCEPTION"
    assert message.startswith("KeyError: ")
    assert len(message) == 8 * 1024


async def test_content_is_sent_as_content_and_no_result_as_null() -> None:
    @tool
    def describe(empty: bool) -> Content | None:
        """Describe."""
        return None if empty else Content(parts=[Part(text="a cat")])

    assert (await run(describe, '{"empty": false}')).content.parts[0].text == "a cat"
    assert (await run(describe, '{"empty": true}')).json == "null"


async def test_numbers_that_json_does_not_know_are_null() -> None:
    @tool
    def ratio() -> float:
        """Divide."""
        return float("nan")

    assert (await run(ratio, "{}")).json == "null"


async def test_a_plain_function_does_not_hold_up_the_loop() -> None:
    go = asyncio.Event()
    loop = asyncio.get_running_loop()

    @tool
    def wait() -> str:
        """Wait for the loop."""
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result(10)
        return "gone"

    waiting = asyncio.create_task(run(wait, "{}"))
    await asyncio.sleep(0)
    go.set()
    assert (await waiting).json == '"gone"'


async def test_a_tool_can_report_progress() -> None:
    @tool
    def work(context: ToolContext, pieces: int) -> str:
        """Work."""
        context.progress(0.5, f"{pieces} pieces")
        return context.call_id

    assert list(json.loads(work.spec.parameters_json_schema)["properties"]) == ["pieces"]
    report = Reported()
    assert (await run(work, '{"pieces": 2}', report)).json == '"c1"'
    assert (report.fraction, report.note) == (0.5, "2 pieces")
