from __future__ import annotations

import asyncio

import pytest

from backchannel.errors import BackchannelError, Reason, reason_of
from backchannel.host.config import HostConfig
from backchannel.host.live import LiveSession
from backchannel.log.protocol import AppendConflictError, SessionDamagedError
from backchannel.v1 import frame_pb2, session_pb2
from tests.support.clock import settle
from tests.support.hosting import Running, ShakyLog, Stream, attach, hosting, log_down, say

NAME = "a-session-id-of-some-length"


async def stalled(run: Running) -> tuple[LiveSession, Stream]:
    """A session in the middle of an answer, and a stream that has seen it so far."""
    live = (await run.create("scripted/stall", session_id=NAME)).live
    stream = attach(live)
    await live.send(say(frame_id="first"))
    await stream.until(lambda s: s.text.endswith("5"))
    return live, stream


def engine_runs(run: Running) -> int:
    engine = run.engines.resolve("scripted/stall")[0]
    return int(engine.running)  # type: ignore[attr-defined] # scripted has it


async def test_when_the_log_refuses_the_turn_stops_and_ends_when_the_log_is_back() -> None:
    log = ShakyLog()
    async with hosting(log) as run:
        live, stream = await stalled(run)
        last = stream.seqs[-1]
        log.refuse = log_down()
        live.submit(say(frame_id="lost"), stream.reader)
        with pytest.raises(BackchannelError) as refused:
            await live.send(say(frame_id="lost too"))
        assert refused.value.reason is Reason.LOG_UNAVAILABLE
        await stream.until(lambda s: bool(s.receipts))
        assert stream.receipts[0].frame_id == "lost"
        assert stream.receipts[0].status == frame_pb2.RECEIPT_STATUS_REJECTED
        assert reason_of(stream.receipts[0].error) == "LOG_UNAVAILABLE"
        assert engine_runs(run) == 0
        with pytest.raises(BackchannelError):
            await live.view()
        # The reader stays, and hears that the stream lives.
        coming = asyncio.create_task(stream.next())
        await run.clock.advance(15)
        await coming
        assert stream.heartbeats[-1].seq == last
        # A reader can still come; what is committed is there.
        other = attach(live)
        await other.until(lambda s: s.text.endswith("5"))
        assert other.events == stream.events

        log.refuse = None
        await run.clock.advance(20)
        await stream.until("turn_finished")
        await other.until("turn_finished")
        assert stream.seqs == list(range(1, last + 2))
        finish = stream.events[-1].turn_finished
        assert finish.finish_reason == session_pb2.FINISH_REASON_ERROR
        assert reason_of(finish.error) == "LOG_UNAVAILABLE"
        # Refused frames were not remembered.
        receipt = await live.send(say(frame_id="lost"))
        assert receipt.status == frame_pb2.RECEIPT_STATUS_ACCEPTED
        assert other.events == stream.events
        stream.close()
        other.close()


async def test_other_sessions_notice_nothing_of_one_that_is_damaged() -> None:
    log = ShakyLog()
    async with hosting(log) as run:
        live, stream = await stalled(run)
        log.refuse = SessionDamagedError(NAME, "torn page", metadata={"file": "x"})
        log.refuse_if = lambda append: append.session_id == NAME
        other = (await run.create()).live
        watch = attach(other)
        both = await asyncio.gather(
            live.send(say()), other.send(say(frame_id="x")), return_exceptions=True
        )
        assert isinstance(both[0], BackchannelError)
        assert both[0].reason is Reason.LOG_CORRUPT
        assert isinstance(both[1], frame_pb2.Receipt)
        await watch.until("turn_finished")
        assert watch.seqs == list(range(1, 105))
        watch.close()
        stream.close()


async def test_a_damaged_log_ends_the_readers_with_data_loss_and_the_process_stays() -> None:
    log = ShakyLog()
    async with hosting(log) as run:
        live, stream = await stalled(run)

        async def damaged(session_id: str) -> None:
            raise SessionDamagedError(session_id, "torn page", metadata={"file": "x"})

        log.refuse = SessionDamagedError(NAME, "torn page", metadata={"file": "x"})
        log.load = damaged  # type: ignore[method-assign] # it breaks here
        with pytest.raises(BackchannelError):
            await live.send(say())
        ending = asyncio.create_task(stream.to_end())
        await run.clock.advance(20)
        with pytest.raises(BackchannelError) as ended:
            await ending
        assert ended.value.reason is Reason.LOG_CORRUPT
        with pytest.raises(BackchannelError) as refused:
            await run.host.sessions.get(NAME)
        assert refused.value.reason is Reason.LOG_CORRUPT
        stream.close()
        log.refuse = None
        await run.create()
        # Even so it can be deleted.
        await run.host.sessions.delete(NAME)
        assert await log.count() == 1


async def test_who_wrote_beside_us_is_read_again() -> None:
    log = ShakyLog()
    async with hosting(log) as run:
        live, stream = await stalled(run)
        log.refuse = AppendConflictError(NAME, "somebody else wrote")
        with pytest.raises(BackchannelError) as refused:
            await live.send(say())
        assert refused.value.reason is Reason.OWNER_ELSEWHERE
        log.refuse = None
        await run.clock.advance(2)
        await stream.until("turn_finished")
        assert stream.seqs == list(range(1, len(stream.seqs) + 1))
        stream.close()


async def test_an_append_that_was_refused_but_is_there_is_delivered_once() -> None:
    log = ShakyLog()
    async with hosting(log) as run:
        live, stream = await stalled(run)
        last = stream.seqs[-1]
        genuine = log.append

        async def lost_answer(batch: object) -> None:
            await genuine(batch)  # type: ignore[arg-type] # whatever it is
            raise log_down()

        log.append = lost_answer  # type: ignore[method-assign] # it breaks here
        with pytest.raises(BackchannelError):
            await live.send(say(frame_id="f"))
        log.append = genuine  # type: ignore[method-assign] # and is mended
        await run.clock.advance(2)
        await stream.until("turn_finished")
        assert stream.seqs == list(range(1, len(stream.seqs) + 1))
        assert stream.kinds[last] == "input_accepted"
        receipt = await live.send(say(frame_id="f"))
        assert (receipt.status, receipt.seq) == (frame_pb2.RECEIPT_STATUS_DUPLICATE, last + 1)
        stream.close()


async def test_a_session_deleted_behind_our_back_ends_its_readers() -> None:
    log = ShakyLog()
    async with hosting(log) as run:
        live, stream = await stalled(run)
        await log.delete(NAME, 0)
        with pytest.raises(BackchannelError):
            await live.send(say())
        await run.clock.advance(2)
        with pytest.raises(BackchannelError) as ended:
            await stream.to_end()
        assert ended.value.reason is Reason.SESSION_NOT_FOUND
        stream.close()


async def test_a_creation_that_the_log_refuses_leaves_nothing() -> None:
    log = ShakyLog()
    async with hosting(log, settings=HostConfig(max_sessions=1)) as run:
        log.refuse = log_down()
        with pytest.raises(BackchannelError) as refused:
            await run.create(session_id=NAME)
        assert refused.value.reason is Reason.LOG_UNAVAILABLE
        log.refuse = None
        created = await run.create(session_id=NAME)
        assert not created.duplicate
        await run.clock.advance(60)
        assert (await created.live.view()).last_seq == 1


async def test_readers_count_for_a_session_that_is_back() -> None:
    log = ShakyLog()
    async with hosting(log) as run:
        action = session_pb2.DisconnectPolicy.ACTION_CANCEL_NOW
        live = (await run.create(max_tokens=3, action=action)).live
        stream = attach(live)
        await stream.next()
        log.refuse = log_down()
        with pytest.raises(BackchannelError):
            await live.send(say())
        log.refuse = None
        await run.clock.advance(2)
        # Without a reader this would wait for one.
        await live.send(say())
        await stream.until("turn_finished")
        assert stream.text == "1 2 3"
        stream.close()


async def test_back_off_doubles_and_is_jittered() -> None:
    log = ShakyLog()
    async with hosting(log) as run:
        live, stream = await stalled(run)
        log.refuse = log_down()
        with pytest.raises(BackchannelError):
            await live.send(say())
        loads: list[float] = []
        genuine = log.load
        start_ns = run.clock.now_ns()

        async def load(session_id: str) -> object:
            loads.append((run.clock.now_ns() - start_ns) / 1e9)
            raise log_down()

        log.load = load  # type: ignore[assignment,method-assign] # it breaks here
        await run.clock.advance(120)
        gaps = [later - earlier for earlier, later in zip([0.0, *loads], loads, strict=False)]
        assert 0.125 <= gaps[0] <= 0.25
        assert all(gap <= 15 for gap in gaps)
        assert gaps[-1] >= 7.5
        assert len(set(gaps)) == len(gaps)
        assert len(loads) < 25
        log.load = genuine  # type: ignore[method-assign] # and is mended
        log.refuse = None
        await run.clock.advance(20)
        await stream.until("turn_finished")
        stream.close()


async def test_a_bug_in_the_core_ends_the_turn_and_not_the_session() -> None:
    async with hosting() as run:
        live, stream = await stalled(run)

        def broken(*_: object) -> None:
            raise RuntimeError("secret words of the user")

        live._core.accept = broken  # type: ignore[assignment,method-assign] # it breaks here
        with pytest.raises(BackchannelError) as refused:
            await live.send(say())
        assert refused.value.reason is Reason.INTERNAL
        assert engine_runs(run) == 0
        await run.clock.advance(2)
        await stream.until("turn_finished")
        assert stream.seqs == list(range(1, len(stream.seqs) + 1))
        assert (await live.send(say())).status == frame_pb2.RECEIPT_STATUS_ACCEPTED
        stream.close()


async def test_a_bug_while_an_append_is_under_way() -> None:
    log = ShakyLog()
    async with hosting(log) as run:
        live, stream = await stalled(run)
        log.gate = asyncio.Event()
        sending = asyncio.create_task(live.send(say(frame_id="under way")))
        await settle()

        def broken(*_: object) -> None:
            raise RuntimeError

        live._core.accept = broken  # type: ignore[assignment,method-assign] # it breaks here
        with pytest.raises(BackchannelError):
            await live.send(say())
        await run.clock.advance(5)
        log.gate.set()
        assert (await sending).status == frame_pb2.RECEIPT_STATUS_ACCEPTED
        await run.clock.advance(5)
        await stream.until("turn_finished")
        assert stream.seqs == list(range(1, len(stream.seqs) + 1))
        assert stream.kinds.count("input_accepted") == 2
        stream.close()


async def test_a_snapshot_waits_for_the_log_to_be_back() -> None:
    log = ShakyLog()
    async with hosting(log) as run:
        live, stream = await stalled(run)
        log.gate = asyncio.Event()
        log.refuse = log_down()
        live.submit(say(frame_id="lost"), stream.reader)
        await settle()
        fresh = attach(live, snapshot=True)
        log.gate.set()
        await settle()
        log.refuse = None
        await run.clock.advance(5)
        await fresh.until(lambda s: bool(s.snapshots))
        await stream.until("turn_finished")
        assert fresh.snapshots[0].seq == stream.seqs[-1]
        assert len(fresh.snapshots[0].queued) == 0
        assert fresh.events == []
        stream.close()
        fresh.close()
