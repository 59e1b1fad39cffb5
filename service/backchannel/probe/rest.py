"""Measuring REST through an HTTP URL: calls with one answer each."""

from __future__ import annotations

import secrets
import time
from typing import Any, Final

import httpx

from backchannel.listen import Address
from backchannel.probe.answers import SESSIONS, RefusedError, is_kind, json_of, said_in, server_of
from backchannel.probe.measured import Calls, Listing
from backchannel.probe.reach import is_local

REST: Final = "REST"


async def calls(client: httpx.AsyncClient) -> Calls | None:
    """A session from its beginning to its end, by calls with one answer each."""
    session_id = secrets.token_urlsafe(16)
    path = f"{SESSIONS}/{session_id}"
    plan: tuple[tuple[str, str, Any, str], ...] = (
        ("POST", SESSIONS, {"sessionId": session_id, "model": "scripted/count"}, "session"),
        ("POST", f"{path}/frames", {"ping": {}}, "receipt"),
        ("GET", path, None, "session"),
        ("DELETE", path, None, ""),
    )
    slowest_s = 0.0
    server = ""
    for answered, (method, where, body, key) in enumerate(plan):
        began_s = time.monotonic()
        try:
            response = await client.request(method, where, json=body)
        except httpx.HTTPError:
            return None  # The streams have it.
        slowest_s = max(slowest_s, time.monotonic() - began_s)
        server = server_of(response)
        if response.status_code != httpx.codes.OK or (key and key not in json_of(response)):
            refusal = RefusedError(response, said_in(response)).refusal
            return Calls(REST, answered, slowest_s, refusal, server=server)
    return Calls(REST, len(plan), slowest_s, server=server)


async def listing(client: httpx.AsyncClient, address: Address) -> Listing | None:
    """Ask for the sessions, whose ids are secrets."""
    try:
        response = await client.get(SESSIONS, params={"page_size": 1})
    except httpx.HTTPError:
        return None  # The streams have it.
    found = json_of(response)
    listed = (
        response.status_code == httpx.codes.OK
        and is_kind(response, "application/json")
        and response.content.startswith(b"{")
        and found.keys() <= {"sessions", "nextPageToken"}
    )
    if not listed and response.status_code != httpx.codes.FORBIDDEN:
        return None
    return Listing(REST, listed, await is_local(address), server=server_of(response))
