"""What Envoy answers by itself: shaped as what the service answers, whoever asks."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import httpx
import pytest

from backchannel.v1 import conversation_service_pb2 as pb
from tests.support.edge import Site, create, web_call
from tests.support.server import connected
from tests.support.stream import PATIENCE_S

REASON = "type.googleapis.com/google.rpc.ErrorInfo"
RETRY = "type.googleapis.com/google.rpc.RetryInfo"


def details(response: httpx.Response) -> dict[str, dict[str, Any]]:
    """The details of an error, by type."""
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    return {one["@type"]: one for one in response.json()["details"]}


async def test_a_service_that_is_away_says_when_to_ask_again(
    edge: Site, either: httpx.AsyncClient
) -> None:
    session_id = await create(either, model="scripted/echo")
    await edge.server.drain(0)
    for method, path in (
        ("GET", f"/v1/sessions/{session_id}"),
        ("POST", f"/v1/sessions/{session_id}/frames"),
        ("GET", "/"),
    ):
        response = await either.request(method, path)
        assert response.status_code == 503
        assert response.headers["retry-after"] == "2"
        assert response.json()["code"] == 14
        assert response.json()["message"].startswith("the service cannot be reached")
        found = details(response)
        assert found[RETRY]["retryDelay"] == "1.500s"
        assert found[REASON]["reason"] == "SERVICE_UNREACHABLE"
        assert found[REASON]["domain"] == "backchannel"


async def test_to_grpc_it_is_a_status(edge: Site) -> None:
    async with connected(edge.edge.address) as client:
        await edge.server.drain(0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.create(model="scripted/echo")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert caught.value.details()
    assert "{" not in (caught.value.details() or "")


@pytest.mark.parametrize("text", [False, True], ids=["proto", "text"])
async def test_to_grpc_web_it_is_a_status(
    edge: Site, either: httpx.AsyncClient, text: bool
) -> None:
    await edge.server.drain(0)
    request = pb.GetSessionRequest(session_id="some-session-id-of-ours")
    async with web_call(either, "GetSession", request, text=text) as call:
        # Without a message there are no trailers to put into the body: headers have it.
        assert await call.response.aread() == b""
        headers = call.response.headers
        assert headers["content-type"].startswith("application/grpc-web")
        assert headers["grpc-status"] == str(grpc.StatusCode.UNAVAILABLE.value[0])
        assert headers["grpc-message"]


@pytest.mark.parametrize(
    "path",
    ["/%00", "/..%2f", "/assets/..%2Findex.html", "/assets/%5c..", "/v1/sessions/a%2Fb/events"],
)
async def test_a_path_that_could_be_two_says_so(either: httpx.AsyncClient, path: str) -> None:
    response = await either.get(path)
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/json"
    assert response.json()["code"] == 3
    assert "%2F" in response.json()["message"]
    assert details(response)[REASON]["reason"] == "FIELD_INVALID"


async def test_an_encoded_slash_in_a_query_is_none_of_the_path(
    either: httpx.AsyncClient,
) -> None:
    response = await either.get("/v1/sessions?nothing=a%2Fb")
    assert response.status_code == 400
    assert "nothing" in response.json()["message"]


async def test_too_large_a_body_says_how_large_it_may_be(browser: httpx.AsyncClient) -> None:
    response = await browser.post("/v1/sessions", json={"system": "x" * (9 << 20)})
    assert response.status_code == 413
    assert response.json()["code"] == 8
    assert "8 MiB" in response.json()["message"]
    assert details(response)[REASON]["reason"] == "FRAME_TOO_LARGE"


async def test_too_large_headers_say_how_large_they_may_be(browser: httpx.AsyncClient) -> None:
    response = await browser.get("/", headers={"x-large": "x" * 70_000})
    assert response.status_code == 431
    assert response.json()["code"] == 3
    assert "60 KiB" in response.json()["message"]


@pytest.mark.parametrize(
    ("head", "status", "word"),
    [
        (
            b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
            403,
            b"WebSockets",
        ),
        (b"GET / HTTP/1.1\r\n", 400, b"the header Host"),
        (b"GET / HTTP/1.0\r\n", 400, b"the header Host"),
        (b"BREW / HTTP/1.1\r\nHost: localhost\r\n", 400, b"Bad Request"),
    ],
    ids=["upgrade", "no host", "no host, old", "method"],
)
async def test_what_no_client_library_sends(
    edge: Site, head: bytes, status: int, word: bytes
) -> None:
    address = edge.edge.address
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        writer.write(head + b"Connection: close\r\n\r\n")
        async with asyncio.timeout(PATIENCE_S):
            answer = await reader.read()
    finally:
        writer.close()
    first, _, rest = answer.partition(b"\r\n")
    assert first.split()[1] == str(status).encode()
    assert b"content-type: application/json" in rest
    assert b'{"code":3,"message":"' in rest
    assert word in rest
