"""The tools that chat brings along."""

from __future__ import annotations

import datetime
import json

from backchannel.cli.tools import builtin_tools, calculator, make_clock
from backchannel.client import Tool, ToolContext
from backchannel.v1.session_pb2 import ToolResult


async def run(tool: Tool, arguments: str) -> ToolResult:
    return await tool.run(arguments, ToolContext("c1", tool.spec.name, lambda fraction, note: None))


async def test_the_calculator_answers_in_compact_json() -> None:
    assert (await run(calculator, '{"expression": "12 * 7"}')).json == '{"result":84}'
    error = (await run(calculator, '{"expression": "1/0"}')).error
    assert (error.code, error.message) == ("CALCULATION", "division by zero")


async def test_the_clock_says_the_zone() -> None:
    paris = datetime.timezone(datetime.timedelta(hours=1), "CET")
    moment = datetime.datetime(2026, 11, 23, 15, 5, 7, 999, paris)
    assert (await run(make_clock(lambda: moment), "{}")).json == (
        '{"time":"2026-11-23T15:05:07+01:00","zone":"CET"}'
    )
    utc = make_clock(lambda: moment.astimezone(datetime.UTC))
    assert (await run(utc, "")).json == '{"time":"2026-11-23T14:05:07Z","zone":"UTC"}'


def test_what_the_model_is_told_of_them() -> None:
    specs = {tool.spec.name: tool.spec for tool in builtin_tools()}
    schema = json.loads(specs["calculator"].parameters_json_schema)
    assert schema["required"] == ["expression"]
    assert schema["properties"]["expression"]["type"] == "string"
    assert "required" not in json.loads(specs["clock"].parameters_json_schema)
    assert all(spec.description for spec in specs.values())


async def test_the_clock_of_this_machine_goes() -> None:
    before = datetime.datetime.now().astimezone().replace(microsecond=0)
    said = json.loads((await run(builtin_tools()[1], "{}")).json)
    assert datetime.datetime.fromisoformat(said["time"]) >= before
