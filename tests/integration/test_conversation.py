"""Whole conversations: many at once, and a stop that comes after a fast engine has ended."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from backchannel.rpc.server import Server
from backchannel.v1 import frame_pb2, session_pb2
from tests.support.server import config, connected
from tests.support.stream import Client, check_log, create, interrupt, say

PLUGINS = Path(__file__).parents[1] / "plugins"
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


async def test_a_stop_after_a_fast_engine_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader had seen half: the answer is cut there, and the next one proves it.

    The engine answers with the transcript that it was told, so what the model knows can be read.
    """
    monkeypatch.syspath_prepend(PLUGINS)
    opening = create(model="mirror/mirror")
    async with (
        Server(config(engine=("mirror",))) as server,
        connected(server.address) as client,
        client.converse(opening, say("hello", "m1")) as stream,
    ):
        finished = await stream.event("turn_finished")
        turn_id = finished.turn_finished.turn_id
        answer = stream.text
        assert json.loads(answer) == [["user", "hello"]]
        shown = answer[: len(answer) // 2]
        deltas = [event for event in stream.events if event.HasField("output_delta")]
        half = next(
            event
            for event in deltas
            if event.output_delta.offset + len(event.output_delta.text) == len(shown)
        )
        await stream.send(interrupt(turn_id, "i1", displayed_seq=half.seq))
        receipt = await stream.receipt("i1")
        assert receipt.status == frame_pb2.RECEIPT_STATUS_ACCEPTED
        cut = await stream.event("turn_truncated")
        assert receipt.seq == cut.seq
        assert cut.turn_truncated.kept_chars == len(shown)
        assert cut.turn_truncated.dropped_chars == len(answer) - len(shown)
        # Once more is too late for anything, and there is no second ending.
        await stream.send(interrupt(turn_id, "i2", displayed_seq=half.seq))
        assert (await stream.receipt("i2")).status == frame_pb2.RECEIPT_STATUS_STALE
        assert stream.kinds().count("turn_finished") == 1

        await stream.send(say("and now?", "m2"))
        await stream.event("turn_finished", 2)
        assert json.loads(stream.text[len(answer) :]) == [
            ["user", "hello"],
            ["assistant", shown],
            ["user", "and now?"],
        ]
