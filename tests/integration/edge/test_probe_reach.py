"""`backchannel probe` over TLS, and what it says where there is nothing to measure."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import os
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import self_signed
from tests.support.edge import Site, site
from tests.support.probe import SMALL, Said, probe
from tests.support.proxies import free_port

QUICK = ("--frames", "4", "--interval", "0.05", "--idle", "0")


@contextlib.asynccontextmanager
async def over_tls(folder: Path, *names: str, **validity: Any) -> AsyncIterator[Site]:
    """A real Envoy that speaks TLS, with such a certificate."""
    certificate, key = self_signed(folder, *names, **validity)
    async with site(overlays=("tls",), tls_certificate=certificate, tls_key=key) as edge:
        yield edge


def refused(said: Said, text: str, fix: str) -> None:
    """It says so on two lines, the second of which helps."""
    assert said.code == 2, said.out
    first, second = said.err.splitlines()
    assert text in first
    assert fix in second


async def test_all_is_well_over_tls(tmp_path: Path) -> None:
    async with over_tls(tmp_path) as edge:
        port = edge.address.rpartition(":")[2]
        authority = ("--ca", str(tmp_path / "authority.crt"))
        web, native = await asyncio.gather(
            probe(f"https://{edge.address}", *SMALL, "--idle", "1", "--json", *authority),
            probe(f"grpcs://localhost:{port}", *SMALL, "--idle", "1", "--json", *authority),
        )
    for said, doors in ((web, ["gRPC-Web", "SSE"]), (native, ["gRPC"])):
        assert said.code == 0, said.out + said.err
        assert [stream["door"] for stream in said.json["streams"]] == doors
        assert {stream["http_version"] for stream in said.json["streams"]} == {"HTTP/2"}


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
async def test_who_vouches(tmp_path: Path, scheme: str) -> None:
    async with over_tls(tmp_path) as edge:
        url = f"{scheme}://{edge.address}"
        refused(await probe(url, *QUICK), "comes from nobody whom this machine trusts", "--ca FILE")
        # What OpenSSL takes as the authorities that the machine knows.
        known = {"SSL_CERT_FILE": str(tmp_path / "authority.crt")}
        assert (await probe(url, *QUICK, env=known)).code == 0
        # Given authorities are the only ones.
        other = tmp_path / "other"
        other.mkdir()
        self_signed(other)
        said = await probe(url, *QUICK, "--ca", str(other / "authority.crt"), env=known)
        refused(said, "comes from nobody", "--ca FILE")


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
async def test_another_name(tmp_path: Path, scheme: str) -> None:
    async with over_tls(tmp_path, "chat.example") as edge:
        authority = str(tmp_path / "authority.crt")
        said = await probe(f"{scheme}://{edge.address}", *QUICK, "--ca", authority)
    refused(said, "is for another name than 127.0.0.1", "use the name")


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
async def test_an_old_certificate(tmp_path: Path, scheme: str) -> None:
    yesterday = datetime.now(UTC) - timedelta(days=1)
    async with over_tls(tmp_path, not_after=yesterday) as edge:
        authority = str(tmp_path / "authority.crt")
        said = await probe(f"{scheme}://{edge.address}", *QUICK, "--ca", authority)
    refused(said, "has expired", "renew it")


async def test_plain_text_to_tls(tmp_path: Path) -> None:
    async with over_tls(tmp_path) as edge:
        refused(await probe(f"http://{edge.address}", *QUICK), "speaks TLS", "write https://")
        refused(await probe(edge.address, *QUICK), "speaks TLS", "write grpcs://")


async def test_tls_to_plain_text(edge: Site) -> None:
    grpc = str(edge.server.address)
    urls = [f"{scheme}://{at}" for scheme in ("https", "grpcs") for at in (edge.address, grpc)]
    for said in await asyncio.gather(*(probe(url, *QUICK) for url in urls)):
        refused(said, "without TLS", "grpc://")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [("missing", None, "No such file"), ("empty", "", "no certificate"), ("text", "x", "no cert")],
)
async def test_no_authority(tmp_path: Path, name: str, content: str | None, said: str) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_text(content)
    found = await probe("https://127.0.0.1:1", *QUICK, "--ca", str(file))
    assert found.code == 2
    assert said in found.err
    assert str(file) in found.err


async def test_the_port_of_grpc_is_no_web_server(edge: Site) -> None:
    address = str(edge.server.address)
    said = await probe(f"http://{address}", *QUICK)
    refused(said, "it is a port of gRPC", f"write {address}")
    assert "backchannel[edge]" in said.err


async def test_nobody_listens() -> None:
    urls = (f"http://127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}", "unix:/no/where")
    for said in await asyncio.gather(*(probe(url, *QUICK) for url in urls)):
        refused(said, "nobody listens", "backchannel serve")
    refused(await probe("http://nowhere.invalid", *QUICK), "no machine of the name", "name")
    said = await probe(f"http://127.0.0.1:{free_port()}", *QUICK, "--json")
    assert said.code == 2
    assert said.json["ok"] is False
    (finding,) = said.json["findings"]
    assert finding["kind"] == "unreachable"
    assert "backchannel serve" in finding["fix"]


@pytest.mark.parametrize(
    "url",
    ["ftp://a", "a", "http://", "http://[x", "http://a:99999", "grpc://", "127.0.0.1:0"],
)
async def test_no_url(url: str) -> None:
    said = await probe(url, *QUICK)
    assert said.code == 2
    assert "give a URL" in said.err


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


async def test_somebody_who_says_nothing() -> None:
    async with await asyncio.start_server(silent, "127.0.0.1", 0) as listening:
        host, port = listening.sockets[0].getsockname()
        url = f"{host}:{port}"
        web, native = await asyncio.gather(probe(f"http://{url}", *QUICK), probe(url, *QUICK))
    refused(web, "does not answer as HTTP does", "web server")
    refused(native, "nothing speaks gRPC", "backchannel serve")


@pytest.fixture
def website(tmp_path: Path) -> Iterator[str]:
    """A web server that is not Backchannel."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=os.fspath(tmp_path))

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def test_a_web_server_that_is_something_else(website: str) -> None:
    said = await probe(f"http://{website}", *QUICK, "--json")
    assert said.code == 1
    assert said.kinds == {("gRPC-Web", "missing_path"), ("SSE", "missing_path")}
    for finding in said.json["findings"]:
        assert "`backchannel serve` prints" in finding["fix"]
    refused(await probe(website, *QUICK), "speaks HTTP/1, and gRPC needs HTTP/2", "http://")
