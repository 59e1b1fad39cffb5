"""The unary calls as JSON, by Envoy's transcoder and our annotations."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from backchannel.host.config import HostConfig
from tests.support.edge import Site, create, events, site

MIB = 1024 * 1024
LEAKS = ("grpc-", "x-envoy-", "server", "x-backchannel-")


def check_headers(response: httpx.Response) -> None:
    """Nothing that is nobody's business, and nothing in anybody's cache."""
    assert not [name for name in response.headers if name.startswith(LEAKS)]
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-content-type-options"] == "nosniff"


def reason(response: httpx.Response) -> str:
    (info,) = [one for one in response.json()["details"] if one["@type"].endswith("ErrorInfo")]
    assert info["domain"] == "backchannel"
    return str(info["reason"])


async def test_a_session_from_its_beginning_to_its_end(either: httpx.AsyncClient) -> None:
    response = await either.post(
        "/v1/sessions", json={"model": "scripted/echo", "labels": {"who": "me"}}
    )
    assert response.status_code == 200
    check_headers(response)
    session = response.json()["session"]
    assert session["config"]["labels"] == {"who": "me"}
    # Canonical proto-JSON: 64-bit numbers are strings, enums are names.
    assert (session["lastSeq"], session["state"]) == ("1", "STATE_IDLE")
    path = f"/v1/sessions/{session['sessionId']}"

    frame = {"frameId": "m", "message": {"parts": [{"text": "hello"}]}}
    response = await either.post(f"{path}/frames", json=frame)
    check_headers(response)
    assert response.json()["receipt"]["status"] == "RECEIPT_STATUS_ACCEPTED"
    again = await either.post(f"{path}/frames", json=frame)
    assert again.json()["receipt"]["status"] == "RECEIPT_STATUS_DUPLICATE"
    assert again.json()["receipt"]["seq"] == response.json()["receipt"]["seq"]

    async with events(either, session["sessionId"]) as stream:
        await stream.until("turn_finished")
    response = await either.get(path)
    check_headers(response)
    assert response.json()["session"]["lastSeq"] == stream.last_event_id

    response = await either.get("/v1/sessions?page_size=5")
    check_headers(response)
    assert [one["sessionId"] for one in response.json()["sessions"]] == [session["sessionId"]]

    response = await either.delete(path)
    check_headers(response)
    assert response.json() == {}
    response = await either.get(path)
    assert (response.status_code, reason(response)) == (404, "SESSION_NOT_FOUND")


async def test_a_refused_frame_is_an_answer_with_a_receipt(browser: httpx.AsyncClient) -> None:
    session_id = await create(browser, model="scripted/echo")
    response = await browser.post(f"/v1/sessions/{session_id}/frames", json={"interrupt": {}})
    assert response.status_code == 200
    receipt = response.json()["receipt"]
    assert receipt["status"] == "RECEIPT_STATUS_REJECTED"
    assert receipt["error"]["code"] == 3
    assert receipt["error"]["details"][0]["reason"] == "FIELD_REQUIRED"


SESSION = "/v1/sessions/nobody-has-ever-made-this"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "reason_is"),
    [
        ("GET", SESSION, None, 404, 5, "SESSION_NOT_FOUND"),
        ("DELETE", SESSION, None, 404, 5, "SESSION_NOT_FOUND"),
        ("POST", f"{SESSION}/frames", {"ping": {}}, 404, 5, "SESSION_NOT_FOUND"),
        ("GET", f"{SESSION}/events", None, 404, 5, "SESSION_NOT_FOUND"),
        ("POST", "/v1/sessions", {"model": "no/such"}, 404, 5, "MODEL_NOT_FOUND"),
        ("POST", "/v1/sessions", {"sessionId": "short"}, 400, 3, "FIELD_INVALID"),
        ("GET", "/v1/sessions?page_size=1000", None, 400, 3, "FIELD_OUT_OF_RANGE"),
        ("GET", "/v1/sessions?filter=labels.a=b", None, 400, 3, "FIELD_INVALID"),
        ("GET", "/assets/no-such-file.js", None, 404, 5, "ASSET_NOT_FOUND"),
        # What Envoy refuses by itself has the same shape.
        ("GET", "/v1/nothing", None, 404, 5, None),
        ("GET", "/nothing", None, 404, 5, None),
        ("PUT", SESSION, {}, 404, 5, None),
        ("POST", "/v1/sessions", "{", 400, 3, None),
        ("GET", "/v1/sessions?pagesize=5", None, 400, 3, None),
        ("GET", f"{SESSION}/events?after=5", None, 400, 3, None),
        ("GET", f"{SESSION}/events?after_seq=x", None, 400, 3, None),
    ],
)
async def test_errors_are_json_with_their_status(
    browser: httpx.AsyncClient,
    method: str,
    path: str,
    body: Any,
    status: int,
    code: int,
    reason_is: str | None,
) -> None:
    content = {"content": body} if isinstance(body, str) else {"json": body}
    response = await browser.request(method, path, **(content if body is not None else {}))
    assert response.status_code == status, response.text
    check_headers(response)
    assert response.json()["code"] == code
    assert response.json()["message"]
    if reason_is is not None:
        assert reason(response) == reason_is


async def test_a_conflict(browser: httpx.AsyncClient) -> None:
    one = {"sessionId": "chosen-by-the-client", "model": "scripted/echo"}
    assert (await browser.post("/v1/sessions", json=one)).status_code == 200
    assert (await browser.post("/v1/sessions", json=one)).status_code == 200
    response = await browser.post("/v1/sessions", json={**one, "system": "another"})
    assert (response.status_code, reason(response)) == (409, "SESSION_EXISTS")


async def test_too_many(browser: httpx.AsyncClient) -> None:
    async with site(server={"sessions": HostConfig(max_sessions=1)}) as edge, edge.client() as one:
        await create(one, model="scripted/echo")
        response = await one.post("/v1/sessions", json={"model": "scripted/echo"})
        assert (response.status_code, reason(response)) == (429, "SESSIONS_FULL")
        check_headers(response)


async def test_libraries_may_add_what_they_always_add(browser: httpx.AsyncClient) -> None:
    session_id = await create(browser, model="scripted/echo")
    async with events(browser, session_id, "?_=17&lastEventId=0") as stream:
        await stream.until("session_opened")


async def test_bodies_may_be_as_large_as_a_frame_both_ways(either: httpx.AsyncClient) -> None:
    # Envoy's own limit is 1 MiB each way.
    schema = json.dumps({"type": "object", "description": "x" * 60_000})
    tools = [{"name": f"tool_{n}", "parametersJsonSchema": schema} for n in range(60)]
    session_id = await create(either, model="scripted/echo", tools=tools)
    response = await either.get(f"/v1/sessions/{session_id}")
    assert len(response.content) > 3 * MIB
    assert len(response.json()["session"]["config"]["tools"]) == 60
    async with events(either, session_id) as stream:
        sent = await stream.until("session_opened")
    assert len(sent.data) > 3 * MIB


async def test_larger_bodies_are_refused(either: httpx.AsyncClient) -> None:
    # Above what a frame may have, below what Envoy takes: the service says so, with the code that
    # our table has for it and no transcoder knows.
    response = await either.post("/v1/sessions", json={"system": "x" * (5 * MIB)})
    assert (response.status_code, reason(response)) == (413, "FRAME_TOO_LARGE")


async def test_no_body_grows_without_bound(browser: httpx.AsyncClient) -> None:
    # The transcoder alone would gather this whole.
    response = await browser.post("/v1/sessions", json={"system": "x" * (9 * MIB)})
    assert response.status_code == 413
    check_headers(response)
    assert response.json()["code"] == 8


async def test_the_service_knows_who_asks(edge: Site) -> None:
    # Only callers on this machine may list; Envoy is one, but not who it speaks for.
    async with edge.client(headers={"x-forwarded-for": "203.0.113.7"}) as far:
        response = await far.get("/v1/sessions")
        assert (response.status_code, reason(response)) == (403, "LIST_NOT_PERMITTED")
