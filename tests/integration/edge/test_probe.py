"""`backchannel probe` where nothing is on the way. What proxies do is in test_proxies.py."""

from __future__ import annotations

from tests.support.edge import Site
from tests.support.probe import SMALL, probe


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
    assert not edge.server.host.residents
