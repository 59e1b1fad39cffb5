from __future__ import annotations

import asyncio
import itertools

import pytest

from backchannel.errors import BackchannelError, Reason
from backchannel.host.config import HostConfig
from backchannel.log.protocol import Survival
from backchannel.v1 import frame_pb2, session_pb2
from tests.support.clock import settle
from tests.support.hosting import ShakyLog, attach, config, hosting, interrupt, say

NAME = "a-session-id-of-some-length"


def reason_of(caught: pytest.ExceptionInfo[BackchannelError]) -> Reason:
    return caught.value.reason


async def test_a_created_session_is_in_the_log_with_its_defaults() -> None:
    async with hosting() as run:
        created = await run.host.sessions.create(session_pb2.SessionConfig(), frame_id="open")
        assert created.receipt == frame_pb2.Receipt(
            frame_id="open", status=frame_pb2.RECEIPT_STATUS_ACCEPTED, seq=1
        )
        view = await created.live.view()
        assert view.config.model == "scripted/echo"
        assert view.last_seq == 1
        assert 16 <= len(view.session_id) <= 64
        assert await run.log.load(view.session_id) is not None
        other = await run.host.sessions.create(session_pb2.SessionConfig())
        assert other.live.session_id != view.session_id


async def test_creating_again_gives_the_same_session_or_is_refused() -> None:
    log = ShakyLog()
    async with hosting(log) as run:
        first = await run.host.sessions.create(config(session_id=NAME))
        again = await run.host.sessions.create(config(session_id=NAME), frame_id="f")
        assert again.duplicate
        assert again.live is first.live
        assert again.receipt.status == frame_pb2.RECEIPT_STATUS_DUPLICATE
        with pytest.raises(BackchannelError) as refused:
            await run.host.sessions.create(config(session_id=NAME, max_tokens=3))
        assert reason_of(refused) is Reason.SESSION_EXISTS
    async with hosting(log) as run:  # A new process knows it from the log.
        assert (await run.host.sessions.create(config(session_id=NAME))).duplicate
        with pytest.raises(BackchannelError) as refused:
            await run.host.sessions.create(config(session_id=NAME, max_tokens=3))
        assert reason_of(refused) is Reason.SESSION_EXISTS


async def test_creating_at_the_same_time_makes_one_session() -> None:
    log = ShakyLog()
    log.gate = asyncio.Event()
    async with hosting(log) as run:
        tasks = [
            asyncio.create_task(run.host.sessions.create(config(session_id=NAME)))
            for _ in range(10)
        ]
        gets = [asyncio.create_task(run.host.sessions.get(NAME)) for _ in range(3)]
        await settle()
        tasks[0].cancel()  # Whoever asked first leaves; the session comes all the same.
        log.gate.set()
        created = [await task for task in tasks[1:]]
        assert {id(one.live) for one in created} == {id(await gets[0])}
        assert await run.log.count() == 1
        assert all(one.duplicate for one in created)


async def test_concurrent_gets_load_once() -> None:
    log = ShakyLog()
    async with hosting(log) as run:
        await run.host.sessions.create(config(session_id=NAME))
    async with hosting(log) as run:
        found = await asyncio.gather(*(run.host.sessions.get(NAME) for _ in range(20)))
        created = await run.host.sessions.create(config(session_id=NAME))
        assert {id(live) for live in (*found, created.live)} == {id(found[0])}


async def test_what_is_not_there_is_not_found() -> None:
    async with hosting() as run:
        for work in (run.host.sessions.get, run.host.sessions.delete):
            with pytest.raises(BackchannelError) as refused:
                await work(NAME)
            assert reason_of(refused) is Reason.SESSION_NOT_FOUND


@pytest.mark.parametrize(
    ("made", "reason", "field"),
    [
        (config("scripted/nothing"), Reason.MODEL_NOT_FOUND, "model"),
        (config(rate="fast"), Reason.FIELD_INVALID, "engine_options"),
        (config(session_id="short"), Reason.FIELD_INVALID, "session_id"),
    ],
)
async def test_a_bad_configuration_makes_nothing(
    made: session_pb2.SessionConfig, reason: Reason, field: str
) -> None:
    async with hosting() as run:
        with pytest.raises(BackchannelError) as refused:
            await run.host.sessions.create(made)
        assert reason_of(refused) is reason
        assert field in refused.value.field
        assert await run.log.count() == 0


async def test_sessions_are_bounded_and_a_deletion_makes_room() -> None:
    async with hosting(settings=HostConfig(max_sessions=2)) as run:
        first = (await run.create()).live
        await run.create()
        with pytest.raises(BackchannelError) as refused:
            await run.create()
        assert reason_of(refused) is Reason.SESSIONS_FULL
        await run.host.sessions.delete(first.session_id)
        await run.create()


async def test_deleting_tells_the_readers_and_retires_the_id() -> None:
    async with hosting() as run:
        live = (await run.create("scripted/stall", session_id=NAME)).live
        stream = attach(live)
        await live.send(say())
        await stream.until(lambda s: s.text.endswith("5"))

        async def read_and_close() -> None:
            await stream.to_end()
            stream.close()

        reading = asyncio.create_task(read_and_close())
        await run.host.sessions.delete(NAME)
        await reading
        assert stream.kinds[-2:] == ["turn_finished", "session_closed"]
        assert stream.events[-1].session_closed.reason == "DELETED"
        with pytest.raises(BackchannelError) as refused:
            await run.host.sessions.get(NAME)
        assert reason_of(refused) is Reason.SESSION_NOT_FOUND
        with pytest.raises(BackchannelError) as refused:
            await live.send(say())
        assert reason_of(refused) is Reason.SESSION_NOT_FOUND
        with pytest.raises(BackchannelError) as refused:
            await run.host.sessions.create(config(session_id=NAME))
        assert reason_of(refused) is Reason.SESSION_ID_RETIRED
        await settle()
        engine = run.engines.resolve("scripted/stall")[0]
        assert engine.running == 0  # type: ignore[attr-defined] # scripted has it
        await run.clock.advance(24 * 3600 + 1)
        assert not (await run.host.sessions.create(config(session_id=NAME))).duplicate


async def test_deleting_waits_for_a_slow_reader_only_so_long() -> None:
    async with hosting() as run:
        live = (await run.create(session_id=NAME)).live
        stream = attach(live)
        deleting = asyncio.create_task(run.host.sessions.delete(NAME))
        await run.clock.advance(1.9)
        assert not deleting.done()
        await run.clock.advance(0.2)
        await deleting
        # What is in memory is still handed out.
        await stream.to_end()
        assert stream.kinds == ["session_opened", "session_closed"]
        stream.close()


async def test_deleting_what_is_not_in_memory() -> None:
    log = ShakyLog()
    async with hosting(log) as run:
        await run.host.sessions.create(config(session_id=NAME))
    async with hosting(log) as run:
        await run.host.sessions.delete(NAME)
        assert await log.count() == 0
        with pytest.raises(BackchannelError) as refused:
            await run.host.sessions.create(config(session_id=NAME))
        assert reason_of(refused) is Reason.SESSION_ID_RETIRED


async def test_idle_sessions_make_room_in_memory_and_come_back() -> None:
    settings = HostConfig(max_live=3, idle_before_passive_s=10)
    async with hosting(settings=settings) as run:
        lives = [(await run.create(max_tokens=2)).live for _ in range(3)]
        kept = attach(lives[0])
        await lives[1].send(say())
        with pytest.raises(BackchannelError) as refused:
            await run.create()
        assert reason_of(refused) is Reason.SESSIONS_FULL
        await run.clock.advance(11)
        await run.host.sessions.get(lives[2].session_id)  # Just used.
        new = (await run.create()).live
        with pytest.raises(BackchannelError) as refused:
            await lives[1].send(say())
        assert refused.value.retry_after_s  # Ask again for it.
        await run.clock.advance(11)
        back = await run.host.sessions.get(lives[1].session_id)
        assert back is not lives[1]
        assert (await back.view()).last_seq == 6
        await lives[0].send(say())
        await kept.until("turn_finished")
        assert (await new.view()).last_seq == 1
        kept.close()


async def test_listing_in_pages_newest_first() -> None:
    async with hosting() as run:
        made = []
        for _ in range(5):
            made.append((await run.create(max_tokens=2)).live)
            await run.clock.advance(1)
        await made[1].send(say())
        stream = attach(made[1])
        await stream.until("turn_finished")
        order = [made[index].session_id for index in (1, 4, 3, 2, 0)]
        listed, token, sizes = [], "", []
        for _ in itertools.count():
            page, token = await run.host.sessions.list(2, token, "")
            listed += page
            sizes.append(len(page))
            if not token:
                break
        assert [session.session_id for session in listed] == order
        assert sizes == [2, 2, 1]
        assert listed[0].last_seq == 6
        assert (await run.host.sessions.list(0, "", ""))[0] == listed
        for bad in ("x", "!!", token + "eA=="):
            with pytest.raises(BackchannelError) as refused:
                await run.host.sessions.list(2, bad, "")
            assert refused.value.field == "page_token"
        with pytest.raises(BackchannelError) as refused:
            await run.host.sessions.list(2, "", "labels.a = b")
        assert (reason_of(refused), refused.value.field) == (Reason.FIELD_INVALID, "filter")
        stream.close()


async def test_an_interrupt_reaches_the_engine_before_the_log() -> None:
    log = ShakyLog()
    async with hosting(log) as run:
        live = (await run.create("scripted/stall")).live
        stream = attach(live)
        await live.send(say())
        await stream.until(lambda s: s.text.endswith("5"))
        engine = run.engines.resolve("scripted/stall")[0]
        assert engine.running == 1  # type: ignore[attr-defined] # scripted has it
        log.gate = asyncio.Event()
        live.submit(interrupt(stream.turn_id), stream.reader)
        assert engine.running == 0  # type: ignore[attr-defined] # told in the very call
        log.gate.set()
        await stream.until("turn_finished")
        assert stream.kinds[-2:] == ["turn_interrupted", "turn_finished"]
        assert [receipt.frame_id for receipt in stream.receipts] == ["stop"]
        stream.close()


async def test_a_restart_ends_what_ran_and_goes_on_with_what_waits() -> None:
    log = ShakyLog()
    async with hosting(log) as run:
        live = (await run.create("scripted/stall", session_id=NAME)).live
        stream = attach(live)
        await live.send(say(frame_id="a"))
        await live.send(say(frame_id="b"))
        await stream.until(lambda s: s.text.endswith("5"))
        before = list(stream.events)
        # The process dies here, as far as the log can tell.
    assert await log.active() == [NAME]
    async with hosting(log) as run:
        await run.host.recover()
        live = await run.host.sessions.get(NAME)
        stream = attach(live, before[-1].seq)
        await stream.until("turn_started")
        finish = stream.events[0].turn_finished
        assert finish.finish_reason == session_pb2.FINISH_REASON_OWNER_LOST
        assert stream.seqs[0] == before[-1].seq + 1
        assert stream.events[stream.kinds.index("turn_started")].turn_started.frame_id == "b"
        receipt = await live.send(say(frame_id="a"))
        assert receipt.status == frame_pb2.RECEIPT_STATUS_DUPLICATE
        stream.close()


async def test_a_message_accepted_before_the_end_is_answered_after_it() -> None:
    assert ShakyLog().survival is Survival.NOTHING
    log = ShakyLog()
    async with hosting(log) as run:
        live = (await run.create("scripted/count", session_id=NAME, max_tokens=3)).live
        log.gate = asyncio.Event()
        sending = asyncio.create_task(live.send(say(frame_id="a")))
        await settle()
        log.gate.set()
        assert (await sending).seq == 2
    async with hosting(log) as run:
        await run.host.recover()
        live = await run.host.sessions.get(NAME)
        receipt = await live.send(say(frame_id="a"))
        assert (receipt.status, receipt.seq) == (frame_pb2.RECEIPT_STATUS_DUPLICATE, 2)
        stream = attach(live)
        await stream.until("turn_finished")
        assert stream.kinds.count("turn_started") == 1
        stream.close()
