"""`backchannel bill`: what a session has cost, told from its own log."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Final

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
    from backchannel.cli.statement import Statement
    from backchannel.client import Client, Session

# The log may be trimmed while it is being read; it will not be again and again.
_ATTEMPTS: Final = 3


def _id(value: str) -> str:
    check_text(value, "SESSION_ID")
    return value


def bill(
    session_id: Annotated[
        str, typer.Argument(help="Which session: its id.", show_default=False, callback=_id)
    ],
    text: Annotated[
        bool, typer.Option("--text", help="Show what was asked in each turn, too.")
    ] = False,
    json: Json = False,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Tell what a session has cost, from its own log: tokens, tool calls, time.

    **Tokens, by fate.** The engine read the *prompt*, of which it had *cached* a part. What it
    *generated* was *delivered* (it is in the log) or *wasted* (computed after a stop, and in
    nobody's log): these two add up to the token. Of what was delivered, some is known to have been
    *displayed*, and some is *kept* in the conversation. `~` marks a count that the engine could not
    confirm.

    **Time, by phase.** *Queued* is from the message until an engine took it up; *first token*,
    until it began to speak, in every round; *tools*, waiting for their results; *stopping*, from a
    stop until the engine had confirmed it; *generating* is the rest.

    The tokens are counted again from the deltas in the log, and the sums are compared with the
    server's own. If anything does not add up it is said, and the exit code is 1.

    Nothing that was said is printed without `--text`. Reading a session counts as being there: a
    message that waits for a reader is answered.

    **Examples**

    - `backchannel bill 0KpQ7rZ5s1uVwXyZ`

    - `backchannel bill --text 0KpQ7rZ5s1uVwXyZ` — with the questions

    - `backchannel bill --json 0KpQ7rZ5s1uVwXyZ | jq .totalUsage.wastedTokens`
    """

    async def command() -> int:
        from backchannel.cli.billing import as_values, print_bill

        async with connect(server) as client:
            session, statement = await _read(client, session_id)
        problems = statement.problems(session.total_usage)
        if json:
            import json as notation

            values = as_values(session, statement, problems, text=text)
            typer.echo(notation.dumps(values, indent=2, ensure_ascii=False))
        else:
            print_bill(session, statement, sys.stdout, text=text)
        for problem in problems:
            typer.echo(f"This does not add up: {problem}.", err=True)
        return EXIT_FAILED if problems else 0

    run(command(), server)


async def _read(client: Client, session_id: str) -> tuple[Session, Statement]:
    """The session as it stands, and its log up to there."""
    from backchannel.client import CursorTrimmedError

    for _ in range(_ATTEMPTS - 1):
        try:
            return await _read_once(client, session_id)
        except CursorTrimmedError:
            continue
    return await _read_once(client, session_id)


async def _read_once(client: Client, session_id: str) -> tuple[Session, Statement]:
    from backchannel.cli.statement import Statement

    session = await client.session(session_id)
    past = None
    if session.earliest_seq > 1:
        past = await client.snapshot(session_id)
        session = past.session
    statement = Statement()
    statement.declare(session.config.tools)
    before = max(session.earliest_seq, 1) - 1
    if session.last_seq > before:
        async with client.resume(session_id, after_seq=before) as conversation:
            async for event in conversation.events():
                statement.feed(event)
                if event.seq >= session.last_seq:
                    break
    if past is not None:
        statement.take_past(past.turns, session.config.model)
    return session, statement
