"""The scripted engine does exactly what clients are promised."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backchannel.engines.protocol import (
    Finished,
    Generation,
    Prompt,
    StopCause,
    TextChunk,
    ToolCallFragment,
)
from backchannel.engines.scripted import ScriptedEngine, words
from backchannel.engines.stop_strings import StopStrings
from backchannel.errors import BackchannelError, Reason
from backchannel.v1 import session_pb2
from tests.unit.engines.support import (
    CALCULATOR,
    CLOCK,
    ManualTimer,
    Run,
    assistant,
    call,
    collect,
    result,
    user,
)


def ask(
    model: str,
    *messages: session_pb2.Message,
    tools: Sequence[session_pb2.ToolSpec] = (),
    sampling: session_pb2.Sampling | None = None,
    **options: str,
) -> Prompt:
    return Prompt(model, "", messages, tools, sampling or session_pb2.Sampling(), options)


async def run(prompt: Prompt) -> Run:
    return await collect(ScriptedEngine().start(prompt))


def texts(run: Run) -> list[str]:
    return [c.text for c in run.chunks if isinstance(c, TextChunk | ToolCallFragment)]


# --- echo ------------------------------------------------------------------------------------


async def test_echo_one_token_is_one_word_with_its_leading_space() -> None:
    done = await run(ask("echo", user("one two  three\n")))
    assert texts(done) == ["one", " two", "  three\n"]
    assert done.tokens == 3
    assert done.end.cause is StopCause.STOP
    assert done.end.usage.output_tokens == 3


@given(st.text())
def test_words_laid_end_to_end_are_the_text(text: str) -> None:
    cut = list(words(text))
    assert "".join(cut) == text
    assert len(cut) == max(len(text.split()), bool(text))


def test_words_take_no_quadratic_time() -> None:
    blank = " " * 1_000_000
    assert list(words(blank)) == [blank]
    assert len(list(words(f"a{blank}b{blank}"))) == 2


async def test_echo_says_the_last_of_several_messages() -> None:
    done = await run(ask("echo", user("first"), assistant("first"), user("second")))
    assert done.text == "second"


async def test_echo_joins_parts() -> None:
    parts = [session_pb2.Part(text="a "), session_pb2.Part(text="b")]
    message = session_pb2.Message(role=session_pb2.ROLE_USER, parts=parts)
    assert (await run(ask("echo", message))).text == "a b"


@pytest.mark.parametrize(
    ("max_tokens", "said", "cause"),
    [(2, "a b", StopCause.LENGTH), (3, "a b c", StopCause.STOP), (4, "a b c", StopCause.STOP)],
)
async def test_echo_heeds_max_tokens(max_tokens: int, said: str, cause: StopCause) -> None:
    sampling = session_pb2.Sampling(max_tokens=max_tokens)
    done = await run(ask("echo", user("a b c"), sampling=sampling))
    assert (done.text, done.end.cause) == (said, cause)


@pytest.mark.parametrize(
    ("stop", "said", "tokens"),
    [
        (["c d"], "a b ", 4),  # The two tokens that hold it were computed.
        ([" c"], "a b", 3),
        (["d", "b"], "a ", 2),
        (["a"], "", 1),
        (["d e f"], "a b c d e", 5),  # Begun, but never whole: nothing is lost.
        (["x"], "a b c d e", 5),
    ],
)
async def test_echo_heeds_stop_strings(stop: list[str], said: str, tokens: int) -> None:
    done = await run(ask("echo", user("a b c d e"), sampling=session_pb2.Sampling(stop=stop)))
    assert (done.text, done.end.cause) == (said, StopCause.STOP)
    assert done.tokens == done.end.usage.output_tokens == tokens


async def test_held_back_text_comes_out_at_the_limit() -> None:
    sampling = session_pb2.Sampling(stop=["b c"], max_tokens=2)
    done = await run(ask("echo", user("a b c"), sampling=sampling))
    assert (done.text, done.tokens, done.end.cause) == ("a b", 2, StopCause.LENGTH)


@given(
    st.lists(st.text("ab", max_size=4), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_strings_are_found_wherever_the_pieces_are_cut(
    pieces: list[str], stops: list[str]
) -> None:
    whole = "".join(pieces)
    found = StopStrings(stops)
    said = ""
    for piece in pieces:
        text, ended = found.feed(piece)
        said += text
        if ended:
            assert not any(stop in said for stop in stops)
            assert any(whole.startswith(said + stop) for stop in stops)
            return
    said += found.rest()
    assert said == whole
    assert not any(stop in whole for stop in stops)


# --- count, fail, stall ----------------------------------------------------------------------


async def test_count_goes_to_a_hundred() -> None:
    done = await run(ask("count", user("go")))
    assert done.text == " ".join(str(number) for number in range(1, 101))
    assert done.tokens == len(done.chunks) == 100
    assert done.end.cause is StopCause.STOP


async def test_count_goes_to_max_tokens_and_ends_stop() -> None:
    sampling = session_pb2.Sampling(max_tokens=7)
    done = await run(ask("count", user("go"), sampling=sampling))
    assert (done.text, done.end.cause) == ("1 2 3 4 5 6 7", StopCause.STOP)


async def test_count_to_the_largest_number_is_not_made_beforehand() -> None:
    sampling = session_pb2.Sampling(max_tokens=2**32 - 1)
    generation = ScriptedEngine().start(ask("count", user("go"), sampling=sampling))
    await anext(aiter(generation))
    await generation.aclose()


async def test_fail_says_five_numbers_then_fails() -> None:
    seen = Run()
    engine = ScriptedEngine()
    with pytest.raises(BackchannelError) as caught:  # noqa: PT012 - what came before counts too
        async for item in engine.start(ask("fail", user("go"))):
            seen.add(item)
    assert caught.value.reason is Reason.ENGINE_FAILED
    assert seen.text == "1 2 3 4 5"
    assert engine.running == 0


async def test_stall_says_five_numbers_then_nothing_until_it_is_stopped() -> None:
    engine = ScriptedEngine()
    generation = engine.start(ask("stall", user("go")))
    items = aiter(generation)
    assert [await anext(items) for _ in range(5)][-1] == TextChunk(" 5", 1)
    sixth = asyncio.ensure_future(anext(items))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not sixth.done()
    generation.stop()
    end = await sixth
    assert isinstance(end, Finished)
    assert (end.cause, end.usage.output_tokens) == (StopCause.STOPPED, 5)
    assert engine.running == 0


# --- tools -----------------------------------------------------------------------------------


async def test_tool_calls_the_first_tool_in_fragments() -> None:
    done = await run(ask("tool", user('say "hi" ü'), tools=[CALCULATOR, CLOCK]))
    assert done.calls == [("calculator", '{"input": "say \\"hi\\" ü"}')]
    assert texts(done) == ['{"input":', ' "say', ' \\"hi\\"', ' ü"}']
    assert done.tokens == done.end.usage.output_tokens == 4
    assert done.end.cause is StopCause.TOOL_CALLS


async def test_tools_calls_every_tool_in_one_round() -> None:
    done = await run(ask("tools", user("x"), tools=[CALCULATOR, CLOCK]))
    assert done.calls == [("calculator", '{"input": "x"}'), ("clock", '{"input": "x"}')]
    assert done.end.cause is StopCause.TOOL_CALLS


async def test_a_call_cut_by_max_tokens_is_not_ended() -> None:
    sampling = session_pb2.Sampling(max_tokens=1)
    done = await run(ask("tool", user("x"), tools=[CLOCK], sampling=sampling))
    assert done.calls == [("clock", '{"input":')]
    assert done.end.cause is StopCause.LENGTH


@pytest.mark.parametrize("outcome", ['{"sum":42}', '{"error":"no"}', '{"error":"timed out"}', "1"])
async def test_one_result(outcome: str) -> None:
    asked = assistant(calls=[call("c1", "calculator")])
    done = await run(
        ask("tool", user("x"), asked, result("c1", outcome), tools=[CALCULATOR, CLOCK])
    )
    assert done.text == f"result: {outcome}"
    assert done.end.cause is StopCause.STOP


async def test_several_results_are_a_list_in_the_order_of_the_calls() -> None:
    asked = assistant(calls=[call("c1", "calculator"), call("c2", "clock")])
    messages = [user("x"), asked, result("c2", '{"b":"2 3"}'), result("c1", "1")]
    done = await run(ask("tools", *messages, tools=[CALCULATOR, CLOCK]))
    assert done.text == 'result: [1,{"b":"2 3"}]'
    assert json.loads(done.text.removeprefix("result: ")) == [1, {"b": "2 3"}]


async def test_a_new_message_begins_a_new_round() -> None:
    asked = assistant(calls=[call("c1", "clock")])
    messages = [user("x"), asked, result("c1", "1"), assistant("result: 1"), user("y")]
    done = await run(ask("tool", *messages, tools=[CLOCK]))
    assert done.calls == [("clock", '{"input": "y"}')]


# --- pace ------------------------------------------------------------------------------------


async def turns() -> None:
    """Let everything that can run, run."""
    for _ in range(5):
        await asyncio.sleep(0)


async def drive(generation: Generation, timer: ManualTimer) -> list[tuple[float, str]]:
    """Take every token as it comes; return when each came, from the beginning."""
    begun = timer.time()
    came: list[tuple[float, str]] = []

    async def take() -> None:
        async for item in generation:
            if isinstance(item, TextChunk):
                came.append((timer.time() - begun, item.text))  # noqa: PERF401 - at once

    taking = asyncio.ensure_future(take())
    await turns()
    while not taking.done():
        timer.to_next()
        await turns()
    await taking
    return came


async def test_a_rate_is_kept_without_drift() -> None:
    timer = ManualTimer()
    sampling = session_pb2.Sampling(max_tokens=1000)
    prompt = ask("count", user("go"), sampling=sampling, rate="30", prefill_ms="200")
    came = await drive(ScriptedEngine(timer).start(prompt), timer)
    assert len(came) == 1000
    assert [when for when, _ in came] == pytest.approx([0.2 + k / 30 for k in range(1000)])


@pytest.mark.parametrize("away_s", [0.05, 0.09])
async def test_a_short_hiccup_is_made_up_for(away_s: float) -> None:
    timer = ManualTimer()
    generation = ScriptedEngine(timer).start(ask("count", user("go"), rate="10"))
    begun = timer.time()
    items = aiter(generation)
    await anext(items)
    timer.advance(0.1 + away_s)
    await anext(items)
    third = asyncio.ensure_future(anext(items))
    await turns()
    timer.to_next()
    await third
    assert timer.time() - begun == pytest.approx(0.2)
    await generation.aclose()


async def test_a_long_absence_is_not_made_up_for() -> None:
    timer = ManualTimer()
    generation = ScriptedEngine(timer).start(ask("count", user("go"), rate="10"))
    items = aiter(generation)
    await anext(items)
    timer.advance(60.0)
    burst = 0
    while True:
        taking = asyncio.ensure_future(anext(items))
        await turns()
        if not taking.done():
            break
        burst += 1
    assert burst == 3  # One that was ahead, and a quarter of a second.
    generation.stop()
    await taking
    await generation.aclose()


async def test_a_token_ahead_of_the_reader_is_counted_when_it_is_stopped() -> None:
    timer = ManualTimer()
    generation = ScriptedEngine(timer).start(ask("count", user("go"), rate="10"))
    items = aiter(generation)
    await anext(items)
    timer.advance(5.0)  # Time for fifty; but one ahead is all.
    generation.stop()
    end = await anext(items)
    assert isinstance(end, Finished)
    assert end.usage.output_tokens == 2


async def test_no_token_ahead_beyond_the_end() -> None:
    timer = ManualTimer()
    generation = ScriptedEngine(timer).start(ask("echo", user("only"), rate="10"))
    items = aiter(generation)
    await anext(items)
    timer.advance(5.0)
    generation.stop()
    end = await anext(items)
    assert isinstance(end, Finished)
    assert end.usage.output_tokens == 1


async def test_a_token_that_was_due_when_the_stop_came_is_counted() -> None:
    timer = ManualTimer()
    generation = ScriptedEngine(timer).start(ask("echo", user("a b"), rate="10"))
    items = aiter(generation)
    await anext(items)
    second = asyncio.ensure_future(anext(items))
    await turns()
    timer.advance(0.1)  # Its time has come, but the task has not run yet.
    generation.stop()
    end = await second
    assert isinstance(end, Finished)
    assert end.usage.output_tokens == 2


async def test_stop_in_the_prefill_is_immediate() -> None:
    timer = ManualTimer()
    generation = ScriptedEngine(timer).start(ask("count", user("go"), prefill_ms="60000"))
    first = asyncio.ensure_future(anext(aiter(generation)))
    await turns()
    timer.advance(59.0)
    generation.stop()
    end = await first
    assert isinstance(end, Finished)
    assert (end.cause, end.usage.output_tokens) == (StopCause.STOPPED, 0)


async def test_others_get_their_turn_between_two_tokens() -> None:
    """Two scripts as fast as taken go hand in hand, though neither ever waits."""
    order: list[str] = []

    async def take(name: str) -> None:
        async for item in ScriptedEngine().start(ask("count", user("go"))):
            if isinstance(item, TextChunk):
                order.append(name)  # noqa: PERF401 - at once

    async with asyncio.TaskGroup() as group:
        group.create_task(take("a"))
        group.create_task(take("b"))
    assert order == ["a", "b"] * 100


# --- what it refuses -------------------------------------------------------------------------


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf", "fast", "", "1e9", "1e-9"])
def test_a_bad_rate_is_refused(rate: str) -> None:
    with pytest.raises(BackchannelError) as caught:
        ScriptedEngine().check(ask("echo", rate=rate))
    assert caught.value.reason is Reason.FIELD_INVALID
    assert caught.value.field == 'engine_options["rate"]'


@pytest.mark.parametrize("prefill_ms", ["-1", "nan", "inf", "long", "600001"])
def test_a_bad_prefill_is_refused(prefill_ms: str) -> None:
    with pytest.raises(BackchannelError) as caught:
        ScriptedEngine().check(ask("echo", prefill_ms=prefill_ms))
    assert caught.value.reason is Reason.FIELD_INVALID
    assert caught.value.field == 'engine_options["prefill_ms"]'


def test_an_unknown_option_is_refused_with_those_there_are() -> None:
    with pytest.raises(BackchannelError, match="rate, prefill_ms") as caught:
        ScriptedEngine().check(ask("echo", speed="1"))
    assert caught.value.reason is Reason.FIELD_INVALID
    assert caught.value.field == 'engine_options["speed"]'


def test_an_unknown_model_is_refused_with_those_there_are() -> None:
    with pytest.raises(BackchannelError, match="scripted/echo, scripted/count") as caught:
        ScriptedEngine().check(ask("parrot"))
    assert caught.value.reason is Reason.MODEL_NOT_FOUND
    assert caught.value.field == "model"


def test_what_a_script_cannot_do_is_refused() -> None:
    for prompt, field in [
        (ask("echo", sampling=session_pb2.Sampling(logprobs=0)), "sampling.logprobs"),
        (
            Prompt("echo", "", [], response_format=session_pb2.ResponseFormat(json_schema="{}")),
            "response_format.json_schema",
        ),
        (Prompt("echo", "", [], continue_text="and"), "continue_text"),
    ]:
        with pytest.raises(BackchannelError) as caught:
            ScriptedEngine().check(prompt)
        assert caught.value.reason is Reason.CAPABILITY_MISSING
        assert caught.value.field == field


@pytest.mark.parametrize("model", ["tool", "tools"])
def test_a_model_that_calls_tools_wants_one(model: str) -> None:
    with pytest.raises(BackchannelError) as caught:
        ScriptedEngine().check(ask(model))
    assert caught.value.reason is Reason.FIELD_REQUIRED
    assert caught.value.field == "tools"
    ScriptedEngine().check(ask(model, tools=[CLOCK]))


def test_models_that_call_none_do_not_mind_tools() -> None:
    ScriptedEngine().check(ask("echo", tools=[CLOCK]))
