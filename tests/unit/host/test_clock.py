from __future__ import annotations

import asyncio
import time

from backchannel.host.clock import SystemClock, within
from tests.support.clock import SECOND_NS, ManualClock


def test_the_system_clock_tells_the_time_and_never_goes_back() -> None:
    clock = SystemClock()
    assert abs(clock.now_ns() - time.time_ns()) < SECOND_NS
    times = [clock.now_ns() for _ in range(1000)]
    assert times == sorted(times)


async def test_the_system_clock_calls_back() -> None:
    clock = SystemClock()
    called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    clock.call_at(clock.now_ns() - 5, lambda: called.set_result(None))
    cancelled = clock.call_at(clock.now_ns(), lambda: called.set_result(None))
    cancelled.cancel()
    async with asyncio.timeout(5):
        await called


async def test_within_waits_for_all_but_not_for_ever() -> None:
    clock = ManualClock()
    loop = asyncio.get_running_loop()
    one, other = loop.create_future(), loop.create_future()
    waiting = asyncio.create_task(within(clock, 2, [one, other]))
    one.set_result(None)
    await clock.advance(1.9)
    assert not waiting.done()
    other.set_exception(RuntimeError("an end like any other"))
    assert await waiting
    assert clock.pending == 0

    never: asyncio.Future[None] = loop.create_future()
    waiting = asyncio.create_task(within(clock, 2, [never]))
    await clock.advance(2)
    assert not await waiting
    assert not never.cancelled()
