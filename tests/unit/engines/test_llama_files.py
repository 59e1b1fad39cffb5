"""GGUF files of all kinds: other models, other chat templates, broken ones."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from backchannel.engines.llama.config import HOUSE_FILE, LlamaConfig, LlamaModel
from backchannel.engines.llama.engine import LlamaEngine
from backchannel.engines.protocol import (
    REASONING,
    TEXT,
    Capability,
    ModelCard,
    Prompt,
    StopCause,
    TextChunk,
)
from backchannel.errors import BackchannelError, Reason
from backchannel.v1 import session_pb2
from tests.support.gguf import Gguf, random_model
from tests.unit.engines.conftest import asked
from tests.unit.engines.support import CALCULATOR, Run, collect, user

pytest.importorskip("xllamacpp", reason="the embedded engine has no wheel here")

QUESTION = user("What is Backchannel?")

CHATML = (
    "{%- for message in messages -%}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "<|im_end|>\n{% endfor -%}{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
)
BARE = "{{ messages[-1].content }}"
THINKING = CHATML.replace(
    "{{ message.content }}",
    "{%- if message.reasoning_content -%}<think>\n{{ message.reasoning_content }}\n</think>\n\n"
    "{% endif -%}{{ message.content }}",
)
THOUGHTFUL = THINKING.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
FORGETFUL = CHATML.replace(
    "{{ message.content }}", "{{ message.content.split('</think>')[-1] }}"
).replace("assistant\n{% endif", "assistant\n<think>\n{% endif")


def changed(path: Path, **metadata: str | None) -> LlamaModel:
    """The bundled model with other metadata."""
    return small(Gguf.read(HOUSE_FILE).set(**metadata).write(path / "x.gguf"))


def small(path: Path) -> LlamaModel:
    return LlamaModel("x", str(path), n_ctx=512, n_parallel=1, n_threads=1, temperature=0.0)


async def ask(
    model: LlamaModel, prompt: Prompt | None = None, grammar: str = ""
) -> tuple[Run, ModelCard]:
    """Load a model and have it answer, as the grammar says if there is one."""
    async with LlamaEngine(LlamaConfig((model,))) as engine:
        prompt = prompt or Prompt("x", "", [QUESTION], sampling=session_pb2.Sampling(max_tokens=60))
        if grammar:
            wanted = session_pb2.ResponseFormat(grammar=grammar)
            prompt = replace(prompt, response_format=wanted)
        return await collect(engine.start(prompt)), engine.models()[0]


async def refused(model: LlamaModel) -> str:
    with pytest.raises(BackchannelError) as caught:
        await ask(model)
    assert caught.value.reason is Reason.ENGINE_UNAVAILABLE
    return str(caught.value)


def said(run: Run) -> list[tuple[int, str]]:
    """The texts of the channels."""
    return [
        (channel, text)
        for channel in (REASONING, TEXT)
        if (
            text := "".join(
                chunk.text
                for chunk in run.chunks
                if isinstance(chunk, TextChunk) and chunk.channel == channel
            )
        )
    ]


# --- any model -------------------------------------------------------------------------------


async def test_another_architecture_and_tokeniser(tmp_path: Path) -> None:
    path = random_model(CHATML).write(tmp_path / "noise.gguf")
    run, card = await ask(small(path))
    assert run.tokens == 60
    assert run.end.usage.output_tokens == 60
    assert card.max_context_tokens == 512
    assert "From noise.gguf. 0.0 million parameters" in card.description


async def test_two_models_answer_at_once(tmp_path: Path) -> None:
    """A strange one and the bundled one; neither waits for the other to end."""
    noise = replace(small(random_model(CHATML).write(tmp_path / "noise.gguf")), name="noise")
    house = replace(small(HOUSE_FILE), name="house")
    endless = session_pb2.Sampling(max_tokens=400)
    async with LlamaEngine(LlamaConfig((noise, house))) as engine:
        generations = [
            asked(engine.start(Prompt(name, "", [QUESTION], sampling=endless)), ignore_eos=True)
            for name in ("noise", "house")
        ]
        runs = [Run(), Run()]
        begun = [asyncio.Event(), asyncio.Event()]

        async def take(at: int) -> None:
            async for item in generations[at]:
                runs[at].add(item)
                begun[at].set()
                # Each goes on only when the other has begun too.
                await begun[1 - at].wait()

        async with asyncio.TaskGroup() as group:
            group.create_task(take(0))
            group.create_task(take(1))
        assert [run.tokens for run in runs] == [400, 400]
        assert runs[0].text != runs[1].text
        alone = await collect(
            engine.start(
                Prompt("house", "", [QUESTION], sampling=session_pb2.Sampling(max_tokens=20))
            )
        )
    assert runs[1].text.startswith(alone.text[:20])


# --- chat templates --------------------------------------------------------------------------


async def test_the_files_own_template_or_another_one(tmp_path: Path) -> None:
    """By the length of the prompt: the bare one has only the question in it."""
    in_file = tmp_path / "bare.jinja"
    in_file.write_text(BARE, encoding="utf-8")
    own = small(HOUSE_FILE)
    lengths = [
        (await ask(model))[0].end.usage.prompt_tokens
        for model in (
            own,
            replace(own, chat_template=CHATML),
            replace(own, chat_template=BARE),
            replace(own, chat_template=str(in_file)),
            changed(tmp_path, tokenizer__chat_template=BARE),
        )
    ]
    assert lengths[0] == lengths[1] > lengths[2]
    assert lengths[2] == lengths[3] == lengths[4]


async def test_a_file_without_a_template_is_refused_unless_one_is_given(tmp_path: Path) -> None:
    assert "has no chat template" in await refused(changed(tmp_path, tokenizer__chat_template=""))
    model = changed(tmp_path, tokenizer__chat_template=None)
    why = await refused(model)
    assert "x.gguf has no chat template" in why
    assert "or say by chat_template" in why
    run, _ = await ask(replace(model, chat_template=CHATML))
    assert run.tokens > 0


async def test_a_template_that_is_none(tmp_path: Path) -> None:
    assert "not its chat template; set" in await refused(
        changed(tmp_path, tokenizer__chat_template="{% if %}")
    )
    assert "not the chat_template of its settings; set" in await refused(
        replace(small(HOUSE_FILE), chat_template="{% if %}")
    )


async def test_a_template_file_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "none.jinja"
    assert f"{missing} cannot be read (No such file" in await refused(
        replace(small(HOUSE_FILE), chat_template=str(missing))
    )
    missing.write_bytes(b"\xff\xfe")
    assert "not UTF-8" in await refused(replace(small(HOUSE_FILE), chat_template=str(missing)))


async def test_tools_need_a_template_that_knows_them() -> None:
    prompt = Prompt("x", "", [QUESTION], [CALCULATOR])
    _, card = await ask(small(HOUSE_FILE), prompt)
    assert Capability.TOOLS in card.capabilities
    with pytest.raises(BackchannelError, match="knows no tools") as caught:
        await ask(replace(small(HOUSE_FILE), chat_template=CHATML), prompt)
    assert (caught.value.reason, caught.value.field) == (Reason.CAPABILITY_MISSING, "tools")


# --- reasoning -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "model_says"),
    [
        (THINKING, "<think>\\nhm\\n</think>\\n\\nyes"),
        (THOUGHTFUL, "hm\\n</think>\\n\\nyes"),
        (FORGETFUL, "hm\\n</think>\\n\\nyes"),
    ],
)
async def test_reasoning_as_the_template_says(template: str, model_says: str) -> None:
    model = replace(small(HOUSE_FILE), chat_template=template)
    run, card = await ask(model, grammar=f'root ::= "{model_says}"')
    assert Capability.REASONING in card.capabilities
    # White space next to the tags is left to llama.cpp, which goes by the template.
    assert [(channel, text.strip()) for channel, text in said(run)] == [
        (REASONING, "hm"),
        (TEXT, "yes"),
    ]
    assert run.tokens == run.end.usage.output_tokens


async def test_reasoning_between_tags_that_the_template_does_not_know() -> None:
    grammar = 'root ::= "<think>\\nhm\\n</think>\\n\\nyes, I <"'
    run, card = await ask(small(HOUSE_FILE), grammar=grammar)
    assert Capability.REASONING not in card.capabilities
    assert said(run) == [(TEXT, "<think>\nhm\n</think>\n\nyes, I <")]
    model = replace(small(HOUSE_FILE), reasoning_tags=("<think>", "</think>"))
    sampling = session_pb2.Sampling(max_tokens=60, logprobs=0)
    run, card = await ask(model, Prompt("x", "", [QUESTION], sampling=sampling), grammar=grammar)
    assert Capability.REASONING in card.capabilities
    assert said(run) == [(REASONING, "hm\n"), (TEXT, "yes, I <")]
    assert run.tokens == run.end.usage.output_tokens
    tokens = "".join(
        entry.token
        for chunk in run.chunks
        if isinstance(chunk, TextChunk)
        for entry in chunk.logprobs
    )
    assert tokens == "<think>\nhm\n</think>\n\nyes, I <", "a token's log-probability got lost"


async def test_grammars_can_be_forbidden() -> None:
    with pytest.raises(BackchannelError) as caught:
        await ask(replace(small(HOUSE_FILE), allow_grammars=False), grammar='root ::= "x"')
    assert caught.value.reason is Reason.CAPABILITY_MISSING
    assert caught.value.field == "response_format.grammar"


# --- files that will not do ------------------------------------------------------------------


def _nothing(path: Path) -> None:
    path.unlink()


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def _cut(size: int) -> Callable[[Path], None]:
    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:size])

    return cut


def _overwritten(at: int, raw: bytes) -> Callable[[Path], None]:
    def overwrite(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[at : at + len(raw)] = raw
        path.write_bytes(content)

    return overwrite


def _told(**metadata: str) -> Callable[[Path], None]:
    def tell(path: Path) -> None:
        Gguf.read(path).set(**metadata).write(path)

    return tell


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_nothing, "x.gguf cannot be read (No such file or directory); check the path"),
        (_folder, "x.gguf is a folder; name the .gguf file in it"),
        (_loop, "x.gguf cannot be read (Too many levels of symbolic links); check the path"),
        (_cut(0), "x.gguf is not a GGUF file"),
        (_overwritten(0, b"PK\x03\x04"), "x.gguf is not a GGUF file"),
        (_overwritten(4, b"\x63"), "x.gguf is a GGUF file of version 99"),
        (_cut(4), "the head of x.gguf is damaged, or the file is cut short; download it again"),
        (_cut(3000), "the head of x.gguf is damaged, or the file is cut short"),
        (_overwritten(24, b"\xff" * 8), "the head of x.gguf is damaged"),
        (_cut(1_000_000), "llama.cpp could not load x.gguf"),
        (_told(general__architecture="nonsense"), "of an architecture that this version knows"),
        (_told(general__architecture="clip"), "is no model by itself but a part of one"),
        (_told(general__type="adapter"), "is no model by itself but a part of one (adapter)"),
    ],
)
async def test_a_file_that_will_not_do(
    tmp_path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(HOUSE_FILE.read_bytes())
    spoil(path)
    assert says in (await refused(small(path))).replace(f"{tmp_path}/", "")


# --- the GPU ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [0, 20, -1])
async def test_layers_for_a_gpu_are_told_of_where_there_is_none(
    layers: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with LlamaEngine(
            LlamaConfig((replace(small(HOUSE_FILE), n_gpu_layers=layers),))
        ) as engine:
            gpu = engine._loaded["x"].server.facts.gpu
            run = await collect(
                engine.start(
                    Prompt("x", "", [QUESTION], sampling=session_pb2.Sampling(max_tokens=2))
                )
            )
    assert run.end.cause is StopCause.LENGTH
    told = [record.getMessage() for record in caplog.records]
    if layers == 0 or gpu:
        assert told == []
    else:
        assert f"n_gpu_layers = {layers} changes nothing" in told[0]
