"""Where a server listens."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Address:
    """A place to listen at.

    Attributes:
        host: A name or an IP address; the path for a Unix socket.
        port: 0 to 65535, 0 for any free one; None for a Unix socket.
    """

    host: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `host:port`, `[ipv6]:port` or `unix:/path`.

        Raises:
            ValueError: It is none of these; says what to write.
        """
        if text.startswith("unix:"):
            path = text.removeprefix("unix:").removeprefix("//")
            if not path.startswith("/"):
                raise ValueError("write a Unix socket with its whole path, as unix:/run/name.sock")
            return cls(path, None)
        host, separator, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if not separator or not host or (":" in host and not bracketed):
            raise ValueError("write host:port, [ipv6]:port or unix:/path")
        if not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError("the port must be a number from 0 to 65535")
        return cls(host.strip("[]"), int(port))

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.port is None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def from_here(self) -> Address:
        """What a client on this machine dials: for "every address", the loopback one."""
        here = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound
        return Address(here.get(self.host, self.host), self.port)

    def with_port(self, port: int) -> Address:
        """The same place, with the port that was really taken."""
        return self if self.port is None else Address(self.host, port)

    def __str__(self) -> str:
        if self.port is None:
            return f"unix:{self.host}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
