from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from backchannel.errors import BackchannelError, Reason
from backchannel.host.config import HostConfig
from backchannel.log.protocol import Log, Retention
from backchannel.log.registry import open_log
from tests.support.clock import settle
from tests.support.hosting import ShakyLog, attach, hosting, interrupt, say

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
        await run.host.sweep()
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
        await run.host.sweep()
        before = await live.view()
    async with hosting(open_log(url), settings=SMALL) as run:
        live = await run.host.get(NAME)
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
        await run.host.sweep()  # In mid-turn: it can only be remembered.
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
        await run.host.sweep()
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
        await run.host.sweep()
        assert await run.host.get(NAME) is live
        await run.clock.advance(DAY_S + 61)
        async with asyncio.timeout(10):
            while await run.log.count():
                await run.host.sweep()
        await reading
        assert stream.events[-1].session_closed.reason == "EXPIRED"
        with pytest.raises(BackchannelError) as refused:
            await run.host.get(NAME)
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
            await run.host.get(NAME)
        assert refused.value.reason is Reason.SESSION_NOT_FOUND
        assert await log.count() == 0
