"""`backchannel serve`: run the service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from backchannel.cli.edge import BrowserEdge

if TYPE_CHECKING:
    from backchannel.config import ServeConfig
    from backchannel.rpc.server import Server

# What a shell gets for a command that was given wrongly, and for one that failed.
EXIT_USAGE: Final = 2
EXIT_FAILED: Final = 1
EXIT_SIGNAL: Final = 128
# Wrappers such as timeout(1) send a signal to the process and to its group: that is one wish.
ONE_SIGNAL_S: Final = 0.3

_STORAGE = "Storage and models"
_NETWORK = "Network"
_BROWSERS = "Browsers"
_PROCESS = "Process"
_WATCHING = "Metrics and traces"


def serve(
    listen: Annotated[
        str | None,
        typer.Option(
            help="Where to listen: host:port, \\[ipv6]:port or unix:/path; port 0 takes a free one."
            " Default: 127.0.0.1:50051.",
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    anonymous: Annotated[
        bool | None,
        typer.Option(
            "--anonymous",
            help="Let anybody in who reaches the address. Without it only this machine can.",
            show_default=False,
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    edge: Annotated[
        bool | None,
        typer.Option(
            "--edge/--no-edge",
            help="Start Envoy, the HTTP server in front: the chat page, gRPC-Web, server-sent"
            " events, REST. Default: if it is installed.",
            show_default=False,
            rich_help_panel=_BROWSERS,
        ),
    ] = None,
    edge_listen: Annotated[
        str | None,
        typer.Option(
            help="Where it listens: host:port. Default: 127.0.0.1:8080.",
            rich_help_panel=_BROWSERS,
        ),
    ] = None,
    edge_origins: Annotated[
        list[str] | None,
        typer.Option(
            "--edge-origin",
            help="A page of another origin that may use it, such as https://chat.example; may be"
            " given several times. Default: none.",
            rich_help_panel=_BROWSERS,
        ),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help="An engine to open, such as llama, or one that the file tells of; may be given"
            " several times. scripted (echo, count and other models that need nothing) is always"
            " there. Default: those in the file, and what runs here.",
            rich_help_panel=_STORAGE,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The model for sessions that name none: engine/name, an alias from the file, or"
            " the path of a GGUF file."
            " Default: the first engine's first.",
            rich_help_panel=_STORAGE,
        ),
    ] = None,
    log: Annotated[
        str | None,
        typer.Option(
            help="Where sessions are kept: sqlite:///absolute/path, or memory, which forgets."
            " Default: a SQLite file in the user's state folder.",
            rich_help_panel=_STORAGE,
        ),
    ] = None,
    metrics_listen: Annotated[
        str | None,
        typer.Option(
            help="Where Prometheus finds the metrics: host:port, or off. Default: 127.0.0.1:9464"
            " if that is free and backchannel\\[telemetry] is installed.",
            rich_help_panel=_WATCHING,
        ),
    ] = None,
    otlp_endpoint: Annotated[
        str | None,
        typer.Option(
            help="A collector that takes traces and metrics as OTLP over gRPC, such as"
            " http://127.0.0.1:4317. Default: OTEL_EXPORTER_OTLP_ENDPOINT, or none.",
            rich_help_panel=_WATCHING,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="A TOML file with the same settings by their names (listen, engine, …).",
            envvar="BACKCHANNEL_CONFIG",
            rich_help_panel=_PROCESS,
        ),
    ] = None,
    drain_grace: Annotated[
        float | None,
        typer.Option(
            help="Seconds that a stop (SIGTERM, Ctrl-C) may take; running answers get most of them"
            " to end. Default: 10.",
            rich_help_panel=_PROCESS,
        ),
    ] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None,
        typer.Option(
            help="How much the service says on standard error. Default: info.",
            show_default=False,
            rich_help_panel=_PROCESS,
        ),
    ] = None,
    log_format: Annotated[
        Literal["auto", "json", "pretty"] | None,
        typer.Option(
            help="auto is for people on a terminal and JSON elsewhere. Default: auto.",
            show_default=False,
            rich_help_panel=_PROCESS,
        ),
    ] = None,
) -> None:
    """Run the service until it is told to stop.

    Every option can also be an environment variable (BACKCHANNEL_LISTEN, BACKCHANNEL_ENGINE=a,b,
    BACKCHANNEL_DRAIN_GRACE_S, …) or a line of the TOML file (drain_grace_s = 10); options win over
    variables, and these over the file. --metrics-listen and --otlp-endpoint are of a group:
    BACKCHANNEL_TELEMETRY__OTLP_ENDPOINT, telemetry.otlp_endpoint.

    **Examples**

    - `backchannel serve` — the built-in model, for this machine alone

    - `backchannel serve --engine scripted --log memory` — for tests: nothing to load or keep

    - `backchannel serve --model ~/models/qwen.gguf` — any model llama.cpp can load

    - `backchannel serve --listen 0.0.0.0:50051 --anonymous` — for everybody on the network

    - `BACKCHANNEL_LOG=sqlite:////var/lib/backchannel/log.db backchannel serve --config bc.toml`

    **Several engines**, and an alias that asks them one after the other, as lines of the TOML file:

    - `model_aliases = {fast = ["vllm/qwen", "spare/qwen"]}`

    - `engine_options.vllm = {adapter = "openai", base_url = "http://gpu:8000/v1"}`

    - `engine_options.spare = {adapter = "openai", base_url = "http://localhost:11434/v1"}`

    or as variables:

    - `BACKCHANNEL_MODEL_ALIASES__FAST=vllm/qwen,spare/qwen`

    - `BACKCHANNEL_ENGINE_OPTIONS__VLLM__ADAPTER=openai`

    - `BACKCHANNEL_ENGINE_OPTIONS__VLLM__BASE_URL=http://gpu:8000/v1`

    The first SIGTERM or Ctrl-C drains: clients are told to go elsewhere, running answers may end.
    The second one stops at once. SIGUSR1 makes the service log all that it can; SIGUSR2 takes that
    back to --log-level.
    """
    given = {
        "listen": listen,
        "anonymous": anonymous,
        "edge": edge,
        "edge_listen": edge_listen,
        "edge_origins": tuple(edge_origins) if edge_origins else None,
        "engine": tuple(engine) if engine else None,
        "model": model,
        "log": log,
        "drain_grace_s": drain_grace,
        "log_level": log_level,
        "log_format": log_format,
    }
    flags: dict[str, object] = {name: value for name, value in given.items() if value is not None}
    watching = {"metrics_listen": metrics_listen, "otlp_endpoint": otlp_endpoint}
    if asked := {name: value for name, value in watching.items() if value is not None}:
        flags["telemetry"] = asked

    # After parsing, so that --help and mistakes are answered at once.
    import asyncio
    import os

    # What gRPC's core prints by itself is no log line, and what matters of it we say ourselves.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")

    from backchannel import logging
    from backchannel.config import ConfigError, ServeConfig

    try:
        settings = ServeConfig.load(flags, config)
    except ConfigError as error:
        _complain(str(error))
        raise typer.Exit(EXIT_USAGE) from None
    for name, meant in ServeConfig.unknown_variables(os.environ):
        hint = f"; is {meant} meant?" if meant else ""
        _complain(f"{name} is no setting and changes nothing{hint}", "Note")
    logging.configure(settings.log_level, settings.log_format)
    logging.catch_what_escapes()
    raise typer.Exit(asyncio.run(_run(settings)))


async def _run(config: ServeConfig) -> int:
    """Serve until a signal comes; the exit code."""
    import asyncio
    import os
    import signal

    from backchannel import logging
    from backchannel.edge.rendering import EdgeError
    from backchannel.errors import BackchannelError
    from backchannel.rpc.server import ListenError, Server
    from backchannel.telemetry.opening import TelemetryError, watched
    from backchannel_gateway import doors

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    asked_s = 0.0

    def on_signal(number: int) -> None:
        nonlocal asked_s
        if not stop.is_set():
            asked_s = loop.time()
            stop.set()
        elif loop.time() - asked_s > ONE_SIGNAL_S:
            # Engines run native threads, and whoever asks twice will not wait for them.
            os._exit(EXIT_SIGNAL + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    loop.add_signal_handler(signal.SIGUSR1, logging.change_level, logging.LogLevel.DEBUG)
    loop.add_signal_handler(signal.SIGUSR2, logging.change_level, config.log_level)
    try:
        # Envoy outlives the service: what the service says at the end has to get out.
        async with (
            BrowserEdge(config) as edge,
            watched(config.telemetry) as observer,
            Server(config, doors=[doors], observer=observer) as server,
        ):
            await edge.start(server.address)
            _greet(server, edge, observer.metrics_url, config.telemetry.otlp_endpoint)
            await stop.wait()
            typer.echo(
                f"Stopping within {config.drain_grace_s:g} s; once more stops at once.", err=True
            )
            await edge.drain()
    except (ListenError, EdgeError, TelemetryError) as error:
        _complain(str(error))
        return EXIT_USAGE
    except BackchannelError as error:
        _complain(f"{error.field}: {error}" if error.field else str(error))
        return EXIT_FAILED
    return 0


def _greet(server: Server, edge: BrowserEdge, metrics_url: str, traces: str) -> None:
    """Say what runs, and what to do next."""
    for problem in server.engines.problems:
        _complain(f"{problem.subject} is not there: {problem.message}", "Note")
    if edge.problem:
        _complain(f"no page for browsers: {edge.problem}", "Note")
    address = str(server.address.from_here)
    others = "" if address == "127.0.0.1:50051" else f" --server {address}"
    typer.echo(
        f"Backchannel listens on {server.address}\n"
        f"  model  {_default(server)}\n"
        f"  log    {server.log_address}\n"
        + (f"  metrics {metrics_url}\n" if metrics_url else "")
        + (f"  traces {traces}\n" if traces else "")
        + (f"Open {edge.url} in a browser, or try" if edge.url else "Try")
        + ", in another terminal:\n"
        f"  backchannel chat{others}\n"
        f"  grpcurl -plaintext {address} list"
    )


def _default(server: Server) -> str:
    """The default model, with what is behind it if it is an alias."""
    cards = dict(server.engines.models())
    model = server.engines.default_model
    if not model:
        return "none yet: the first engine lists none"
    return model if "/" in model else f"{model}: {cards[model].description}"


def _complain(message: str, kind: str = "Error") -> None:
    for line in message.splitlines():
        typer.echo(f"{kind}: {line}", err=True)
