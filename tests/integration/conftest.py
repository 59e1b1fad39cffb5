"""What the tests of the doors share: a server in this process, and one as people run it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from backchannel.rpc.server import Server
from tests.support.server import ServerProcess, config, connected
from tests.support.stream import Client


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("BACKCHANNEL_"):
            monkeypatch.delenv(name)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A server in this process."""
    async with Server(config()) as running:
        yield running


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    """A client of `server`."""
    async with connected(server.address, ("grpc.max_send_message_length", -1)) as one:
        yield one


@pytest.fixture
async def server_process(tmp_path: Path) -> AsyncIterator[ServerProcess]:
    """The real command, serving."""
    running = ServerProcess(tmp_path)
    try:
        await running.start()
        yield running
    finally:
        running.kill()


@pytest.fixture
def server_command(tmp_path: Path) -> Iterator[ServerProcess]:
    """The real command, not yet started, to be given other arguments."""
    waiting = ServerProcess(tmp_path)
    try:
        yield waiting
    finally:
        waiting.kill()
