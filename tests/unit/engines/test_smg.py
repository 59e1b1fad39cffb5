"""The adapter in front of a server that speaks vLLM's gRPC: answers, counts, stops."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from backchannel.engines.protocol import (
    REASONING,
    TEXT,
    Capability,
    Finished,
    Generation,
    Prompt,
    StopCause,
    TextChunk,
    ToolCallEnd,
    ToolCallFragment,
)
from backchannel.errors import BackchannelError, Reason
from backchannel.v1 import session_pb2
from tests.support.smg_peer import SmgPeer, archive, tokenizer_files
from tests.unit.engines.smg_support import ask, opened, script
from tests.unit.engines.support import CALCULATOR, Run, assistant, call, collect, result, user

CALL = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "1+1"}}\n</tool_call>'


def texts(run: Run, channel: int) -> str:
    return "".join(
        chunk.text
        for chunk in run.chunks
        if isinstance(chunk, TextChunk) and chunk.channel == channel
    )


def balanced(run: Run) -> bool:
    """Whether every token is in one chunk and in the total."""
    return run.tokens == run.end.usage.output_tokens and run.end.usage.exact


async def collect_rest(generation: Generation) -> Run:
    """Iterate to the end, without an `aclose` that would stop it."""
    run = Run()
    async for item in generation:
        run.add(item)
    return run


def tasks(name: str) -> list[asyncio.Task[object]]:
    """The tasks that run under this name."""
    return [task for task in asyncio.all_tasks() if task.get_name() == name]


def prompted(peer: SmgPeer) -> str:
    """The prompt that the server got last."""
    ids = list(peer.asked[-1].tokenized.input_ids)
    return peer.tokenizer.decode(ids, skip_special_tokens=False)


# --- answers


async def test_a_plain_answer() -> None:
    peer = SmgPeer()
    async with opened(peer) as engine:
        run = await collect(engine.start(ask(script(say="Grüße, 世界 👩‍👩‍👧‍👦!"))))
    assert run.text == "Grüße, 世界 👩‍👩‍👧‍👦!"
    assert "\ufffd" not in "".join(c.text for c in run.chunks if isinstance(c, TextChunk))
    assert len(run.chunks) > 5, "it came in one piece"
    assert run.end.cause is StopCause.STOP
    assert balanced(run)
    (request,) = peer.asked
    assert run.end.usage.prompt_tokens == len(request.tokenized.input_ids)
    assert request.stream
    assert peer.running == {}
    assert peer.aborted == []


async def test_the_card_tells_what_the_server_has() -> None:
    async with opened(SmgPeer()) as engine:
        (card,) = engine.models()
    assert (engine.name, card.name, card.max_context_tokens, card.parallel) == (
        "vllm",
        "small",
        4096,
        64,
    )
    assert card.capabilities == {
        Capability.TOOLS,
        Capability.CONTINUE_PARTIAL,
        Capability.JSON_SCHEMA,
        Capability.GRAMMAR,
        Capability.LOGPROBS,
        Capability.SEED,
        Capability.REASONING,
    }


async def test_the_conversation_is_rendered_by_the_models_own_template() -> None:
    peer = SmgPeer()
    conversation = [
        user("What is 1 + 1?"),
        assistant("Let me see.", [call("c1", "calculator", '{"expression": "1+1"}')]),
        result("c1", '{"value":2}'),
        script(say="Done."),
    ]
    async with opened(peer) as engine:
        await collect(engine.start(Prompt("small", "Be brief.", conversation, [CALCULATOR])))
    text = prompted(peer)
    assert text.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n<tools>\n{")
    assert '"name": "calculator"' in text
    # As the model wrote it: an object, not a string with an object in it.
    assert f"Let me see.\n{CALL}<|im_end|>" in text
    assert '<tool_response>\n{"value":2}\n</tool_response>' in text
    assert text.endswith("<|im_start|>assistant\n")
    assert peer.asked[-1].tokenized.input_ids[0] == peer.tokenizer.token_to_id("<|im_start|>")


async def test_max_tokens() -> None:
    peer = SmgPeer()
    async with opened(peer) as engine:
        sampling = session_pb2.Sampling(max_tokens=7)
        run = await collect(engine.start(ask(script(count=50), sampling=sampling)))
    assert (run.tokens, run.end.cause) == (7, StopCause.LENGTH)
    assert balanced(run)


async def test_an_answer_may_fill_the_context_and_no_more() -> None:
    peer = SmgPeer(context_tokens=120)
    async with opened(peer) as engine:
        run = await collect(engine.start(ask(script(count=500))))
    assert run.end.cause is StopCause.LENGTH
    assert run.end.usage.prompt_tokens + run.tokens == 120


async def test_every_sampling_setting_is_told() -> None:
    peer = SmgPeer(sampling_defaults='{"temperature": 0.6, "top_k": 20, "top_p": 0.9, "x": true}')
    asked = session_pb2.Sampling(
        max_tokens=5,
        temperature=0.0,
        top_p=0.5,
        seed=2**40 + 7,
        min_p=0.25,
        presence_penalty=1.5,
        frequency_penalty=-1.0,
        logprobs=2,
    )
    async with opened(peer) as engine:
        await collect(engine.start(ask(script(say="x"), sampling=asked)))
        await collect(engine.start(ask(script(say="x"))))
    told, usual = (request.sampling_params for request in peer.asked)
    assert told.HasField("temperature")
    assert (told.temperature, told.top_p, told.top_k, told.min_p) == (0.0, 0.5, 20, 0.25)
    assert (told.presence_penalty, told.frequency_penalty) == (1.5, -1.0)
    assert (told.seed, told.logprobs, told.max_tokens) == (7, 2, 5)
    # What nobody says is the model's own to say, or what it has to be, never an empty field.
    assert (round(usual.temperature, 3), usual.top_k, round(usual.top_p, 3)) == (0.6, 20, 0.9)
    assert (usual.repetition_penalty, usual.n, usual.skip_special_tokens) == (1.0, 1, True)
    assert not usual.HasField("seed")
    assert not usual.HasField("logprobs")
    ends = {peer.tokenizer.token_to_id(token) for token in ("<|endoftext|>", "<|im_end|>")}
    assert set(usual.stop_token_ids) == ends


async def test_log_probabilities_come_with_their_tokens() -> None:
    async with opened(SmgPeer()) as engine:
        sampling = session_pb2.Sampling(logprobs=1)
        run = await collect(engine.start(ask(script(say="Hä?"), sampling=sampling)))
    chunks = [chunk for chunk in run.chunks if isinstance(chunk, TextChunk)]
    assert all(len(chunk.logprobs) == chunk.token_count for chunk in chunks)
    assert chunks[0].logprobs[0].token == "H"
    assert chunks[0].logprobs[0].logprob == -0.5
    (top,) = chunks[0].logprobs[0].top
    assert top.logprob == -0.5, "the likeliest is not first"


async def test_tool_calls_come_while_they_are_written() -> None:
    async with opened(SmgPeer()) as engine:
        prompt = ask(script(say=f"Let me see.\n{CALL}\n{CALL}"), tools=[CALCULATOR])
        run = await collect(engine.start(prompt))
    assert run.text == "Let me see.\n"
    assert run.calls == [("calculator", '{"expression": "1+1"}')] * 2
    assert sum(isinstance(chunk, ToolCallFragment) for chunk in run.chunks) > 6
    assert run.end.cause is StopCause.TOOL_CALLS
    assert balanced(run)


async def test_without_tools_a_call_is_text() -> None:
    async with opened(SmgPeer()) as engine:
        run = await collect(engine.start(ask(script(say=CALL))))
    assert (run.text, run.calls, run.end.cause) == (CALL, [], StopCause.STOP)


async def test_a_call_that_is_cut_off_has_no_end() -> None:
    async with opened(SmgPeer()) as engine:
        sampling = session_pb2.Sampling(max_tokens=24)
        prompt = ask(script(say=CALL), tools=[CALCULATOR], sampling=sampling)
        run = await collect(engine.start(prompt))
    assert run.end.cause is StopCause.LENGTH
    assert len(run.calls) == 1
    assert not any(isinstance(chunk, ToolCallEnd) for chunk in run.chunks)
    assert balanced(run)


async def test_reasoning_has_a_channel_of_its_own() -> None:
    say = "<think>\nOne and one.\n</think>\n\nTwo."
    async with opened(SmgPeer()) as engine:
        run = await collect(engine.start(ask(script(say=say))))
        off = await collect(engine.start(ask(script(say="</think>"))))
    assert texts(run, REASONING).strip() == "One and one."
    assert texts(run, TEXT) == "Two."
    assert balanced(run)
    assert off.text == "</think>"


async def test_reasoning_that_the_prompt_begins() -> None:
    peer = SmgPeer()
    thinking = {"enable_thinking": "true"}
    async with opened(peer) as engine:
        say = script(say="One and one.\n</think>\n\nTwo.")
        run = await collect(engine.start(ask(say, options=thinking)))
    assert prompted(peer).endswith("<think>\n")
    assert texts(run, REASONING).strip() == "One and one."
    assert texts(run, TEXT) == "Two."


async def test_reasoning_can_be_left_in_the_text() -> None:
    say = "<think>a</think>b"
    async with opened(SmgPeer(), reasoning="off") as engine:
        run = await collect(engine.start(ask(script(say=say))))
        (card,) = engine.models()
    assert texts(run, TEXT) == say
    assert Capability.REASONING not in card.capabilities
    async with opened(SmgPeer(), reasoning=["[", "]"]) as engine:
        run = await collect(engine.start(ask(script(say="[a]b"))))
    assert (texts(run, REASONING), texts(run, TEXT)) == ("a", "b")


@pytest.mark.parametrize(
    ("say", "stop", "left"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["e th", "x"], "one two three"),
        ("one END", ["END"], "one "),
        ("END", ["END"], ""),
        ("a世b", ["世"], "a"),
        ("almost EN", ["END"], "almost EN"),
        ("<think>\nEND\n</think>\n\nyes END no", ["END"], "yes "),
    ],
)
async def test_stop_strings(say: str, stop: list[str], left: str) -> None:
    peer = SmgPeer()
    async with opened(peer) as engine:
        sampling = session_pb2.Sampling(stop=stop)
        run = await collect(engine.start(ask(script(say=say), sampling=sampling)))
    assert texts(run, TEXT) == left
    assert run.end.cause is StopCause.STOP
    assert run.end.usage.exact
    assert peer.running == {}


async def test_a_stop_string_stops_the_server() -> None:
    peer = SmgPeer()
    async with opened(peer) as engine:
        sampling = session_pb2.Sampling(stop=["word word word"])
        run = await collect(engine.start(ask(script(count=3000), sampling=sampling)))
    assert run.text == " "
    assert run.end.usage.output_tokens is not None
    assert 3 <= run.end.usage.output_tokens < 1000
    assert run.end.usage.exact
    assert len(peer.aborted) >= 1


async def test_a_stop_while_a_stop_string_stops_the_server() -> None:
    peer = SmgPeer()
    async with opened(peer, abort_timeout_s=0.2) as engine:
        sampling = session_pb2.Sampling(stop=["word word"])
        generation = engine.start(ask(script(count=3000, deaf=True), sampling=sampling))
        taking = asyncio.ensure_future(collect_rest(generation))
        while not tasks("abort"):  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0)
        generation.stop()
        assert len(tasks("abort")) == 1, "the stop was sent beside the one that is"
        run = await taking
        assert tasks("abort") == []
    assert run.end.cause is StopCause.STOPPED
    assert not run.end.usage.exact


async def test_a_stop_when_the_time_has_just_run_out() -> None:
    async with opened(SmgPeer(), token_timeout_s=0.1) as engine:
        generation = engine.start(ask(script(count=10, stall=4)))
        taking = asyncio.ensure_future(collect_rest(generation))
        # The limit cancels what it limits, which hears of it a step later.
        while not any(task.cancelling() for task in tasks("ask small")):  # noqa: ASYNC110
            await asyncio.sleep(0)
        generation.stop()
        run = await taking
    assert run.end.cause is StopCause.STOPPED
    assert run.end.usage.output_tokens == 4


async def test_a_json_schema_and_a_grammar_reach_the_servers_constraint() -> None:
    peer = SmgPeer()
    schema = session_pb2.ResponseFormat(json_schema='{"type": "object"}')
    grammar = session_pb2.ResponseFormat(grammar='root ::= "yes"')
    say = script(say='{"a": "<tool_call>"}')
    async with opened(peer) as engine:
        run = await collect(engine.start(ask(say, tools=[CALCULATOR], response_format=schema)))
        await collect(engine.start(ask(say, response_format=grammar)))
    # What is constrained is no tool call, whatever it looks like.
    assert run.text == '{"a": "<tool_call>"}'
    assert peer.asked[0].sampling_params.json_schema == '{"type": "object"}'
    assert peer.asked[1].sampling_params.grammar == 'root ::= "yes"'


@pytest.mark.parametrize("thinks_first", [False, True])
async def test_a_constrained_answer_does_not_think_where_the_constraint_holds_at_once(
    thinks_first: bool,
) -> None:
    peer = SmgPeer(thinks_first=thinks_first)
    thinking = {"enable_thinking": "true"}
    schema = session_pb2.ResponseFormat(json_schema="{}")
    say = "x</think>{}" if thinks_first else "{}"
    async with opened(peer) as engine:
        prompt = ask(script(say=say), options=thinking, response_format=schema)
        run = await collect(engine.start(prompt))
    assert prompted(peer).endswith("<think>\n" if thinks_first else "<think>\n\n</think>\n\n")
    assert texts(run, TEXT) == "{}"


@pytest.mark.parametrize("thinking", ["true", "false"])
async def test_a_partial_answer_is_gone_on_from(thinking: str) -> None:
    peer = SmgPeer()
    prompt = ask(script(say="One, two, three."), options={"enable_thinking": thinking})
    async with opened(peer) as engine:
        run = await collect(engine.start(replace(prompt, continue_text="One, two")))
    text = prompted(peer)
    assert text.endswith("One, two")
    assert ("</think>" in text) == (thinking == "true")
    assert texts(run, TEXT) == ", three."


async def test_what_was_said_is_in_the_servers_cache_when_it_is_gone_on_from() -> None:
    peer = SmgPeer()
    asked = script(say="word " * 200)
    async with opened(peer) as engine:
        run = Run()
        generation = engine.start(ask(asked))
        async for item in generation:
            run.add(item)
            if run.tokens >= 100:
                generation.stop()
        kept = run.text
        again = await collect(engine.start(ask(asked, continue_text=kept)))
    usage = again.end.usage
    assert usage.prompt_tokens > 250
    assert usage.cached_prompt_tokens >= 0.9 * usage.prompt_tokens
    assert kept + again.text == "word " * 200


# --- stops


async def test_a_stop_is_an_abort_that_is_confirmed() -> None:
    peer = SmgPeer(step_s=0.002)
    async with opened(peer) as engine:
        generation = engine.start(ask(script(count=3000)))
        run = Run()
        async for item in generation:
            run.add(item)
            if run.tokens == 20:
                generation.stop()
        (request,) = peer.asked
        assert set(peer.aborted) == {request.request_id}
        assert peer.running == {}, "it ended before the server had let go"
    assert run.end.cause is StopCause.STOPPED
    assert run.end.usage.exact
    assert run.tokens == 20
    assert 20 <= (run.end.usage.output_tokens or 0) < 40


async def test_an_abort_that_is_faster_than_its_request_is_repeated() -> None:
    peer = SmgPeer(slow=True)
    async with opened(peer) as engine:
        generation = engine.start(ask(script(count=3000)))
        taking = asyncio.ensure_future(collect_rest(generation))
        while not peer.asked:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0)
        generation.stop()
        run = await taking
    assert len(peer.aborted) >= 2
    assert run.end.cause is StopCause.STOPPED
    assert run.end.usage.exact
    assert peer.running == {}


async def test_a_stop_that_is_not_confirmed_ends_all_the_same() -> None:
    peer = SmgPeer()
    async with opened(peer, abort_timeout_s=0.2) as engine:
        generation = engine.start(ask(script(count=3000, deaf=True)))
        run = Run()
        async for item in generation:
            run.add(item)
            if run.tokens == 5:
                generation.stop()
        assert run.end.cause is StopCause.STOPPED
        assert not run.end.usage.exact
        assert (run.end.usage.output_tokens or 0) >= 5
        assert len(peer.aborted) >= 2


async def test_a_dropped_iteration_is_aborted_too() -> None:
    peer = SmgPeer()
    async with opened(peer) as engine:
        generation = engine.start(ask(script(wait=True)))
        taking = asyncio.ensure_future(collect(generation))
        while not peer.running:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0)
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking
        assert peer.running == {}


async def test_a_reader_that_does_not_read_holds_the_answer_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peer = SmgPeer(step_s=0)
    async with opened(peer) as engine:
        generation = engine.start(ask(script(count=3000)))
        items = aiter(generation)
        run = Run()
        run.add(await anext(items))
        while not generation.full:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0)
        # What it waits for now is not the server, so nothing limits it.
        loop = asyncio.get_running_loop()
        now = loop.time
        with monkeypatch.context() as later:
            later.setattr(loop, "time", lambda: now() + 3600)
            for _ in range(100):
                await asyncio.sleep(0)
        # All that was held comes as one, and no more of it than the bound.
        held = await anext(items)
        assert isinstance(held, TextChunk)
        assert 1024 < held.token_count < 1100
        run.add(held)
        async for item in items:
            run.add(item)
    assert run.end.cause is StopCause.STOP
    assert run.end.usage.output_tokens == 3001


async def test_tokens_that_come_after_a_stop_are_wasted_and_counted() -> None:
    peer = SmgPeer(step_s=0)
    async with opened(peer) as engine:
        generation = engine.start(ask(script(count=500)))
        items = aiter(generation)
        first = await anext(items)
        assert isinstance(first, TextChunk)
        generation.stop()
        rest = [item async for item in items]
        (end,) = rest
        assert isinstance(end, Finished)
        made = peer.seen[-1][len(peer.asked[-1].tokenized.input_ids) :]
    assert end.usage.exact
    assert end.usage.output_tokens == len(made)


# --- what it refuses


@pytest.mark.parametrize(
    ("prompt", "reason", "field"),
    [
        (Prompt("big", "", []), Reason.MODEL_NOT_FOUND, "model"),
        (ask(options={"speed": "1"}), Reason.FIELD_INVALID, 'engine_options["speed"]'),
        (
            ask(options={"enable_thinking": "yes"}),
            Reason.FIELD_INVALID,
            'engine_options["enable_thinking"]',
        ),
    ],
)
async def test_what_makes_no_sense_is_refused(prompt: Prompt, reason: Reason, field: str) -> None:
    async with opened(SmgPeer()) as engine:
        with pytest.raises(BackchannelError) as caught:
            engine.check(prompt)
    assert (caught.value.reason, caught.value.field) == (reason, field)


async def test_too_long_a_prompt_is_refused_with_both_numbers() -> None:
    peer = SmgPeer(context_tokens=100)
    async with opened(peer) as engine:
        with pytest.raises(BackchannelError) as caught:
            await collect(engine.start(ask(user("word " * 300))))
    assert caught.value.reason is Reason.PROMPT_TOO_LONG
    assert caught.value.metadata["max_context_tokens"] == "100"
    length = caught.value.metadata["prompt_tokens"]
    assert int(length) > 300
    assert length in str(caught.value)
    assert peer.asked == []


async def test_tools_need_a_template_that_knows_them_and_calls_that_can_be_read() -> None:
    peer = SmgPeer()
    files = tokenizer_files(peer.tokenizer, "{{ messages[0].content }}")
    peer.bundle = archive(files)
    async with opened(peer) as engine:
        with pytest.raises(BackchannelError) as caught:
            engine.check(ask(tools=[CALCULATOR]))
    assert caught.value.reason is Reason.CAPABILITY_MISSING
    assert caught.value.field == "tools"
    async with opened(SmgPeer(), tool_format="off") as engine:
        with pytest.raises(BackchannelError):
            engine.check(ask(tools=[CALCULATOR]))
    files = tokenizer_files(peer.tokenizer, "{{ tools }}{{ messages[0].content }}")
    peer.bundle = archive(files)
    async with opened(peer) as engine:
        with pytest.raises(BackchannelError):
            engine.check(ask(tools=[CALCULATOR]))
    async with opened(peer, tool_format="hermes") as engine:
        engine.check(ask(tools=[CALCULATOR]))


async def test_the_tokenizer_may_come_from_a_folder_and_the_template_from_a_file(
    tmp_path: Path,
) -> None:
    peer = SmgPeer(bundle=None)
    for name, content in tokenizer_files(peer.tokenizer).items():
        (tmp_path / name).write_text(content)
    template = tmp_path / "mine.jinja"
    template.write_text("Say{% for message in messages %} {{ message.content }}{% endfor %}:")
    async with opened(
        peer,
        tokenizer=str(tmp_path),
        chat_template=str(template),
        model="mine",
        template_options={"x": 1},
    ) as engine:
        assert [card.name for card in engine.models()] == ["mine"]
        run = await collect(engine.start(Prompt("mine", "", [user("hello")])))
    assert prompted(peer) == "Say hello:"
    assert run.text == "What?"


async def test_two_answers_at_once_are_strangers() -> None:
    peer = SmgPeer()
    async with opened(peer) as engine:
        one = engine.start(ask(script(say="first " * 30)))
        other = engine.start(ask(script(say="second " * 30)))
        first, second = await asyncio.gather(collect(one), collect(other))
    assert (first.text, second.text) == ("first " * 30, "second " * 30)
    assert len({json.dumps(request.request_id) for request in peer.asked}) == 2
