"""From what was measured to what is wrong and how to mend it. Pure: no clock, no network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from backchannel.probe.measured import (
    APART,
    DUPLEX,
    Calls,
    Cancel,
    Duplex,
    Listing,
    Measured,
    Refusal,
    Seen,
    Silence,
    Stream,
)

HEARTBEAT_S: Final = 15.0
"""How often the server breaks a silence."""

Kind: TypeAlias = Literal[
    "unreachable",
    "refused",
    "missing_path",
    "wrong_host",
    "upstream_down",
    "buffered",
    "cut",
    "idle_cut",
    "cancel_lost",
    "one_way",
    "old_http",
    "few_connections",
    "listable",
]
Fix: TypeAlias = str | Mapping[str, str]
"""What to set; by the proxy's name where that differs."""

# What mends it, unless the one who finds it knows better.
_FIXES: Final[Mapping[Kind, Fix]] = {
    "refused": "the server said so itself; see its log",
    "missing_path": (
        "give the URL that `backchannel serve` prints; and let a proxy before it pass on every path"
        " and method: `/v1/` and `/backchannel.v1.`, GET, POST and DELETE (nginx: `location / {"
        " proxy_pass …; }` without `limit_except`)"
    ),
    "wrong_host": (
        "nginx: `proxy_set_header Host $http_host`; and list the name in `edge_hosts` unless it is"
        " localhost"
    ),
    "upstream_down": "start `backchannel serve`, and check the address the proxy passes to",
    "buffered": {
        "nginx": "`proxy_buffering off` or let `X-Accel-Buffering: no` through",
        "HAProxy": "`option http-no-delay`",
        "Caddy": "no `buffer_responses` (now `response_buffers`) in `reverse_proxy`",
    },
    "cut": "look into the proxy's error log; take limits on the length of an answer away",
    "idle_cut": {
        "nginx": "`proxy_read_timeout 1h` (`grpc_read_timeout` with `grpc_pass`)",
        "HAProxy": "`timeout server 1h` and `timeout client 1h`",
        "Caddy": "no `read_timeout` in `transport http`",
    },
    "cancel_lost": {
        "nginx": "`proxy_ignore_client_abort off`",
        "HAProxy": "`option abortonclose`",
        "Caddy": "no `flush_interval -1` and no `buffer_responses` in `reverse_proxy`",
    },
    "one_way": {
        "nginx": "`grpc_pass` instead of `proxy_pass`",
        "HAProxy": "no `option http-buffer-request`",
        "Caddy": "no `buffer_requests` (now `request_buffers`) in `reverse_proxy`",
    },
    "old_http": "let the proxy speak HTTP/1.1 or 2 to its clients",
    "few_connections": "offer HTTP/2 (nginx: `listen 443 ssl http2`, since 1.25.1 `http2 on`)",
    "listable": {
        "nginx": (
            "`proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for` (`grpc_set_header` with"
            " `grpc_pass`)"
        ),
        "HAProxy": "`option forwardfor`",
        "Caddy": "no `header_up -X-Forwarded-For` in `reverse_proxy`",
    },
}
_DUPLEX_IDLE: Final[Fix] = {
    **_FIXES["idle_cut"],  # type: ignore[dict-item]
    "nginx": "`client_body_timeout 1h` and `grpc_read_timeout 1h`",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, where, and how to mend it.

    Attributes:
        kind: For programs.
        door: Its name.
        text: What was seen.
        fix: What to set; for nginx, HAProxy and Caddy unless the proxy gave its name.
        note: It works all the same, and could be better.
    """

    kind: Kind
    door: str
    text: str
    fix: str
    note: bool = False


def judge(measured: Measured) -> list[Finding]:
    """What is wrong; empty if all is well."""
    tls = measured.url.startswith("https:")
    found = [finding for stream in measured.streams for finding in _of_stream(stream, tls=tls)]
    # What keeps the streams away as well is told once.
    told = {stream.refusal for stream in measured.streams}
    found += [finding for calls in measured.calls for finding in _of_calls(calls, told)]
    if not any(finding.kind == "buffered" for finding in found):
        # Whose answers are held back cannot be told to be heard.
        found += [finding for call in measured.duplexes for finding in _of_duplex(call)]
    found += [finding for silence in measured.silences for finding in _of_silence(silence)]
    found += [finding for cancel in measured.cancels for finding in _of_cancel(cancel)]
    found += [finding for listing in measured.listings for finding in _of_listing(listing)]
    return found


def _finding(
    kind: Kind, seen: Seen, text: str, fix: Fix | None = None, *, note: bool = False
) -> Finding:
    """A finding with what mends it: for the proxy that gave its name, else for all of them."""
    fix = _FIXES[kind] if fix is None else fix
    if not isinstance(fix, str):
        known = [name for name in fix if name.lower() in seen.server.lower()] or fix
        fix = "; ".join(f"{name}: {fix[name]}" for name in known)
    return Finding(kind, seen.door, text, fix, note)


def _of_stream(stream: Stream, *, tls: bool) -> Iterator[Finding]:
    if stream.refusal is not None:
        yield _of_refusal(stream, stream.refusal)
        return
    count = len(stream.arrivals)
    if not count and stream.whole:
        text = "the answer ended without a single frame"
        yield _finding("refused", stream, text, "look into the server's log")
    elif not count:
        yield _buffered(stream, "nothing of the stream arrived")
    elif 2 * (stream.groups - 1) < count - 1:
        together = stream.arrived_over_s < APART * stream.sent_over_s
        how = "together" if together else f"in {stream.groups} lumps"
        yield _buffered(
            stream, f"the {count} frames sent over {stream.sent_over_s:.1f} s arrived {how}"
        )
    if not stream.whole and count:
        yield _finding("cut", stream, f"the stream was cut after {count} frames, before its end")
    if stream.http_version == "HTTP/1.0":
        yield _finding("old_http", stream, "answers come as HTTP/1.0")
    elif tls and stream.http_version == "HTTP/1.1" and stream.door == "SSE":
        text = "HTTP/1.1 over TLS: browsers open six connections to a site, and each tab holds one"
        yield _finding("few_connections", stream, text, note=True)


def _buffered(stream: Stream, text: str) -> Finding:
    if not stream.encoding:
        return _finding("buffered", stream, text)
    if "caddy" in stream.server.lower():
        return _finding(
            "buffered",
            stream,
            text,
            f"Caddy: it is compressed ({stream.encoding}): leave streams out of that, with"
            " `@others not path */events /backchannel.v1.*` and `encode @others gzip`",
        )
    fix = _finding("buffered", stream, text).fix
    return _finding(
        "buffered",
        stream,
        text,
        f"{fix}; it is compressed ({stream.encoding}): leave this path out of that",
    )


def _of_calls(calls: Calls, told: set[Refusal | None]) -> Iterator[Finding]:
    if calls.refusal is not None and calls.refusal not in told:
        yield _of_refusal(calls, calls.refusal)


def _of_refusal(seen: Seen, refusal: Refusal) -> Finding:
    if refusal.said:
        return _finding("refused", seen, f"{refusal.request} was refused: {refusal.said}")
    by = f" by {seen.server}" if seen.server else ""
    what = f"{refusal.status}{by}" if refusal.status else "that it has no such method"
    answers = f"{refusal.request} answers {what}:"
    if refusal.status in (502, 503, 504):
        return _finding("upstream_down", seen, f"{answers} it cannot reach what is behind it")
    if refusal.status == 421:
        why = "Backchannel is asked for by a name it does not know"
        return _finding("wrong_host", seen, f"{refusal.request} answers 421: {why}")
    if 300 <= refusal.status < 400:
        place = f": {refusal.location}" if refusal.location else ""
        fix = f"give the URL that it leads to{place}"
        return _finding("missing_path", seen, f"{answers} it sends elsewhere", fix)
    text = f"{answers} the way up to Backchannel is missing or blocked"
    if refusal.status:
        return _finding("missing_path", seen, text)
    fix = (
        "give the address that `backchannel serve` prints, with no path behind it; not that of"
        " another gRPC server"
    )
    return _finding("missing_path", seen, text, fix)


def _of_silence(silence: Silence) -> Iterator[Finding]:
    if silence.cut_after_s is not None:
        text = (
            f"a silent stream was cut after {silence.cut_after_s:.1f} s;"
            f" heartbeats come only every {HEARTBEAT_S:.0f} s"
        )
        fix = _DUPLEX_IDLE if silence.door == DUPLEX else None
        yield _finding("idle_cut", silence, text, fix)


def _of_duplex(call: Duplex) -> Iterator[Finding]:
    if call.answered_after_s is None:
        text = (
            f"a frame was not answered within {call.waited_s:.0f} s while the client's side was"
            " open: requests are held back until they end"
        )
        yield _finding("one_way", call, text)


def _of_cancel(cancel: Cancel) -> Iterator[Finding]:
    if cancel.stopped_after_s is None:
        text = f"the reader left, and the server was still answering {cancel.waited_s:.0f} s later"
        yield _finding("cancel_lost", cancel, text)


def _of_listing(listing: Listing) -> Iterator[Finding]:
    if listing.listed and not listing.local:
        text = (
            "anybody may list the sessions, and whoever knows a session's id may use it: the"
            " server takes every caller for one of its own machine"
        )
        yield _finding("listable", listing, text)
