"""Whether anybody is there, and speaks what the URL says: TLS or plain text, HTTP/1 or 2."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from backchannel.listen import Address
from backchannel.probe.plan import PATIENCE_S, UnreachableError

Language = Literal["TLS", "HTTP/2", "HTTP/1", "nothing known"]

# RFC 9113, 3.4 and 6.5: what a client says first, with empty settings.
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_FRAME_HEAD_BYTES: Final = 9
# Each of three questions; who is there answers at once.
_ANSWER_S: Final = 2.0
_SETTINGS: Final = 4

# Numbers of OpenSSL: x509_vfy.h.
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_UNKNOWN_AUTHORITY: Final = (18, 19, 20, 21)
_ANOTHER_NAME: Final = (62, 64)


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose certificates are believed.

    Attributes:
        authority: A PEM file with the only authorities to believe; None: those of this machine, as
            OpenSSL finds them (`SSL_CERT_FILE` and `SSL_CERT_DIR` are heard).
    """

    authority: Path | None = None

    def context(self) -> ssl.SSLContext:
        """What to begin TLS with.

        Raises:
            ValueError: The file cannot be read, or holds no certificate.
        """
        try:
            return ssl.create_default_context(cafile=self.authority)
        except ssl.SSLError:
            raise ValueError(
                f"--ca {self.authority}: there is no certificate in PEM in it"
            ) from None
        except OSError as error:
            raise ValueError(f"--ca {self.authority}: {error.strerror or error}") from None


def authorities(context: ssl.SSLContext) -> bytes | None:
    """What a context believes, as PEM; None where it has read nothing.

    OpenSSL reads a folder of authorities only as it needs them: ask after a handshake.
    """
    found = context.get_ca_certs(binary_form=True)
    return "".join(map(ssl.DER_cert_to_PEM_cert, found)).encode() or None


async def agree_on_tls(address: Address, context: ssl.SSLContext, *protocols: str) -> None:
    """Begin TLS once, to say in words why it fails.

    Args:
        address: Where.
        context: Whom to believe.
        protocols: Of ALPN; the first is insisted on if it is the only one.

    Raises:
        UnreachableError: It fails.
    """
    context.set_alpn_protocols(list(protocols))
    try:
        async with _connected(address, context) as (_, writer):
            agreed = writer.get_extra_info("ssl_object").selected_alpn_protocol()
    except ssl.SSLCertVerificationError as error:
        raise _distrust(address, error) from None
    except (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError) as error:
        spoken = await speaks(address)
        if spoken in ("HTTP/1", "HTTP/2"):
            raise UnreachableError(
                f"{address} speaks {spoken} without TLS",
                "write " + ("http://" if spoken == "HTTP/1" else "http:// or grpc://"),
            ) from None
        why = getattr(error, "reason", None) or type(error).__name__
        raise UnreachableError(
            f"{address} breaks TLS off: {why.replace('_', ' ').lower()}",
            "look into the log of what listens there",
        ) from None
    if len(protocols) == 1 and agreed not in protocols:
        raise UnreachableError(
            f"{address} speaks TLS, but not HTTP/2, which gRPC needs",
            "offer `h2` by ALPN (nginx: `listen 443 ssl http2`; HAProxy: `bind … ssl alpn h2`);"
            " or write https:// for what browsers use",
        )


async def speaks(address: Address) -> Language:
    """What is spoken at an address that did not understand us."""
    anybody = ssl.create_default_context()
    anybody.check_hostname = False
    anybody.verify_mode = ssl.CERT_NONE
    no_answer = (OSError, asyncio.IncompleteReadError, TimeoutError, UnreachableError)
    with contextlib.suppress(*no_answer):
        async with asyncio.timeout(_ANSWER_S), _connected(address, anybody):
            return "TLS"
    with contextlib.suppress(*no_answer):
        async with asyncio.timeout(_ANSWER_S), _connected(address) as (reader, writer):
            writer.write(_PREFACE)
            head = await reader.readexactly(_FRAME_HEAD_BYTES)
            if head[3] == _SETTINGS and not head.startswith(b"HTTP"):
                return "HTTP/2"
    # Some say nothing to that, others what they say to all that is no HTTP/1.
    with contextlib.suppress(*no_answer):
        async with asyncio.timeout(_ANSWER_S), _connected(address) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            if (await reader.readexactly(_FRAME_HEAD_BYTES)).startswith(b"HTTP/1."):
                return "HTTP/1"
    return "nothing known"


async def is_local(address: Address) -> bool:
    """Whether an address can be reached from its own machine alone, also one that has a name."""
    if address.port is None or address.is_local:
        return True
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(Address(str(place[0]), address.port).is_local for *_, place in found)


async def knock(address: Address) -> None:
    """See whether anybody listens.

    Raises:
        UnreachableError: Nobody; says why.
    """
    async with _connected(address):
        pass


@contextlib.asynccontextmanager
async def _connected(
    address: Address, context: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection.

    Raises:
        UnreachableError: There is nobody to connect to.
        OSError: Somebody is there, and TLS came to nothing.
    """
    start = "start `backchannel serve`; it prints its addresses"
    name = "localhost" if address.port is None else address.host
    try:
        async with asyncio.timeout(PATIENCE_S):
            if address.port is None:
                reader, writer = await asyncio.open_unix_connection(
                    address.host, ssl=context, server_hostname=name if context else None
                )
            else:
                reader, writer = await asyncio.open_connection(
                    address.host,
                    address.port,
                    ssl=context,
                    server_hostname=name if context else None,
                )
    except TimeoutError:
        raise UnreachableError(
            f"{address} does not answer within {PATIENCE_S:g} s",
            "see that the address is right and no firewall is on the way",
        ) from None
    except socket.gaierror:
        raise UnreachableError(
            f"there is no machine of the name {address.host}", "see that the name is right"
        ) from None
    except (ConnectionRefusedError, FileNotFoundError):
        raise UnreachableError(f"nobody listens at {address}", start) from None
    except ssl.SSLError:
        raise
    except ConnectionError:
        if context is not None:
            raise
        raise UnreachableError(f"{address} hangs up at once", start) from None
    except OSError as error:
        why = error.strerror or str(error)
        raise UnreachableError(f"{address} cannot be reached: {why}", start) from None
    try:
        yield reader, writer
    finally:
        # Without waiting: what it would say of its end says nothing about the way.
        writer.transport.abort()


def _distrust(address: Address, error: ssl.SSLCertVerificationError) -> UnreachableError:
    code = error.verify_code
    if code in _UNKNOWN_AUTHORITY:
        return UnreachableError(
            f"the certificate of {address} comes from nobody whom this machine trusts",
            "give the authority's certificate with --ca FILE; if it is a public one, let the proxy"
            " send the whole chain (nginx: `ssl_certificate fullchain.pem`)",
        )
    if code in _ANOTHER_NAME:
        return UnreachableError(
            f"the certificate of {address} is for another name than {address.host}",
            "use the name that it was issued for, or have one issued for this name",
        )
    if code == _EXPIRED:
        return UnreachableError(
            f"the certificate of {address} has expired", "renew it, and reload what listens there"
        )
    if code == _NOT_YET_VALID:
        return UnreachableError(
            f"the certificate of {address} is not valid yet", "set the clocks of both machines"
        )
    return UnreachableError(
        f"the certificate of {address} is not to be trusted: {error.verify_message}",
        "have another one issued",
    )
