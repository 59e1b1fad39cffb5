"""From what was measured to what is wrong and how to mend it. Pure: no clock, no network."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

HEARTBEAT_S: Final = 15.0
"""How often the server breaks a silence."""

APART: Final = 0.25
"""A frame came by itself if it came after at least this part of the time that lay between its
sending and that of the frame before. Generous: a busy machine is no proxy."""

DUPLEX: Final = "Converse"
"""The door of which both sides stay open."""

Kind = Literal[
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
]


@dataclass(frozen=True, slots=True)
class Arrival:
    """One frame.

    Attributes:
        sent_s: By the server's clock; only differences mean something.
        arrived_s: By the clock here; only differences mean something.
    """

    sent_s: float
    arrived_s: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is not the one of Backchannel.

    Attributes:
        request: Method and path.
        status: Of HTTP; 0 for gRPC, also within gRPC-Web.
        said: What the answer said, if it was one of the server's own errors.
        location: Where it sends, if it sends elsewhere.
    """

    request: str
    status: int
    said: str = ""
    location: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Frames at known times, through one door.

    Attributes:
        door: Its name: `gRPC`, `gRPC-Web` or `SSE`.
        arrivals: In order.
        whole: Whether the stream came to its own end.
        http_version: As `HTTP/1.1`.
        server: Who answered, by its own header; empty if it did not say (HAProxy never does).
        encoding: How the answer was compressed; empty if it was not.
        refusal: Why there is no stream.
    """

    door: str
    arrivals: Sequence[Arrival] = ()
    whole: bool = True
    http_version: str = ""
    server: str = ""
    encoding: str = ""
    refusal: Refusal | None = None

    @property
    def sent_over_s(self) -> float:
        """From the first frame's sending to the last one's."""
        return self.arrivals[-1].sent_s - self.arrivals[0].sent_s if self.arrivals else 0.0

    @property
    def arrived_over_s(self) -> float:
        """From the first frame's arrival to the last one's."""
        return self.arrivals[-1].arrived_s - self.arrivals[0].arrived_s if self.arrivals else 0.0

    @property
    def groups(self) -> int:
        """How many pieces the frames came in; as many as frames if each came by itself."""
        return sum(
            after.arrived_s - before.arrived_s >= APART * (after.sent_s - before.sent_s)
            for before, after in itertools.pairwise(self.arrivals)
        ) + bool(self.arrivals)

    @property
    def worst_lag_s(self) -> float:
        """How much later than the quickest frame the slowest one came."""
        lags = [arrival.arrived_s - arrival.sent_s for arrival in self.arrivals]
        return max(lags) - min(lags) if lags else 0.0


@dataclass(frozen=True, slots=True)
class Silence:
    """A stream on which nothing was said.

    Attributes:
        door: Its name.
        asked_s: How long it was to survive.
        cut_after_s: When it ended before that; None if it did not.
        server: Who answered, by its own header.
    """

    door: str
    asked_s: float
    cut_after_s: float | None
    server: str = ""


@dataclass(frozen=True, slots=True)
class Cancel:
    """A reader that went away from a session which stops when nobody reads.

    Attributes:
        door: Its name.
        waited_s: How long it was watched.
        stopped_after_s: When the server had stopped; None if it had not.
        server: Who answered, by its own header.
    """

    door: str
    waited_s: float
    stopped_after_s: float | None
    server: str = ""


@dataclass(frozen=True, slots=True)
class Duplex:
    """A call of which both sides stay open.

    Attributes:
        door: Its name.
        waited_s: How long it was watched.
        answered_after_s: When the first frame was answered; None if it was not.
        server: Who answered, by its own header.
    """

    door: str
    waited_s: float
    answered_after_s: float | None
    server: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """All that was measured at one URL."""

    url: str
    streams: Sequence[Stream] = ()
    silences: Sequence[Silence] = ()
    cancels: Sequence[Cancel] = ()
    duplexes: Sequence[Duplex] = ()


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
    found: list[Finding] = []
    for stream in measured.streams:
        found += _of_stream(stream, tls=measured.url.startswith("https:"))
    if not any(finding.kind == "buffered" for finding in found):
        # Whose answers are held back cannot be told to be heard.
        found += [_of_duplex(call) for call in measured.duplexes if call.answered_after_s is None]
    for silence in measured.silences:
        if silence.cut_after_s is not None:
            found.append(_of_silence(silence, silence.cut_after_s))
    found += [_of_cancel(cancel) for cancel in measured.cancels if cancel.stopped_after_s is None]
    return found


def _of_stream(stream: Stream, *, tls: bool) -> list[Finding]:
    if stream.refusal is not None:
        return [_of_refusal(stream, stream.refusal)]
    found = []
    count = len(stream.arrivals)
    if not count and stream.whole:
        text = "the answer ended without a single frame"
        found.append(Finding("refused", stream.door, text, "look into the server's log"))
    elif not count:
        text = "nothing of the stream arrived"
        found.append(Finding("buffered", stream.door, text, _buffering_fix(stream)))
    elif 2 * (stream.groups - 1) < count - 1:
        together = stream.arrived_over_s < APART * stream.sent_over_s
        how = "together" if together else f"in {stream.groups} lumps"
        text = f"the {count} frames sent over {stream.sent_over_s:.1f} s arrived {how}"
        found.append(Finding("buffered", stream.door, text, _buffering_fix(stream)))
    if not stream.whole and count:
        text = f"the stream was cut after {count} frames, before its end"
        fix = "look into the proxy's error log; take limits on the length of an answer away"
        found.append(Finding("cut", stream.door, text, fix))
    if stream.http_version == "HTTP/1.0":
        text = "answers come as HTTP/1.0"
        fix = "let the proxy speak HTTP/1.1 or 2 to its clients"
        found.append(Finding("old_http", stream.door, text, fix))
    elif tls and stream.http_version == "HTTP/1.1" and stream.door == "SSE":
        text = "HTTP/1.1 over TLS: browsers open six connections to a site, and each tab holds one"
        fix = "offer HTTP/2 (nginx: `listen 443 ssl http2`, since 1.25.1 `http2 on`)"
        found.append(Finding("few_connections", stream.door, text, fix, note=True))
    return found


def _of_refusal(stream: Stream, refusal: Refusal) -> Finding:
    by = f" by {stream.server}" if stream.server else ""
    what = f"{refusal.status}{by}" if refusal.status else "that it has no such method"
    if refusal.said:
        text = f"{refusal.request} was refused: {refusal.said}"
        return Finding("refused", stream.door, text, "the server said so itself; see its log")
    if refusal.status in (502, 503, 504):
        text = f"{refusal.request} answers {what}: it cannot reach what is behind it"
        fix = "start `backchannel serve`, and check the address the proxy passes to"
        return Finding("upstream_down", stream.door, text, fix)
    if refusal.status == 421:
        text = f"{refusal.request} answers 421: Backchannel is asked for by a name it does not know"
        fix = (
            "nginx: `proxy_set_header Host $http_host`; and list the name in `edge_hosts` unless it"
            " is localhost"
        )
        return Finding("wrong_host", stream.door, text, fix)
    if 300 <= refusal.status < 400:
        text = f"{refusal.request} answers {what}: it sends elsewhere"
        return Finding("missing_path", stream.door, text, f"give the URL {_place(refusal)}")
    text = f"{refusal.request} answers {what}: the way up to Backchannel is missing or blocked"
    fix = (
        "give the URL that `backchannel serve` prints; and let a proxy before it pass on every path"
        " and method: `/v1/` and `/backchannel.v1.`, GET, POST and DELETE (nginx: `location / {"
        " proxy_pass …; }` without `limit_except`)"
        if refusal.status
        else "give the address that `backchannel serve` prints, with no path behind it; not that of"
        " another gRPC server"
    )
    return Finding("missing_path", stream.door, text, fix)


def _place(refusal: Refusal) -> str:
    return f"that it leads to: {refusal.location}" if refusal.location else "that it leads to"


def _of_silence(silence: Silence, after_s: float) -> Finding:
    text = (
        f"a silent stream was cut after {after_s:.1f} s;"
        f" heartbeats come only every {HEARTBEAT_S:.0f} s"
    )
    fixes = _IDLE_DUPLEX if silence.door == DUPLEX else _IDLE
    return Finding("idle_cut", silence.door, text, _fix(silence.server, fixes))


def _of_duplex(call: Duplex) -> Finding:
    text = (
        f"a frame was not answered within {call.waited_s:.0f} s while the client's side was open:"
        " requests are held back until they end"
    )
    return Finding("one_way", call.door, text, _fix(call.server, _ONE_WAY))


def _of_cancel(cancel: Cancel) -> Finding:
    text = f"the reader left, and the server was still answering {cancel.waited_s:.0f} s later"
    return Finding("cancel_lost", cancel.door, text, _fix(cancel.server, _CANCEL))


def _buffering_fix(stream: Stream) -> str:
    fix = _fix(stream.server, _BUFFERING)
    if stream.encoding and "caddy" in stream.server.lower():
        return (
            f"Caddy: it is compressed ({stream.encoding}): leave streams out of that, with"
            " `@others not path */events /backchannel.v1.*` and `encode @others gzip`"
        )
    if stream.encoding:
        fix += f"; it is compressed ({stream.encoding}): leave this path out of that"
    return fix


_BUFFERING: Final = {
    "nginx": "`proxy_buffering off` or let `X-Accel-Buffering: no` through",
    "HAProxy": "`option http-no-delay`",
    "Caddy": "no `buffer_responses` (now `response_buffers`) in `reverse_proxy`",
}
_IDLE: Final = {
    "nginx": "`proxy_read_timeout 1h` (`grpc_read_timeout` with `grpc_pass`)",
    "HAProxy": "`timeout server 1h` and `timeout client 1h`",
    "Caddy": "no `read_timeout` in `transport http`",
}
_IDLE_DUPLEX: Final = {
    **_IDLE,
    "nginx": "`client_body_timeout 1h` and `grpc_read_timeout 1h`",
}
_ONE_WAY: Final = {
    "nginx": "`grpc_pass` instead of `proxy_pass`",
    "HAProxy": "no `option http-buffer-request`",
    "Caddy": "no `buffer_requests` (now `request_buffers`) in `reverse_proxy`",
}
_CANCEL: Final = {
    "nginx": "`proxy_ignore_client_abort off`",
    "HAProxy": "`option abortonclose`",
    "Caddy": "no `flush_interval -1` and no `buffer_responses` in `reverse_proxy`",
}


def _fix(server: str, fixes: dict[str, str]) -> str:
    """The fix for the proxy that gave its name, else for all: HAProxy never gives it."""
    for name, fix in fixes.items():
        if name.lower() in server.lower():
            return f"{name}: {fix}"
    return "; ".join(f"{name}: {fix}" for name, fix in fixes.items())
