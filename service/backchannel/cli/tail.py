"""`backchannel tail`: follow what happens in a session."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Final, Protocol

import typer

from backchannel.cli.connect import DEFAULT_SERVER, EXIT_USAGE, Server, check_text, connect, run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backchannel.cli.event_lines import EventLines, Line
    from backchannel.client import ConnectionChange, Event, Session, Snapshot

# Deltas wait so long for more of them.
_PATIENCE_S: Final = 0.3


def _id(value: str) -> str:
    check_text(value, "SESSION_ID")
    return value


def tail(
    session_id: Annotated[
        str, typer.Argument(help="Which session: its id.", show_default=False, callback=_id)
    ],
    after: Annotated[
        int,
        typer.Option(
            help="Begin after this event. 0: with the first one; -10: with the last ten.",
            metavar="SEQ",
        ),
    ] = 0,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow/--no-follow",
            help="Wait for more when everything has been told.",
        ),
    ] = True,
    text: Annotated[
        bool,
        typer.Option("--text/--no-text", help="Tell what was said, or only how much it was."),
    ] = True,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="A line for every event, each delta on its own, nothing cut."),
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print each event as a line of canonical proto-JSON.")
    ] = False,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Follow what happens in a session: a line for each event, deltas joined.

    A line tells when it happened (this machine's time zone, the server's clock), the event's
    number, and what it is. It ends when the session does, and at Ctrl-C. A lost connection is
    resumed where it was. Notes go to standard error; standard output is the events and nothing
    else, with tabs between the columns where it is no terminal.

    Following a session counts as being there: while you look, a turn that nobody else reads goes
    on, and a message that waits for a reader is answered.

    **Examples**

    - `backchannel tail 0KpQ7rZ5s1uVwXyZ` — from the beginning, and on

    - `backchannel tail --after -20 0KpQ7rZ5s1uVwXyZ` — the last twenty events, and on

    - `backchannel tail --no-text 0KpQ7rZ5s1uVwXyZ` — without a word of what was said

    - `backchannel tail --json --no-follow 0KpQ7rZ5s1uVwXyZ | jq -r .outputDelta.text`
    """
    if raw and json:
        typer.echo("Error: --raw and --json exclude each other; --json is raw already.", err=True)
        raise typer.Exit(EXIT_USAGE)

    async def command() -> int:
        teller = _Json(text=text) if json else _lines(text=text, raw=raw)
        await _follow(server, session_id, after, teller, follow=follow)
        return 0

    run(command(), server)


class _Teller(Protocol):
    """Prints events."""

    def tell(self, event: Event) -> None:
        """This has happened."""

    def end(self) -> None:
        """Print what is held back."""


async def _follow(
    server: str, session_id: str, after: int, teller: _Teller, *, follow: bool
) -> None:
    import asyncio

    noted = _Notes()
    async with connect(server) as client:
        session = await client.session(session_id)
        begin = noted.begin = _beginning(session, after)
        end = None if follow else session.last_seq
        if begin == end:
            return
        try:
            async with (
                _Reading(asyncio.current_task()),
                client.resume(
                    session_id,
                    after_seq=begin,
                    snapshot_if_trimmed=True,
                    on_connection=noted.connection,
                    on_snapshot=noted.snapshot,
                ) as conversation,
            ):
                async for event in conversation.events():
                    teller.tell(event)
                    noted.begin = event.seq
                    if end is not None and event.seq >= end:
                        break
        finally:
            teller.end()


def _beginning(session: Session, after: int) -> int:
    """After which event to begin."""
    kept = max(session.earliest_seq, 1) - 1
    if after < 0:
        return max(session.last_seq + after, kept)
    if after < kept:
        _note(f"events {after + 1} to {kept} are no longer kept; it begins with event {kept + 1}")
    return max(after, kept)


class _Reading:
    """While somebody reads what is written: a pipe whose reader has left ends the command.

    Otherwise it would be found out with the next event, which may never come.
    """

    def __init__(self, task: object) -> None:
        self._task = task
        self._gone = False

    async def __aenter__(self) -> None:
        import asyncio
        import os
        import stat

        self._fd: int | None = None
        try:
            fd = sys.stdout.fileno()
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                asyncio.get_running_loop().add_reader(fd, self._leave)
                self._fd = fd
        except (OSError, ValueError):
            return  # Standard output is no file, or none that can be watched.

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import asyncio
        import errno

        if self._fd is not None:
            asyncio.get_running_loop().remove_reader(self._fd)
        if self._gone and isinstance(error, asyncio.CancelledError):
            raise BrokenPipeError(errno.EPIPE, "the reader of the pipe has left") from None

    def _leave(self) -> None:
        import asyncio

        # Nothing is ever read from this end; it is readable when it is broken.
        if not self._gone and isinstance(self._task, asyncio.Task):
            self._gone = True
            self._task.cancel()


class _Notes:
    """What is said beside the events.

    Attributes:
        begin: The newest event that was told.
    """

    def __init__(self) -> None:
        self.begin = 0
        self._attempts = 0

    def connection(self, change: ConnectionChange) -> None:
        from backchannel.client import Lost

        if isinstance(change, Lost):
            self._attempts += 1
            if self._attempts == 1:
                _note(f"connection lost ({change.error}); resuming…")
            elif self._attempts == 2:
                _note("the server does not answer; trying until it does")
            return
        self._attempts = 0
        if change.resumed:
            _note(f"resumed at event {change.after_seq + 1}; nothing was lost")

    def snapshot(self, snapshot: Snapshot) -> None:
        _note(f"events {self.begin + 1} to {snapshot.seq} are no longer kept")
        self.begin = snapshot.seq


def _note(text: str) -> None:
    from backchannel.cli.markdown import clean

    typer.echo(clean(text), err=True)


class _Json:
    """A line of canonical proto-JSON for each event."""

    def __init__(self, *, text: bool) -> None:
        self._text = text

    def tell(self, event: Event) -> None:
        import json as notation

        from backchannel.cli.output import as_json
        from backchannel.cli.withholding import withheld

        values = as_json(event if self._text else withheld(event))
        typer.echo(notation.dumps(values, ensure_ascii=False))

    def end(self) -> None:
        """Nothing is held back."""


class _Lines:
    """Lines for people. Deltas are held back for a moment, in case more follow."""

    def __init__(self, lines: EventLines, show: Callable[[Sequence[Line]], None]) -> None:
        import asyncio

        self._lines = lines
        self._show = show
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def tell(self, event: Event) -> None:
        self._show(self._lines.feed(event))
        if self._lines.pending and self._timer is None:
            self._timer = self._loop.call_later(_PATIENCE_S, self._ripe)

    def _ripe(self) -> None:
        self._timer = None
        self.end()

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._show(self._lines.flush())


def _lines(*, text: bool, raw: bool) -> _Lines:
    from rich.console import Console

    from backchannel.cli.event_lines import EventLines

    console = Console(highlight=False)
    lines = EventLines(text=text, join=not raw, whole=raw)
    return _Lines(lines, _on_screen(console) if console.is_terminal else _in_columns)


def _in_columns(lines: Sequence[Line]) -> None:
    import datetime

    for line in lines:
        time = datetime.datetime.fromtimestamp(line.time_ns / 1e9, datetime.UTC).astimezone()
        cells = (time.isoformat(timespec="milliseconds"), line.seqs, line.what, line.text)
        typer.echo("\t".join(cells))


def _on_screen(console: object) -> Callable[[Sequence[Line]], None]:
    import datetime

    from rich.console import Console
    from rich.text import Text

    assert isinstance(console, Console)  # noqa: S101 - said for the type checker
    day: datetime.date | None = None

    def show(lines: Sequence[Line]) -> None:
        nonlocal day
        for line in lines:
            time = datetime.datetime.fromtimestamp(line.time_ns / 1e9, datetime.UTC).astimezone()
            if time.date() != day:
                day = time.date()
                console.print(Text(day.isoformat(), style="dim underline"))
            clock = time.strftime("%H:%M:%S.") + f"{time.microsecond // 1000:03}"
            console.print(
                Text.assemble(
                    (f"{clock} {line.seqs:>9}  ", "dim"),
                    (f"{line.what:<10}", line.style),
                    line.text,
                ),
                soft_wrap=True,
            )

    return show
