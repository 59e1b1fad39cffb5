"""The adapter against an upstream that does everything wrong that servers do."""

from __future__ import annotations

import asyncio
import gzip
import socket

import pytest

from backchannel.engines.openai.factory import create
from backchannel.errors import BackchannelError, Reason
from tests.support.hostile_upstream import (
    Answer,
    HostileUpstream,
    Wire,
    delta,
    never,
    replies,
    says,
    streams,
)
from tests.unit.engines.openai_support import KEY, PROMPT, QUICK, SECRET, failure, opened
from tests.unit.engines.support import Run, collect

# --- failures before the answer


@pytest.mark.parametrize(
    ("status", "body", "reason", "words"),
    [
        ("401 Unauthorized", {"error": {"message": f"bad key {KEY}"}}, "UNAUTHORIZED", "api_key"),
        ("403 Forbidden", b"", "UNAUTHORIZED", "api_key"),
        ("404 Not Found", b"<html>", "NOT_AN_API", "/v1"),
        ("405 Method Not Allowed", b"", "NOT_AN_API", "base_url"),
        ("429 Too Many Requests", b"", "RATE_LIMITED", "later"),
        (
            "429 Too Many Requests",
            {"error": {"code": "insufficient_quota"}},
            "RATE_LIMITED",
            "no quota left",
        ),
        ("500 Internal Server Error", {"error": {"message": SECRET}}, "FAILED", "500"),
        ("502 Bad Gateway", b"<html>Bad Gateway</html>", "FAILED", "502"),
        ("503 Service Unavailable", b"", "FAILED", "503"),
        ("400 Bad Request", {"error": {"message": "no such thing"}}, "REFUSED", "no such thing"),
        ("422 Unprocessable", {"detail": [{"input": SECRET}]}, "REFUSED", "its own log"),
        (
            "400 Bad Request",
            {"error": {"message": f"bad: 'elephant DANCES'; {SECRET}", "code": "nope"}},
            "REFUSED",
            "nope",
        ),
        ("307 Temporary Redirect", b"", "NOT_AN_API", "redirects"),
        ("204 No Content", b"", "NOT_AN_API", "status 204"),
    ],
)
async def test_a_status_is_a_reason(
    upstream: HostileUpstream,
    monkeypatch: pytest.MonkeyPatch,
    status: str,
    body: object,
    reason: str,
    words: str,
) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    answer = replies(status, body, location=f"{upstream.base_url}/elsewhere?{KEY}")
    error = await failure(upstream, answer, api_key_env="SOME_KEY")
    assert error.reason == f"UPSTREAM_{reason}"
    assert words in error.message
    assert len(upstream.requests) == 1


async def test_a_redirect_is_not_followed(upstream: HostileUpstream) -> None:
    async with HostileUpstream() as elsewhere:
        elsewhere.will(says("Got you."))
        location = f"{elsewhere.base_url}/chat/completions"
        await failure(upstream, replies("308 Permanent Redirect", location=location))
        assert elsewhere.requests == []


async def test_a_missing_key_is_told_from_a_wrong_one(upstream: HostileUpstream) -> None:
    error = await failure(upstream, replies("401 Unauthorized"))
    assert "none is configured" in error.message


async def test_a_model_that_is_gone(upstream: HostileUpstream) -> None:
    body = {"error": {"message": "The model `m` does not exist.", "code": 404}}
    error = await failure(upstream, replies("404 Not Found", body))
    assert error.reason is Reason.MODEL_NOT_FOUND


@pytest.mark.parametrize(
    ("error", "prompt_tokens", "context"),
    [
        (
            {
                "type": "exceed_context_size_error",
                "message": "request (700 tokens) exceeds the available context size (512 tokens)",
                "n_prompt_tokens": 700,
                "n_ctx": 512,
            },
            "700",
            "512",
        ),
        (
            {
                "code": "context_length_exceeded",
                "message": "This model's maximum context length is 8192 tokens. However, your "
                "messages resulted in 9001 tokens.",
            },
            "9001",
            "8192",
        ),
        (
            {
                "message": "This model's maximum context length is 4096 tokens. However, you "
                "requested 5000 tokens (4900 in the messages, 100 in the completion).",
                "type": "BadRequestError",
                "code": 400,
            },
            "5000",
            "4096",
        ),
        (
            {
                "message": "The input (5000 tokens) is longer than the model's context length "
                "(4096 tokens)."
            },
            "5000",
            "4096",
        ),
    ],
)
async def test_too_long_a_prompt_says_both_numbers(
    upstream: HostileUpstream, error: object, prompt_tokens: str, context: str
) -> None:
    upstream.will(replies("400 Bad Request", {"error": error}))
    async with opened(upstream) as engine:
        with pytest.raises(BackchannelError) as caught:
            await collect(engine.start(PROMPT))
    assert caught.value.reason is Reason.PROMPT_TOO_LONG
    assert caught.value.metadata == {
        "prompt_tokens": prompt_tokens,
        "max_context_tokens": context,
    }
    assert prompt_tokens in caught.value.message
    assert context in caught.value.message


async def test_an_error_without_end_is_read_to_a_bound(upstream: HostileUpstream) -> None:
    async def answer(wire: Wire) -> None:
        await wire.head("500 Internal Server Error")
        while True:
            await wire.send(b"x" * 65536)

    assert (await failure(upstream, answer)).reason is Reason.UPSTREAM_FAILED


@pytest.mark.parametrize(
    ("kind", "body", "reason"),
    [
        ("text/html; charset=utf-8", b"<html>Welcome!</html>", "NOT_AN_API"),
        ("application/json", b'{"choices": []}', "NOT_AN_API"),
        ("application/json", b'{"error": {"message": "Out of memory"}}', "FAILED"),
        ("application/json", b'{"error": {"code": 400, "message": "No."}}', "REFUSED"),
        ("application/json", b"", "NOT_AN_API"),
        ("text/plain", b"data: [DONE]\n\n", "NOT_AN_API"),
        ("text/event-stream", b"data: {not JSON}\n\n", "UNREADABLE"),
        ("text/event-stream", b"data: [1, 2]\n\n", "UNREADABLE"),
        ("text/event-stream", b'data: {"choices": 7}\n\n', "UNREADABLE"),
        ("text/event-stream", b'data: {"choices":[{"delta":{"content":{}}}]}\n\n', "BROKE_OFF"),
        ("text/event-stream", b'data: {"choices":[{"delta":{"content":7}}]}\n\n', "UNREADABLE"),
        ("text/event-stream", b"data: " + b"[" * 50_000 + b"\n\n", "UNREADABLE"),
        (
            "text/event-stream",
            b'data: {"choices":[],"usage":{"completion_tokens":1' + b"0" * 30 + b"}}\n\n",
            "UNREADABLE",
        ),
        ("text/event-stream", b"data: [DONE]\n\n", "BROKE_OFF"),
        ("text/event-stream", b"", "BROKE_OFF"),
        ("text/event-stream", b"\x00\xff\xfe nothing of the kind", "BROKE_OFF"),
    ],
)
async def test_an_answer_that_is_none(
    upstream: HostileUpstream, kind: str, body: bytes, reason: str
) -> None:
    error = await failure(upstream, replies("200 OK", body, kind))
    assert error.reason == f"UPSTREAM_{reason}"


async def test_compressed_bytes_are_not_unpacked(upstream: HostileUpstream) -> None:
    bomb = gzip.compress(b"data: " + b"x" * 10_000_000)
    error = await failure(
        upstream, replies("200 OK", bomb, "text/event-stream", content_encoding="gzip")
    )
    assert error.reason is Reason.UPSTREAM_UNREADABLE
    assert upstream.requests[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("newlines", [b"", b"data: x\n"])
async def test_an_event_without_end_is_not_kept(upstream: HostileUpstream, newlines: bytes) -> None:
    sent = 0

    async def answer(wire: Wire) -> None:
        nonlocal sent
        await wire.head()
        while True:
            await wire.send((newlines or b"data") * 10_000)
            sent += 10_000

    error = await failure(upstream, answer)
    assert error.reason is Reason.UPSTREAM_UNREADABLE
    assert "1048576" in error.message


async def test_nobody_listens() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        upstream = HostileUpstream(port=probe.getsockname()[1])
    async with opened(upstream, models=["m"]) as engine:
        with pytest.raises(BackchannelError) as caught:
            await collect(engine.start(PROMPT))
        assert caught.value.reason is Reason.UPSTREAM_UNREACHABLE
        assert "is it running" in caught.value.message
        # It comes up later.
        async with upstream:
            upstream.will(says("Here", "."))
            assert (await collect(engine.start(PROMPT))).text == "Here."


async def test_a_host_that_nobody_knows() -> None:
    settings = {"base_url": "http://no-such-host.invalid/v1", "models": ["m"], **QUICK}
    async with create("up", settings) as engine:
        with pytest.raises(BackchannelError) as caught:
            await collect(engine.start(PROMPT))
    assert caught.value.reason is Reason.UPSTREAM_UNREACHABLE
    assert "spelled right" in caught.value.message


async def test_tls_where_there_is_none(upstream: HostileUpstream) -> None:
    settings = {"base_url": upstream.base_url.replace("http", "https"), "models": ["m"], **QUICK}
    async with create("up", settings) as engine:
        with pytest.raises(BackchannelError) as caught:
            await collect(engine.start(PROMPT))
    assert caught.value.reason is Reason.UPSTREAM_UNREACHABLE
    assert "TLS" in caught.value.message


# --- failures in its midst


async def test_a_cut_in_mid_stream(upstream: HostileUpstream) -> None:
    async def answer(wire: Wire) -> None:
        await wire.head()
        await wire.event(delta(content="One"))
        await wire.send(b'data: {"choices":[{"de')
        wire.cut()

    upstream.will(answer)
    async with opened(upstream, retries=3) as engine:
        run = Run()

        async def take() -> None:
            async for item in engine.start(PROMPT):
                run.add(item)

        with pytest.raises(BackchannelError) as caught:
            await take()
    assert caught.value.reason is Reason.UPSTREAM_BROKE_OFF
    assert "in the middle" in caught.value.message
    assert run.text == "One", "what had come was lost"
    assert len(upstream.requests) == 1, "it asked again after the first token"


async def test_an_end_in_mid_stream(upstream: HostileUpstream) -> None:
    error = await failure(upstream, streams(delta(content="One"), delta(content=" two")))
    assert error.reason is Reason.UPSTREAM_BROKE_OFF


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"error": {"message": SECRET, "code": 500}}, "FAILED"),
        ({"error": "out of memory"}, "FAILED"),
        ({"error": {"code": "rate_limit_exceeded"}}, "RATE_LIMITED"),
        ({"error": {"code": 400, "message": "grammar does not parse"}}, "REFUSED"),
        (delta("abort"), "FAILED"),
    ],
)
async def test_an_error_in_mid_stream(upstream: HostileUpstream, said: object, reason: str) -> None:
    error = await failure(upstream, streams(delta(content="One"), said))
    assert error.reason == f"UPSTREAM_{reason}"


@pytest.mark.parametrize("comments", [False, True])
async def test_no_first_token_in_time(upstream: HostileUpstream, comments: bool) -> None:
    async def answer(wire: Wire) -> None:
        await wire.head()
        await wire.event(delta(role="assistant", content=""))
        while comments:  # Signs of life are no tokens.
            await wire.send(b": still here\n\n")
            await asyncio.sleep(0.01)
        await never(wire)

    error = await failure(upstream, answer, first_token_timeout_s=0.1)
    assert error.reason is Reason.UPSTREAM_STALLED
    assert "first_token_timeout_s" in error.message


async def test_no_header_in_time(upstream: HostileUpstream) -> None:
    error = await failure(upstream, never, first_token_timeout_s=0.1, retries=3)
    assert error.reason is Reason.UPSTREAM_STALLED
    assert len(upstream.requests) == 1


async def test_no_next_token_in_time(upstream: HostileUpstream) -> None:
    async def answer(wire: Wire) -> None:
        await wire.head()
        await wire.event(delta(content="One"))
        await never(wire)

    error = await failure(upstream, answer, token_timeout_s=0.1)
    assert error.reason is Reason.UPSTREAM_STALLED
    assert "token_timeout_s" in error.message


async def test_a_connection_that_does_not_come() -> None:
    with socket.socket() as deaf:
        # Its queue is full at once, and nobody takes anything out of it.
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        with socket.socket() as other, socket.socket() as third:
            for one in (other, third):
                one.setblocking(False)
                one.connect_ex(deaf.getsockname())
            settings = {
                "base_url": f"http://127.0.0.1:{deaf.getsockname()[1]}/v1",
                "models": ["m"],
                **QUICK,
                "connect_timeout_s": 0.1,
                "first_token_timeout_s": 0.5,
            }
            async with create("up", settings) as engine:
                with pytest.raises(BackchannelError) as caught:
                    await collect(engine.start(PROMPT))
    assert caught.value.reason is Reason.UPSTREAM_STALLED
    assert "connect_timeout_s" in caught.value.message


# --- once more


def cut_before_the_first_token(wire: Wire) -> asyncio.Future[None]:
    wire.cut()
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return done


@pytest.mark.parametrize(
    "first",
    [
        replies("429 Too Many Requests", retry_after="0"),
        replies("500 Internal Server Error"),
        replies("503 Service Unavailable", retry_after_ms="1"),
        streams(),
        cut_before_the_first_token,
    ],
)
async def test_it_asks_again_while_nothing_has_come(
    upstream: HostileUpstream, first: Answer
) -> None:
    upstream.will(first, first, says("At", " last"))
    async with opened(upstream, retries=2, retry_wait_s=0.001) as engine:
        run = await collect(engine.start(PROMPT))
    assert (run.text, run.tokens) == ("At last", 2)
    assert len(upstream.requests) == 3


async def test_it_does_not_ask_for_ever(upstream: HostileUpstream) -> None:
    error = await failure(
        upstream, replies("503 Service Unavailable"), retries=2, retry_wait_s=0.001
    )
    assert error.reason is Reason.UPSTREAM_FAILED
    assert len(upstream.requests) == 3


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "3600"}, 3600.0),
        (
            {
                "date": "Mon, 23 Nov 2026 06:00:00 GMT",
                "retry_after": "Mon, 23 Nov 2026 06:01:30 GMT",
            },
            90.0,
        ),
        ({"retry_after": "99999999999999999999"}, 5.0),
        ({"retry_after": "soon"}, 5.0),
        ({"retry_after": "-1"}, 5.0),
    ],
)
async def test_a_long_pause_is_the_clients_to_make(
    upstream: HostileUpstream, headers: dict[str, str], seconds: float
) -> None:
    retries = 3 if seconds > 20 else 0
    error = await failure(upstream, replies("429 Slow Down", **headers), retries=retries)
    assert error.reason is Reason.UPSTREAM_RATE_LIMITED
    assert error.retry_after_s == seconds
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("status", ["400 Bad Request", "401 Unauthorized", "404 Not Found"])
async def test_what_will_not_change_is_not_asked_again(
    upstream: HostileUpstream, status: str
) -> None:
    await failure(upstream, replies(status), retries=3, retry_wait_s=0.001)
    assert len(upstream.requests) == 1
