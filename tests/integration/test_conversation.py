"""Whole conversations: many at once, and a stop that comes after a fast engine has ended."""

from __future__ import annotations

import asyncio

from backchannel.rpc.server import Server
from backchannel.v1 import frame_pb2, session_pb2
from tests.support.server import connected
from tests.support.stream import Client, check_log, create, interrupt, say

SESSIONS = 200
TOKENS = 100
COUNTED = " ".join(str(number) for number in range(1, TOKENS + 1))


async def test_200_sessions_at_once(server: Server) -> None:
    """Every log is valid, and every reader has seen exactly what is in it."""

    async def one(client: Client) -> None:
        async with client.converse(create(model="scripted/count"), say("go", "m1")) as stream:
            finished = await stream.event("turn_finished")
            assert finished.turn_finished.finish_reason == session_pb2.FINISH_REASON_STOP
            usage = finished.turn_finished.usage
            assert usage.generated_tokens == usage.delivered_tokens == TOKENS
            assert stream.text == COUNTED
            session_id = stream.events[0].session_opened.session.session_id
            whole = await client.events(session_id)
            check_log(whole)
            assert whole == stream.events

    async with connected(server.address) as client, asyncio.TaskGroup() as group:
        for _ in range(SESSIONS):
            group.create_task(one(client))


async def test_a_stop_after_a_fast_engine_has_ended(client: Client) -> None:
    """The reader had seen half: the turn is cut there, and the next prompt proves it."""
    words = " ".join(f"word{number}" for number in range(20))
    opening = create(model="scripted/echo")
    async with client.converse(opening, say(words, "m1")) as stream:
        finished = await stream.event("turn_finished")
        turn_id = finished.turn_finished.turn_id
        deltas = [event for event in stream.events if event.HasField("output_delta")]
        half = deltas[9]
        shown = "".join(event.output_delta.text for event in deltas[:10])
        await stream.send(interrupt(turn_id, "i1", displayed_seq=half.seq))
        receipt = await stream.receipt("i1")
        assert receipt.status == frame_pb2.RECEIPT_STATUS_ACCEPTED
        cut = await stream.event("turn_truncated")
        assert receipt.seq == cut.seq
        assert cut.turn_truncated.kept_chars == len(shown)
        assert cut.turn_truncated.dropped_chars == len(words) - len(shown)
        # No second ending.
        assert stream.kinds().count("turn_finished") == 1
        # Once more is too late for anything.
        await stream.send(interrupt(turn_id, "i2", displayed_seq=half.seq))
        assert (await stream.receipt("i2")).status == frame_pb2.RECEIPT_STATUS_STALE
        session_id = stream.events[0].session_opened.session.session_id

    async with client.attach(session_id, snapshot=True) as stream:
        frame = await stream.next()
        assert frame is not None
        (turn,) = frame.snapshot.turns
        assert turn.text == words
        assert turn.text[: turn.kept_chars] == shown
