"""What an answer over HTTP says of itself: whether it is Backchannel's own, and who gave it."""

from __future__ import annotations

from typing import Any, Final

import httpx

from backchannel.probe.measured import Refusal

SESSIONS: Final = "/v1/sessions"
"""The path of sessions over REST."""

# What our Envoy says when nobody is behind it (envoy.yaml).
_AWAY: Final = "SERVICE_UNREACHABLE"


class RefusedError(Exception):
    """The answer is not the one of Backchannel."""

    def __init__(
        self, response: httpx.Response, said: str = "", *, status: int | None = None
    ) -> None:
        request = f"{response.request.method} {_public(response.request.url.path)}"
        location = _public(response.headers.get("location", ""))[:200]
        status = response.status_code if status is None else status
        self.refusal = Refusal(request, status, said, location)
        self.response = response


def server_of(response: httpx.Response) -> str:
    """Who answered, by its own header."""
    return str(response.headers.get("server") or response.headers.get("via") or "")[:80]


def is_kind(response: httpx.Response, kind: str) -> bool:
    """Whether it is an answer of a kind, and not an error."""
    given = response.headers.get("content-type", "")
    return response.status_code == httpx.codes.OK and given.startswith(kind)


def json_of(response: httpx.Response) -> dict[str, Any]:
    """The object in it; empty if there is none."""
    try:
        found = response.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def said_in(response: httpx.Response) -> str:
    """The server's own error; empty if it is a proxy's, or Envoy's about a server that is away."""
    found = json_of(response)
    details = found.get("details")
    if not isinstance(details, list) or not isinstance(found.get("message"), str):
        return ""
    if any(isinstance(one, dict) and one.get("reason") == _AWAY for one in details):
        return ""
    return str(found["message"])[:300]


def _public(path: str) -> str:
    """A path without the session's id, which is a secret."""
    before, found, after = path.partition(f"{SESSIONS}/")
    if not found:
        return path
    _, slash, rest = after.partition("/")
    return f"{before}{found}{{session_id}}{slash}{rest}"
