"""`backchannel sessions`: what is kept on a server."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from backchannel.cli.connect import (
    DEFAULT_SERVER,
    EXIT_FAILED,
    Json,
    Server,
    check_text,
    connect,
    run,
)

if TYPE_CHECKING:
    from backchannel.client import Session, Snapshot

app = typer.Typer(
    name="sessions",
    rich_markup_mode="markdown",
    help="""List, show and delete the sessions on a server.

**Examples**

- `backchannel sessions` — newest first

- `backchannel sessions --label team=support --label env=prod` — those with both labels

- `backchannel sessions show 0KpQ7rZ5s1uVwXyZ` — what was said in one

- `backchannel sessions delete 0KpQ7rZ5s1uVwXyZ`

- `backchannel chat --session 0KpQ7rZ5s1uVwXyZ` — go on with one
""",
)


def _id(value: str) -> str:
    check_text(value, "SESSION_ID")
    return value


def _labels(values: list[str] | None) -> list[str] | None:
    for value in values or ():
        check_text(value, "--label")
        key, equals, _ = value.partition("=")
        if not (key and equals):
            raise typer.BadParameter(f"write it as KEY=VALUE, unlike {value!r}")
    return values


Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        help="Only sessions with this label; give it several times for all of several.",
        metavar="KEY=VALUE",
        show_default=False,
        callback=_labels,
    ),
]

SessionId = Annotated[
    str, typer.Argument(help="Which session: its id.", show_default=False, callback=_id)
]


@app.callback(invoke_without_command=True)
def sessions(
    context: typer.Context,
    server: Server = DEFAULT_SERVER,
    label: Labels = None,
    json: Json = False,
) -> None:
    """List the sessions, unless a command says otherwise."""
    if context.invoked_subcommand is None:
        list_sessions(server, label, json)


@app.command("list")
def list_sessions(
    server: Server = DEFAULT_SERVER, label: Labels = None, json: Json = False
) -> None:
    """List the sessions, newest first."""

    async def command() -> int:
        from backchannel.cli.output import print_json, print_table

        async with connect(server) as client:
            found = [session async for session in client.sessions(filter=_filter(label or ()))]
        if json:
            print_json(found)
        elif found or not sys.stdout.isatty():
            head = ["session", "model", "state", "tokens", "last used", "labels"]
            print_table(head, [_row(session) for session in found])
        elif label:
            typer.echo("No sessions with such labels. `backchannel sessions` lists all.")
        else:
            typer.echo("No sessions. `backchannel chat` begins one.")
        return 0

    run(command(), server)


@app.command("show")
def show(session_id: SessionId, server: Server = DEFAULT_SERVER, json: Json = False) -> None:
    """Show a session: its settings, and what was said in it."""

    async def command() -> int:
        from backchannel.cli.output import print_json

        async with connect(server) as client:
            snapshot = await client.snapshot(session_id)
        if json:
            print_json(snapshot)
        else:
            _print_session(snapshot)
        return 0

    run(command(), server)


@app.command("delete")
def delete(
    session_id: SessionId,
    server: Server = DEFAULT_SERVER,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """End a session and delete all that was said in it. It can't be brought back."""
    if not yes and sys.stdin.isatty() and not typer.confirm(f"Delete session {session_id}?"):
        raise typer.Exit(EXIT_FAILED)

    async def command() -> int:
        async with connect(server) as client:
            await client.delete(session_id)
        typer.echo(f"Deleted {session_id}.")
        return 0

    run(command(), server)


def _row(session: Session) -> list[str]:
    return [
        session.session_id,
        session.config.model,
        _state(session),
        f"{session.total_usage.generated_tokens:,}",
        _when(session),
        _shown_labels(session),
    ]


def _shown_labels(session: Session) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(session.config.labels.items()))


def _filter(labels: Iterable[str]) -> str:
    """As ListSessions takes it."""
    terms = []
    for label in labels:
        key, _, value = label.partition("=")
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        terms.append(f'labels.{key} = "{quoted}"')
    return " AND ".join(terms)


def _state(session: Session) -> str:
    from backchannel.v1.session_pb2 import Session as SessionMessage

    name = SessionMessage.State.Name(session.state)
    return name.removeprefix("STATE_").lower().replace("_", " ")


def _when(session: Session) -> str:
    import datetime

    time = session.update_time.ToDatetime(datetime.UTC).astimezone()
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _print_session(snapshot: Snapshot) -> None:
    from backchannel.cli.screen import Screen
    from backchannel.cli.talk import Talk

    session = snapshot.session
    screen = Screen(sys.stdout, sys.stdout)
    facts = {
        "session": session.session_id,
        "model": session.config.model,
        "state": _state(session),
        "events": f"{session.earliest_seq} to {session.last_seq}",
        "last used": _when(session),
        "system": session.config.system,
        "labels": _shown_labels(session),
        "tools": ", ".join(tool.name for tool in session.config.tools),
    }
    for name, value in facts.items():
        if value:
            screen.note(f"{name:<10}{value}", "none")
    screen.gap()
    Talk(screen, figures=False, only_mine=False).transcript(snapshot)
