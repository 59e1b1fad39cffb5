"""What the commands that talk to a server have in common: where it is, and what to say if not."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

if TYPE_CHECKING:
    from backchannel.client import Client, ClientError

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
# As shells do: 128 and the number of SIGINT.
EXIT_INTERRUPTED: Final = 130

# How writing fails that is nobody's mistake in the command.
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

# A server that is just starting is waited for; one that is not there is said so soon.
_CONNECT_TIMEOUT_S: Final = 2.0

Server = Annotated[
    str,
    typer.Option(
        "--server",
        "--target",
        envvar="BACKCHANNEL_SERVER",
        help="Where the server is: host:port, or unix:/path.",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print JSON, for programs, instead of a table for people.")
]
# The client's own default, which is not imported here for the sake of a quick --help.
DEFAULT_SERVER: Final = "127.0.0.1:50051"


def connect(server: str, *, give_up_after_s: float | None = None) -> Client:
    """A client with a person's patience.

    Args:
        server: Where.
        give_up_after_s: How long to try to get a lost connection back. None: for ever.
    """
    # What the library has to say about connections that come and go is said by us.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from backchannel.client import Client, ClientConfig

    config = ClientConfig(connect_timeout_s=_CONNECT_TIMEOUT_S, give_up_after_s=give_up_after_s)
    return Client(server, config=config)


def check_text(text: str | None, hint: str) -> None:
    """Refuse what a shell or a pipe passed on as bytes: the wire has only text.

    Args:
        text: As Python decoded it, with bytes that are no UTF-8 as lone surrogates (PEP 383).
        hint: Where it stands in the command.

    Raises:
        typer.BadParameter: It cannot be encoded.
    """
    try:
        (text or "").encode()
    except UnicodeEncodeError:
        raise typer.BadParameter(
            "this is not UTF-8 text; convert it, for example with iconv", param_hint=hint
        ) from None


def run(command: Coroutine[None, None, int], server: str) -> NoReturn:
    """Run a command to its exit code, and turn what goes wrong into words."""
    import asyncio

    from backchannel.client import ClientError

    try:
        code = asyncio.run(command)
        # Here it can still be said that it cannot be written.
        sys.stdout.flush()
        raise typer.Exit(code)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        # What is left in the buffer would fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        typer.echo(f"Cannot write: {error.strerror}.", err=True)
        raise typer.Exit(EXIT_FAILED) from None
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except ClientError as error:
        typer.echo(explain(error, server), err=True)
        raise typer.Exit(EXIT_FAILED) from None


def explain(error: ClientError, server: str) -> str:
    """What went wrong, and what to do about it."""
    from backchannel.client import DisconnectedError, SessionGoneError

    if isinstance(error, DisconnectedError):
        return (
            f"No Backchannel server answers at {server}.\n"
            "Start one with `backchannel serve`, or say where it is with --server HOST:PORT.\n"
            f"({error})"
        )
    if isinstance(error, SessionGoneError):
        return f"{error}\n`backchannel sessions` lists the sessions there are."
    return str(error)
