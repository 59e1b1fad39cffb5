"""`backchannel probe`: whether something on the way to a server eats the stream."""

from __future__ import annotations

import json as jsons
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from backchannel.cli.connect import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, Json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backchannel.probe.measured import Measured
    from backchannel.probe.plan import Plan, Tell
    from backchannel.probe.reach import Trust
    from backchannel.probe.verdict import Finding

# The longest silence that the server's own Envoy leaves alone is 60 s.
_MAX_IDLE_S: Final = 50.0


def probe(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL",
            help="http(s)://… for what browsers use;"
            " HOST:PORT, grpc(s)://… or unix:/path for gRPC.",
        ),
    ],
    frames: Annotated[
        int, typer.Option("--frames", min=4, max=10_000, help="How many frames to send.")
    ] = 40,
    interval: Annotated[
        float,
        typer.Option("--interval", min=0.01, max=10, help="Seconds between two frames."),
    ] = 0.1,
    idle: Annotated[
        float,
        typer.Option(
            "--idle",
            min=0,
            max=_MAX_IDLE_S,
            help="How many seconds a silent stream must survive; 0 leaves it out."
            " The server breaks a silence every 15 s.",
        ),
    ] = 16.0,
    ca: Annotated[
        Path | None,
        typer.Option(
            "--ca",
            metavar="FILE",
            help="Believe the authorities in this PEM file, instead of those this machine knows.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Tell whether something on the way eats the stream, and what to set against it.

    Sends frames at known times through every door of the URL and looks at when they arrive; leaves
    a stream silent; leaves an answer to see whether the server hears of it; asks for the ids of
    sessions, which are secrets. Makes sessions of the model `scripted/count` for it, and deletes
    them.

    **Examples**

    - `backchannel probe http://127.0.0.1:8080` — Envoy itself: gRPC-Web, server-sent events, REST

    - `backchannel probe https://chat.example` — with all the proxies before it

    - `backchannel probe 127.0.0.1:50051` — the port of gRPC

    - `backchannel probe --ca ca.pem grpcs://chat.example:443` — gRPC over TLS

    - `backchannel probe --json --idle 0 https://chat.example | jq '.findings[].kind'`

    **Exit codes**: 0 all is well, 1 something was found, 2 unreachable or given wrongly.
    """
    import asyncio

    from backchannel.probe.measured import Measured
    from backchannel.probe.plan import Plan, UnreachableError
    from backchannel.probe.reach import Trust
    from backchannel.probe.verdict import Finding, judge

    try:
        plan = Plan(frames=frames, interval_s=interval, idle_s=idle)
        measured = asyncio.run(_measure(url, Trust(ca), plan))
    except UnreachableError as error:
        if json:
            nobody = Finding("unreachable", "", str(error), error.fix)
            typer.echo(jsons.dumps(_as_json(Measured(url), [nobody], ok=False), indent=2))
        typer.echo(f"{error}\n  {error.fix}", err=True)
        raise typer.Exit(EXIT_USAGE) from None
    except ValueError as error:
        typer.echo(
            f"{error}\n  give a URL such as http://127.0.0.1:8080 or 127.0.0.1:50051;"
            " `backchannel serve` prints both",
            err=True,
        )
        raise typer.Exit(EXIT_USAGE) from None
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    findings = judge(measured)
    wrong = any(not finding.note for finding in findings)
    if json:
        typer.echo(jsons.dumps(_as_json(measured, findings, ok=not wrong), indent=2))
    else:
        _print(measured, findings, wrong=wrong)
    raise typer.Exit(EXIT_FAILED if wrong else 0)


async def _measure(url: str, trust: Trust, plan: Plan) -> Measured:
    """Choose the doors by the URL.

    Raises:
        ValueError: It is no URL.
        UnreachableError: Nobody is there.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        tasks: dict[str, TaskID] = {}

        def tell(what: str, done: float, total: float) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=round(done))

        return await _through(url, trust, plan, tell)


async def _through(url: str, trust: Trust, plan: Plan, tell: Tell) -> Measured:
    scheme, found, rest = url.partition("://")
    scheme = scheme.lower()
    if found and scheme in ("http", "https"):
        from backchannel.probe import web

        return await web.measure(
            f"{scheme}://{rest.rstrip('/')}", trust=trust, plan=plan, tell=tell
        )
    if found and scheme not in ("grpc", "grpcs"):
        raise ValueError(f"{scheme}:// is none of http, https, grpc and grpcs")
    from backchannel.listen import Address
    from backchannel.probe import native

    address = Address.parse(rest.rstrip("/") if found else url)
    if address.port == 0:
        raise ValueError(f"{url}: nobody can be reached at port 0")
    return await native.measure(address, tls=scheme == "grpcs", trust=trust, plan=plan, tell=tell)


def _print(measured: Measured, findings: Sequence[Finding], *, wrong: bool) -> None:
    from backchannel.cli.markdown import clean
    from backchannel.cli.output import print_table

    rows = []
    for stream in measured.streams:
        if stream.refusal is not None:
            rows.append([stream.door, "stream", "none"])
            continue
        one_by_one = (
            f"{len(stream.arrivals)} frames sent over {stream.sent_over_s:.1f} s arrived over"
            f" {stream.arrived_over_s:.1f} s in {stream.groups}"
            f" piece{'' if stream.groups == 1 else 's'},"
            f" at worst {stream.worst_lag_s * 1000:.0f} ms late"
        )
        rows.append([stream.door, "stream", one_by_one])
        rows.append([stream.door, "version", stream.http_version or "unknown"])
    for call in measured.duplexes:
        after = call.answered_after_s
        said = "no answer" if after is None else f"answers after {after * 1000:.0f} ms"
        rows.append([call.door, "both ways", said])
    for silence in measured.silences:
        cut = silence.cut_after_s
        said = f"survives {silence.asked_s:g} s" if cut is None else f"cut after {cut:.1f} s"
        rows.append([silence.door, "silence", said])
    for cancel in measured.cancels:
        after = cancel.stopped_after_s
        said = "not heard" if after is None else f"the server stops after {after * 1000:.0f} ms"
        rows.append([cancel.door, "leaving", said])
    for calls in measured.calls:
        each = f"{calls.answered} answered, each within {calls.slowest_s * 1000:.0f} ms"
        rows.append([calls.door, "calls", each if calls.refusal is None else "none"])
    for listing in measured.listings:
        where = "to this machine" if listing.local else "to anybody"
        said = f"told {where}" if listing.listed else "not told"
        rows.append([listing.door, "session ids", said])
    print_table(["door", "what", "measured"], rows)
    for finding in findings:
        kind = ("note: " if finding.note else "") + finding.kind.replace("_", " ")
        typer.echo(f"\n{kind} ({finding.door}): {clean(finding.text)}\n  {clean(finding.fix)}")
    if not wrong:
        typer.echo("\nAll is well.")


def _as_json(measured: Measured, findings: Sequence[Finding], *, ok: bool) -> dict[str, Any]:
    from dataclasses import asdict

    streams = [
        {
            "door": stream.door,
            "frames": len(stream.arrivals),
            "whole": stream.whole,
            "sent_over_s": round(stream.sent_over_s, 6),
            "arrived_over_s": round(stream.arrived_over_s, 6),
            "pieces": stream.groups,
            "worst_lag_s": round(stream.worst_lag_s, 6),
            "http_version": stream.http_version,
            "server": stream.server,
            "encoding": stream.encoding,
            "refusal": asdict(stream.refusal) if stream.refusal else None,
        }
        for stream in measured.streams
    ]
    return {
        "url": measured.url,
        "ok": ok,
        "findings": [asdict(finding) for finding in findings],
        "streams": streams,
        "silences": [asdict(silence) for silence in measured.silences],
        "duplexes": [asdict(call) for call in measured.duplexes],
        "cancels": [asdict(cancel) for cancel in measured.cancels],
        "calls": [asdict(calls) for calls in measured.calls],
        "listings": [asdict(listing) for listing in measured.listings],
    }
