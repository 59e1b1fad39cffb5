from __future__ import annotations

import asyncio

import pytest

from backchannel.errors import BackchannelError, Reason
from backchannel.host.config import HostConfig
from backchannel.host.live import LiveSession
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
    say,
)


async def finished(run: Running, *, max_tokens: int = 100) -> tuple[LiveSession, Stream]:
    """A session whose one turn is over, and a stream that saw all of it."""
    created = await run.create(max_tokens=max_tokens)
    stream = attach(created.live)
    await created.live.send(say())
    return created.live, await stream.until("turn_finished")


async def test_two_readers_see_the_same_and_all_of_it() -> None:
    async with hosting() as run:
        live = (await run.create()).live
        one, two = attach(live), attach(live)
        await live.send(say(frame_id="f1"))
        await asyncio.gather(one.until("turn_finished"), two.until("turn_finished"))
        assert one.events == two.events
        assert one.seqs == list(range(1, 105))
        assert one.text == " ".join(map(str, range(1, 101)))
        one.close()
        two.close()


async def test_a_reader_resumes_anywhere_without_gap_or_repeat() -> None:
    settings = HostConfig(tail_events=10, frame_events=7)
    async with hosting(settings=settings) as run:
        live = (await run.create()).live
        whole = attach(live)
        await live.send(say())
        await whole.until("turn_finished")
        for after_seq in range(len(whole.events)):
            # Most of it lies before the tail, so this reads the log and then the tail.
            stream = attach(live, after_seq)
            await stream.until(lambda s: bool(s.events) and s.events[-1].seq == 104)
            assert stream.events == whole.events[after_seq:]
            assert all(len(frame.events) <= 7 for frame in stream.frames)
            stream.close()
        whole.close()


async def test_a_slow_reader_gets_what_piled_up_as_one_frame() -> None:
    # Every token an append of its own, so that nothing piles up for the fast one.
    async with hosting(settings=HostConfig(commit_pace_s=0.0)) as run:
        live = (await run.create()).live
        fast, slow = attach(live), attach(live)
        await slow.next()
        await live.send(say())
        await fast.until("turn_finished")
        frame = await slow.next()
        assert frame is not None
        assert [event.seq for event in frame.events] == list(range(2, 105))
        assert len(fast.frames) > 50
        assert slow.events == fast.events
        fast.close()
        slow.close()


async def test_frames_are_bounded_in_bytes() -> None:
    async with hosting(settings=HostConfig(frame_bytes=200)) as run:
        live = (await run.create("scripted/echo")).live
        await live.send(say("x" * 500 + " y z a b c d e f g h"))
        keeper = attach(live)
        await keeper.until("turn_finished")
        stream = attach(live)
        await stream.until("turn_finished")
        assert stream.events == keeper.events
        for frame in stream.frames:
            assert len(frame.events) == 1 or frame.ByteSize() <= 200
        assert any(len(frame.events) > 1 for frame in stream.frames)
        keeper.close()
        stream.close()


async def test_a_fresh_stream_with_nothing_to_say_says_so_at_once_and_then_regularly() -> None:
    async with hosting() as run:
        live = (await run.create()).live
        stream = attach(live, 1)
        await stream.next()
        assert [beat.seq for beat in stream.heartbeats] == [1]
        coming = asyncio.create_task(stream.next())
        await run.clock.advance(14.9)
        assert not coming.done()
        await run.clock.advance(0.1)
        await coming
        assert [beat.seq for beat in stream.heartbeats] == [1, 1]
        assert stream.heartbeats[1].time.ToNanoseconds() == run.clock.now_ns()
        # Whatever is said starts the silence anew.
        await run.clock.advance(10)
        await live.send(say())
        await stream.until("turn_finished")
        coming = asyncio.create_task(stream.next())
        await run.clock.advance(14)
        assert not coming.done()
        await run.clock.advance(1)
        await coming
        assert stream.heartbeats[-1].seq == stream.events[-1].seq
        stream.close()
        assert run.clock.pending <= 1  # The sweep's alone.


async def test_a_ping_gets_a_heartbeat_and_its_receipt() -> None:
    async with hosting() as run:
        live = (await run.create()).live
        stream = attach(live)
        await stream.next()
        stream.reader.ping("p1")
        await stream.until(lambda s: bool(s.receipts and s.heartbeats))
        assert stream.receipts[0].frame_id == "p1"
        assert stream.heartbeats[0].seq == 1
        stream.reader.ping("")
        await stream.until(lambda s: len(s.heartbeats) == 2)
        assert len(stream.receipts) == 1
        stream.close()


async def test_a_snapshot_comes_first_and_sets_the_cursor() -> None:
    async with hosting() as run:
        live, whole = await finished(run)
        stream = attach(live, 99, snapshot=True)
        live.submit(say(frame_id="f2"), stream.reader)
        await stream.until("turn_finished")
        assert stream.frames[0].HasField("snapshot")
        assert stream.snapshots[-1].seq == len(whole.events)
        assert stream.snapshots[0].turns[0].text == whole.text
        assert stream.seqs[0] == len(whole.events) + 1
        stream.close()
        whole.close()


async def test_a_snapshot_shows_nothing_that_is_not_committed() -> None:
    log = ShakyLog()
    async with hosting(log) as run:
        live, whole = await finished(run)
        log.gate = asyncio.Event()
        sending = asyncio.create_task(live.send(say("more")))
        await settle()
        stream = attach(live, snapshot=True)
        viewing = asyncio.create_task(live.view())
        coming = asyncio.create_task(stream.until(lambda s: bool(s.snapshots)))
        await settle()
        assert not stream.snapshots
        assert not viewing.done()
        assert not sending.done()
        assert live.ledger.committed_seq == len(whole.events)
        log.gate.set()
        await coming
        assert stream.frames[0].HasField("snapshot")
        assert stream.snapshots[0].seq > len(whole.events)
        assert (await viewing).last_seq == stream.snapshots[0].seq
        assert (await sending).seq == len(whole.events) + 1
        stream.close()
        whole.close()


async def test_cursors_that_cannot_be() -> None:
    async with hosting() as run:
        live = (await run.create()).live
        with pytest.raises(BackchannelError) as refused:
            live.attach(2, snapshot=False)
        assert refused.value.reason is Reason.CURSOR_BEYOND_END
        assert refused.value.metadata == {"last_seq": "1"}


async def test_readers_are_bounded() -> None:
    async with hosting(settings=HostConfig(max_readers=3)) as run:
        live = (await run.create()).live
        streams = [attach(live) for _ in range(3)]
        with pytest.raises(BackchannelError) as refused:
            attach(live)
        assert refused.value.reason is Reason.READERS_FULL
        streams[0].close()
        streams[0].close()
        streams[0] = attach(live)
        for stream in streams:
            stream.close()


async def test_receipts_come_in_order_after_their_commit() -> None:
    log = ShakyLog()
    async with hosting(log) as run:
        live = (await run.create("scripted/stall")).live
        stream = attach(live)
        await stream.next()
        log.gate = asyncio.Event()
        live.submit(say(frame_id="a"), stream.reader)
        live.submit(interrupt("no such turn", "b"), stream.reader)  # Causes no event.
        stream.reader.ping("c")
        live.submit(say(frame_id="d"), stream.reader)
        live.submit(say(), stream.reader)  # Without an id there is none.
        live.submit(say("other", frame_id="a"), stream.reader)
        coming = asyncio.create_task(stream.until(lambda s: len(s.receipts) == 5))
        await settle()
        assert stream.receipts == []
        log.gate.set()
        await coming
        assert [r.frame_id for r in stream.receipts] == ["a", "b", "c", "d", "a"]
        statuses = [frame_pb2.ReceiptStatus.Name(r.status)[15:] for r in stream.receipts]
        assert statuses == ["ACCEPTED", "STALE", "ACCEPTED", "ACCEPTED", "REJECTED"]
        stream.close()


async def test_who_takes_no_receipts_has_no_more_frames_read() -> None:
    async with hosting(settings=HostConfig(max_owed_receipts=8)) as run:
        live = (await run.create()).live
        stream = attach(live, 1)
        for number in range(8):
            await stream.reader.room()
            stream.reader.ping(f"p{number}")
        waiting = asyncio.create_task(stream.reader.room())
        await settle()
        assert not waiting.done()
        await stream.until(lambda s: bool(s.receipts))
        async with asyncio.timeout(5):
            await waiting
        stream.close()


async def test_closing_frees_who_waits_for_room() -> None:
    async with hosting(settings=HostConfig(max_owed_receipts=1)) as run:
        live = (await run.create()).live
        stream = attach(live, 1)
        stream.reader.ping("p")
        waiting = asyncio.create_task(stream.reader.room())
        await settle()
        stream.close()
        async with asyncio.timeout(5):
            await waiting
        await stream.to_end()
        assert stream.frames == []


async def test_close_ends_the_stream_after_its_receipt_and_those_before() -> None:
    log = ShakyLog()
    async with hosting(log) as run:
        live = (await run.create("scripted/stall")).live
        stream = attach(live)
        await stream.next()
        log.gate = asyncio.Event()
        live.submit(say(frame_id="a"), stream.reader)
        stream.reader.close_after("bye")
        log.gate.set()
        await stream.to_end()
        assert [receipt.frame_id for receipt in stream.receipts] == ["a", "bye"]
        stream.close()

        silent = attach(live)
        silent.reader.close_after("")
        await silent.to_end()
        assert silent.receipts == []
        silent.close()


async def test_half_close_gets_the_answer_and_then_the_end() -> None:
    async with hosting() as run:
        live = (await run.create()).live
        stream = attach(live)
        live.submit(say(frame_id="a"), stream.reader)
        stream.reader.half_close()
        await stream.to_end()
        assert stream.kinds[-1] == "turn_finished"
        assert stream.events[-1].turn_finished.finish_reason == session_pb2.FINISH_REASON_STOP
        assert [receipt.frame_id for receipt in stream.receipts] == ["a"]
        stream.close()

        idle = attach(live)
        idle.reader.half_close()
        await idle.to_end()
        assert idle.events == stream.events
        idle.close()


async def test_half_close_counts_as_gone() -> None:
    async with hosting() as run:
        live = (await run.create("scripted/stall", grace_s=7)).live
        stream = attach(live)
        live.submit(say(frame_id="a"), stream.reader)
        stream.reader.half_close()
        await stream.until(lambda s: s.text.endswith("5"))
        await run.clock.advance(8)
        await stream.to_end()
        reason = stream.events[-1].turn_finished.finish_reason
        assert reason == session_pb2.FINISH_REASON_DISCONNECTED
        stream.close()


async def test_a_reader_that_is_cut_off_takes_nothing_along() -> None:
    async with hosting() as run:
        live = (await run.create()).live
        stream = attach(live)
        await stream.next()
        reading = asyncio.create_task(stream.next())
        await settle()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        stream.close()
        await live.send(say())
        other = attach(live)
        await other.until("turn_finished")
        assert len(other.events) == 104
        other.close()


async def test_two_hundred_sessions_at_once() -> None:
    async with hosting() as run:

        async def one(number: int) -> Stream:
            live = (await run.host.sessions.create(config(max_tokens=50))).live
            stream = attach(live)
            live.submit(say(frame_id="f"), stream.reader)
            await stream.until("turn_finished")
            stream.close()
            return stream

        streams = await asyncio.gather(*map(one, range(200)))
        for stream in streams:
            assert stream.seqs == list(range(1, 55))
            usage = stream.events[-1].turn_finished.usage
            assert (usage.generated_tokens, usage.delivered_tokens) == (50, 50)
        log = run.log
        assert isinstance(log, ShakyLog)
        # Grouped: far fewer appends than events.
        assert len(log.batches) < 200 * 54 / 10


async def test_a_reader_that_lags_too_far_is_told_where_to_go_on() -> None:
    async with hosting() as run:
        live = (await run.create()).live
        lagging, patient = attach(live, max_lag_events=20), attach(live, max_lag_events=200)
        await lagging.next()
        await live.send(say())
        await patient.until("turn_finished")
        with pytest.raises(BackchannelError) as refused:
            await lagging.next()
        assert refused.value.reason is Reason.READER_LAGS
        assert refused.value.retry_after_s, "over and over at once"
        cursor = int(refused.value.metadata["after_seq"])
        assert cursor == 1
        lagging.close()
        rest = attach(live, cursor)
        await rest.until("turn_finished")
        assert rest.events == patient.events[cursor:]
        rest.close()
        patient.close()


async def test_a_reader_at_the_limit_does_not_lag() -> None:
    async with hosting() as run:
        live, whole = await finished(run)
        last_seq = whole.seqs[-1]
        exactly = attach(live, max_lag_events=last_seq)
        await exactly.until("turn_finished")
        assert exactly.events == whole.events
        short = attach(live, max_lag_events=last_seq - 1)
        with pytest.raises(BackchannelError):
            await short.next()
        for stream in (exactly, short, whole):
            stream.close()


async def test_a_reader_that_lags_gets_a_snapshot_if_it_began_with_one() -> None:
    async with hosting() as run:
        live = (await run.create()).live
        stream = attach(live, snapshot=True, max_lag_events=20)
        await stream.until(lambda seen: bool(seen.snapshots))
        await live.send(say())
        fast = attach(live)
        await fast.until("turn_finished")
        await stream.until(lambda seen: len(seen.snapshots) == 2)
        assert not stream.events, "the backlog was skipped"
        snapshot = stream.snapshots[-1]
        assert snapshot.turns[0].text == fast.text
        await live.send(say())
        await fast.until(lambda seen: seen.kinds.count("turn_finished") == 2)
        stream.close()
        fast.close()
