"""A real Prometheus, beside what it scrapes, for as long as it is needed."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

from scripts import tools

FOLDER: Final = tools.ROOT / "deploy" / "observability" / "prometheus"
RULES: Final = FOLDER / "rules.yaml"
_START_S: Final = 30.0


class Prometheus:
    """A running one.

    Args:
        url: Where it is.
        scrape_s: How often it scrapes.
    """

    def __init__(self, url: str, scrape_s: float) -> None:
        self.url = url
        self.scrape_s = scrape_s
        self.client = httpx.AsyncClient(base_url=url, timeout=10)

    async def query(self, query: str) -> list[dict[str, Any]]:
        """An instant query's result.

        Raises:
            ValueError: Prometheus does not understand it.
        """
        return await self._ask("/api/v1/query", query)

    async def query_range(
        self, query: str, start_s: float, end_s: float, step_s: float
    ) -> list[dict[str, Any]]:
        """A query's result over time.

        Raises:
            ValueError: Prometheus does not understand it.
        """
        return await self._ask("/api/v1/query_range", query, start=start_s, end=end_s, step=step_s)

    async def _ask(self, path: str, query: str, **more: float) -> list[dict[str, Any]]:
        answer = (await self.client.get(path, params={"query": query, **more})).json()
        if answer["status"] != "success":
            raise ValueError(f"{query}: {answer}")
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    async def total(self, query: str) -> float:
        """The sum of all series."""
        return sum(float(series["value"][1]) for series in await self.query(query))

    async def rules(self) -> list[dict[str, Any]]:
        """All rules and what they say now."""
        answer = (await self.client.get("/api/v1/rules")).json()
        return [rule for group in answer["data"]["groups"] for rule in group["rules"]]


@asynccontextmanager
async def prometheus(
    folder: Path, target: str, *, scrape_s: float = 0.2
) -> AsyncIterator[Prometheus]:
    """Prometheus with our rules.

    Args:
        folder: For its data, its configuration and what it says.
        target: `host:port` with the metrics.
        scrape_s: How often it looks.

    Raises:
        FileNotFoundError: It is not installed.
        RuntimeError: It does not start.
        TimeoutError: It does not scrape.
    """
    settings = yaml.safe_load((FOLDER / "prometheus.yaml").read_text(encoding="utf-8"))
    settings["global"] = {
        "scrape_interval": f"{scrape_s * 1000:g}ms",
        "evaluation_interval": "1s",
    }
    settings["rule_files"] = [str(RULES)]
    settings["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    tool = tools.TOOLS["prometheus"]
    program, port = tool.find(), _free_port()
    if program is None:
        raise FileNotFoundError(tool.remedy)
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(  # noqa: ASYNC220 - forking does not wait for anything
            [
                str(program),
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=output,
            stderr=output,
            env={**os.environ, "GOMAXPROCS": "1"},
        )
    running = Prometheus(f"http://127.0.0.1:{port}", scrape_s)
    try:
        async with asyncio.timeout(_START_S):
            while not await _ready(running):
                if process.poll() is not None:
                    raise RuntimeError((folder / "output").read_text(encoding="utf-8"))
                await asyncio.sleep(0.05)
        yield running
    finally:
        await running.client.aclose()
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


async def _ready(running: Prometheus) -> bool:
    """Whether it scrapes; it begins some seconds after its start."""
    try:
        if (await running.client.get("/-/ready")).status_code != 200:
            return False
    except httpx.TransportError:
        return False
    return await running.total("up") > 0
