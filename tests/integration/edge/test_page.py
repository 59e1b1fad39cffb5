"""The page and its assets through a real Envoy."""

from __future__ import annotations

import re

import httpx
import pytest

from tests.support.edge import Site, create, readers


async def test_the_page(either: httpx.AsyncClient) -> None:
    response = await either.get("/")
    assert response.status_code == 200
    headers = response.headers
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["cache-control"] == "no-cache"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert not [name for name in headers if name.startswith(("grpc-", "x-envoy-", "server"))]
    assert "<!doctype html>" in response.text.lower()


async def test_a_page_that_is_still_the_same_is_not_sent_again(either: httpx.AsyncClient) -> None:
    etag = (await either.get("/")).headers["etag"]
    response = await either.get("/", headers={"if-none-match": etag})
    assert response.status_code == 304
    assert response.content == b""
    assert "x-backchannel-http-status" not in response.headers
    assert (await either.get("/", headers={"if-none-match": '"other"'})).status_code == 200


async def test_what_the_page_asks_for_is_there(either: httpx.AsyncClient) -> None:
    page = (await either.get("/")).text
    asked = re.findall(r'(?:src|href)="([^"]+)"', page)
    # Nothing from elsewhere, and all of it with a digest in its name.
    assert asked
    assert all(path.startswith("/assets/") for path in asked)
    for path in asked:
        response = await either.get(path)
        assert response.status_code == 200
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert response.headers.get("content-encoding") in ("gzip", None)
        assert response.content


async def test_a_head_is_the_same_without_the_body(either: httpx.AsyncClient) -> None:
    asset = re.findall(r'src="([^"]+)"', (await either.get("/")).text)[0]
    for path in ("/", asset, "/v1/sessions", "/nothing", "/assets/nothing.js"):
        whole = await either.get(path)
        # On one connection: a body would be taken for the beginning of the next answer.
        for _ in range(2):
            response = await either.head(path)
            assert response.status_code == whole.status_code
            assert response.content == b""
            ours = dict(response.headers) | {"date": ""}
            assert ours == dict(whole.headers) | {"date": ""}


async def test_a_head_of_a_page_that_is_still_the_same(either: httpx.AsyncClient) -> None:
    etag = (await either.head("/")).headers["etag"]
    assert (await either.head("/", headers={"if-none-match": etag})).status_code == 304


async def test_a_stream_has_no_head(edge: Site, either: httpx.AsyncClient) -> None:
    session_id = await create(either, model="scripted/echo")
    response = await either.head(f"/v1/sessions/{session_id}/events")
    assert response.status_code == 404
    assert not readers(edge.server, session_id)


@pytest.mark.parametrize(
    "path",
    [
        "/assets/../index.html",
        "/assets/..%2findex.html",
        "/assets/%2e%2e/%2e%2e/doors.py",
        "/assets//etc/passwd",
        "/index.html",
        "/assets/%00",
    ],
)
async def test_there_is_no_way_out(either: httpx.AsyncClient, path: str) -> None:
    response = await either.get(path)
    assert response.status_code in (400, 404)
    assert response.json()["code"] in (3, 5)
