"""How servers do, as a screen for people. What nobody knows is a dash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from backchannel.cli.figures import span
from backchannel.cli.markdown import clean
from backchannel.cli.vitals import Engine, Spread, Vitals

DASH: Final = "–"
# Narrower than this there is a list of facts in the place of the table of servers.
WIDE: Final = 74

_SPREADS: Final = (
    ("first_token", "first token", 2.0),
    ("gap", "between outputs", 0.5),
    ("queue", "queued", 1.0),
    ("tool", "tools", None),
    ("stop", "stop", 0.05),
    ("commit", "commit", 0.05),
    ("loop_lag", "loop lag", 0.05),
)
"""What is told by percentiles, and from which p99 on it deserves a look, in seconds."""


@dataclass(frozen=True, slots=True)
class Row:
    """A server.

    Attributes:
        name: Where it is.
        vitals: How it does; None if it does not answer.
        trouble: Why not.
    """

    name: str
    vitals: Vitals | None
    trouble: str = ""


def dashboard(rows: Sequence[Row], together: Vitals | None, *, width: int) -> RenderableType:
    """The whole screen.

    Args:
        rows: The servers.
        together: All that answer, together; None if none does.
        width: Of the terminal, in columns.
    """
    parts: list[RenderableType] = [_servers(rows, together, wide=width >= WIDE)]
    if together is not None:
        parts += [Text(), _spreads(together, wide=width >= WIDE)]
        if together.engines:
            parts += [Text(), _engines(together.engines)]
        parts += [Text(), *_facts(together)]
    return Group(*parts)


def headline(seconds: float, servers: int) -> str:
    """What the figures are about."""
    about = f"the last {seconds:.0f} s" if seconds else "now; rates come with the second look"
    return f"backchannel top · {servers} server{'' if servers == 1 else 's'} · {about}"


def whole(number: float | None) -> str:
    """A count, or a dash."""
    return DASH if number is None else f"{number:,.0f}"


def rate(number: float | None) -> str:
    """Something a second, or a dash."""
    if number is None:
        return DASH
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}"


def time(seconds: float | None, most: float = 0.0) -> str:
    """A time, or a dash; where it is beyond the most that is measured, that."""
    if seconds is None:
        return DASH
    if seconds == float("inf"):
        return f"> {span(most)}"
    return span(seconds) if seconds else "0"


# --- parts -----------------------------------------------------------------------------------

_HEAD: Final = ("sessions", "turns", "tokens/s", "readers", "worst lag", "tools", "oldest")


def _cells(vitals: Vitals) -> tuple[str, ...]:
    return (
        whole(vitals.sessions),
        whole(vitals.turns),
        rate(vitals.tokens_per_s),
        whole(vitals.readers),
        whole(vitals.reader_lag),
        whole(vitals.tools),
        time(vitals.oldest_tool_s if vitals.tools else None),
    )


def _servers(rows: Sequence[Row], together: Vitals | None, *, wide: bool) -> RenderableType:
    if not wide:
        return Group(*(_server(row) for row in _with_sum(rows, together)))
    table = _table("server", *_HEAD)
    for row in _with_sum(rows, together):
        if row.vitals is None:
            # The reason may be long; it has a line of its own below.
            table.add_row(Text(clean(row.name), style="red"), *[DASH] * len(_HEAD))
        else:
            table.add_row(clean(row.name), *_cells(row.vitals), style=_style(row))
    troubles = [
        Text(f"{clean(row.name)}: {clean(row.trouble)}", style="red")
        for row in rows
        if row.vitals is None
    ]
    return Group(table, *troubles)


def _server(row: Row) -> RenderableType:
    if row.vitals is None:
        return Text(f"{clean(row.name)}: {clean(row.trouble)}", style="red")
    facts = zip(_HEAD, _cells(row.vitals), strict=True)
    return Text.assemble(
        (clean(row.name), "bold"),
        *(f"\n  {name:<10}{value:>10}" for name, value in facts),
    )


def _with_sum(rows: Sequence[Row], together: Vitals | None) -> list[Row]:
    known = sum(row.vitals is not None for row in rows)
    return [*rows, Row("all", together)] if together is not None and known > 1 else list(rows)


def _style(row: Row) -> str:
    return "bold" if row.name == "all" else ""


def _spreads(vitals: Vitals, *, wide: bool) -> RenderableType:
    table = _table("time", *(("p50", "p95", "p99", "count") if wide else ("p50", "p99")))
    for name, label, limit_s in _SPREADS:
        spread = vitals.spreads.get(name) or Spread(0, None, None, None)
        known = vitals.spreads.get(name) is not None
        slow = limit_s is not None and spread.p99 is not None and spread.p99 > limit_s
        p50, p95, p99 = (time(value, spread.most) for value in (spread.p50, spread.p95, spread.p99))
        last = Text(p99, style="yellow" if slow else "")
        count = whole(spread.count if known else None)
        if wide:
            table.add_row(label, p50, p95, last, count)
        else:
            table.add_row(label, p50, last)
    return table


def _engines(engines: Mapping[str, Engine]) -> RenderableType:
    table = _table("engine", "running", "waiting", "limit")
    for name, engine in engines.items():
        waits = Text(whole(engine.waiting), style="yellow" if engine.waiting else "")
        limit = DASH if engine.limit is None else whole(engine.limit)
        table.add_row(clean(name), whole(engine.running), waits, limit)
    return table


def _facts(vitals: Vitals) -> list[RenderableType]:
    share = vitals.wasted_share
    facts = [
        ("wasted", DASH if share is None else f"{share:.1%} of the generated tokens"),
        ("ended", _listed(vitals.turns_by_ending, "turn")),
        ("interrupts", whole(vitals.interrupts)),
        ("tool calls", _listed(vitals.tools_by_outcome, "call")),
        ("to commit", DASH if vitals.backlog_bytes is None else f"{vitals.backlog_bytes:,} bytes"),
    ]
    lines: list[RenderableType] = [
        Text.assemble((f"{name:<12}", "bold"), clean(value)) for name, value in facts
    ]
    errors = dict(vitals.engine_errors)
    if vitals.commit_errors:
        errors["the log refused"] = vitals.commit_errors
    if errors:
        told = Text.assemble((f"{'errors':<12}", "bold red"), clean(_counts(errors)))
        lines.append(told)
    return lines


def _listed(counts: Mapping[str, int], thing: str) -> str:
    if not counts:
        return DASH
    total = sum(counts.values())
    return f"{total:,} {thing}{'' if total == 1 else 's'}: {_counts(counts)}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column(first, overflow="ellipsis", no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
