"""What a killed server leaves behind: every event that anybody had seen, and one ending a turn."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from backchannel.v1 import event_pb2, session_pb2
from tests.scale import scale
from tests.support.server import ServerProcess, connected
from tests.support.stream import Client, Stream, check_log, create, resume, say

KILLS = scale(5, 50)
TOKENS = 40


async def _read_until_cut(stream: Stream, moment: random.Random) -> None:
    """Read some of the answer: nothing yet, a piece, or all of it."""
    wanted = moment.randrange(0, TOKENS + 10)
    done = "turn_finished"
    await stream.until(
        lambda seen: done in seen.kinds() or seen.kinds().count("output_delta") >= wanted
    )


async def _resumed(client: Client, session_id: str, after_seq: int) -> list[event_pb2.Event]:
    """What a reader with a cursor gets, up to the end of the broken turn."""
    async with client.converse(resume(session_id, after_seq)) as stream:
        session = await client.get(session_id)
        if session.running_turn_id:  # It had not begun to speak, and is asked again.
            await stream.event("turn_finished")
        elif session.last_seq > after_seq:
            await stream.until(lambda seen: seen.events and seen.events[-1].seq >= session.last_seq)
        return list(stream.events)


@pytest.mark.timeout(60 + 10 * KILLS)
async def test_kill_9_in_mid_generation(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """No gap, no repeat, one ending a turn, and no seq that ever names two contents."""
    server = ServerProcess(tmp_path)
    moment = random.Random(20)
    endings: list[str] = []
    try:
        await server.start()
        for round_ in range(KILLS):
            seen: dict[int, bytes] = {}
            async with connected(server.address) as client:
                opening = create(model="scripted/count", engine_options={"rate": "200"})
                async with client.converse(opening, say("count", f"f{round_}")) as stream:
                    opened = await stream.event("session_opened")
                    session_id = opened.session_opened.session.session_id
                    receipt = await stream.receipt(f"f{round_}")
                    await _read_until_cut(stream, moment)
                    # In the middle of whatever it does, not between two reads of ours.
                    await asyncio.sleep(moment.uniform(0, 0.01))
                    server.kill()
                    await stream.end()
                    before = list(stream.events)
            seen = {event.seq: event.SerializeToString() for event in before}
            assert sorted(seen) == list(range(1, len(seen) + 1))

            await server.start()
            async with connected(server.address) as client:
                cursor = before[-1].seq
                rest = await _resumed(client, session_id, cursor)
                assert [event.seq for event in rest] == list(
                    range(cursor + 1, cursor + 1 + len(rest))
                )
                whole = await client.events(session_id)
                check_log(whole)
                for event in whole:
                    if event.seq in seen:
                        assert event.SerializeToString() == seen[event.seq]
                finished = [event for event in whole if event.HasField("turn_finished")]
                assert len(finished) == 1
                reason = finished[0].turn_finished.finish_reason
                endings.append(session_pb2.FinishReason.Name(reason))

                # The very frame, sent again, is known: it was applied once.
                again = await client.send(session_id, say("count", f"f{round_}"))
                assert (again.seq, again.turn_id) == (receipt.seq, receipt.turn_id)
                assert again.status != receipt.status
                # And the conversation goes on.
                await client.send(session_id, say("count", "next", sampling={"max_tokens": 3}))
                async with client.attach(session_id, len(whole)) as stream:
                    await stream.event("turn_finished")
                    assert stream.text == "1 2 3"
    finally:
        server.kill()
    record_property("kills", KILLS)
    record_property("endings", {name: endings.count(name) for name in sorted(set(endings))})
    assert set(endings) <= {"FINISH_REASON_OWNER_LOST", "FINISH_REASON_STOP"}


async def test_an_answer_goes_on_where_kill_9_cut_it(tmp_path: Path) -> None:
    """With an engine that can; word for word what it would have said in peace."""
    server = ServerProcess(tmp_path, arguments=("--engine", "llama"))
    question = "Who are you?"
    try:
        await server.start()
        async with connected(server.address) as client:
            peaceful = await client.create(model="llama/house")
            await client.send(peaceful.session_id, say(question))
            async with client.attach(peaceful.session_id) as stream:
                await stream.event("turn_finished")
                wanted = stream.text
        for attempt in range(20):  # It speaks fast, and the kill may come too late.
            async with connected(server.address) as client:
                session = await client.create(model="llama/house")
                async with client.attach(session.session_id) as stream:
                    await client.send(session.session_id, say(question, f"f{attempt}"))
                    await stream.event("output_delta")
                    server.kill()
                    await stream.end()
                    seen = list(stream.events)
            await server.start()
            async with connected(server.address) as client:
                cursor = seen[-1].seq
                async with client.attach(session.session_id, cursor) as stream:
                    if seen[-1].WhichOneof("kind") != "turn_finished":
                        await stream.event("turn_finished")
                whole = await client.events(session.session_id)
            check_log(whole)
            assert [event.SerializeToString() for event in whole[:cursor]] == [
                event.SerializeToString() for event in seen
            ]
            assert "".join(event.output_delta.text for event in whole) == wanted
            recovered = [event for event in whole if event.HasField("turn_recovered")]
            begun = [event for event in whole if event.HasField("output_delta")]
            if recovered and begun[0].seq < recovered[0].seq:
                finished = whole[-1].turn_finished
                assert recovered[0].turn_recovered.from_seq == recovered[0].seq
                assert finished.finish_reason == session_pb2.FINISH_REASON_STOP
                assert finished.usage.estimated
                assert finished.usage.generated_tokens == finished.usage.delivered_tokens
                return
        pytest.fail("no kill met an answer in the making")
    finally:
        server.kill()


async def test_kill_9_while_a_tool_runs(server_process: ServerProcess) -> None:
    """An open call outlives the server: its result is taken by the next one, once."""
    tools = [session_pb2.ToolSpec(name="slow")]
    async with connected(server_process.address) as client:
        session = await client.create(model="scripted/tool", tools=tools)
        await client.send(session.session_id, say("hello", "m1"))
        async with client.attach(session.session_id) as stream:
            ready = await stream.event("tool_call_ready")
            server_process.kill()
            await stream.end()
            cursor = stream.events[-1].seq
    await server_process.start()
    async with connected(server_process.address) as client:
        found = await client.get(session.session_id)
        assert found.state == session_pb2.Session.STATE_WAITING_FOR_TOOLS
        assert [call.call_id for call in found.open_tool_calls] == [ready.tool_call_ready.call_id]
        result = session_pb2.ToolResult(call_id=ready.tool_call_ready.call_id, json='{"n":1}')
        frame = say("", "r1")
        frame.tool_result.CopyFrom(result)
        async with client.converse(resume(session.session_id, cursor)) as stream:
            await stream.send(frame)
            finished = await stream.event("turn_finished")
            assert stream.text == 'result: {"n":1}'
        assert finished.turn_finished.finish_reason == session_pb2.FINISH_REASON_STOP
        check_log(await client.events(session.session_id))


async def test_a_message_accepted_before_a_crash_is_answered_after_it(
    server_process: ServerProcess,
) -> None:
    """The one that was queued behind the turn that died with its server."""
    async with connected(server_process.address) as client:
        session = await client.create(model="scripted/stall")
        await client.send(session.session_id, say("first", "m1"))
        async with client.attach(session.session_id) as stream:
            await stream.event("output_delta")
        accepted = await client.send(session.session_id, say("second", "m2"))
        assert not accepted.turn_id
    server_process.kill()
    await server_process.start()
    async with (
        connected(server_process.address) as client,
        client.attach(session.session_id) as stream,
    ):
        first = await stream.event("turn_finished")
        assert first.turn_finished.finish_reason == session_pb2.FINISH_REASON_OWNER_LOST
        second = await stream.event("turn_started", 2)
        assert list(second.turn_started.frame_ids) == ["m2"]


async def test_nothing_is_sent_by_a_server_that_is_gone(server_process: ServerProcess) -> None:
    """A stream that a kill cuts is an error to its client, never an end."""
    async with connected(server_process.address) as client:
        session = await client.create(model="scripted/stall")
        await client.send(session.session_id, say("go", "m1"))
        async with client.attach(session.session_id) as stream:
            await stream.event("turn_started")
            server_process.kill()
            assert (await stream.end()).code == grpc.StatusCode.UNAVAILABLE
