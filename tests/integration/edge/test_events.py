"""Server-sent events through a real Envoy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from h2.events import StreamEnded, TrailersReceived

from backchannel.host.config import HostConfig
from tests.support.edge import EventStream, RawH2, Site, create, events, gone, readers, say, site

WORDS = "one two three"


def behind(edge: Site, stream: EventStream) -> int:
    """How many events are in the log that this stream has not got."""
    (reader,) = edge.server.host.residents
    return reader.ledger.committed_seq - int(stream.last_event_id or 0)


async def test_the_first_bytes_come_before_there_is_anything_to_say(
    either: httpx.AsyncClient,
) -> None:
    session_id = await create(either, model="scripted/echo")
    async with events(either, session_id, "?after_seq=1") as stream:
        assert stream.response.status_code == 200
        assert stream.response.headers["content-type"] == "text/event-stream"
        assert stream.response.headers["cache-control"] == "no-store"
        assert stream.response.headers["x-accel-buffering"] == "no"
        first = await stream.next()
        assert stream.chunks[0] == b"retry: 1500\n\n"
        assert stream.retry_ms == 1500
        # Nothing has happened since: the link says that it lives, and moves no cursor.
        assert first is not None
        assert (first.name, first.last_event_id) == ("heartbeat", "")
        assert first.json["seq"] == "1"


async def test_each_event_has_its_number_its_kind_and_itself(either: httpx.AsyncClient) -> None:
    session_id = await create(either, model="scripted/echo")
    await say(either, session_id, WORDS, frameId="m")
    async with events(either, session_id) as stream:
        await stream.until("turn_finished")
    assert [sent.name for sent in stream.seen] == [
        *("session_opened", "input_accepted", "turn_started"),
        *("output_delta", "output_delta", "output_delta", "turn_finished"),
    ]
    for seq, sent in enumerate(stream.seen, 1):
        assert sent.last_event_id == str(seq)
        assert sent.event.seq == seq
        assert sent.event.WhichOneof("kind") == sent.name
        assert "\n" not in sent.data


async def test_each_token_comes_by_itself(edge: Site, either: httpx.AsyncClient) -> None:
    session_id = await create(either, model="scripted/count", engineOptions={"rate": "40"})
    async with events(either, session_id) as stream:
        await stream.until("session_opened")
        await say(either, session_id, "go")
        late = 0
        for _ in range(20):
            before = len(stream.chunks)
            await stream.until("output_delta")
            assert len(stream.chunks) - before <= 3
            late = max(late, behind(edge, stream))
        # Held back somewhere, the stream would fall behind the log.
        assert late <= 5


async def test_a_stream_goes_on_where_the_browser_was_cut(either: httpx.AsyncClient) -> None:
    session_id = await create(either, model="scripted/count", engineOptions={"rate": "100"})
    await say(either, session_id, "go")
    async with events(either, session_id) as stream:
        await stream.until("output_delta", 5)
        first = stream.events
    # The header wins over what the URL has said since the beginning.
    cursor = {"last-event-id": stream.last_event_id}
    async with events(either, session_id, "?after_seq=1", cursor) as stream:
        await stream.until("turn_finished")
    seqs = [event.seq for event in first + stream.events]
    assert seqs == list(range(1, 105))


async def test_a_snapshot_has_a_number_and_is_not_sent_again_to_who_comes_back(
    either: httpx.AsyncClient,
) -> None:
    session_id = await create(either, model="scripted/echo")
    await say(either, session_id, WORDS)
    async with events(either, session_id) as stream:
        await stream.until("turn_finished")
    last = stream.last_event_id
    async with events(either, session_id, "?snapshot=true") as stream:
        sent = await stream.next()
        assert sent is not None
        assert (sent.name, sent.last_event_id) == ("snapshot", last)
        assert sent.json["turns"][0]["text"] == WORDS
    async with events(either, session_id, "?snapshot=true", {"last-event-id": "3"}) as stream:
        sent = await stream.next()
        assert sent is not None
        assert sent.event.seq == 4
    # Where it cannot go on, the snapshot is what it asked for.
    async with events(either, session_id, "?snapshot=true", {"last-event-id": "99"}) as stream:
        sent = await stream.next()
        assert sent is not None
        assert sent.name == "snapshot"


async def test_heartbeats_keep_a_silent_stream_alive_and_have_no_number() -> None:
    limits = HostConfig(heartbeat_s=0.05)
    async with site(server={"sessions": limits}) as edge, edge.client() as browser:
        session_id = await create(browser, model="scripted/echo")
        async with events(browser, session_id) as stream:
            await stream.until("heartbeat", 3)
            assert stream.last_event_id == "1"
            assert b"id:" not in stream.chunks[-1]


async def test_the_stream_of_a_deleted_session_ends_cleanly(either: httpx.AsyncClient) -> None:
    session_id = await create(either, model="scripted/echo")
    async with events(either, session_id) as stream:
        await stream.until("session_opened")
        assert (await either.delete(f"/v1/sessions/{session_id}")).status_code == 200
        rest = await stream.rest()
    assert rest[-1].name == "session_closed"
    # An EventSource comes back after any end, and must be told for good.
    async with events(either, session_id) as stream:
        assert stream.response.status_code == 404


async def test_a_drain_is_told_as_events(edge: Site, either: httpx.AsyncClient) -> None:
    session_id = await create(either, model="scripted/stall")
    await say(either, session_id, "go")
    async with events(either, session_id) as stream:
        await stream.until("output_delta", 5)
        draining = asyncio.create_task(edge.server.drain(0.5))
        rest = await stream.rest()
        await draining
    assert stream.response.status_code == 200
    names = [sent.name for sent in rest]
    assert "go_away" in names
    assert names[-1] == "error"
    assert rest[-1].json["code"] == 14
    details = {detail["@type"].rpartition(".")[2] for detail in rest[-1].json["details"]}
    assert details == {"ErrorInfo", "RetryInfo"}
    # Neither moved the cursor.
    assert rest[-1].last_event_id == str(stream.events[-1].seq)


async def test_what_may_be_better_soon_is_no_status() -> None:
    # An EventSource never comes back after a 429.
    async with site(server={"sessions": HostConfig(max_readers=1)}) as edge, edge.client() as one:
        session_id = await create(one, model="scripted/echo")
        async with events(one, session_id) as first:
            await first.until("session_opened")
            async with events(one, session_id) as second:
                assert second.response.status_code == 200
                sent = await second.next()
                assert sent is not None
                assert (sent.name, sent.json["code"]) == ("error", 8)
                assert second.retry_ms == 5000
                assert await second.next() is None


@pytest.mark.parametrize(
    ("query", "headers", "status", "code", "reason"),
    [
        ("?after_seq=99", {}, 400, 11, "CURSOR_BEYOND_END"),
        ("", {"last-event-id": "1; DROP"}, 400, 3, "FIELD_INVALID"),
        ("", {"last-event-id": "9" * 40}, 400, 3, "FIELD_INVALID"),
    ],
)
async def test_what_will_never_work_is_a_status(
    browser: httpx.AsyncClient,
    query: str,
    headers: dict[str, str],
    status: int,
    code: int,
    reason: str,
) -> None:
    session_id = await create(browser, model="scripted/echo")
    async with events(browser, session_id, query, headers) as stream:
        await stream.response.aread()
        assert stream.response.status_code == status
        assert stream.response.json()["code"] == code
        assert stream.response.json()["details"][0]["reason"] == reason


async def test_nothing_that_is_said_can_break_out_of_its_line(either: httpx.AsyncClient) -> None:
    evil = "a\nid: 7\r\nevent: error\rdata: x\0\u2028\u2029\u0085 \n\n: \N{GRINNING FACE}"
    session_id = await create(either, model="scripted/echo")
    await say(either, session_id, evil, frameId="f\nid: 9")
    async with events(either, session_id) as stream:
        await stream.until("turn_finished")
    text = "".join(event.output_delta.text for event in stream.events)
    assert text == evil
    assert [event.seq for event in stream.events] == list(range(1, len(stream.seen) + 1))


async def test_a_browser_that_leaves_is_noticed_at_once(
    edge: Site, either: httpx.AsyncClient, record_property: Callable[..., None]
) -> None:
    # One token a minute: nothing is written that could fail.
    session_id = await create(either, model="scripted/count", engineOptions={"rate": str(1 / 60)})
    await say(either, session_id, "go")
    async with events(either, session_id) as stream:
        await stream.until("turn_started")
        assert len(readers(edge.server, session_id)) == 1
        seq = stream.last_event_id
        start_s = time.perf_counter()
        await either.aclose()
        await gone(edge.server, session_id)
        record_property("noticed_ms", round(1000 * (time.perf_counter() - start_s), 1))
    # Before the next token, so not by failing to write one.
    live = await edge.server.host.sessions.get(session_id)
    assert live.ledger.committed_seq - int(seq) <= 1


async def test_a_stream_that_is_reset_is_noticed_at_once(edge: Site) -> None:
    # What an EventSource that is closed does, while other tabs share its connection.
    async with edge.client() as browser:
        session_id = await create(browser, model="scripted/echo")
    async with RawH2.connected(edge.edge.address) as connection:
        stream = connection.get(f"/v1/sessions/{session_id}/events")
        while not readers(edge.server, session_id):
            await connection.next()
        connection.reset(stream)
        await gone(edge.server, session_id)


async def test_there_is_no_grpc_in_the_trailers_either(edge: Site) -> None:
    async with edge.client() as browser, RawH2.connected(edge.edge.address) as connection:
        session_id = await create(browser, model="scripted/echo")
        connection.get(f"/v1/sessions/{session_id}/events")
        came: list[Any] = []
        while not any(isinstance(one, StreamEnded) for one in came):
            more = await connection.next()
            assert more
            came += more
            if readers(edge.server, session_id):
                await browser.delete(f"/v1/sessions/{session_id}")
        trailers = [one.headers for one in came if isinstance(one, TrailersReceived)]
        assert not any(trailers)


async def test_a_service_that_is_away_is_asked_again(edge: Site) -> None:
    async with edge.client() as browser:
        session_id = await create(browser, model="scripted/echo")
        await edge.server.drain(0)
        async with events(browser, session_id) as stream:
            # An EventSource gives up at a 503.
            assert stream.response.status_code == 200
            assert stream.response.headers["content-type"] == "text/event-stream"
            sent = await stream.next()
            assert sent is not None
            assert (sent.name, sent.json["code"], stream.retry_ms) == ("error", 14, 1500)
            assert await stream.next() is None
        # Everybody else is told as it is.
        response = await browser.get(f"/v1/sessions/{session_id}")
        assert response.status_code == 503
        assert response.json()["code"] == 14
