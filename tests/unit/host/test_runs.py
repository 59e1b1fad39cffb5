from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any, Self

import pytest
from structlog.testing import capture_logs

from backchannel.engines.checks import check_capabilities
from backchannel.engines.protocol import (
    Capability,
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
from backchannel.engines.registry import GROUP, EngineRegistry
from backchannel.errors import BackchannelError, Reason, reason_of, retry_after_s
from backchannel.host.config import HostConfig
from backchannel.host.outages import REST_S
from backchannel.host.runner import ANSWER_MAX_CHARS
from backchannel.v1 import event_pb2, frame_pb2, session_pb2
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


class Desk:
    """An engine whose every generation does what the test tells it to."""

    def __init__(self, name: str = "desk", parallel: int = 0) -> None:
        self.name = name
        self.parallel = parallel
        self.play: Callable[[Deskwork], AsyncIterator[Chunk | Finished]] = wait_for_stop
        self.capabilities: frozenset[Capability] = frozenset()
        self.started: list[Deskwork] = []

    def models(self) -> Sequence[ModelCard]:
        card = ModelCard(
            "one", "For tests.", parallel=self.parallel, capabilities=self.capabilities
        )
        return [card]

    def check(self, prompt: Prompt) -> None:
        check_capabilities(self.name, self.models()[0], prompt)

    def start(self, prompt: Prompt) -> Deskwork:
        self.check(prompt)
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


async def never_ends(work: Deskwork) -> AsyncIterator[Chunk | Finished]:
    while not work.closed:
        yield TextChunk("x" * (ANSWER_MAX_CHARS // 4), 1)


async def calls_endlessly(work: Deskwork) -> AsyncIterator[Chunk | Finished]:
    yield ToolCallStart(0, "look")
    while not work.closed:
        yield ToolCallFragment(0, "1" * (ANSWER_MAX_CHARS // 4), 1)


async def calls_a_tool(work: Deskwork) -> AsyncIterator[Chunk | Finished]:
    yield TextChunk("hm", 1, event_pb2.CHANNEL_REASONING)
    yield ToolCallStart(0, "look")
    yield ToolCallFragment(0, '{"a":', 2)
    yield ToolCallFragment(0, "1}", 1)
    yield ToolCallEnd(0)
    yield finished(StopCause.TOOL_CALLS, 4)


@asynccontextmanager
async def at_desks(
    desks: Sequence[Desk],
    options: Mapping[str, Mapping[str, object]] | None = None,
    settings: HostConfig | None = None,
    log: ShakyLog | None = None,
) -> AsyncIterator[Running]:
    """A host with these engines, and with an alias `any` for all their models in their order."""
    module = ModuleType("desks")
    vars(module)["make"] = lambda name, _: next(desk for desk in desks if desk.name == name)
    registry = EngineRegistry(
        {desk.name: {"adapter": "desks", **(options or {}).get(desk.name, {})} for desk in desks},
        aliases={"any": [f"{desk.name}/one" for desk in desks]},
        plugins=[EntryPoint("desks", "desks:make", GROUP)],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "desks", module)
        async with hosting(log, settings=settings, registry=registry) as run:
            yield run


@asynccontextmanager
async def at_the_desk(
    parallel: int = 0, settings: HostConfig | None = None, log: ShakyLog | None = None
) -> AsyncIterator[tuple[Running, Desk]]:
    desk = Desk(parallel=parallel)
    async with at_desks([desk], settings=settings, log=log) as run:
        yield run, desk


async def ask(run: Running, model: str = "desk/one", **fields: Any) -> Stream:
    live = (await run.create(model, **fields)).live
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


async def test_one_too_many_is_refused_before_it_is_in_the_log() -> None:
    async with at_the_desk(1, HostConfig(max_waiting_runs=1)) as (run, _):
        streams = [await ask(run) for _ in range(2)]
        live = (await run.create("desk/one")).live
        receipt = await live.send(say(frame_id="f"))
        assert receipt.status == frame_pb2.RECEIPT_STATUS_REJECTED
        assert reason_of(receipt.error) == Reason.ENGINE_BUSY
        assert retry_after_s(receipt.error)
        assert (await live.view()).last_seq == 1
        # Nothing is remembered of it: the same frame is taken when there is room.
        stop(streams[0])
        await streams[0].until("turn_finished")
        assert (await live.send(say(frame_id="f"))).status == frame_pb2.RECEIPT_STATUS_ACCEPTED
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


@pytest.mark.parametrize("play", [never_ends, calls_endlessly])
async def test_an_answer_without_end_is_ended(
    play: Callable[[Deskwork], AsyncIterator[Chunk | Finished]],
) -> None:
    async with at_the_desk() as (run, desk):
        desk.play = play
        stream = await ask(run, tools=["look"])
        await stream.until("turn_finished")
        assert ending(stream).finish_reason == session_pb2.FINISH_REASON_ERROR
        assert "sampling.max_tokens" in ending(stream).error.message
        assert ending(stream).usage.delivered_tokens == 4
        assert desk.open == 0
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


def fails(reason: Reason, after: int = 0) -> Callable[[Deskwork], AsyncIterator[Chunk | Finished]]:
    async def play(work: Deskwork) -> AsyncIterator[Chunk | Finished]:
        for _ in range(after):
            yield TextChunk("word", 1)
        raise BackchannelError(reason, f"out of order: {reason}")

    return play


async def breaks_at_once(work: Deskwork) -> AsyncIterator[Chunk | Finished]:
    if not work.closed:
        raise RuntimeError("the user's secret prompt")
    yield finished()


async def ends_without_ending(work: Deskwork) -> AsyncIterator[Chunk | Finished]:
    if work.closed:
        yield finished()


async def fails_when_told(work: Deskwork) -> AsyncIterator[Chunk | Finished]:
    await work.go_on.wait()
    if not work.closed:
        raise BackchannelError(Reason.UPSTREAM_STALLED, "no first token")
    yield finished()


async def answers(work: Deskwork) -> AsyncIterator[Chunk | Finished]:
    yield TextChunk("an answer", 2)
    yield finished(tokens=2)


@pytest.mark.parametrize(
    "play",
    [
        fails(Reason.UPSTREAM_UNREACHABLE),
        fails(Reason.ENGINE_BUSY),
        fails(Reason.PROMPT_TOO_LONG),
        breaks_at_once,
        ends_without_ending,
    ],
)
async def test_the_next_target_answers_when_one_fails_before_its_first_chunk(
    play: Callable[[Deskwork], AsyncIterator[Chunk | Finished]],
) -> None:
    first, second = Desk("first", parallel=1), Desk("second")
    first.play, second.play = play, answers
    async with at_desks([first, second]) as run:
        with capture_logs() as logs:
            stream = await ask(run, "any")
            await stream.until("turn_finished")
        assert (stream.text, ending(stream).finish_reason) == (
            "an answer",
            session_pb2.FINISH_REASON_STOP,
        )
        assert ending(stream).usage.generated_tokens == 2
        assert len(first.started) == 1
        assert first.open == 0
        (passed,) = [line for line in logs if line["event"] == "engine_passed_over"]
        assert (passed["model"], passed["target"], passed["next"]) == (
            "any",
            "first/one",
            "second/one",
        )
        assert "secret" not in str(logs)
        first.play = answers  # Its place is free again.
        again = await ask(run, "first/one")
        await again.until("turn_finished")
        stream.close()
        again.close()


@pytest.mark.parametrize(
    "play",
    [
        fails(Reason.UPSTREAM_BROKE_OFF, after=1),
        broken,
        endless,
        fails(Reason.UPSTREAM_REFUSED),
        fails(Reason.FIELD_INVALID),
    ],
)
async def test_nobody_else_is_asked_after_a_chunk_or_when_the_question_is_wrong(
    play: Callable[[Deskwork], AsyncIterator[Chunk | Finished]],
) -> None:
    first, second = Desk("first"), Desk("second")
    first.play = play
    async with at_desks([first, second]) as run:
        stream = await ask(run, "any")
        await stream.until("turn_finished")
        assert ending(stream).finish_reason == session_pb2.FINISH_REASON_ERROR
        assert second.started == []
        stream.close()


async def test_a_target_that_was_down_is_asked_last_for_a_while() -> None:
    first, second = Desk("first"), Desk("second")
    first.play, second.play = fails(Reason.UPSTREAM_UNREACHABLE), answers

    async def one(run: Running) -> None:
        stream = await ask(run, "any")
        await stream.until("turn_finished")
        assert stream.text == "an answer"
        stream.close()

    async with at_desks([first, second]) as run:
        await one(run)
        await one(run)
        assert (len(first.started), len(second.started)) == (1, 2)
        second.play = fails(Reason.UPSTREAM_UNREACHABLE)
        first.play = answers
        await one(run)  # Who rests is asked all the same when nobody else answers.
        assert (len(first.started), len(second.started)) == (2, 3)
        await one(run)  # It has answered, so it has its place again.
        assert (len(first.started), len(second.started)) == (3, 3)
        first.play, second.play = fails(Reason.UPSTREAM_UNREACHABLE), answers
        await one(run)
        await run.clock.advance(REST_S + 1)
        first.play = answers
        await one(run)
        assert (len(first.started), len(second.started)) == (5, 4)


async def test_a_stop_between_two_targets_ends_the_search() -> None:
    first, second = Desk("first"), Desk("second")
    first.play = fails_when_told
    async with at_desks([first, second]) as run:
        stream = await ask(run, "any")
        await settle()
        stop(stream)
        await stream.until("turn_interrupted")
        first.started[0].go_on.set()
        await stream.until("turn_finished")
        assert ending(stream).finish_reason == session_pb2.FINISH_REASON_INTERRUPTED
        assert ending(stream).usage.estimated  # Nobody knows what the first one computed.
        assert second.started == []
        stream.close()


async def test_a_stop_in_the_queue_of_the_second_target_leaves_it_at_once() -> None:
    first, second = Desk("first"), Desk("second", parallel=1)
    first.play = fails(Reason.ENGINE_FAILED)
    async with at_desks([first, second]) as run:
        holder = await ask(run, "second/one")
        await holder.until("output_delta")
        stream = await ask(run, "any")
        await settle()
        assert len(first.started) == 1
        stop(stream)
        await stream.until("turn_finished")
        assert ending(stream).usage.generated_tokens == 0
        stop(holder)
        await holder.until("turn_finished")
        assert len(second.started) == 1
        stream.close()
        holder.close()


async def test_what_is_busy_is_passed_over_and_one_that_may_not_wait_at_once() -> None:
    first, second = Desk("first"), Desk("second")
    limits = {"first": {"max_parallel": 1, "max_waiting": 0}}
    async with at_desks([first, second], limits) as run:
        streams = [await ask(run, "any") for _ in range(2)]
        for stream in streams:
            await stream.until("output_delta")
        assert (len(first.started), len(second.started)) == (1, 1)
        for stream in streams:
            stream.close()


async def test_there_is_room_until_every_target_is_full() -> None:
    limits = {name: {"max_parallel": 1, "max_waiting": 0} for name in ("first", "second")}
    async with at_desks([Desk("first"), Desk("second")], limits) as run:
        runner = run.host.sessions._resources.runner
        streams = []
        for _ in range(2):
            runner.check_room("any")
            streams.append(await ask(run, "any"))
            await streams[-1].until("output_delta")
        with pytest.raises(BackchannelError, match="first/one: 1 generations run") as refused:
            runner.check_room("any")
        assert refused.value.reason is Reason.ENGINE_BUSY
        assert refused.value.retry_after_s
        runner.check_room("scripted/echo")
        for stream in streams:
            stream.close()


async def test_a_target_that_cannot_is_passed_over_without_a_place() -> None:
    first, second = Desk("first", parallel=1), Desk("second")
    second.capabilities = frozenset({Capability.JSON_SCHEMA})
    second.play = answers
    async with at_desks([first, second]) as run:
        holder = await ask(run, "first/one")
        await holder.until("output_delta")
        created = config("any")
        created.response_format.json_schema = "{}"
        live = (await run.host.sessions.create(created)).live
        stream = attach(live)
        live.submit(say(frame_id="f"), stream.reader)
        await stream.until("turn_finished")
        assert stream.text == "an answer"
        stream.close()
        holder.close()


async def test_what_no_target_can_do_is_refused_and_each_says_why() -> None:
    async with at_desks([Desk("first"), Desk("second")]) as run:
        created = config("any")
        created.response_format.grammar = "root ::= x"
        with pytest.raises(BackchannelError) as refused:
            await run.host.sessions.create(created)
        error = refused.value
        assert (error.reason, error.field) == (
            Reason.CAPABILITY_MISSING,
            "config.response_format.grammar",
        )
        assert "first/one: " in error.message
        assert "second/one: " in error.message


async def test_when_all_fail_the_turn_ends_with_what_each_said_and_when_to_try_again() -> None:
    first, second = Desk("first"), Desk("second")
    first.play, second.play = fails(Reason.UPSTREAM_FAILED), fails(Reason.PROMPT_TOO_LONG)
    async with at_desks([first, second]) as run:
        stream = await ask(run, "any")
        await stream.until("turn_finished")
        error = ending(stream).error
        assert reason_of(error) == Reason.UPSTREAM_FAILED
        assert "first/one: out of order: UPSTREAM_FAILED" in error.message
        assert "second/one: out of order: PROMPT_TOO_LONG" in error.message
        assert retry_after_s(error)
        stream.close()


async def test_a_turn_with_its_tools_results_comes_before_new_turns_and_is_not_turned_away() -> (
    None
):
    async with at_the_desk(1, HostConfig(max_waiting_runs=2)) as (run, desk):
        desk.play = calls_a_tool
        caller = await ask(run, tools=["look"])
        await caller.until("tool_call_ready")
        await settle()
        call_id = caller.events[-1].tool_call_ready.call_id
        desk.play = wait_for_stop
        newcomers = [await ask(run) for _ in range(3)]  # One runs, and two fill the queue.
        result = frame_pb2.ClientFrame(frame_id="r")
        result.tool_result.call_id = call_id
        result.tool_result.json = "42"
        caller.reader._session.submit(result, caller.reader)
        await caller.until("tool_call_finished")
        await settle()
        stop(newcomers[0])
        await caller.until(lambda s: s.text.endswith("word"))
        assert desk.started[-1].prompt.messages[-1].role == session_pb2.ROLE_TOOL
        for stream in (caller, *newcomers):
            stream.close()


async def test_a_session_has_one_place_in_the_queue_however_often_it_starts_anew() -> None:
    async with at_the_desk(parallel=1) as (run, _):
        holder, pushy, patient = [await ask(run) for _ in range(3)]
        for number in range(5):
            frame = say(frame_id=f"again {number}")
            frame.message.delivery = session_pb2.DELIVERY_INTERRUPT
            pushy.reader._session.submit(frame, pushy.reader)
            await pushy.until(lambda s: s.kinds.count("turn_started") == number + 2)  # noqa: B023 - awaited here
            await settle()
        stop(holder)
        await patient.until("output_delta")  # Who starts anew stands at the end again.
        assert "output_delta" not in pushy.kinds
        for stream in (holder, pushy, patient):
            stream.close()
