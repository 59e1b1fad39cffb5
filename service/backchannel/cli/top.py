"""`backchannel top`: how servers do, live."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from backchannel.cli.connect import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from rich.console import Console, RenderableType

    from backchannel.cli.scraping import Watched
    from backchannel.cli.vitals import Vitals

_DEFAULT: Final = "127.0.0.1:9464"


def top(
    servers: Annotated[
        list[str] | None,
        typer.Argument(
            help=f"Where the servers' metrics are: host, host:port or a URL. Default: {_DEFAULT}.",
            show_default=False,
            metavar="ADDRESS",
            envvar="BACKCHANNEL_METRICS",
        ),
    ] = None,
    interval: Annotated[
        float, typer.Option(help="Seconds between two looks.", min=0.1, max=60.0)
    ] = 2.0,
    once: Annotated[
        bool, typer.Option("--once", help="Look twice, one interval apart, print it and leave.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON, for programs: a line for every look.")
    ] = False,
) -> None:
    """Show how servers do: sessions, tokens a second, waiting times, readers, tools, engines.

    It reads their metrics, the ones that Prometheus reads (`serve --metrics-listen`). Rates, counts
    and percentiles are about the last minute; what nobody knows is a dash and no zero.

    - **first token**, **between outputs**: what users feel

    - **worst lag**: how many events the slowest reader is behind

    - **oldest**: how long the oldest open tool call has waited

    - **stop**: from a stop until the engine has stopped; what it computes meanwhile is wasted

    - **commit**, **loop lag**: what the server itself adds

    **Examples**

    - `backchannel top` — the server on this machine

    - `backchannel top gpu1 gpu2:9465` — several, and all of them together

    - `backchannel top --once --json | jq .all.spreads.first_token.p95`
    """
    from backchannel.cli.scraping import Watched, metrics_url

    try:
        watched = [Watched(name, metrics_url(name)) for name in servers or [_DEFAULT]]
    except ValueError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(EXIT_USAGE) from None
    if not (once or json or sys.stdout.isatty()):
        typer.echo("Error: a live view needs a terminal; use --once, or --json.", err=True)
        raise typer.Exit(EXIT_USAGE)
    try:
        _look(watched)
        if all(server.trouble for server in watched):
            _nobody(watched)
        if once:
            _again(watched, interval)
            _print(watched, json=json)
        elif json:
            _lines(watched, interval)
        else:
            _live(watched, interval)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if once and any(server.trouble for server in watched):
        raise typer.Exit(EXIT_FAILED)


def _look(watched: Sequence[Watched]) -> None:
    """Look at all of them at the same time: one that does not answer holds up no other."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(min(len(watched), 16)) as pool:
        list(pool.map(lambda server: server.look(), watched))


def _again(watched: Sequence[Watched], interval_s: float) -> None:
    import time

    time.sleep(interval_s)
    _look(watched)


def _nobody(watched: Sequence[Watched]) -> NoReturn:
    for server in watched:
        typer.echo(f"No metrics at {server.url}: {server.trouble}.", err=True)
    typer.echo(
        "A server tells them with `backchannel serve --metrics-listen HOST:PORT`; by itself at"
        f" {_DEFAULT}, if that is free and backchannel[telemetry] is installed. When it starts it"
        " says where.",
        err=True,
    )
    raise typer.Exit(EXIT_FAILED)


def _lines(watched: Sequence[Watched], interval_s: float) -> None:
    while True:
        _again(watched, interval_s)
        _print(watched, json=True, indent=None)


def _live(watched: Sequence[Watched], interval_s: float) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    with Live(_screen(watched, console), console=console, screen=True, auto_refresh=False) as live:
        while True:
            _again(watched, interval_s)
            live.update(_screen(watched, console), refresh=True)


def _screen(watched: Sequence[Watched], console: Console) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from backchannel.cli.dashboard import Row, dashboard, headline

    rows = [Row(server.name, _vitals(server), server.trouble) for server in watched]
    together = _together(watched)
    seconds = 0.0 if together is None else together.seconds
    return Group(
        Text(headline(seconds, len(watched)), style="bold"),
        Text(),
        dashboard(rows, together, width=console.width),
    )


def _print(watched: Sequence[Watched], *, json: bool, indent: int | None = 2) -> None:
    if json:
        import json as notation

        typer.echo(notation.dumps(_values(watched), indent=indent))
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.print(_screen(watched, console))


def _values(watched: Sequence[Watched]) -> dict[str, Any]:
    together = _together(watched)
    servers = []
    for server in watched:
        vitals = _vitals(server)
        told = {"trouble": server.trouble} if vitals is None else vitals.as_json()
        servers.append({"address": server.name, **told})
    return {"all": None if together is None else together.as_json(), "servers": servers}


def _vitals(server: Watched) -> Vitals | None:
    from backchannel.cli.vitals import Vitals

    return None if server.window is None else Vitals.of([server.window])


def _together(watched: Sequence[Watched]) -> Vitals | None:
    from backchannel.cli.vitals import Vitals

    windows = [server.window for server in watched if server.window is not None]
    return Vitals.of(windows) if windows else None
