"""Who may use it from a browser: its own page, and whoever was allowed in words."""

from __future__ import annotations

import httpx
import pytest

from tests.support.edge import Site, site

STRANGER = "https://stranger.example"
FRIEND = "https://friend.example"
PREFLIGHT = {"access-control-request-method": "POST"}
PATHS = ("/v1/sessions", "/backchannel.v1.ConversationService/CreateSession")


@pytest.mark.parametrize("path", PATHS)
async def test_no_other_origin_is_allowed_by_default(browser: httpx.AsyncClient, path: str) -> None:
    response = await browser.options(path, headers={"origin": STRANGER, **PREFLIGHT})
    assert "access-control-allow-origin" not in response.headers


async def test_an_answer_is_not_shown_to_another_origin(browser: httpx.AsyncClient) -> None:
    response = await browser.get("/v1/sessions", headers={"origin": STRANGER})
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": STRANGER},
        {"origin": STRANGER, "sec-fetch-site": "cross-site"},
        {"origin": "null", "sec-fetch-site": "cross-site"},
        {"origin": "null"},
        {"sec-fetch-site": "same-site"},
        # A form of another page needs nobody's leave to send this.
        {"origin": STRANGER, "content-type": "text/plain"},
    ],
)
async def test_another_sites_page_changes_nothing(
    browser: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    response = await browser.post(
        "/v1/sessions", content=b'{"model":"scripted/echo"}', headers=headers
    )
    assert response.status_code == 403
    assert response.json()["code"] == 7
    assert (await browser.get("/v1/sessions")).json() == {}


async def test_the_own_page_may_everything(edge: Site, browser: httpx.AsyncClient) -> None:
    for headers in (
        {"origin": edge.url, "sec-fetch-site": "same-origin"},
        {"origin": edge.url},
        {"sec-fetch-site": "none"},
        # Behind a proxy that gives another Host the browser still knows.
        {"origin": "https://chat.example", "sec-fetch-site": "same-origin"},
        {},
    ):
        response = await browser.post(
            "/v1/sessions", json={"model": "scripted/echo"}, headers=headers
        )
        assert response.status_code == 200


@pytest.mark.parametrize("path", PATHS)
async def test_an_allowed_origin_may_everything(path: str) -> None:
    async with site(origins=(FRIEND,)) as edge, edge.client() as browser:
        response = await browser.options(path, headers={"origin": FRIEND, **PREFLIGHT})
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == FRIEND
        allowed = response.headers["access-control-allow-headers"]
        assert {"x-grpc-web", "content-type", "grpc-timeout", "last-event-id"} <= set(
            allowed.split(", ")
        )
        given = {"origin": FRIEND, "sec-fetch-site": "cross-site"}
        response = await browser.post(
            "/v1/sessions", json={"model": "scripted/echo"}, headers=given
        )
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == FRIEND
        assert "grpc-status" in response.headers["access-control-expose-headers"]
        refused = await browser.post("/v1/sessions", json={}, headers={"origin": STRANGER})
        assert refused.status_code == 403


async def test_a_name_that_points_here_is_not_ours(edge: Site) -> None:
    # DNS rebinding: for the browser it is the page's own origin.
    headers = {"host": "stranger.example:8080", "origin": "http://stranger.example:8080"}
    async with edge.client(headers=headers) as page:
        for response in (await page.get("/v1/sessions"), await page.post("/v1/sessions", json={})):
            assert response.status_code == 421
            assert response.headers["content-type"] == "application/json"
            assert response.json() == {
                "code": 3,
                "message": "this name is not served here; allow it at the edge (edge_hosts)",
            }
        headers = {"content-type": "application/grpc-web+proto"}
        response = await page.post("/backchannel.v1.ProbeService/Probe", headers=headers)
        assert response.headers["grpc-message"].startswith("this name is not served here")


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "localhost:9000", "[::1]:8080"])
async def test_this_machines_names_are(browser: httpx.AsyncClient, name: str) -> None:
    assert (await browser.get("/", headers={"host": name})).status_code == 200
