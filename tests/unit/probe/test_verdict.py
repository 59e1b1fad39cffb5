"""From recorded arrivals to what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from backchannel.probe.measured import (
    DUPLEX,
    Arrival,
    Calls,
    Cancel,
    Duplex,
    Listing,
    Measured,
    Refusal,
    Silence,
    Stream,
)
from backchannel.probe.verdict import Finding, judge

# Another clock than the server's.
AHEAD_S = 12_345.0


def stream(arrived: Callable[[int, float], float], count: int = 40, **more: Any) -> Stream:
    """Frames every 100 ms, each arriving when `arrived(index, sent_s)` says."""
    arrivals = [
        Arrival(AHEAD_S + index * 0.1, arrived(index, index * 0.1)) for index in range(count)
    ]
    return replace(
        Stream(door="SSE", arrivals=arrivals, http_version="HTTP/1.1", server="nginx/1.22.1"),
        **more,
    )


def found(*streams: Stream, url: str = "http://a") -> list[Finding]:
    return judge(Measured(url, streams))


def kinds(findings: Sequence[Finding]) -> list[str]:
    return [finding.kind for finding in findings]


@pytest.mark.parametrize(
    "arrived",
    [
        pytest.param(lambda index, sent: sent + 0.2, id="far away"),
        pytest.param(lambda index, sent: sent + 0.03 * (index % 3), id="jitter"),
        pytest.param(lambda index, sent: sent if index < 20 else max(sent, 3.0), id="one pause"),
    ],
)
def test_frames_that_come_by_themselves(arrived: Callable[[int, float], float]) -> None:
    assert found(stream(arrived)) == []


def test_all_at_once() -> None:
    (finding,) = found(stream(lambda index, sent: 4.0 + index * 0.0001))
    assert finding.kind == "buffered"
    assert finding.text == "the 40 frames sent over 3.9 s arrived together"
    assert finding.fix == "nginx: `proxy_buffering off` or let `X-Accel-Buffering: no` through"


def test_in_lumps() -> None:
    lumpy = stream(lambda index, sent: (index // 8 + 1) * 0.8)
    (finding,) = found(lumpy)
    assert lumpy.groups == 5
    assert finding.kind == "buffered"
    assert "in 5 lumps" in finding.text


def test_nothing_came() -> None:
    (finding,) = found(stream(lambda index, sent: sent, count=0, whole=False))
    assert finding.kind == "buffered"


def test_an_answer_of_nothing() -> None:
    (finding,) = found(stream(lambda index, sent: sent, count=0))
    assert finding.kind == "refused"


def test_half_of_it_came() -> None:
    (finding,) = found(stream(lambda index, sent: sent, count=20, whole=False))
    assert finding.kind == "cut"
    assert "after 20 frames" in finding.text


def test_compressed_and_held() -> None:
    (finding,) = found(stream(lambda index, sent: 4.0, encoding="gzip"))
    assert "leave this path out" in finding.fix
    (finding,) = found(stream(lambda index, sent: 4.0, encoding="gzip", server="Caddy"))
    assert "`encode @others gzip`" in finding.fix


@pytest.mark.parametrize(
    ("server", "fix"),
    [
        ("Caddy", "Caddy: no `buffer_responses`"),
        ("nginx/1.22.1", "nginx: `proxy_buffering off`"),
        # HAProxy does not give its name.
        ("", "nginx: `proxy_buffering off`"),
        ("", "; HAProxy: `option http-no-delay`; Caddy: "),
    ],
)
def test_the_fix_is_for_the_proxy_that_is_there(server: str, fix: str) -> None:
    (finding,) = found(stream(lambda index, sent: 4.0, server=server))
    assert fix in finding.fix
    assert ("HAProxy" in finding.fix) == (not server)


@pytest.mark.parametrize(
    ("refusal", "kind", "word"),
    [
        (Refusal("POST /v1/sessions", 404), "missing_path", "POST /v1/sessions answers 404 by ngi"),
        (Refusal("POST /v1/sessions", 403), "missing_path", "limit_except"),
        (Refusal("POST /v1/sessions", 301), "missing_path", "leads to"),
        (Refusal("POST /a", 308, "", "https://b/a"), "missing_path", "leads to: https://b/a"),
        (Refusal("POST /v1/sessions", 421), "wrong_host", "proxy_set_header Host"),
        (Refusal("POST /v1/sessions", 502), "upstream_down", "backchannel serve"),
        (Refusal("POST /v1/sessions", 429, "too many"), "refused", "too many"),
        (Refusal("Probe", 0), "missing_path", "another gRPC server"),
    ],
)
def test_no_stream_at_all(refusal: Refusal, kind: str, word: str) -> None:
    (finding,) = found(Stream(door="SSE", server="nginx", refusal=refusal))
    assert finding.kind == kind
    assert word in finding.text + finding.fix


def test_six_connections_are_a_note() -> None:
    good = stream(lambda index, sent: sent)
    (finding,) = found(good, url="https://a")
    assert (finding.kind, finding.note) == ("few_connections", True)
    assert found(replace(good, http_version="HTTP/2"), url="https://a") == []


def test_old_http() -> None:
    assert kinds(found(stream(lambda index, sent: sent, http_version="HTTP/1.0"))) == ["old_http"]


def test_silence_and_leaving() -> None:
    well = Measured("http://a", (), [Silence("SSE", 16, None)], [Cancel("SSE", 3, 0.1)])
    assert judge(well) == []
    ill = Measured("http://a", (), [Silence("SSE", 16, 5.01)], [Cancel("SSE", 3, None)])
    idle, cancel = judge(ill)
    assert idle.kind == "idle_cut"
    assert "after 5.0 s" in idle.text
    assert "proxy_read_timeout" in idle.fix
    assert cancel.kind == "cancel_lost"
    assert "proxy_ignore_client_abort off" in cancel.fix


def test_one_way() -> None:
    silent = Duplex(DUPLEX, 5, None)
    (finding,) = judge(Measured("grpc://a", duplexes=[silent]))
    assert finding.kind == "one_way"
    assert "HAProxy: no `option http-buffer-request`" in finding.fix
    assert judge(Measured("grpc://a", duplexes=[Duplex(DUPLEX, 5, 0.01)])) == []
    # Held answers look the same, and are the reason then.
    held = stream(lambda index, sent: 4.0)
    assert kinds(judge(Measured("grpc://a", [held], duplexes=[silent]))) == ["buffered"]


def test_a_silent_call_of_both_sides_is_cut_by_another_setting() -> None:
    ill = Measured("grpc://a", silences=[Silence(DUPLEX, 16, 5.0), Silence("gRPC", 16, 5.0)])
    duplex, down = judge(ill)
    assert "client_body_timeout" in duplex.fix
    assert "client_body_timeout" not in down.fix


def test_secrets_that_are_told() -> None:
    told = Listing("REST", listed=True, local=False, server="nginx/1.22.1")
    (finding,) = judge(Measured("https://a", listings=[told]))
    assert finding.kind == "listable"
    assert finding.fix.startswith("nginx: `proxy_set_header X-Forwarded-For")
    assert not finding.note
    # Who is on the server's own machine may know them.
    for well in (replace(told, local=True), replace(told, listed=False)):
        assert judge(Measured("https://a", listings=[well])) == []


def test_calls_are_told_of_once() -> None:
    blocked = Refusal("DELETE /v1/sessions/{session_id}", 405)
    ill = Calls("REST", 3, 0.01, blocked, server="nginx")
    (finding,) = judge(Measured("http://a", calls=[ill]))
    assert (finding.kind, finding.door) == ("missing_path", "REST")
    assert "DELETE /v1/sessions/{session_id} answers 405 by nginx" in finding.text
    same = Stream(door="SSE", server="nginx", refusal=blocked)
    assert [one.door for one in judge(Measured("http://a", [same], calls=[ill]))] == ["SSE"]
    assert judge(Measured("http://a", calls=[Calls("REST", 4, 0.01)])) == []
