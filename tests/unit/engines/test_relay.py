"""The way of chunks from the task that reads an answer to whoever takes them."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from backchannel.engines.protocol import EngineUsage, StopCause, TextChunk
from backchannel.engines.relay import Relay, Relays
from backchannel.engines.upkeep import upkeep
from backchannel.errors import BackchannelError, Reason
from tests.unit.engines.support import Run, collect

MOST = 10


class Told:
    """An answer that is read as a test says, and that a stop cancels or leaves alone."""

    most_held = MOST

    def __init__(self, read: Callable[[Relay], Awaitable[None]], *, cancels: bool = True) -> None:
        self._read = read
        self._cancels = cancels
        self.put = 0
        self.stops = 0

    async def read(self, relay: Relay) -> StopCause:
        await self._read(relay)
        return StopCause.LENGTH

    def stop(self, reading: asyncio.Task[StopCause]) -> None:
        assert not reading.done()
        self.stops += 1
        if self._cancels:
            reading.cancel()

    def usage(self) -> EngineUsage:
        return EngineUsage(prompt_tokens=3, output_tokens=self.put)


def begun(
    read: Callable[[Relay], Awaitable[None]], *, cancels: bool = True
) -> tuple[Relay, Told, list[Relay]]:
    """A relay, its answer, and where it goes when it is over."""
    answer, over = Told(read, cancels=cancels), list[Relay]()
    return Relay(answer, "ask", over.append), answer, over


async def turns(count: int = 20) -> None:
    """Let everything go on that can."""
    for _ in range(count):
        await asyncio.sleep(0)


async def never(_: Relay) -> None:
    await asyncio.get_running_loop().create_future()


async def endless(relay: Relay) -> None:
    """Put a chunk of size 1 whenever there is room."""
    while True:
        await relay.room()
        if relay.stopped:
            return
        relay.put([TextChunk("x", 1)], 1)


async def test_chunks_come_in_their_order_then_the_end() -> None:
    async def read(relay: Relay) -> None:
        for text in "abc":
            relay.put([TextChunk(text, 1)], 1)
            await turns()

    relay, answer, over = begun(read)
    answer.put = 3
    run = Run()
    async for item in relay:
        run.add(item)
    assert [chunk.text for chunk in run.chunks if isinstance(chunk, TextChunk)] == ["a", "b", "c"]
    assert run.end.cause is StopCause.LENGTH
    assert run.end.usage == EngineUsage(prompt_tokens=3, output_tokens=3)
    assert answer.stops == 0
    assert over == [relay]
    assert [item async for item in relay] == []


async def test_what_piled_up_comes_as_one() -> None:
    async def read(relay: Relay) -> None:
        relay.put([TextChunk("a", 1), TextChunk("b", 2)])
        relay.put([TextChunk("c", 3)])

    run = await collect(begun(read)[0])
    assert run.chunks == [TextChunk("abc", 6)]


async def test_nothing_is_read_before_it_is_iterated() -> None:
    asked = asyncio.Event()

    async def read(_: Relay) -> None:
        asked.set()

    relay, _, over = begun(read)
    aiter(relay)
    await turns()
    assert (asked.is_set(), over) == (False, [])
    await collect(relay)
    assert asked.is_set()


async def test_the_bound_is_kept_while_nobody_takes() -> None:
    relay, _, _ = begun(endless)
    items = aiter(relay)
    assert await anext(items) == TextChunk("x" * (MOST + 1), MOST + 1)
    for _ in range(3):
        await turns(100)
        assert relay.full
        # As soon as it is taken there is room again, and no more than before.
        assert await anext(items) == TextChunk("x" * (MOST + 1), MOST + 1)
    await relay.aclose()


async def test_what_is_as_large_as_the_bound_does_not_fill_it() -> None:
    relay, _, _ = begun(never)
    relay.put([TextChunk("x", 1)], MOST)
    before = relay.full
    relay.put([TextChunk("x", 1)], 1)
    assert (before, relay.full) == (False, True)
    await relay.aclose()


@pytest.mark.parametrize("cancels", [True, False])
async def test_a_stop_while_it_is_full(cancels: bool) -> None:
    relay, answer, over = begun(endless, cancels=cancels)
    items = aiter(relay)
    await anext(items)
    await turns(100)
    before = relay.full
    relay.stop()
    assert (before, relay.full) == (True, False)
    run = Run()
    async for item in items:
        run.add(item)
    assert run.chunks == [], "a chunk came after the stop"
    assert run.end.cause is StopCause.STOPPED
    assert answer.stops == 1
    assert over == [relay]


@pytest.mark.parametrize("cancels", [True, False])
async def test_closing_while_it_is_full(cancels: bool) -> None:
    relay, answer, over = begun(endless, cancels=cancels)
    await anext(aiter(relay))
    await turns(100)
    assert relay.full
    async with asyncio.timeout(5):
        await relay.aclose()
    assert (answer.stops, over) == (1, [relay])


async def test_what_is_put_after_a_stop_is_dropped_and_counted() -> None:
    goes_on = asyncio.Event()

    async def read(relay: Relay) -> None:
        relay.put([TextChunk("a", 1)])
        await goes_on.wait()
        relay.put([TextChunk("b", 1)], 2 * MOST)
        await relay.room()
        answer.put = 2

    relay, answer, _ = begun(read, cancels=False)
    items = aiter(relay)
    assert await anext(items) == TextChunk("a", 1)
    relay.stop()
    goes_on.set()
    run = Run()
    async for item in items:
        run.add(item)
    assert run.chunks == []
    assert run.end.usage.output_tokens == 2


async def test_a_stop_before_the_iteration_asks_nobody() -> None:
    relay, answer, over = begun(never)
    relay.stop()
    assert over == [relay]
    run = await collect(relay)
    assert run.chunks == []
    assert (run.end.cause, run.end.usage.output_tokens) == (StopCause.STOPPED, 0)
    assert answer.stops == 0


async def test_a_stop_after_the_end_and_a_second_one_tell_nobody() -> None:
    async def read(relay: Relay) -> None:
        relay.put([TextChunk("a", 1)])

    relay, answer, _ = begun(read)
    assert (await collect(relay)).end.cause is StopCause.LENGTH
    relay.stop()
    assert answer.stops == 0
    relay, answer, _ = begun(never)
    taking = asyncio.ensure_future(collect(relay))
    await turns()
    relay.stop()
    relay.stop()
    assert (await taking).end.cause is StopCause.STOPPED
    assert answer.stops == 1


async def test_a_stop_before_the_task_has_taken_its_first_step() -> None:
    read = False

    async def noting(_: Relay) -> None:
        nonlocal read
        read = True

    relay, answer, over = begun(noting)
    taking = asyncio.ensure_future(collect(relay))
    # Made by the iteration's first step, so that this comes before the task's own.
    asyncio.get_running_loop().call_soon(relay.stop)
    assert (await taking).end.cause is StopCause.STOPPED
    assert (read, answer.stops, over) == (False, 1, [relay])


async def test_a_failure_comes_after_the_chunks_before_it() -> None:
    async def read(relay: Relay) -> None:
        relay.put([TextChunk("a", 1)])
        raise BackchannelError(Reason.UPSTREAM_BROKE_OFF, "it broke off")

    relay, _, over = begun(read)
    items = aiter(relay)
    assert await anext(items) == TextChunk("a", 1)
    with pytest.raises(BackchannelError, match="it broke off"):
        await anext(items)
    await turns()
    assert over == [relay]


async def test_a_failure_after_a_stop_is_a_stop() -> None:
    stopping = asyncio.Event()

    async def read(_: Relay) -> None:
        await stopping.wait()
        raise BackchannelError(Reason.UPSTREAM_FAILED, "nobody cares")

    relay, _, _ = begun(read, cancels=False)
    taking = asyncio.ensure_future(collect(relay))
    await turns()
    relay.stop()
    stopping.set()
    assert (await taking).end.cause is StopCause.STOPPED


async def test_a_failure_that_nobody_hears_of_is_not_told_to_the_loop() -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

    async def read(relay: Relay) -> None:
        relay.put([TextChunk("a", 1)])
        await asyncio.sleep(0)
        raise BackchannelError(Reason.UPSTREAM_FAILED, "nobody listens")

    async def take_one() -> None:
        relay, _, _ = begun(read)
        await anext(aiter(relay))
        await turns()
        await relay.aclose()

    await take_one()
    gc.collect()
    assert told == []


async def test_a_task_that_somebody_else_cancels_is_a_failure() -> None:
    relay, _, _ = begun(never)
    taking = asyncio.ensure_future(collect(relay))
    await turns()
    (reading,) = (task for task in asyncio.all_tasks() if task.get_name() == "ask")
    reading.cancel()
    with pytest.raises(BackchannelError) as caught:
        await taking
    assert caught.value.reason is Reason.ENGINE_FAILED


async def test_whoever_is_cancelled_hears_of_it_and_the_answer_is_stopped() -> None:
    relay, answer, over = begun(never)

    async def take() -> None:
        async for _ in relay:
            pass

    taking = asyncio.ensure_future(take())
    await turns()
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert answer.stops == 1
    await relay.let_go()
    await turns()
    assert over == [relay]


async def test_closing_twice_and_without_iterating() -> None:
    relay, answer, over = begun(never)
    await relay.aclose()
    await relay.aclose()
    assert (over, answer.stops) == ([relay], 0)
    relay, answer, over = begun(endless)
    await anext(aiter(relay))
    await relay.aclose()
    await relay.aclose()
    assert (over, answer.stops) == ([relay], 1)
    assert [item async for item in relay] == []


async def test_closing_waits_until_the_server_is_let_go_of() -> None:
    lets_go = asyncio.Event()

    async def read(relay: Relay) -> None:
        relay.put([TextChunk("a", 1)])
        await lets_go.wait()

    relay, _, over = begun(read, cancels=False)
    await anext(aiter(relay))
    closing = asyncio.ensure_future(relay.aclose())
    await turns()
    assert not closing.done()
    lets_go.set()
    await closing
    assert over == [relay]


async def test_closing_while_another_task_iterates() -> None:
    relay, _, _ = begun(never)
    taking = asyncio.ensure_future(collect(relay))
    await turns()
    await relay.aclose()
    assert (await taking).end.cause is StopCause.STOPPED


async def test_an_engine_that_closes_stops_all_and_whoever_iterates_gets_the_end() -> None:
    relays = Relays()
    answers = [Told(endless), Told(endless), Told(never)]
    taken, dropped, untouched = (relays.begin(answer, "ask") for answer in answers)
    items = aiter(taken)
    await anext(items)
    await anext(aiter(dropped))
    await dropped.aclose()
    await relays.aclose()
    assert [answer.stops for answer in answers] == [1, 1, 0]
    run = Run()
    async for item in items:
        run.add(item)
    assert run.end.cause is StopCause.STOPPED
    assert (await collect(untouched)).end.cause is StopCause.STOPPED
    await relays.aclose()


# --- what goes on beside


async def test_upkeep_goes_on_until_the_block_ends() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0)  # It takes a moment, which is waited for.
            ended.set()

    async with upkeep(work(), "work"):
        await turns()
        assert [task.get_name() for task in asyncio.all_tasks()].count("work") == 1
        assert not ended.is_set()
    assert ended.is_set()


async def test_upkeep_that_fails_is_told_at_the_end_of_the_block() -> None:
    async def work() -> None:
        raise ValueError("our bug")

    reached = asyncio.Event()

    async def block() -> None:
        async with upkeep(work(), "work"):
            await turns()
            reached.set()

    with pytest.raises(ValueError, match="our bug"):
        await block()
    assert reached.is_set()


async def test_upkeep_ends_with_a_block_that_fails() -> None:
    async def work() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(KeyError):
        async with upkeep(work(), "work"):
            raise KeyError
    assert [task.get_name() for task in asyncio.all_tasks()].count("work") == 0
