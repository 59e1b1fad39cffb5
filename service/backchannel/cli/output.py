"""Tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from backchannel.cli.markdown import clean

if TYPE_CHECKING:
    from google.protobuf.message import Message


def as_json(message: Message) -> Any:
    """A message as canonical proto-JSON values."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message)


def print_json(found: Message | Sequence[Message]) -> None:
    """Print a message, or a list of them."""
    if isinstance(found, Sequence):
        value: object = [as_json(message) for message in found]
    else:
        value = as_json(found)
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table. Where the output is no terminal nothing is folded or cut."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        for row in rows:
            typer.echo("\t".join(clean(cell) for cell in row))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for number, name in enumerate(head):
        table.add_column(name, overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    console.print(table)
