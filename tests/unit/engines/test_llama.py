"""The embedded engine with the bundled model; nothing here depends on what that says."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backchannel.engines.llama import engine as llama_module
from backchannel.engines.llama.config import HOUSE_FILE, HOUSE_MODEL, LlamaConfig, LlamaModel
from backchannel.engines.llama.engine import LlamaEngine, LlamaGeneration
from backchannel.engines.protocol import Capability, Finished, Prompt, StopCause, TextChunk
from backchannel.errors import BackchannelError, Reason
from backchannel.v1 import session_pb2
from tests.scale import scale
from tests.unit.engines.conftest import asked
from tests.unit.engines.support import CALCULATOR, Run, assistant, collect, user

QUESTION = user("What is Backchannel?")
LONG = user("Tell me about sessions, and tools, and stops, and everything. " * 12)


def sampling(**fields: Any) -> session_pb2.Sampling:
    return session_pb2.Sampling(**fields)


def decodes(engine: LlamaEngine) -> int:
    """How often llama.cpp has run the model, by its own count."""
    metrics: str = engine._loaded["house"].server._server.handle_metrics()
    found = re.search(r"^llamacpp:n_decode_total (\S+)", metrics, re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


def test_the_card(llama: LlamaEngine) -> None:
    (card,) = llama.models()
    assert card.name == "house"
    assert card.max_context_tokens == 2048
    assert card.parallel == 2
    assert {Capability.TOOLS, Capability.CONTINUE_PARTIAL} < card.capabilities
    assert "tiny" in card.description


# --- counts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("after", range(scale(6, 60)))
async def test_what_a_stop_cost_is_counted_to_the_step(llama: LlamaEngine, after: int) -> None:
    """A short prompt takes one run of the model, which gives the first token; each next, one."""
    before = decodes(llama)
    generation = asked(llama.start(Prompt("house", "", [QUESTION])), ignore_eos=True)
    run = Run()
    async for item in generation:
        run.add(item)
        if run.tokens >= after:
            generation.stop()
    assert run.end.cause is StopCause.STOPPED
    assert run.end.usage.exact
    assert run.end.usage.output_tokens == decodes(llama) - before
    assert run.end.usage.prompt_tokens > 0


async def test_once_told_to_stop_it_computes_one_step_more_at_most(
    llama: LlamaEngine, record_property: Callable[[str, object], None]
) -> None:
    """Told is what its callback answers. A thread that waits for a CPU may be late to pass it on,
    so the rule is one of most stops, not of all."""
    steps = []
    for after in range(scale(15, 500)):
        generation = asked(llama.start(Prompt("house", "", [QUESTION])), ignore_eos=True)
        run = Run()
        async for item in generation:
            run.add(item)
            if run.tokens > after % 50:
                generation.stop()
        assert generation.computed_when_told is not None
        assert run.end.usage.output_tokens is not None
        assert run.end.usage.output_tokens >= generation.computed_when_told >= run.tokens
        steps.append(run.end.usage.output_tokens - generation.computed_when_told)
    record_property("steps_p99", sorted(steps)[len(steps) * 99 // 100])
    assert statistics.median(steps) <= 1


async def test_a_stopped_prefill_has_cost_no_output(llama: LlamaEngine) -> None:
    generation = llama.start(Prompt("house", "", [user("what is it " * 400)]))
    taking = asyncio.ensure_future(collect(generation))
    while await llama.busy() == 0:  # noqa: ASYNC110 - llama.cpp's own count has no event
        await asyncio.sleep(0)
    generation.stop()
    run = await taking
    assert run.end.usage.output_tokens == 0
    assert run.end.usage.exact
    assert decodes(llama) < run.end.usage.prompt_tokens / 256, "the prefill went on to its end"


async def test_an_answer_is_counted_with_its_end(llama: LlamaEngine) -> None:
    run = await collect(llama.start(Prompt("house", "", [QUESTION])))
    assert run.end.cause is StopCause.STOP
    assert run.tokens == run.end.usage.output_tokens


# --- the prefix cache ------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("after", range(5, 5 + scale(3, 60)))
async def test_after_an_interrupt_the_kept_part_is_not_computed_again(
    llama: LlamaEngine, after: int, share: float, record_property: Callable[[str, object], None]
) -> None:
    """By llama.cpp's own count, at least 90 % of the prompt and the text that was kept."""
    generation = asked(llama.start(Prompt("house", "", [LONG])), ignore_eos=True)
    run = Run()
    async for item in generation:
        run.add(item)
        if run.tokens >= after:
            generation.stop()
    kept = run.text[: round(len(run.text) * share)]
    one = sampling(max_tokens=1)
    messages = [LONG, assistant(kept), user("Something else.")]
    turn = await collect(llama.start(Prompt("house", "", messages, sampling=one)))
    # The very same prefix, gone on from, tells how long it is.
    onward = await collect(
        llama.start(Prompt("house", "", [LONG], sampling=one, continue_text=kept))
    )
    whole = onward.end.usage.prompt_tokens
    for again in (turn, onward):
        share_reused = again.end.usage.cached_prompt_tokens / whole
        record_property("reused", share_reused)
        assert share_reused >= 0.9
        assert again.end.usage.cached_prompt_tokens < again.end.usage.prompt_tokens


async def test_a_partial_answer_is_gone_on_from(llama: LlamaEngine) -> None:
    short = sampling(max_tokens=12)
    whole = await collect(llama.start(Prompt("house", "", [QUESTION], sampling=short)))
    half = await collect(
        llama.start(Prompt("house", "", [QUESTION], sampling=sampling(max_tokens=6)))
    )
    rest = await collect(
        llama.start(
            Prompt(
                "house",
                "",
                [QUESTION],
                sampling=sampling(max_tokens=6),
                continue_text=half.text,
            )
        )
    )
    assert half.text + rest.text == whole.text
    assert rest.end.usage.cached_prompt_tokens > half.end.usage.prompt_tokens


# --- sampling --------------------------------------------------------------------------------


async def test_max_tokens_ends_with_length(llama: LlamaEngine) -> None:
    run = await collect(
        llama.start(Prompt("house", "", [QUESTION], sampling=sampling(max_tokens=3)))
    )
    assert (run.tokens, run.end.cause) == (3, StopCause.LENGTH)


async def test_the_context_is_a_limit_too(llama: LlamaEngine) -> None:
    run = await collect(asked(llama.start(Prompt("house", "", [QUESTION])), ignore_eos=True))
    assert run.end.cause is StopCause.LENGTH
    assert run.end.usage.output_tokens == run.tokens
    assert run.tokens + run.end.usage.prompt_tokens in (2048, 2049)


async def test_a_seed_holds_also_beside_others(llama: LlamaEngine) -> None:
    wild = Prompt("house", "", [QUESTION], sampling=sampling(temperature=1.5, seed=5, max_tokens=8))
    alone = await collect(llama.start(wild))
    one, _ = await asyncio.gather(
        collect(llama.start(wild)),
        collect(asked(llama.start(Prompt("house", "", [LONG])), ignore_eos=True)),
    )
    assert one.text == alone.text


async def test_a_stop_string_is_not_said_and_its_tokens_are_counted(llama: LlamaEngine) -> None:
    plain = await collect(
        llama.start(Prompt("house", "", [QUESTION], sampling=sampling(max_tokens=20)))
    )
    stop = plain.text[len(plain.text) // 2 :][:4]
    cut = await collect(
        llama.start(Prompt("house", "", [QUESTION], sampling=sampling(max_tokens=20, stop=[stop])))
    )
    assert cut.text == plain.text[: plain.text.index(stop)]
    assert cut.end.cause is StopCause.STOP
    assert cut.tokens == cut.end.usage.output_tokens


@pytest.mark.parametrize("alternatives", [0, 3])
async def test_logprobs(llama: LlamaEngine, alternatives: int) -> None:
    run = await collect(
        llama.start(
            Prompt("house", "", [QUESTION], sampling=sampling(max_tokens=4, logprobs=alternatives))
        )
    )
    entries = [
        entry for chunk in run.chunks if isinstance(chunk, TextChunk) for entry in chunk.logprobs
    ]
    assert entries
    assert "".join(entry.token for entry in entries) == run.text
    assert all(entry.logprob <= 0 and math.isfinite(entry.logprob) for entry in entries)
    assert all(len(entry.top) == alternatives for entry in entries)


# --- failures --------------------------------------------------------------------------------


async def test_a_prompt_that_is_too_long_tells_both_numbers(llama: LlamaEngine) -> None:
    with pytest.raises(BackchannelError) as caught:
        await collect(llama.start(Prompt("house", "", [user("what is it " * 2000)])))
    assert caught.value.reason is Reason.PROMPT_TOO_LONG
    assert caught.value.metadata["max_context_tokens"] == "2048"
    assert int(caught.value.metadata["prompt_tokens"]) > 2048


async def test_a_tools_schema_that_llama_cpp_cannot_follow_fails_the_answer(
    llama: LlamaEngine,
) -> None:
    tool = session_pb2.ToolSpec(
        name="x",
        parameters_json_schema='{"type":"object","properties":{"a":{"$ref":"#/nowhere"}}}',
    )
    with pytest.raises(BackchannelError, match="#/nowhere") as caught:
        await collect(llama.start(Prompt("house", "", [QUESTION], [tool])))
    assert (caught.value.reason, caught.value.field) == (Reason.FIELD_INVALID, "tools")


async def test_an_exception_in_the_callback_is_not_lost(
    llama: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = asked(llama.start(Prompt("house", "", [QUESTION])), ignore_eos=True)

    class Full:
        def append(self, _: bytes) -> None:
            raise MemoryError("no room")

        def __len__(self) -> int:
            return 0

    monkeypatch.setattr(generation, "_messages", Full())
    with pytest.raises(BackchannelError, match="no room") as caught:
        await collect(generation)
    assert caught.value.reason is Reason.ENGINE_FAILED
    assert await llama.busy() == 0


async def test_a_message_that_cannot_be_read_stops_the_engine(
    llama: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = asked(llama.start(Prompt("house", "", [QUESTION])), ignore_eos=True)

    def broken(_: bytes) -> None:
        raise KeyError("choices")

    monkeypatch.setattr(generation._stream, "feed", broken)
    with pytest.raises(KeyError):
        await collect(generation)
    assert await llama.busy() == 0


async def test_a_count_that_nobody_can_confirm_is_an_estimate(
    llama: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama._loaded["house"].server, "sequence_tokens", lambda _: None)
    generation = asked(llama.start(Prompt("house", "", [QUESTION])), ignore_eos=True)
    run = Run()
    async for item in generation:
        run.add(item)
        generation.stop()
    assert not run.end.usage.exact
    assert run.end.usage.output_tokens is not None
    assert run.end.usage.output_tokens >= run.tokens


async def test_more_than_it_has_room_for_wait_and_can_be_stopped(llama: LlamaEngine) -> None:
    """The caller admits no more than `parallel`; if it does, the rest waits in our own queue."""
    running = [asked(llama.start(Prompt("house", "", [QUESTION])), ignore_eos=True) for _ in "ab"]
    tasks = [asyncio.ensure_future(collect(generation)) for generation in running]
    waiting = llama.start(Prompt("house", "", [QUESTION]))
    task = asyncio.ensure_future(collect(waiting))
    while await llama.busy() < 2:  # noqa: ASYNC110 - llama.cpp's own count has no event
        await asyncio.sleep(0)
    for generation in (waiting, *running):
        generation.stop()
    assert (await task).end.usage.output_tokens == 0
    for other in tasks:
        assert (await other).end.cause is StopCause.STOPPED
    assert await llama.busy() == 0


# --- what it refuses -------------------------------------------------------------------------


NEVER = session_pb2.ToolSpec(name="x", parameters_json_schema='{"minItems":2,"maxItems":1}')


@pytest.mark.parametrize(
    ("more", "reason", "field"),
    [
        ({"options": {"rate": "1"}}, Reason.FIELD_INVALID, 'engine_options["rate"]'),
        (
            {"response_format": session_pb2.ResponseFormat(json_schema='{"not":{}}')},
            Reason.FIELD_INVALID,
            "response_format.json_schema",
        ),
        (
            {"response_format": session_pb2.ResponseFormat(grammar='root ::= "a"{5,3}')},
            Reason.FIELD_INVALID,
            "response_format.grammar",
        ),
        (
            {
                "response_format": session_pb2.ResponseFormat(json_schema="{}"),
                "continue_text": '{"a',
            },
            Reason.CAPABILITY_MISSING,
            "continue_text",
        ),
        (
            {"tools": [CALCULATOR, NEVER]},
            Reason.FIELD_INVALID,
            "tools[1].parameters_json_schema",
        ),
    ],
)
def test_what_it_cannot_do_is_refused(
    llama: LlamaEngine, more: dict[str, Any], reason: Reason, field: str
) -> None:
    with pytest.raises(BackchannelError) as caught:
        llama.check(Prompt("house", "", [], **more))
    assert (caught.value.reason, caught.value.field) == (reason, field)
    llama.check(Prompt("house", "", [], [CALCULATOR], sampling(logprobs=1)))


# --- loading ---------------------------------------------------------------------------------


async def load(*models: LlamaModel) -> None:
    async with LlamaEngine(LlamaConfig(models)):
        pass


async def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BackchannelError, match=r"none\.gguf cannot be read.*check the path") as no:
        await load(LlamaModel("x", str(tmp_path / "none.gguf")))
    assert no.value.reason is Reason.ENGINE_UNAVAILABLE


async def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(BackchannelError, match="is not a GGUF file") as caught:
        await load(LlamaModel("x", str(path)))
    assert caught.value.reason is Reason.ENGINE_UNAVAILABLE


async def test_a_file_that_is_cut_short_and_what_was_loaded_is_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xllamacpp", reason="the embedded engine has no wheel here")
    freed: list[str] = []
    close = llama_module._Loaded.close

    def closing(loaded: llama_module._Loaded) -> None:
        freed.append(loaded.model.name)
        close(loaded)

    monkeypatch.setattr(llama_module._Loaded, "close", closing)
    path = tmp_path / "model.gguf"
    path.write_bytes(HOUSE_FILE.read_bytes()[:100_000])
    with pytest.raises(BackchannelError, match="could not load") as caught:
        await load(replace(HOUSE_MODEL, n_parallel=1), LlamaModel("x", str(path)))
    assert caught.value.reason is Reason.ENGINE_UNAVAILABLE
    assert freed == ["house"]


async def test_two_models_side_by_side() -> None:
    pytest.importorskip("xllamacpp", reason="the embedded engine has no wheel here")
    small = replace(HOUSE_MODEL, n_parallel=1)
    other = replace(small, name="other", path=str(HOUSE_FILE), n_ctx=256)
    async with LlamaEngine(LlamaConfig((small, other))) as engine:
        assert [card.max_context_tokens for card in engine.models()] == [2048, 256]
        one, two = await asyncio.gather(
            collect(engine.start(Prompt("house", "", [QUESTION]))),
            collect(engine.start(Prompt("other", "", [QUESTION]))),
        )
        assert one.text == two.text


def modes(directory: Path) -> list[int]:
    """The modes of what is in a directory."""
    return [entry.stat().st_mode for entry in directory.iterdir()]


@pytest.mark.timeout(300)
def test_a_model_can_be_freed_at_once() -> None:
    """Also before llama.cpp's own threads had a turn: one CPU, and somebody else busy on it.

    In another process, for one that hangs here holds the interpreter's lock.
    """
    pytest.importorskip("xllamacpp", reason="the embedded engine has no wheel here")
    program = f"""
import os, subprocess, sys
from dataclasses import replace
from backchannel.engines.llama.config import HOUSE_MODEL
from backchannel.engines.llama.server import LlamaServer
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
busy = [sys.executable, "-uc", "print()\\nwhile True: pass"]
with subprocess.Popen(busy, stdout=subprocess.PIPE) as other:
    try:
        other.stdout.readline()
        for _ in range({scale(10, 200)}):
            LlamaServer(replace(HOUSE_MODEL, n_parallel=1)).close()
    finally:
        other.kill()
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment, start_new_session=True
    ) as opening:
        try:
            assert opening.wait(scale(40, 280)) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(opening.pid, signal.SIGKILL)


async def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory of its socket is private while it runs, and gone afterwards."""
    pytest.importorskip("xllamacpp", reason="the embedded engine has no wheel here")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    async with LlamaEngine(LlamaConfig((replace(HOUSE_MODEL, n_parallel=1),))) as engine:
        (mode,) = modes(tmp_path)
        assert mode & 0o077 == 0
        server: Any = engine._loaded["house"].server
        assert server._server.listening_address.startswith("unix:")
        server._key = "somebody else's"
        with pytest.raises(ConnectionError, match="401"):
            server.busy_slots()
    assert modes(tmp_path) == []


async def test_the_loop_turns_while_it_answers(llama: LlamaEngine) -> None:
    """llama.cpp works on its own threads: others on the loop get their turn all the while."""
    generation = asked(
        llama.start(Prompt("house", "", [QUESTION], sampling=sampling(max_tokens=300))),
        ignore_eos=True,
    )
    turns = 0

    async def take(taken: LlamaGeneration) -> Run:
        return await collect(taken)

    taking = asyncio.ensure_future(take(generation))
    while not taking.done():
        turns += 1
        await asyncio.sleep(0)
    run = await taking
    assert isinstance(run.finished, Finished)
    assert turns > len(run.chunks)
