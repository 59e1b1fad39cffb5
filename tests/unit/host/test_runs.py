from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

import pytest

from backchannel.engines.protocol import (
    Chunk,
    EngineUsage,
    Finished,
    ModelCard,
    Prompt,
    StopCause,
    TextChunk,
    ToolCallEnd,
    ToolCallFragment,
    ToolCallStart,
)
from backchannel.engines.routing import Target
from backchannel.errors import Reason, reason_of
from backchannel.host.config import HostConfig
from backchannel.v1 import event_pb2, frame_pb2, session_pb2
from tests.support.clock import settle
from tests.support.hosting import Running, ShakyLog, Stream, attach, hosting, interrupt, say


class Desk:
    """An engine whose every generation does what the test tells it to."""

    name = "desk"

    def __init__(self, parallel: int) -> None:
        self.parallel = parallel
        self.play: Callable[[Deskwork], AsyncIterator[Chunk | Finished]] = wait_for_stop
        self.started: list[Deskwork] = []

    def models(self) -> Sequence[ModelCard]:
        return [ModelCard("one", "For tests.", parallel=self.parallel)]

    def check(self, prompt: Prompt) -> None:
        pass

    def start(self, prompt: Prompt) -> Deskwork:
        self.started.append(Deskwork(self, prompt))
        return self.started[-1]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    @property
    def open(self) -> int:
        return sum(not work.closed for work in self.started)


class Deskwork:
    def __init__(self, desk: Desk, prompt: Prompt) -> None:
        self.prompt = prompt
        self.stopped = asyncio.Event()
        self.go_on = asyncio.Event()
        self.closed = False
        self._items = desk.play(self)

    def __aiter__(self) -> AsyncIterator[Chunk | Finished]:
        return self._items

    def stop(self) -> None:
        self.stopped.set()

    async def aclose(self) -> None:
        self.closed = True
        await self._items.aclose()  # type: ignore[attr-defined] # it is a generator


def finished(cause: StopCause = StopCause.STOP, tokens: int | None = None) -> Finished:
    return Finished(cause, EngineUsage(output_tokens=tokens))


async def wait_for_stop(work: Deskwork) -> AsyncIterator[Chunk | Finished]:
    yield TextChunk("word", 1)
    await work.stopped.wait()
    yield TextChunk(" more", 1)
    yield finished(StopCause.STOPPED, 3)


async def deaf(work: Deskwork) -> AsyncIterator[Chunk | Finished]:
    yield TextChunk("word", 1)
    await asyncio.Event().wait()
    yield finished()


async def broken(work: Deskwork) -> AsyncIterator[Chunk | Finished]:
    yield TextChunk("word", 1)
    raise RuntimeError("the user's secret prompt")


async def endless(work: Deskwork) -> AsyncIterator[Chunk | Finished]:
    yield TextChunk("word", 1)


async def never_waits(work: Deskwork) -> AsyncIterator[Chunk | Finished]:
    for _ in range(1000):
        yield TextChunk("x", 1)
    yield finished(tokens=1000)


async def calls_a_tool(work: Deskwork) -> AsyncIterator[Chunk | Finished]:
    yield TextChunk("hm", 1, event_pb2.CHANNEL_REASONING)
    yield ToolCallStart(0, "look")
    yield ToolCallFragment(0, '{"a":', 2)
    yield ToolCallFragment(0, "1}", 1)
    yield ToolCallEnd(0)
    yield finished(StopCause.TOOL_CALLS, 4)


@asynccontextmanager
async def at_the_desk(
    parallel: int = 0, settings: HostConfig | None = None, log: ShakyLog | None = None
) -> AsyncIterator[tuple[Running, Desk]]:
    desk = Desk(parallel)
    async with hosting(log, settings=settings) as run:
        resolve = run.engines.resolve

        def find(model: str) -> Target:
            if model == "desk/one":
                return Target(desk, desk.models()[0], model)
            return resolve(model)

        run.engines.resolve = find  # type: ignore[method-assign] # one engine more
        yield run, desk


async def ask(run: Running, **fields: Any) -> Stream:
    live = (await run.create("desk/one", **fields)).live
    stream = attach(live)
    live.submit(say(frame_id="f"), stream.reader)
    return await stream.until("turn_started")


def stop(stream: Stream) -> None:
    stream.reader._session.submit(interrupt(stream.turn_id), stream.reader)


def ending(stream: Stream) -> event_pb2.TurnFinished:
    return stream.events[-1].turn_finished


async def test_a_model_gets_no_more_generations_than_it_can_take() -> None:
    async with at_the_desk(parallel=2) as (run, desk):
        streams = [await ask(run) for _ in range(5)]
        await settle()
        assert desk.open == 2
        for index in range(5):
            stop(streams[index])
            await streams[index].until("turn_finished")
            await settle()
            assert desk.open == min(2, 4 - index)
        order = [work.prompt.messages[0].parts[0].text for work in desk.started]
        assert len(order) == 5
        for stream in streams:
            stream.close()


async def test_a_run_that_is_stopped_while_it_waits_leaves_at_once() -> None:
    async with at_the_desk(parallel=1) as (run, desk):
        first, second, third = [await ask(run) for _ in range(3)]
        stop(second)
        await second.until("turn_finished")
        assert ending(second).finish_reason == session_pb2.FINISH_REASON_INTERRUPTED
        assert ending(second).usage.generated_tokens == 0
        stop(first)
        await first.until("turn_finished")
        await third.until("output_delta")
        assert len(desk.started) == 2
        for stream in (first, second, third):
            stream.close()


async def test_one_too_many_ends_its_turn_with_busy() -> None:
    async with at_the_desk(1, HostConfig(max_waiting_runs=1)) as (run, _):
        streams = [await ask(run) for _ in range(3)]
        await streams[2].until("turn_finished")
        assert ending(streams[2]).finish_reason == session_pb2.FINISH_REASON_ERROR
        assert reason_of(ending(streams[2]).error) == Reason.ENGINE_BUSY
        for stream in streams:
            stream.close()


async def test_what_comes_after_a_stop_is_wasted_to_the_token() -> None:
    async with at_the_desk() as (run, desk):
        stream = await ask(run)
        await stream.until("output_delta")
        stop(stream)
        await stream.until("turn_finished")
        usage = ending(stream).usage
        assert (usage.generated_tokens, usage.delivered_tokens, usage.wasted_tokens) == (3, 1, 2)
        assert stream.text == "word"
        assert desk.open == 0
        stream.close()


@pytest.mark.parametrize("play", [broken, endless])
async def test_a_broken_engine_ends_its_turn_and_tells_nothing_of_its_inside(
    play: Callable[[Deskwork], AsyncIterator[Chunk | Finished]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with at_the_desk(1) as (run, desk):
        desk.play = play
        stream = await ask(run)
        await stream.until("turn_finished")
        assert ending(stream).finish_reason == session_pb2.FINISH_REASON_ERROR
        assert reason_of(ending(stream).error) == Reason.ENGINE_FAILED
        assert "secret" not in str(ending(stream)) + "".join(capsys.readouterr())
        assert desk.open == 0
        desk.play = wait_for_stop  # Its place is free again.
        other = await ask(run)
        await other.until("output_delta")
        stream.close()
        other.close()


async def test_an_engine_that_ignores_a_stop_loses_its_place() -> None:
    async with at_the_desk(1, HostConfig(stop_limit_s=10)) as (run, desk):
        desk.play = deaf
        stream = await ask(run)
        await stream.until("output_delta")
        stop(stream)
        coming = asyncio.create_task(stream.until("turn_finished"))
        await run.clock.advance(2.1)
        await coming
        assert ending(stream).usage.estimated
        desk.play = wait_for_stop
        other = await ask(run)
        assert len(desk.started) == 1
        await run.clock.advance(8)
        await other.until("output_delta")
        assert desk.started[0].closed
        stream.close()
        other.close()


async def test_an_engine_that_never_waits_lets_others_live_and_runs_not_far_ahead() -> None:
    log = ShakyLog()
    async with at_the_desk(0, HostConfig(max_ahead_events=16), log) as (run, desk):
        desk.play = never_waits
        stream = await ask(run)
        await stream.until("turn_finished")
        assert len(stream.text) == 1000
        assert max(len(append.events) for batch in log.batches for append in batch) <= 16
        stream.close()


async def test_tool_calls_pass_through_and_the_engine_is_asked_again() -> None:
    async with at_the_desk() as (run, desk):
        desk.play = calls_a_tool
        stream = await ask(run, tools=["look"])
        await stream.until("tool_call_ready")
        await settle()
        ready = stream.events[-1].tool_call_ready
        assert (ready.name, ready.arguments_json) == ("look", '{"a":1}')
        assert desk.open == 0  # Nobody computes while the tool runs.
        desk.play = wait_for_stop
        result = frame_pb2.ClientFrame(frame_id="r")
        result.tool_result.call_id = ready.call_id
        result.tool_result.json = "42"
        stream.reader._session.submit(result, stream.reader)
        await stream.until(lambda s: s.text.endswith("word"))
        roles = [message.role for message in desk.started[-1].prompt.messages]
        assert roles[-1] == session_pb2.ROLE_TOOL
        stop(stream)
        await stream.until("turn_finished")
        assert ending(stream).usage.generated_tokens == 7
        stream.close()


async def test_a_tool_times_out_by_the_hosts_clock() -> None:
    async with at_the_desk() as (run, desk):
        desk.play = calls_a_tool
        stream = await ask(run, tools=["look"])
        await stream.until("tool_call_ready")
        desk.play = wait_for_stop
        await run.clock.advance(59)
        coming = asyncio.create_task(stream.until("tool_call_finished"))
        await settle()
        assert not coming.done()
        await run.clock.advance(1.1)
        await coming
        outcome = next(
            e.tool_call_finished.outcome for e in stream.events if e.HasField("tool_call_finished")
        )
        assert outcome == session_pb2.TOOL_CALL_OUTCOME_TIMED_OUT
        stream.close()
