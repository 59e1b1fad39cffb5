"""`backchannel probe` where nothing is on the way. What proxies do is in test_proxies.py."""

from __future__ import annotations

import socket

import pytest

from backchannel.listen import Address
from tests.support.edge import Site, site
from tests.support.probe import SMALL, probe
from tests.support.proxy import Proxy

QUICK = ("--frames", "4", "--interval", "0.05", "--idle", "0", "--json")


@pytest.fixture
def outward() -> str:
    """An address of this machine that others can reach."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            # RFC 5737: belongs to nobody. Nothing is sent.
            any_socket.connect(("192.0.2.1", 9))
        except OSError:
            pytest.fail("this machine has no address but its own loopback: bring a network up")
        return str(any_socket.getsockname()[0])


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
    (calls,) = said.json["calls"]
    assert (calls["door"], calls["answered"], calls["refusal"]) == ("REST", 4, None)
    assert 0 < calls["slowest_s"] < 5
    # As it may: it was asked from here.
    assert [(one["listed"], one["local"]) for one in said.json["listings"]] == [(True, True)]
    # Nothing is left behind.
    assert not edge.server.host.residents


async def test_a_path_that_is_too_long(edge: Site) -> None:
    said = await probe(f"{edge.url}/chat", *SMALL, "--idle", "0", "--json")
    assert said.code == 1
    found = {finding["door"]: finding for finding in said.json["findings"]}
    assert {door: finding["kind"] for door, finding in found.items()} == {
        "gRPC-Web": "missing_path",
        "SSE": "missing_path",
    }
    for finding in found.values():
        assert "`backchannel serve` prints" in finding["fix"]


async def test_all_is_well_at_grpc(edge: Site) -> None:
    said = await probe(str(edge.server.address), *SMALL, "--idle", "1")
    assert said.code == 0, said.out + said.err
    assert "All is well." in said.out
    assert "30 frames" in said.out
    assert "the server stops after" in said.out
    assert "answers after" in said.out
    assert "told to this machine" in said.out
    assert not edge.server.host.residents


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_a_proxy_that_hides_who_asks_gives_secrets_away(scheme: str, outward: str) -> None:
    async with site(hosts=("*",)) as edge, Proxy(edge.address, listen=outward) as proxy:
        said = await probe(f"{scheme}://{proxy.address}", *QUICK)
    door = {"http": "REST", "grpc": "gRPC"}[scheme]
    assert said.code == 1, said.out
    assert said.kinds == {(door, "listable")}
    assert "X-Forwarded-For" in said.json["findings"][0]["fix"]


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_an_envoy_that_others_can_reach_lists_nothing(scheme: str, outward: str) -> None:
    async with site(hosts=("*",), listen=Address(outward, 0)) as edge:
        said = await probe(f"{scheme}://{edge.address}", *QUICK)
    assert said.code == 0, said.out
    assert [(one["listed"], one["local"]) for one in said.json["listings"]] == [(False, False)]


async def test_a_service_that_is_away(edge: Site) -> None:
    await edge.server.drain(0)
    said = await probe(edge.url, *QUICK)
    assert said.code == 1
    assert said.kinds == {("gRPC-Web", "upstream_down"), ("SSE", "upstream_down")}
