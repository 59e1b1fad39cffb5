"""Real proxies in front of whatever listens somewhere, configured as docs/proxies.md has it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from scripts import tools
from tests.support.server import START_S

PAGE = tools.ROOT / "docs" / "proxies.md"
# What stands for Envoy on the page.
UPSTREAM = "127.0.0.1:8080"

# One process, everything in one folder: it may run as anybody.
NGINX = """
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
    {text}
}}
"""
CADDY = """
{{
    admin off
    auto_https disable_redirects
    skip_install_trust
    default_bind 127.0.0.1
    storage file_system {folder}/storage
}}
{text}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# --- running them -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Proxy:
    """How one of them is run.

    Attributes:
        configure: From the page's text, a folder and a port to what the program is given.
        command: From its path and the configuration's to how it is started.
        scheme: How it is spoken to.
        authority: Who vouches for its certificate, in its folder.
    """

    configure: Callable[[str, Path, int], str]
    command: Callable[[Path, Path], list[str | Path]]
    scheme: str = "http"
    authority: str | None = None


@dataclass(frozen=True)
class Running:
    """One that runs.

    Attributes:
        url: Where.
        arguments: What `probe` has to be told to believe it.
    """

    url: str
    arguments: tuple[str, ...] = ()


PROXIES = {
    "nginx": Proxy(
        lambda text, folder, port: NGINX.format(
            folder=folder, text=text.replace("listen 80", f"listen 127.0.0.1:{port}")
        ),
        lambda program, file: [program, "-p", file.parent, "-e", "stderr", "-c", file],
    ),
    "haproxy": Proxy(
        lambda text, folder, port: text.replace("bind :80", f"bind 127.0.0.1:{port}"),
        lambda program, file: [program, "-db", "-f", file],
    ),
    "caddy": Proxy(
        lambda text, folder, port: CADDY.format(
            folder=folder, text=text.replace("chat.example {", f"https://localhost:{port} {{")
        ),
        lambda program, file: [program, "run", "--adapter", "caddyfile", "--config", file],
        scheme="https",
        authority="storage/pki/authorities/local/root.crt",
    ),
}


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
async def proxy(name: str, folder: Path, upstream: str, text: str) -> AsyncIterator[Running]:
    """One of them, configured so. Mark the test `needs(name)`.

    Args:
        name: Of PROXIES.
        folder: Where it keeps its things.
        upstream: What to put in the place of UPSTREAM.
        text: As on the page.
    """
    kind = PROXIES[name]
    program = tools.TOOLS[name].find()
    assert program is not None, f"mark the test with needs({name!r})"
    file = folder / "configuration"
    # Somebody else may take the port before the proxy does.
    for _ in range(5):
        port = free_port()
        file.write_text(kind.configure(text.replace(UPSTREAM, upstream), folder, port))
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(  # noqa: ASYNC220 - forking does not wait for anything
                kind.command(program, file),
                stdout=log,
                stderr=log,
                env={**os.environ, **tools.package_environment(), "HOME": str(folder)},
            )
        try:
            if await _listens(port, process):
                trust = () if kind.authority is None else ("--ca", str(folder / kind.authority))
                yield Running(f"{kind.scheme}://localhost:{port}", trust)
                return
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait, START_S)
    raise AssertionError(f"{name} does not start:\n{(folder / 'log').read_text()}")


# --- the page ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A line of a table: what is put into the configuration, and what it says comes of it."""

    name: str
    given: str
    cells: tuple[str, ...]

    @property
    def line(self) -> str:
        """Without the proxy's name."""
        return " | ".join((self.given, *self.cells))


def section(title: str) -> tuple[dict[str, str], list[Row]]:
    """The configurations, by the proxy, and the rows of one section of the page."""
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(f"\n## {title}\n")
    text, _, _ = rest.partition("\n## ")
    blocks = re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)
    configurations = {language.removesuffix("file"): block for language, block in blocks}
    rows = []
    for line in text.splitlines():
        cells = tuple(cell.strip() for cell in line.strip("|").split(" | "))
        if line.startswith("|") and cells[0] not in ("with", "proxy") and "---" not in line:
            several = len(configurations) > 1
            name = cells[0] if several else next(iter(configurations))
            given, *outcome = cells[1:] if several else cells
            rows.append(Row(name, given, tuple(outcome)))
    assert rows, f"{PAGE}: no table under {title}"
    return configurations, rows


def varied(row: Row, text: str) -> str:
    """The configuration with what a row puts into it."""
    if row.given == "as above":
        return text
    lines = re.findall(r"`([^`]+)`", row.given)
    if row.name == "haproxy":
        return text + "".join(f"    {line}\n" for line in lines)
    more = " ".join(lines)
    if row.name == "nginx":
        if more.startswith("location"):
            return re.sub(r"location / \{.*?\n    \}", lambda _: more, text, flags=re.DOTALL)
        return re.sub(r"\n\n( {8}.*\n)+", lambda _: f"\n{more}\n", text)
    # Caddy wants a line for each, and one for each brace.
    more = "\n".join(lines).replace("; ", "\n").replace("{ ", "{\n").replace(" }", "\n}")
    if row.given.startswith("beside"):
        return text.replace("    reverse_proxy", f"{more}\n    reverse_proxy")
    return text.replace("    }\n", f"{more}\n    }}\n")
