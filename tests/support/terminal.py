"""A terminal with a person at it, for the commands that people use."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from typing import Self

PATIENCE_S = 20.0
ROWS, COLUMNS = 40, 100
# Opening a terminal as the leader of a session without one makes it the session's own, so that
# Ctrl-C means what it means.
_LAUNCH = """
import os, sys
terminal = os.open(sys.argv[1], os.O_RDWR)
for number in (0, 1, 2):
    os.dup2(terminal, number)
os.execv(sys.executable, [sys.executable, "-m", "backchannel", *sys.argv[2:]])
"""
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-Z\\-_]")
_WHERE_IS_THE_CURSOR = b"\x1b[6n"


class Terminal:
    """`backchannel` in a terminal of its own.

    Args:
        arguments: Its arguments.
        environment: On top of this process's.
    """

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self._arguments = arguments
        self._environment = environment or {}
        self._raw = b""
        self._came = asyncio.Event()
        self._seen = 0

    async def __aenter__(self) -> Self:
        self._screen, self._inside = pty.openpty()
        fcntl.ioctl(self._inside, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color", **self._environment}
        self.process = subprocess.Popen(  # noqa: ASYNC220 (forking does not wait for anything)
            [sys.executable, "-c", _LAUNCH, os.ttyname(self._inside), *self._arguments],
            env=environment,
            start_new_session=True,
        )
        # Our own end of the inside stays open: the screen of a program that has ended, or has not
        # begun, is empty and not gone.
        asyncio.get_running_loop().add_reader(self._screen, self._read)
        return self

    async def __aexit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        asyncio.get_running_loop().remove_reader(self._screen)
        os.close(self._screen)
        os.close(self._inside)

    @property
    def text(self) -> str:
        """Everything that was ever printed, without colours and cursors."""
        return _ESCAPES.sub("", self._raw.decode(errors="replace")).replace("\r", "\n")

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._screen, keys.encode())

    async def expect(self, pattern: str) -> re.Match[str]:
        """Wait until something new is printed that matches."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    found = re.compile(pattern).search(self.text, self._seen)
                    if found:
                        self._seen = found.end()
                        return found
                    self._came.clear()
                    await self._came.wait()
        except TimeoutError:
            new = self.text[self._seen :]
            raise AssertionError(f"{pattern!r} did not appear; this did:\n{new}") from None

    async def ended(self) -> int:
        """Wait until the program has ended; its exit code."""
        return await asyncio.to_thread(self.process.wait, PATIENCE_S)

    def _read(self) -> None:
        data = os.read(self._screen, 65536)
        self._raw += data
        if _WHERE_IS_THE_CURSOR in data:
            os.write(self._screen, b"\x1b[1;1R")
        self._came.set()
