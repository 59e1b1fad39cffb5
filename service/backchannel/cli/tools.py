"""The tools that `chat` brings along: what a language model is bad at by itself."""

from __future__ import annotations

import datetime
from collections.abc import Callable

from backchannel.cli.calculator import CalculationError, evaluate
from backchannel.client import SideEffect, Tool, ToolFailedError, tool


@tool(side_effect=SideEffect.SIDE_EFFECT_NONE, timeout_s=10)
async def calculator(expression: str) -> dict[str, int | float]:
    """Evaluates an arithmetic expression: numbers, + - * /, powers, parentheses.

    Args:
        expression: Such as (3 + 4) * 12.
    """
    try:
        return {"result": evaluate(expression)}
    except CalculationError as error:
        raise ToolFailedError(str(error), code="CALCULATION") from error


def make_clock(now: Callable[[], datetime.datetime]) -> Tool:
    """A clock that reads `now`, a time with its zone."""

    @tool(side_effect=SideEffect.SIDE_EFFECT_NONE, timeout_s=10)
    async def clock() -> dict[str, str]:
        """Tells the date and the time."""
        time = now()
        said = time.isoformat(timespec="seconds")
        return {"time": said.replace("+00:00", "Z"), "zone": time.tzname() or ""}

    return clock


def builtin_tools() -> list[Tool]:
    """The tools, for this machine's time zone."""
    return [calculator, make_clock(lambda: datetime.datetime.now().astimezone())]
