"""What every engine must do, whatever it says: the host relies on nothing else."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from backchannel.engines.protocol import (
    Finished,
    Generation,
    Prompt,
    StopCause,
    TextChunk,
    ToolCallEnd,
    ToolCallFragment,
    ToolCallStart,
)
from backchannel.errors import BackchannelError, Reason
from tests.unit.engines.conftest import Subject
from tests.unit.engines.support import Run, collect


async def until_busy(subject: Subject) -> None:
    """Wait until the engine works; the test's time limit is the bound."""
    while await subject.busy() == 0:  # noqa: ASYNC110 - an engine's own count has no event
        await asyncio.sleep(0)


async def assert_idle(subject: Subject) -> None:
    """The engine's own count is 0: at once, or soon where another process has to notice."""
    until = time.monotonic() + subject.settle_s
    # Its count, in another process, has no event.
    while (busy := await subject.busy()) and time.monotonic() < until:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert busy == 0


async def stopped(subject: Subject, generation: Generation, run: Run) -> Finished:
    """Take what is left after a stop."""
    async for item in generation:
        run.add(item)
    assert run.end.cause is StopCause.STOPPED
    # Only where a stop cannot be confirmed may the count be an estimate.
    assert run.end.usage.exact or subject.settle_s > 0
    assert wasted(run) >= 0
    return run.end


def wasted(run: Run) -> int:
    """The tokens that were computed and not given out."""
    assert run.end.usage.output_tokens is not None
    return run.end.usage.output_tokens - run.tokens


async def test_chunks_then_one_finished_and_every_token_counted_once(subject: Subject) -> None:
    run = await collect(subject.talk(40))
    assert run.tokens == 40
    assert run.end.usage.output_tokens == 40
    assert run.end.usage.exact
    assert run.end.cause in (StopCause.STOP, StopCause.LENGTH)
    assert run.end.usage.prompt_tokens > 0
    assert run.text
    await assert_idle(subject)


async def test_a_tool_call_is_one_json_object_in_pieces(subject: Subject) -> None:
    run = await collect(subject.call())
    framed = [
        (type(chunk), chunk.index)
        for chunk in run.chunks
        if isinstance(chunk, ToolCallStart | ToolCallEnd)
    ]
    whole = sum(kind is ToolCallEnd for kind, _ in framed)
    if run.end.cause is StopCause.LENGTH:  # It got into a rut, and was cut off in a call.
        assert framed.pop() == (ToolCallStart, whole)
    else:
        assert run.end.cause is StopCause.TOOL_CALLS
    assert whole > 0
    indexes = range(whole)
    assert framed == [(kind, index) for index in indexes for kind in (ToolCallStart, ToolCallEnd)]
    for name, arguments in run.calls[:whole]:
        assert name == "essay"
        assert isinstance(json.loads(arguments), dict)
    assert wasted(run) == 0
    await assert_idle(subject)


async def test_stop_before_the_iteration(subject: Subject) -> None:
    generation = subject.talk()
    generation.stop()
    end = await stopped(subject, generation, run := Run())
    assert run.chunks == []
    assert end.usage.output_tokens == 0
    await assert_idle(subject)


async def test_stop_in_the_prefill(subject: Subject) -> None:
    generation = subject.prefill()
    run = Run()
    taking = asyncio.ensure_future(stopped(subject, generation, run))
    await until_busy(subject)
    generation.stop()
    await taking
    assert wasted(run) <= subject.most_wasted
    await assert_idle(subject)


async def test_stop_at_the_first_token(subject: Subject) -> None:
    generation = subject.talk()
    run = Run()
    run.add(await anext(aiter(generation)))
    generation.stop()
    await stopped(subject, generation, run)
    assert len(run.chunks) == 1
    await assert_idle(subject)


async def test_stop_in_mid_stream(subject: Subject) -> None:
    generation = subject.talk()
    run = Run()
    async for item in generation:
        run.add(item)
        if run.tokens >= 20:
            break
    generation.stop()
    generation.stop()
    chunks = len(run.chunks)
    await stopped(subject, generation, run)
    assert len(run.chunks) == chunks, "a chunk came after the stop"
    assert wasted(run) < 500, "it went on to the end"
    await assert_idle(subject)


async def test_stop_from_another_task_while_the_reader_waits(subject: Subject) -> None:
    generation = subject.talk(1500)
    run = Run()
    some = asyncio.Event()

    async def take() -> None:
        async for item in generation:
            run.add(item)
            if run.tokens >= 20:
                some.set()

    taking = asyncio.ensure_future(take())
    await some.wait()
    generation.stop()
    await taking
    assert run.end.cause is StopCause.STOPPED
    assert run.end.usage.exact or subject.settle_s > 0
    assert run.tokens < 1500
    assert wasted(run) <= subject.most_wasted
    await assert_idle(subject)


async def test_stop_in_the_arguments_of_a_tool_call(subject: Subject) -> None:
    generation = subject.call()
    run = Run()
    async for item in generation:
        run.add(item)
        if isinstance(item, ToolCallFragment):
            break
    generation.stop()
    await stopped(subject, generation, run)
    assert not any(isinstance(chunk, ToolCallEnd) for chunk in run.chunks)
    await assert_idle(subject)


async def test_stop_after_the_end_changes_nothing(subject: Subject) -> None:
    generation = subject.talk(3)
    run = Run()
    async for item in generation:
        run.add(item)
    generation.stop()
    assert run.end.cause is not StopCause.STOPPED
    assert [item async for item in generation] == []
    await generation.aclose()


async def test_aclose_without_iterating(subject: Subject) -> None:
    generation = subject.talk()
    await generation.aclose()
    await generation.aclose()
    await assert_idle(subject)


async def test_aclose_in_mid_stream_stops_the_engine(subject: Subject) -> None:
    generation = subject.talk()
    await anext(aiter(generation))
    await generation.aclose()
    await assert_idle(subject)
    await generation.aclose()


async def test_aclose_while_another_task_iterates(subject: Subject) -> None:
    generation = subject.prefill()
    run = Run()
    taking = asyncio.ensure_future(stopped(subject, generation, run))
    await until_busy(subject)
    await generation.aclose()
    await taking
    await assert_idle(subject)


async def test_two_at_once_are_strangers(subject: Subject) -> None:
    alone = await collect(subject.talk(60))
    one, other = subject.talk(60), subject.talk(1000)
    whole, cut = Run(), Run()

    async def take_whole() -> None:
        async for item in one:
            whole.add(item)

    async def take_cut() -> None:
        async for item in other:
            cut.add(item)
            if cut.tokens >= 5:
                other.stop()

    async with asyncio.TaskGroup() as group:
        group.create_task(take_whole())
        group.create_task(take_cut())
    assert cut.end.cause is StopCause.STOPPED
    assert (whole.tokens, whole.end.cause) == (60, alone.end.cause)
    # What follows is beyond a model's own end: near ties, which go by the company it keeps.
    assert whole.text[:20] == alone.text[:20]
    await assert_idle(subject)


async def test_a_failure_is_raised_and_the_engine_goes_on(subject: Subject) -> None:
    generation = subject.fail()
    with pytest.raises(BackchannelError):
        await collect(generation)
    await assert_idle(subject)
    assert (await collect(subject.talk(3))).tokens == 3


async def test_cancelling_the_iteration_is_not_swallowed_and_stops_the_engine(
    subject: Subject,
) -> None:
    generation = subject.prefill()
    taking = asyncio.ensure_future(collect(generation))
    await until_busy(subject)
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    await assert_idle(subject)


async def test_an_unknown_model_is_refused(subject: Subject) -> None:
    with pytest.raises(BackchannelError) as caught:
        subject.engine.check(Prompt("nobody", "", []))
    assert caught.value.reason is Reason.MODEL_NOT_FOUND
    assert f"{subject.engine.name}/{subject.model}" in str(caught.value)
    with pytest.raises(BackchannelError):
        subject.engine.start(Prompt("nobody", "", []))


async def test_closing_the_engine_stops_what_runs(subject: Subject) -> None:
    generation = subject.talk()
    items = aiter(generation)
    first = await anext(items)
    assert isinstance(first, TextChunk)
    await subject.engine.__aexit__(None, None, None)
    rest = [item async for item in items]
    assert isinstance(rest[-1], Finished)
    assert rest[-1].cause is StopCause.STOPPED
