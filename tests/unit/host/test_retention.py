from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from backchannel.errors import BackchannelError, Reason
from backchannel.host.config import HostConfig
from backchannel.host.faults import draining_error
from backchannel.host.host import Host
from backchannel.log.memory import MemoryLog
from backchannel.log.protocol import Log, Retention
from backchannel.log.registry import open_log
from backchannel.v1 import frame_pb2, session_pb2
from tests.support.clock import settle
from tests.support.hosting import ShakyLog, attach, config, hosting, interrupt, kind, say

CONTINUE = session_pb2.DisconnectPolicy.ACTION_CONTINUE
NAME = "a-session-id-of-some-length"
DAY_S = 24 * 3600
SMALL = HostConfig(retention=Retention(max_events=50), tail_events=5, sweep_s=60)


@pytest.fixture(params=["memory", "sqlite"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Log:
    url = "memory" if request.param == "memory" else f"sqlite://{tmp_path / 'log.db'}"
    return open_log(url)


async def test_the_past_is_trimmed_behind_a_checkpoint_and_the_session_goes_on(log: Log) -> None:
    async with hosting(log, settings=SMALL) as run:
        live = (await run.create(session_id=NAME)).live
        stream = attach(live)
        await live.send(say(frame_id="f1"))
        await stream.until("turn_finished")
        await run.host.sweep.round()
        view = await live.view()
        assert view.last_seq == 104
        assert view.earliest_seq == 55
        with pytest.raises(BackchannelError) as refused:
            attach(live, 53)
        assert refused.value.reason is Reason.CURSOR_TRIMMED
        assert refused.value.metadata == {"earliest_seq": "55"}
        rest = attach(live, 54)
        await rest.until("turn_finished")
        assert rest.events == stream.events[54:]
        rest.close()
        fresh = attach(live, 0, snapshot=True)
        await fresh.until(lambda s: bool(s.snapshots))
        assert fresh.snapshots[0].turns[0].text == stream.text
        fresh.close()
        assert (await live.send(say(frame_id="f1"))).seq == 2
        await live.send(say(frame_id="f2"))
        await stream.until(lambda s: s.kinds.count("turn_finished") == 2)
        stream.close()
        stored = await run.log.load(NAME)
        assert stored is not None
        assert stored.checkpoint is not None


async def test_a_trimmed_session_comes_back_after_a_restart(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path / 'log.db'}"
    async with hosting(open_log(url), settings=SMALL) as run:
        live = (await run.create(session_id=NAME)).live
        await live.send(say(frame_id="f1"))
        await live.rest()
        await run.host.sweep.round()
        before = await live.view()
    async with hosting(open_log(url), settings=SMALL) as run:
        live = await run.host.sessions.get(NAME)
        assert await live.view() == before
        assert (await live.send(say(frame_id="f1"))).seq == 2
        await live.send(say(frame_id="f2"))
        stream = attach(live, 104)
        await stream.until("turn_finished")
        assert stream.seqs[0] == 105
        stream.close()


async def test_a_busy_session_is_trimmed_between_two_turns() -> None:
    async with hosting(settings=SMALL) as run:
        live = (await run.create(session_id=NAME)).live
        stream = attach(live)
        await live.send(say())
        await stream.until("turn_finished")
        stall = (await run.create("scripted/stall")).live
        assert stall is not live
        log = run.log
        assert isinstance(log, ShakyLog)
        log.gate = asyncio.Event()
        sending = asyncio.create_task(live.send(say()))
        await settle()
        await run.host.sweep.round()  # In mid-turn: it can only be remembered.
        assert live.retention_due
        assert (await run.log.load(NAME)).earliest_seq == 1  # type: ignore[union-attr] # there
        log.gate.set()
        await sending
        await stream.until(lambda s: s.kinds.count("turn_finished") == 2)
        await settle()
        view = await live.view()
        assert view.earliest_seq > 1
        stream.close()


async def test_a_reader_overtaken_by_retention_is_told() -> None:
    async with hosting(settings=SMALL) as run:
        live = (await run.create(session_id=NAME)).live
        slow, quick = attach(live), attach(live)
        await live.send(say())
        await quick.until("turn_finished")
        await run.host.sweep.round()
        with pytest.raises(BackchannelError) as ended:
            await slow.to_end()
        assert ended.value.reason is Reason.CURSOR_TRIMMED
        slow.close()
        quick.close()


async def test_sessions_expire_with_their_readers_told(log: Log) -> None:
    async with hosting(log, settings=HostConfig(sweep_s=DAY_S, heartbeat_s=DAY_S)) as run:
        live = (await run.create(session_id=NAME, max_tokens=3)).live
        await run.clock.advance(3 * DAY_S)
        stream = attach(live)
        await live.send(say())
        await stream.until("turn_finished")

        async def read_and_close() -> None:
            await stream.to_end()
            stream.close()

        reading = asyncio.create_task(read_and_close())
        await run.clock.advance(6 * DAY_S)
        await run.host.sweep.round()
        assert await run.host.sessions.get(NAME) is live
        await run.clock.advance(DAY_S + 61)
        async with asyncio.timeout(10):
            while await run.log.count():
                await run.host.sweep.round()
        await reading
        assert stream.events[-1].session_closed.reason == "EXPIRED"
        with pytest.raises(BackchannelError) as refused:
            await run.host.sessions.get(NAME)
        assert refused.value.reason is Reason.SESSION_NOT_FOUND


async def test_the_sweep_runs_by_itself_and_survives_the_log() -> None:
    log = ShakyLog()
    async with hosting(log, settings=SMALL) as run:
        live = (await run.create()).live
        await live.send(say())
        await live.rest()
        genuine = log.expired

        async def down(now_ns: int, limit: int) -> list[str]:
            raise OSError("gone")

        log.expired = down  # type: ignore[method-assign] # it breaks here
        await run.clock.advance(61)
        log.expired = genuine  # type: ignore[method-assign] # and is mended
        assert (await live.view()).earliest_seq == 1
        await run.clock.advance(61)
        assert (await live.view()).earliest_seq == 55


async def test_a_deletion_that_was_cut_short_is_finished_later() -> None:
    log = ShakyLog()
    async with hosting(log) as run:
        live = (await run.create("scripted/stall", session_id=NAME)).live
        stream = attach(live)
        await live.send(say())
        await stream.until("turn_started")
        live.submit(interrupt(stream.turn_id), stream.reader)
        stream.close()
        await live.close("DELETED")
        # And here the process dies.
    async with hosting(log) as run:
        with pytest.raises(BackchannelError) as refused:
            await run.host.sessions.get(NAME)
        assert refused.value.reason is Reason.SESSION_NOT_FOUND
        assert await log.count() == 0


async def test_the_time_until_a_session_expires_can_be_set(log: Log) -> None:
    settings = HostConfig(expire_after_s=600, sweep_s=DAY_S, heartbeat_s=DAY_S)
    async with hosting(log, settings=settings) as run:
        live = (await run.create(session_id=NAME, max_tokens=3)).live
        view = await live.view()
        assert view.expire_time.seconds - view.update_time.seconds == 600
        stream = attach(live)
        await stream.until("session_opened")
        opened = stream.events[0].session_opened.session
        assert opened.expire_time == view.expire_time
        await run.clock.advance(599)
        await live.send(say())
        await stream.until("turn_finished")
        await run.clock.advance(599)
        await run.host.sweep.round()
        assert await run.host.sessions.get(NAME) is live
        stream.close()
        await run.clock.advance(1)
        await run.host.sweep.round()
        assert await run.log.count() == 0


@pytest.mark.parametrize("model", ["scripted/stall", "scripted/tool"])
async def test_a_session_at_work_is_not_idle(model: str, log: Log) -> None:
    settings = HostConfig(expire_after_s=60, sweep_s=DAY_S, heartbeat_s=DAY_S)
    async with hosting(log, settings=settings) as run:
        wanted = config(model, session_id=NAME, tools=["look"], action=CONTINUE)
        wanted.tools[0].idle_timeout.seconds = wanted.tools[0].timeout.seconds = 3600
        live = (await run.host.sessions.create(wanted)).live
        stream = attach(live)
        await live.send(say())
        at_work = "tool_call_ready" if model == "scripted/tool" else "output_delta"
        await stream.until(at_work)
        await settle()
        await run.clock.advance(300)
        # Not even asked about, so that those that are idle are not hidden behind it.
        assert await run.log.expired(run.clock.now_ns(), 9) == []
        await run.host.sweep.round()
        assert await run.host.sessions.get(NAME) is live
        if model == "scripted/stall":
            await live.send(interrupt(stream.turn_id))
        else:
            call_id = next(e for e in stream.events if kind(e) == at_work).tool_call_ready.call_id
            frame = frame_pb2.ClientFrame(frame_id="result")
            frame.tool_result.call_id, frame.tool_result.json = call_id, "{}"
            await live.send(frame)
        await stream.until("turn_finished")
        await settle()
        stream.close()
        await run.clock.advance(59)
        assert await run.log.expired(run.clock.now_ns(), 9) == []
        await run.clock.advance(1)
        await run.host.sweep.round()
        assert await run.log.count() == 0


class CountingLog(MemoryLog):
    """Counts the events that are read."""

    events_read = 0

    async def read(
        self, session_id: str, after_seq: int, *, max_events: int, max_bytes: int
    ) -> Sequence[bytes]:
        found = await super().read(
            session_id, after_seq, max_events=max_events, max_bytes=max_bytes
        )
        self.events_read += len(found)
        return found


async def test_no_more_than_so_many_events_are_read_to_open_a_long_session() -> None:
    log, every = CountingLog(), 300
    settings = HostConfig(checkpoint_events=every)
    async with hosting(log, settings=settings) as run:
        live = (await run.create(session_id=NAME, max_tokens=20)).live
        for turn in range(100):
            await live.send(say(frame_id=f"f{turn}"))
            await live.rest()
            await settle()
        before = await live.view()
        assert before.last_seq > 2000
        assert before.earliest_seq == 1
    log.events_read = 0
    async with hosting(log, settings=settings) as run:
        live = await run.host.sessions.get(NAME)
        assert await live.view() == before
        assert (await live.send(say(frame_id="f0"))).seq == 2
    # A turn may begin just before it is time.
    assert 0 < log.events_read < every + 30
    # And none of it was trimmed: who wants to may read it all.
    assert len(await log.read(NAME, 0, max_events=10**6, max_bytes=10**9)) == before.last_seq


async def test_a_session_that_never_rests_gets_its_checkpoint_from_the_log() -> None:
    settings = HostConfig(checkpoint_events=20, sweep_s=DAY_S)
    async with hosting(settings=settings) as run:
        live = (await run.create("scripted/stall", session_id=NAME)).live
        stream = attach(live)
        for turn in range(17):
            await live.send(say(frame_id=f"f{turn}"))
        for turn in range(1, 16):
            # The next turn begins with the end of the one before.
            await stream.until(lambda s, n=turn: s.kinds.count("turn_started") == n)  # type: ignore[misc] # a default
            started = [e.turn_started for e in stream.events if kind(e) == "turn_started"]
            await live.send(interrupt(started[-1].turn_id, f"stop{turn}"))
        await stream.until(lambda s: s.kinds.count("turn_started") == 16)
        await settle()
        assert not live.resting
        stored = await run.log.load(NAME)
        assert stored is not None
        seq = stored.checkpoint.seq if stored.checkpoint else 0
        await run.host.sweep.round()
        stored = await run.log.load(NAME)
        assert stored is not None
        assert stored.checkpoint is not None
        last_start = [e.seq for e in stream.events if kind(e) == "turn_started"][-1]
        assert seq < stored.checkpoint.seq == last_start - 1
        stream.close()


async def test_a_session_that_is_not_in_memory_is_trimmed(log: Log) -> None:
    async with hosting(log, settings=HostConfig(sweep_s=DAY_S)) as run:
        live = (await run.create(session_id=NAME)).live
        await live.send(say(frame_id="f1"))
        await live.rest()
        before = await live.view()
        # The process ends; the next one has not taken the session up.
        live.forget(draining_error())
        run.host.residents.remove(live)
        kept = HostConfig(retention=Retention(max_events=50), sweep_s=DAY_S)
        async with Host(log=run.log, engines=run.engines, config=kept, clock=run.clock) as another:
            await another.sweep.round()
            stored = await run.log.load(NAME)
            assert stored is not None
            assert stored.earliest_seq == 55
            assert stored.checkpoint is not None
            assert not another.residents
            live = await another.sessions.get(NAME)
            before.earliest_seq = 55
            assert await live.view() == before
            assert (await live.send(say(frame_id="f1"))).seq == 2


async def test_a_sweep_asks_the_log_once_however_many_sessions_there_are() -> None:
    log = ShakyLog()
    asked: list[str] = []
    genuine = log.trimmable_seq

    async def counted(session_id: str, retention: Retention, now_ns: int) -> int:
        asked.append(session_id)
        return await genuine(session_id, retention, now_ns)

    log.trimmable_seq = counted  # type: ignore[method-assign] # to count
    async with hosting(log, settings=SMALL) as run:
        for _ in range(20):
            await run.create(max_tokens=3)
        live = (await run.create(session_id=NAME)).live
        await live.send(say())
        await live.rest()
        await run.host.sweep.round()
        assert asked == [NAME]
