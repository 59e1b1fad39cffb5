from __future__ import annotations

import asyncio

import pytest

from backchannel.errors import BackchannelError, Reason
from backchannel.log.protocol import Survival
from backchannel.v1 import frame_pb2, session_pb2
from tests.support.clock import settle
from tests.support.hosting import (
    Running,
    ShakyLog,
    Stream,
    attach,
    config,
    hosting,
    interrupt,
    log_down,
    say,
)

CANCEL_NOW = session_pb2.DisconnectPolicy.ACTION_CANCEL_NOW
CONTINUE = session_pb2.DisconnectPolicy.ACTION_CONTINUE
NAME = "a-session-id-of-some-length"


class LastingLog(ShakyLog):
    @property
    def survival(self) -> Survival:
        return Survival.PROCESS


async def speaking(run: Running, made: session_pb2.SessionConfig) -> Stream:
    live = (await run.host.sessions.create(made)).live
    stream = attach(live)
    await live.send(say(frame_id="f"))
    return await stream.until(lambda s: s.text.endswith("5"))


def gone_away(stream: Stream) -> bool:
    return any(frame.HasField("go_away") for frame in stream.frames)


async def drained(run: Running, stream: Stream, grace_s: float = 10) -> BackchannelError:
    """Drain, and give the error that ends the stream."""
    draining = asyncio.create_task(run.host.drain(grace_s))
    ending = asyncio.create_task(stream.to_end())
    await run.clock.advance(grace_s)
    await draining
    with pytest.raises(BackchannelError) as ended:
        await ending
    return ended.value


async def test_draining_with_nothing_to_do_is_over_at_once() -> None:
    async with hosting() as run:
        live = (await run.create()).live
        stream = attach(live)
        async with asyncio.timeout(5):
            await run.host.drain(10)
        with pytest.raises(BackchannelError) as ended:
            await stream.to_end()
        assert ended.value.reason is Reason.DRAINING
        assert ended.value.retry_after_s
        assert gone_away(stream)
        stream.close()


async def test_a_running_turn_gets_the_grace_and_ends_where_the_log_does_not_survive() -> None:
    async with hosting() as run:
        stream = await speaking(run, config("scripted/stall"))
        draining = asyncio.create_task(run.host.drain(10))
        await stream.until(gone_away)
        go_away = stream.frames[-1].go_away
        # No more than it really is: when the time is up the stream does end.
        assert go_away.time_left.ToMilliseconds() == 7_500
        ending = asyncio.create_task(stream.to_end())
        await run.clock.advance(7.4)
        assert not draining.done()
        assert "turn_finished" not in stream.kinds
        await run.clock.advance(2.6)
        async with asyncio.timeout(5):
            await draining
        with pytest.raises(BackchannelError) as ended:
            await ending
        assert ended.value.reason is Reason.DRAINING
        finish = stream.events[-1].turn_finished
        assert finish.finish_reason == session_pb2.FINISH_REASON_DISCONNECTED
        stream.close()


async def test_where_the_log_survives_the_turn_is_left_to_be_resumed() -> None:
    log = LastingLog()
    async with hosting(log) as run:
        stream = await speaking(run, config("scripted/stall", session_id=NAME))
        await drained(run, stream)
        assert "turn_finished" not in stream.kinds
        last = stream.seqs[-1]
        stream.close()
    async with hosting(log) as run:
        await run.host.recover()
        again = attach(await run.host.sessions.get(NAME), last)
        await again.until("turn_finished")
        assert again.seqs[0] == last + 1
        again.close()


async def test_under_cancel_now_the_turn_ends_even_so() -> None:
    async with hosting(LastingLog()) as run:
        stream = await speaking(run, config("scripted/stall", action=CANCEL_NOW))
        await drained(run, stream)
        finish = stream.events[-1].turn_finished
        assert finish.finish_reason == session_pb2.FINISH_REASON_DISCONNECTED
        stream.close()


async def test_readers_that_leave_as_they_were_told_cancel_nothing() -> None:
    async with hosting(LastingLog()) as run:
        stream = await speaking(run, config("scripted/stall", action=CANCEL_NOW))
        live = await run.host.sessions.get(stream.reader._session.session_id)
        draining = asyncio.create_task(run.host.drain(10))
        await stream.until(gone_away)
        stream.close()
        await run.clock.advance(2)
        assert (await live.view()).running_turn_id
        await run.clock.advance(8)
        await draining


async def test_while_draining_a_stop_works_and_new_work_is_refused() -> None:
    async with hosting() as run:
        stream = await speaking(run, config("scripted/stall", session_id=NAME))
        draining = asyncio.create_task(run.host.drain(10))
        await settle()
        assert run.host.sessions.leaving
        live = await run.host.sessions.get(NAME)
        with pytest.raises(BackchannelError) as refused:
            await run.create()
        assert refused.value.reason is Reason.DRAINING
        with pytest.raises(BackchannelError) as refused:
            attach(live)
        assert refused.value.reason is Reason.DRAINING
        live.submit(say(frame_id="late"), stream.reader)
        live.submit(interrupt(stream.turn_id), stream.reader)
        await stream.until("turn_finished")
        statuses = [receipt.status for receipt in stream.receipts]
        assert statuses == [
            frame_pb2.RECEIPT_STATUS_REJECTED,
            frame_pb2.RECEIPT_STATUS_ACCEPTED,
        ]
        async with asyncio.timeout(5):
            await draining  # With the turn over there is nothing to wait for.
        stream.close()


async def test_a_log_that_is_down_does_not_hold_up_the_leaving() -> None:
    log = ShakyLog()
    async with hosting(log) as run:
        stream = await speaking(run, config("scripted/stall"))
        log.refuse = log_down()
        error = await drained(run, stream)
        assert error.reason is Reason.DRAINING
        stream.close()


async def test_leaving_without_draining_ends_readers_and_runs() -> None:
    log = ShakyLog()
    async with hosting(log) as run:
        stream = await speaking(run, config("scripted/stall"))
        reading = asyncio.create_task(stream.to_end())
        await settle()
        engine = run.engines.resolve("scripted/stall")[0]
    with pytest.raises(BackchannelError) as ended:
        await reading
    assert ended.value.reason is Reason.DRAINING
    assert engine.running == 0  # type: ignore[attr-defined] # scripted has it
    assert asyncio.all_tasks() == {asyncio.current_task()}


# --- readers leave ---------------------------------------------------------------------------


async def test_grace_cancels_when_nobody_comes_back() -> None:
    async with hosting() as run:
        stream = await speaking(run, config("scripted/stall", grace_s=30, session_id=NAME))
        last = stream.seqs[-1]
        stream.close()
        await run.clock.advance(29)
        live = await run.host.sessions.get(NAME)
        assert (await live.view()).running_turn_id
        await run.clock.advance(1.1)
        assert not (await live.view()).running_turn_id
        again = attach(live, last)
        await again.until("turn_finished")
        finish = again.events[-1].turn_finished
        assert finish.finish_reason == session_pb2.FINISH_REASON_DISCONNECTED
        assert finish.usage.generated_tokens == finish.usage.delivered_tokens == 5
        again.close()


async def test_coming_back_within_the_grace_saves_the_turn() -> None:
    async with hosting() as run:
        stream = await speaking(run, config("scripted/stall", grace_s=30, session_id=NAME))
        stream.close()
        await run.clock.advance(29)
        again = attach(await run.host.sessions.get(NAME), stream.seqs[-1])
        await run.clock.advance(60)
        assert (await (await run.host.sessions.get(NAME)).view()).running_turn_id
        again.close()


async def test_one_of_two_readers_may_leave() -> None:
    async with hosting() as run:
        stream = await speaking(run, config("scripted/stall", action=CANCEL_NOW, session_id=NAME))
        live = await run.host.sessions.get(NAME)
        other = attach(live)
        stream.close()
        await settle()
        assert (await live.view()).running_turn_id
        other.reader.half_close()
        await other.to_end()
        finish = other.events[-1].turn_finished
        assert finish.finish_reason == session_pb2.FINISH_REASON_DISCONNECTED
        other.close()


async def test_under_continue_the_turn_needs_no_reader() -> None:
    async with hosting() as run:
        live = (await run.host.sessions.create(config("scripted/count", action=CONTINUE))).live
        await live.send(say())
        await live.rest()
        view = await live.view()
        assert view.last_seq == 104
        assert view.state == session_pb2.Session.STATE_IDLE
