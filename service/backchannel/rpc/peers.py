"""Where a caller is."""

from __future__ import annotations

import ipaddress
from typing import Any
from urllib.parse import unquote

import grpc


def is_local(context: grpc.aio.ServicerContext[Any, Any]) -> bool:
    """Whether the caller, and everyone whom a proxy says it speaks for, is on this machine."""
    return is_local_peer(context.peer()) and all(map(is_loopback, _forwarded(context)))


def is_forwarded(context: grpc.aio.ServicerContext[Any, Any]) -> bool:
    """Whether a proxy speaks for the caller."""
    return bool(_forwarded(context))


def _forwarded(context: grpc.aio.ServicerContext[Any, Any]) -> list[str]:
    """Whom proxies say they speak for."""
    return [
        address
        for key, value in context.invocation_metadata() or ()
        if key == "x-forwarded-for"
        for address in str(value).split(",")
    ]


def is_local_peer(peer: str) -> bool:
    """Whether an address in gRPC's notation is of this machine.

    Args:
        peer: `ipv4:ADDRESS:PORT`, `ipv6:[ADDRESS]:PORT`, perhaps percent-encoded, or `unix:PATH`.

    Source: https://github.com/grpc/grpc/blob/master/doc/naming.md
    """
    scheme, _, rest = unquote(peer).partition(":")
    if scheme in ("unix", "unix-abstract"):
        return True
    address = rest.rpartition(":")[0]
    return scheme in ("ipv4", "ipv6") and is_loopback(address.strip("[]"))


def is_loopback(address: str) -> bool:
    """Whether an IP address is a loopback address; anything else is not."""
    try:
        parsed = ipaddress.ip_address(address.strip())
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback
