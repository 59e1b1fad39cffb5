"""`backchannel`: the commands. Each has its own module, which loads what it needs when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from backchannel.cli import bill, chat, edge, models, probe, serve, sessions, tail, top

app = typer.Typer(
    name="backchannel",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    # Values of variables in a traceback may be what people said.
    pretty_exceptions_show_locals=False,
    help="""Conversations with language models over gRPC: full duplex, durable, interruptible.

Start with `backchannel serve` in one terminal and `backchannel chat` in another.
""",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"backchannel {version('backchannel')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and leave.", callback=_version),
    ] = False,
) -> None:
    """Everything is in the commands."""


app.command()(serve.serve)
app.command()(chat.chat)
app.command()(models.models)
app.command()(probe.probe)
app.add_typer(sessions.app, name="sessions")
app.command()(bill.bill)
app.command()(tail.tail)
app.command()(top.top)
app.add_typer(edge.app, name="edge")
