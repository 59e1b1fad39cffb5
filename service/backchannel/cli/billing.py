"""How a bill is shown: tables where there is room, a block a turn where not, or for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TextIO

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from backchannel.cli.figures import span
from backchannel.cli.markdown import clean
from backchannel.cli.screen import short
from backchannel.cli.statement import CallCost, Phases, Statement, TurnCost
from backchannel.v1.session_pb2 import (
    FinishReason,
    Session,
    SideEffect,
    ToolCallOutcome,
    Usage,
)

# Where nobody's screen is too narrow.
_PIPE_COLUMNS: Final = 1000

_EFFECTS: Final = {
    SideEffect.SIDE_EFFECT_NONE: "only look",
    SideEffect.SIDE_EFFECT_IDEMPOTENT: "may be repeated",
    SideEffect.SIDE_EFFECT_IRREVERSIBLE: "can't be taken back",
}
_OUTCOMES: Final = {
    ToolCallOutcome.TOOL_CALL_OUTCOME_COMPLETED: "completed",
    ToolCallOutcome.TOOL_CALL_OUTCOME_FAILED: "failed",
    ToolCallOutcome.TOOL_CALL_OUTCOME_TIMED_OUT: "timed out",
    ToolCallOutcome.TOOL_CALL_OUTCOME_CANCELLED: "cancelled",
    ToolCallOutcome.TOOL_CALL_OUTCOME_UNKNOWN: "unknown",
    ToolCallOutcome.TOOL_CALL_OUTCOME_UNSPECIFIED: "open",
}
_NOT_STARTED: Final = "not started"
# Endings after which nobody knows whether the tool has run.
_MAYBE_RUN: Final = ("timed out", "cancelled", "unknown")


class _Row(NamedTuple):
    """One turn, or all of them, in words."""

    turn: str
    model: str
    ended: str
    tokens: tuple[str, ...]
    times: tuple[str, ...]


_TOKENS: Final = (
    "prompt",
    "cached",
    "generated",
    "delivered",
    "displayed",
    "kept",
    "wasted",
)
_TIMES: Final = ("queued", "first token", "generating", "tools", "stopping", "in all")


def print_bill(session: Session, statement: Statement, out: TextIO, *, text: bool) -> None:
    """Print a bill for people.

    Args:
        session: As it stood when it was read.
        statement: What was read.
        out: Where. What is no terminal gets the same tables, neither folded nor coloured.
        text: Whether to show what was asked.
    """
    console = Console(file=out, highlight=False)
    if not console.is_terminal:
        console = Console(file=out, highlight=False, width=_PIPE_COLUMNS)
    turns = statement.turns
    _say(console, f"session {session.session_id} · {_count(len(turns), 'turn')}")
    if statement.past:
        _say(
            console,
            f"The log begins at event {session.earliest_seq}. {_first(statement.past)} told from a "
            "snapshot: counts are taken from the server, tools and stopping are within generating.",
        )
    if not turns:
        _say(console, "Nothing has been answered yet, so it has cost nothing.")
    else:
        rows = [_row(turn) for turn in turns]
        _print_turns(console, turns, rows, _total_row(statement), text=text)
        _print_calls(console, [call for turn in turns for call in turn.calls])
    if statement.waiting:
        _say(console, f"{_count(len(statement.waiting), 'message')} waiting for an answer.")
    if any(turn.running for turn in turns):
        _say(console, "The running turn is told up to its newest event; no sum has its tokens yet.")
    if any(turn.usage.estimated for turn in turns):
        _say(console, "~ about: the engine could not confirm the count.")


def as_values(
    session: Session, statement: Statement, problems: Sequence[str], *, text: bool
) -> dict[str, Any]:
    """A bill for programs. Counts and durations are as in proto-JSON, but none is left out.

    Args:
        session: As it stood when it was read.
        statement: What was read.
        problems: What does not add up.
        text: Whether to give what was asked.
    """
    return {
        "sessionId": session.session_id,
        "model": session.config.model,
        "lastSeq": session.last_seq,
        "earliestSeq": session.earliest_seq,
        "turnsFromSnapshot": statement.past,
        "waitingMessages": len(statement.waiting),
        "turns": [_turn_values(turn, text=text) for turn in statement.turns],
        "totalUsage": _usage_values(statement.total()),
        "serverTotalUsage": _usage_values(session.total_usage),
        "phases": _phase_values(statement.phases()),
        "problems": list(problems),
    }


# --- for people -------------------------------------------------------------------------------


def _say(console: Console, line: str) -> None:
    console.print(Text(clean(line)), soft_wrap=not console.is_terminal)


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _first(count: int) -> str:
    return "Turn 1 is" if count == 1 else f"Turns 1 to {count:,} are"


def _row(turn: TurnCost) -> _Row:
    ended = FinishReason.Name(turn.finish_reason).removeprefix("FINISH_REASON_")
    return _Row(
        str(turn.number),
        turn.model,
        "running" if turn.running else ended.lower().replace("_", " "),
        _tokens(turn.usage, running=turn.running),
        _times(turn.phases, complete=turn.complete),
    )


def _total_row(statement: Statement) -> _Row:
    tokens, times = _tokens(statement.total()), _times(statement.phases())
    return _Row("all", "", "", tokens, times)


def _tokens(usage: Usage, *, running: bool = False) -> tuple[str, ...]:
    if running:  # What is not known before the end is not shown as 0.
        return ("", "", "", f"{usage.delivered_tokens:,}", "", "", "")
    about = "~" if usage.estimated else ""
    return (
        f"{usage.prompt_tokens:,}",
        f"{usage.cached_prompt_tokens:,}",
        f"{about}{usage.generated_tokens:,}",
        f"{usage.delivered_tokens:,}",
        f"{usage.displayed_tokens:,}",
        f"{usage.kept_tokens:,}",
        f"{about}{usage.wasted_tokens:,}",
    )


def _times(phases: Phases, *, complete: bool = True) -> tuple[str, ...]:
    known = (
        phases.queued_ns,
        phases.first_token_ns,
        phases.generating_ns,
        phases.tools_ns,
        phases.stopping_ns,
        phases.total_ns,
    )
    times = [span(ns / 1e9) if ns else "0" for ns in known]
    if not complete:
        times[3] = times[4] = ""
    return tuple(times)


def _print_turns(
    console: Console,
    turns: Sequence[TurnCost],
    rows: Sequence[_Row],
    total: _Row,
    *,
    text: bool,
) -> None:
    asked = [short(turn.input) for turn in turns]
    tables = [
        _table("tokens", _TOKENS, [(row, row.tokens) for row in (*rows, total)]),
        _table("time", _TIMES, [(row, row.times) for row in (*rows, total)]),
    ]
    widest = max(
        Measurement.get(console, console.options.update(max_width=_PIPE_COLUMNS), table).maximum
        for table in tables
    )
    if widest > console.width:
        for row, question in zip((*rows, total), (*asked, ""), strict=True):
            console.print()
            _say(console, " · ".join(part for part in row[:3] if part))
            if text and question:
                _say(console, f"> {question}")
            for name, heads, cells in (
                ("tokens", _TOKENS, row.tokens),
                ("time", _TIMES, row.times),
            ):
                pairs = [f"{head} {cell}" for head, cell in zip(heads, cells, strict=True) if cell]
                _say(console, f"{name}: {', '.join(pairs)}")
        return
    for table in tables:
        console.print()
        console.print(table)
    if text:
        console.print()
        for row, question in zip(rows, asked, strict=True):
            _say(console, f"{row.turn} > {question}")


def _table(name: str, heads: Sequence[str], rows: Sequence[tuple[_Row, Sequence[str]]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(name, justify="right")
    table.add_column("model")
    table.add_column("ended")
    for head in heads:
        table.add_column(head, justify="right")
    for row, cells in rows:
        style = "bold" if row.turn == "all" else ""
        shown = (row.turn, row.model, row.ended, *cells)
        table.add_row(*(Text(clean(cell)) for cell in shown), style=style)
    return table


def _print_calls(console: Console, calls: Sequence[CallCost]) -> None:
    """Tool calls by what they may change and how they ended; the doubtful ones in words."""
    if not calls:
        return
    counts = Counter((call.side_effect, _ended(call)) for call in calls)
    endings = [
        ending
        for ending in (*_OUTCOMES.values(), _NOT_STARTED)
        if any(ending == found for _, found in counts)
    ]
    effects = [effect for effect in _EFFECTS if any(effect == found for found, _ in counts)]
    console.print()
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("tools that", overflow="fold")
    for head in ("calls", *endings):
        table.add_column(head, justify="right")
    for effect in effects:
        cells = [counts[effect, ending] for ending in endings]
        table.add_row(_EFFECTS[effect], *(f"{cell:,}" for cell in (sum(cells), *cells)))
    console.print(table)
    doubtful = [
        call
        for call in calls
        if call.side_effect == SideEffect.SIDE_EFFECT_IRREVERSIBLE and _ended(call) in _MAYBE_RUN
    ]
    if doubtful:
        names = ", ".join(f"{call.name} {_ended(call)}" for call in doubtful)
        _say(console, f"May have run, and can't be taken back: {names}.")
    late = sum(call.late_results for call in calls)
    if late:
        _say(console, f"{_count(late, 'result')} came too late.")


def _ended(call: CallCost) -> str:
    if not call.ready:
        return _NOT_STARTED
    return _OUTCOMES.get(call.outcome, "unknown")


# --- for programs -----------------------------------------------------------------------------


def _turn_values(turn: TurnCost, *, text: bool) -> dict[str, Any]:
    values: dict[str, Any] = {
        "turn": turn.number,
        "turnId": turn.turn_id,
        "model": turn.model,
        "running": turn.running,
        "finishReason": FinishReason.Name(turn.finish_reason),
        "usage": _usage_values(turn.usage),
        "phases": _phase_values(turn.phases),
        "fromSnapshot": not turn.complete,
        "toolCalls": [
            {
                "callId": call.call_id,
                "name": call.name,
                "sideEffect": SideEffect.Name(call.side_effect),
                "ready": call.ready,
                "outcome": ToolCallOutcome.Name(call.outcome),
                "lateResults": call.late_results,
            }
            for call in turn.calls
        ],
    }
    if text:
        values["input"] = turn.input
    return values


def _usage_values(usage: Usage) -> dict[str, Any]:
    values: dict[str, Any] = MessageToDict(usage, always_print_fields_with_no_presence=True)
    return values


def _phase_values(phases: Phases) -> dict[str, str]:
    named = {
        "queued": phases.queued_ns,
        "firstToken": phases.first_token_ns,
        "generating": phases.generating_ns,
        "tools": phases.tools_ns,
        "stopping": phases.stopping_ns,
        "total": phases.total_ns,
    }
    return {name: _duration(ns).ToJsonString() for name, ns in named.items()}


def _duration(ns: int) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(ns)
    return duration
