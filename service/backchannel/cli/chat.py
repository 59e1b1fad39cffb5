"""`backchannel chat`: talk to a model in the terminal."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from backchannel.cli.connect import DEFAULT_SERVER, Server, check_text, run


def chat(
    message: Annotated[
        str | None,
        typer.Argument(
            help="Say this, show the answer and leave. Without it: a chat, or what is piped in.",
            show_default=False,
        ),
    ] = None,
    server: Server = DEFAULT_SERVER,
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="Whom to talk to: engine/name. See `models`."),
    ] = "",
    system: Annotated[
        str, typer.Option("--system", "-s", help="What the model is told before anything else.")
    ] = "",
    session: Annotated[
        str,
        typer.Option("--session", help="Go on with this session. See `sessions`."),
    ] = "",
    no_tools: Annotated[
        bool,
        typer.Option("--no-tools", help="Offer the model no calculator and no clock."),
    ] = False,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "-o",
            help="A setting of the engine, as NAME=VALUE; may be given several times.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Talk to a model.

    The answer streams in as Markdown. **Ctrl-C** stops it and keeps what you have seen; a second
    Ctrl-C, or Ctrl-D, leaves. Enter sends, Alt-Enter makes a new line, Up brings back what you
    said before. The session stays on the server: it tells its id at the end, and `--session` goes
    on with it, here or elsewhere.

    **While it speaks** just type: what you say is answered after this answer. `/steer TEXT` lets it
    end its sentence, or its tools, first and goes on from there; `/now TEXT` stops it where it is.

    `/retry` has the last message answered again, `/edit` lets you change it first; both go on in a
    new session that has the same past, and keep the old one.

    Where input or output is no terminal, the answer alone goes to standard output and the exit code
    is 0 only if it is whole.

    **Examples**

    - `backchannel chat` — with the server's default model

    - `backchannel chat --model scripted/echo "Say it again"` — one message, one answer

    - `echo "What is 12 * 7?" | backchannel chat` — the same in a pipe

    - `backchannel chat --session 0KpQ7rZ5s1uVwXyZ` — go on where it was left

    - `backchannel chat -m scripted/count -o rate=10 Count` — a slow engine, to try Ctrl-C on
    """
    if session and (model or system or option):
        raise typer.BadParameter(
            "a session keeps the model, system prompt and options it was created with;"
            " leave them out to go on with it",
            param_hint="--session",
        )
    for text, hint in (
        (message, "MESSAGE"),
        (model, "--model"),
        (system, "--system"),
        (session, "--session"),
        *((item, "--option") for item in option or []),
    ):
        check_text(text, hint)
    options = _options(option or [])
    interactive = message is None and sys.stdin.isatty() and sys.stdout.isatty()
    if message is None and not interactive:
        message = _piped().strip()
        if not message:
            raise typer.BadParameter(
                "nothing was piped in and no message was given", param_hint="MESSAGE"
            )

    from backchannel.cli.chatting import Chat

    run(
        Chat(
            server=server,
            model=model,
            system=system,
            session=session,
            with_tools=not no_tools,
            engine_options=options,
            message=message,
        ).run(),
        server,
    )


def _piped() -> str:
    """Standard input, which must be text."""
    try:
        text = sys.stdin.read()
    except UnicodeDecodeError as error:
        raise typer.BadParameter(
            f"what is piped in is not {error.encoding.upper()} text; convert it, for example with"
            " iconv",
            param_hint="MESSAGE",
        ) from None
    check_text(text, "MESSAGE")
    return text


def _options(given: list[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{item!r} is not NAME=VALUE", param_hint="--option")
        options[name] = value
    return options
