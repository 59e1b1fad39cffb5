"""Envoy's admin door, over a Unix socket that only we can open.

Source: https://www.envoyproxy.io/docs/envoy/latest/operations/admin
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from pathlib import Path

from backchannel.listen import Address


class Admin:
    """Asks one Envoy.

    Args:
        path: Its socket.
        timeout_s: How long an answer may take.
    """

    def __init__(self, path: Path, *, timeout_s: float = 2.0) -> None:
        self._path = path
        self._timeout_s = timeout_s

    async def is_ready(self) -> bool:
        """Whether it takes connections."""
        try:
            status, _ = await self._ask("GET", "/ready")
        except OSError:
            return False
        return status == http.HTTPStatus.OK

    async def listens_at(self, listener: str) -> Address:
        """Where a listener really is, also when any free port was asked for.

        Raises:
            OSError: It does not answer.
            LookupError: There is no such listener.
        """
        _, body = await self._ask("GET", "/listeners?format=json")
        for status in json.loads(body)["listener_statuses"]:
            if status["name"] == listener:
                place = status["local_address"]["socket_address"]
                return Address(place["address"], place["port_value"])
        raise LookupError(listener)

    async def drain(self) -> None:
        """Let clients go, one answer each: `connection: close` and GOAWAY, then no new ones.

        Raises:
            OSError: It does not answer.
        """
        await self._ask("POST", "/drain_listeners?graceful")

    async def _ask(self, method: str, path: str) -> tuple[int, bytes]:
        return await asyncio.to_thread(self._ask_now, method, path)

    def _ask_now(self, method: str, path: str) -> tuple[int, bytes]:
        connection = _Connection(self._path, self._timeout_s)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from error
        finally:
            connection.close()


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
