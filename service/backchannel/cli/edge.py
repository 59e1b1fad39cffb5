"""The HTTP server in front: what `serve` does about it, and `backchannel edge`."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Final, Self

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backchannel.config import ServeConfig
    from backchannel.edge.process import Edge
    from backchannel.listen import Address

EXIT_USAGE: Final = 2

app = typer.Typer(no_args_is_help=True, help="Envoy, the HTTP server in front of the service.")


class BrowserEdge:
    """The Envoy of one `serve`, if it is to have one.

    Args:
        config: Whether, and where.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._edge: Edge | None = None
        self.problem = ""
        """Why there is none, if nobody said that there must be or must not."""
        self.url = ""
        """What to open; empty without an edge."""

    async def __aenter__(self) -> Self:
        """Begin to own it."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """End it."""
        if self._edge is not None:
            await self._edge.__aexit__(exc_type, exc, tb)

    async def start(self, upstream: Address) -> None:
        """Start it, if it is wanted.

        Args:
            upstream: Where the service listens.

        Raises:
            EdgeError: It cannot be had, and it was asked for in words.
        """
        if self._config.edge is False:
            return
        from backchannel.edge.rendering import EdgeError

        try:
            await self._start(upstream)
        except EdgeError as error:
            if self._config.edge:
                raise
            self.problem = str(error)

    async def drain(self) -> None:
        """Ask its clients to leave."""
        if self._edge is not None:
            await self._edge.drain()

    async def _start(self, upstream: Address) -> None:
        from backchannel.edge.process import Edge
        from backchannel.edge.rendering import ANY_HOST, LOOPBACK_HOSTS, Placement
        from backchannel.listen import Address

        config = self._config
        listen = config.edge_address
        overlays = _overlays(config.edge_overlays, config.edge_tls_certificate)
        placement = Placement(
            listen=listen,
            upstreams=(upstream.from_here,),
            admin=Address("127.0.0.1", 0),
            descriptors="",
            hosts=config.edge_hosts or (LOOPBACK_HOSTS if listen.is_local else (ANY_HOST,)),
            origins=config.edge_origins,
            overlays=overlays,
            tls_certificate=config.edge_tls_certificate,
            tls_key=config.edge_tls_key,
        )
        edge = Edge(placement, drain_s=config.drain_grace_s)
        await edge.start()
        self._edge = edge
        scheme = "https" if "tls" in overlays else "http"
        self.url = f"{scheme}://{edge.address.from_here}/"


@app.command()
def render(
    output: Annotated[
        Path, typer.Option(help="The folder to write envoy.yaml and backchannel.pb into.")
    ],
    listen: Annotated[str, typer.Option(help="Where Envoy listens.")] = "127.0.0.1:8080",
    upstream: Annotated[
        list[str] | None,
        typer.Option(help="A replica of the service, or a name of several; may be given again."),
    ] = None,
    admin: Annotated[str, typer.Option(help="Envoy's admin door.")] = "127.0.0.1:9901",
    host: Annotated[
        list[str] | None, typer.Option(help="A name it answers to. Default: any.")
    ] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option(
            help="A page of another origin that may use it, such as https://chat.example."
        ),
    ] = None,
    overlay: Annotated[
        list[str] | None, typer.Option(help="tls, http3, or the path of a YAML file.")
    ] = None,
    tls_cert: Annotated[
        str,
        typer.Option(help="A PEM file with the chain, as Envoy will find it. Implies tls."),
    ] = "",
    tls_key: Annotated[
        str, typer.Option(help="A PEM file with its key, as Envoy will find it.")
    ] = "",
    descriptors: Annotated[
        str,
        typer.Option(help="Where Envoy will find backchannel.pb. Default: where it is written."),
    ] = "",
) -> None:
    """Write the configuration of an Envoy that runs elsewhere: in a container, on another host.

    **Examples**

    - `backchannel edge render --output edge && envoy --config-path edge/envoy.yaml`

    - `backchannel edge render --output edge --listen 0.0.0.0:8080 --upstream backchannel:50051
      --descriptors /etc/envoy/backchannel.pb`
    """
    from backchannel.edge.rendering import DESCRIPTORS_NAME, EdgeError, Placement, write
    from backchannel.listen import Address
    from backchannel.origin import check

    try:
        for each in origin or ():
            check(each)
        placement = Placement(
            listen=Address.parse(listen),
            upstreams=tuple(map(Address.parse, upstream or ["127.0.0.1:50051"])),
            admin=Address.parse(admin),
            descriptors=descriptors or str(output.absolute() / DESCRIPTORS_NAME),
            hosts=tuple(host or ["*"]),
            origins=tuple(origin or ()),
            overlays=_overlays(overlay or (), tls_cert),
            tls_certificate=tls_cert,
            tls_key=tls_key,
        )
        output.mkdir(parents=True, exist_ok=True)
        path = write(output, placement)
    except (EdgeError, ValueError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(EXIT_USAGE) from None
    typer.echo(f"Wrote {path} and {output / DESCRIPTORS_NAME}")


def _overlays(chosen: Sequence[str], certificate: str) -> tuple[str, ...]:
    """Those that were chosen, each once, and `tls` with a certificate."""
    return tuple(dict.fromkeys((*(("tls",) if certificate else ()), *chosen)))
