"""docs/proxies.md tells the truth: what it says of each configuration is what comes of it."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.edge import Site
from tests.support.probe import SMALL, Said, probe
from tests.support.proxies import Row, proxy, section, varied

# At a time: they wait most of the time, and starting takes what there is.
TOGETHER = 3


# What a finding's fix names: a setting of the proxy that is there.
SETTINGS = ("buffered", "idle_cut", "cancel_lost", "one_way")
NAMES = {"nginx": "nginx: ", "haproxy": "HAProxy: ", "caddy": "Caddy: "}


def outcome(name: str, said: Said, doors: tuple[str, ...]) -> tuple[str, ...]:
    """What came of it, in the words of the page."""
    streams = {stream["door"]: stream for stream in said.json["streams"]}
    silences = {silence["door"]: silence for silence in said.json["silences"]}
    found: dict[str, list[str]] = {}
    for finding in said.json["findings"]:
        found.setdefault(finding["kind"], []).append(finding["door"])
        if finding["kind"] in SETTINGS:
            assert NAMES[name] in finding["fix"]
    cells = [_stream(streams[door], silences.get(door), found) for door in doors]
    cells += [_duplex(call, silences.get(call["door"])) for call in said.json["duplexes"]]
    if "gRPC" in doors and not said.json["duplexes"]:
        cells.append("none")
    kinds = [f"`{kind}` ({', '.join(sorted(where))})" for kind, where in sorted(found.items())]
    assert said.code == bool(found)
    return (*cells, ", ".join(kinds) or "nothing")


def _stream(stream: Any, silence: Any, found: dict[str, list[str]]) -> str:
    if stream["refusal"] is not None:
        return f"none: {stream['refusal']['status']}"
    held = stream["door"] in found.get("buffered", ())
    together = stream["arrived_over_s"] < 0.25 * stream["sent_over_s"]
    said = "one by one" if not held else "together" if together else "in lumps"
    return said + _cut(silence)


def _duplex(call: Any, silence: Any) -> str:
    # nginx ends it in time, and may say so only when the client speaks again.
    cut = ", cut" if _cut(silence) else ""
    return ("no answer" if call["answered_after_s"] is None else "answers") + cut


def _cut(silence: Any) -> str:
    if silence is None or silence["cut_after_s"] is None:
        return ""
    return f", cut after {silence['cut_after_s']:.0f} s"


async def run(edge: Site, folder: Path, title: str, scheme: str, doors: tuple[str, ...]) -> None:
    configurations, rows = section(title)
    turn = asyncio.Semaphore(TOGETHER)

    async def one(number: int, row: Row) -> Row:
        text = varied(row, configurations[row.name])
        # The time-outs on the page are of 5 s.
        idle = "7" if re.search(r"\b5s", row.given) or row.given == "as above" else "0"
        own = folder / str(number)
        own.mkdir()
        async with turn, proxy(row.name, own, edge.address, text) as behind:
            url = behind.url.replace("http", scheme)
            said = await probe(url, *SMALL, "--idle", idle, "--json", *behind.arguments)
        assert said.out, said.err
        return Row(row.name, row.given, outcome(row.name, said, doors))

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(number, row)) for number, row in enumerate(rows)]
    # As lines of the page: what a failure shows can be put there if it is right.
    assert [task.result().line for task in tasks] == [row.line for row in rows]


@pytest.mark.parametrize("title", ["nginx", "HAProxy", "gRPC itself"])
def test_each_says_who_asks(title: str) -> None:
    # Else whoever asks a proxy on the server's machine is taken for a caller there, and may list.
    configurations, _ = section(title)
    for name, text in configurations.items():
        said = {"nginx": "X-Forwarded-For $proxy_add_x_forwarded_for;", "haproxy": "forwardfor"}
        assert said.get(name, "") in text  # Caddy says it by itself.


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "title",
    [
        pytest.param(title, marks=pytest.mark.needs(title.lower()))
        for title in ("nginx", "HAProxy", "Caddy")
    ],
)
async def test_what_browsers_use(edge: Site, tmp_path: Path, title: str) -> None:
    await run(edge, tmp_path, title, "http", ("SSE", "gRPC-Web"))


@pytest.mark.timeout(300)
@pytest.mark.needs("nginx", "haproxy", "caddy")
async def test_grpc_itself(edge: Site, tmp_path: Path) -> None:
    await run(edge, tmp_path, "gRPC itself", "grpc", ("gRPC",))
