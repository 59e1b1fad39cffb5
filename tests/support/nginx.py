"""A real nginx in front of whatever listens somewhere."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

from scripts import tools
from tests.support.server import START_S

# One process, everything in one folder: it may run as anybody.
CONFIGURATION = """
daemon off;
master_process off;
error_log stderr warn;
pid {folder}/pid;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream backchannel {{ server {upstream}; }}
    server {{
        listen 127.0.0.1:{port};
        {locations}
    }}
}}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _listens(port: int, process: subprocess.Popen[bytes]) -> bool:
    """Wait until it listens; False if it died instead."""
    async with asyncio.timeout(START_S):
        while process.poll() is None:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return True
            await asyncio.sleep(0.01)
    return False


@contextlib.asynccontextmanager
async def nginx(folder: Path, upstream: str, locations: str) -> AsyncIterator[str]:
    """An nginx with these locations; its URL. Mark the test `needs("nginx")`."""
    program = tools.TOOLS["nginx"].find()
    assert program is not None, "mark the test with needs('nginx')"
    # Somebody else may take the port before nginx does.
    for _ in range(5):
        port = free_port()
        text = CONFIGURATION.format(
            folder=folder, upstream=upstream, port=port, locations=locations
        )
        (folder / "nginx.conf").write_text(text, encoding="utf-8")
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(  # noqa: ASYNC220 - forking does not wait for anything
                [program, "-p", folder, "-e", "stderr", "-c", folder / "nginx.conf"],
                stdout=log,
                stderr=log,
                env={**os.environ, **tools.nginx_environment()},
            )
        try:
            if await _listens(port, process):
                yield f"http://127.0.0.1:{port}"
                return
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait, START_S)
    raise AssertionError(f"nginx does not start:\n{(folder / 'log').read_text()}")
