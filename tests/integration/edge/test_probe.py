"""`backchannel probe`: all is well at Envoy and at gRPC; what proxies break is named."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.edge import Site
from tests.support.nginx import free_port, nginx

PASS = "proxy_pass http://backchannel; proxy_set_header Host $http_host;"
STREAMING = f"{PASS} proxy_http_version 1.1; proxy_buffering off;"
# 30 frames over 3 s, so that a busy machine's pauses are small against it.
SMALL = ("--frames", "30", "--interval", "0.1")


@dataclass
class Said:
    """What the command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def kinds(self) -> set[tuple[str, str]]:
        return {(finding["door"], finding["kind"]) for finding in self.json["findings"]}


async def probe(*arguments: str) -> Said:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "backchannel", "probe", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return Said(process.returncode, out.decode(), err.decode())


async def test_all_is_well_at_envoy(edge: Site) -> None:
    said = await probe(edge.url, *SMALL, "--idle", "1", "--json")
    assert said.code == 0, said.out
    assert said.json["ok"] is True
    assert [stream["door"] for stream in said.json["streams"]] == ["gRPC-Web", "SSE"]
    for stream in said.json["streams"]:
        assert stream["frames"] > 15
        assert stream["http_version"] == "HTTP/1.1"
    assert [silence["cut_after_s"] for silence in said.json["silences"]] == [None, None]
    (cancel,) = said.json["cancels"]
    assert cancel["stopped_after_s"] is not None
    # Nothing is left behind.
    assert not edge.server.host._live


async def test_all_is_well_at_grpc(edge: Site) -> None:
    said = await probe(str(edge.server.address), *SMALL, "--idle", "1")
    assert said.code == 0, said.out + said.err
    assert "All is well." in said.out
    assert "30 frames" in said.out
    assert "the server stops after" in said.out
    assert not edge.server.host._live


async def test_nobody_is_there() -> None:
    away = [f"http://127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"]
    for url in (*away, "ftp://a", "a", "http://", "http://[x", "http://a:99999"):
        said = await probe(url, "--idle", "0")
        assert said.code == 2
        assert "Give a URL" in said.err
        assert "Traceback" not in said.err


@pytest.mark.needs("nginx")
async def test_nginx_that_lets_it_through(edge: Site, tmp_path: Path) -> None:
    async with nginx(tmp_path, edge.address, f"location / {{ {STREAMING} }}") as url:
        said = await probe(url, *SMALL, "--idle", "1", "--json")
    assert said.code == 0, said.out
    assert {stream["server"].partition("/")[0] for stream in said.json["streams"]} == {"nginx"}


@pytest.mark.needs("nginx")
async def test_a_buffering_nginx_is_named(edge: Site, tmp_path: Path) -> None:
    # Its default of HTTP/1.0, without the word of the server that would switch buffering off; and
    # deaf for readers that leave.
    held = f"location / {{ {PASS} proxy_http_version 1.0; proxy_buffering on;"
    held += " proxy_buffer_size 64k; proxy_buffers 4 64k; proxy_busy_buffers_size 64k;"
    held += " proxy_ignore_headers X-Accel-Buffering; proxy_ignore_client_abort on; }"
    async with nginx(tmp_path, edge.address, held) as url:
        said = await probe(url, *SMALL, "--idle", "0", "--json")
    assert said.code == 1, said.out
    named = {("gRPC-Web", "buffered"), ("SSE", "buffered"), ("SSE", "cancel_lost")}
    assert named <= said.kinds
    for finding in said.json["findings"]:
        if finding["kind"] == "buffered":
            assert "arrived together" in finding["text"]
            assert "`proxy_buffering off`" in finding["fix"]


@pytest.mark.needs("nginx")
async def test_an_idle_time_out_is_named(edge: Site, tmp_path: Path) -> None:
    short = f"location / {{ {STREAMING} proxy_read_timeout 2s; }}"
    async with nginx(tmp_path, edge.address, short) as url:
        said = await probe(url, *SMALL, "--idle", "8", "--json")
    assert said.code == 1, said.out
    assert {("gRPC-Web", "idle_cut"), ("SSE", "idle_cut")} <= said.kinds
    for silence in said.json["silences"]:
        assert 1 < silence["cut_after_s"] < 8
    assert "proxy_read_timeout" in said.out


@pytest.mark.needs("nginx")
@pytest.mark.parametrize(
    ("locations", "kinds"),
    [
        pytest.param(
            f"location / {{ {STREAMING} limit_except GET {{ deny all; }} }}",
            {("gRPC-Web", "missing_path"), ("SSE", "missing_path")},
            id="no POST",
        ),
        pytest.param(
            f"location /v1/ {{ {STREAMING} }}", {("gRPC-Web", "missing_path")}, id="REST alone"
        ),
        pytest.param(
            "location / { proxy_pass http://backchannel; }",
            {("gRPC-Web", "wrong_host"), ("SSE", "wrong_host")},
            id="another name",
        ),
        pytest.param(
            "location / { return 502; }",
            {("gRPC-Web", "upstream_down"), ("SSE", "upstream_down")},
            id="nobody behind",
        ),
    ],
)
async def test_a_missing_way_up_is_named(
    edge: Site, tmp_path: Path, locations: str, kinds: set[tuple[str, str]]
) -> None:
    async with nginx(tmp_path, edge.address, locations) as url:
        said = await probe(url, *SMALL, "--idle", "0", "--json")
    assert said.code == 1, said.out
    assert said.kinds >= kinds
    assert all(kind in {kind for _, kind in kinds} for _, kind in said.kinds)
