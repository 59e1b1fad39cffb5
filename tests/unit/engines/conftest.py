"""The engines that the check suite is run on, each with prompts that lead it into every phase."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Protocol

import pytest

from backchannel.engines.llama.config import HOUSE_MODEL, LlamaConfig
from backchannel.engines.llama.engine import LlamaEngine, LlamaGeneration
from backchannel.engines.openai.config import OpenAIConfig
from backchannel.engines.openai.engine import OpenAIEngine
from backchannel.engines.protocol import Engine, Generation, Prompt
from backchannel.engines.scripted import ScriptedEngine
from backchannel.v1 import session_pb2
from tests.support.hostile_upstream import HostileUpstream, says
from tests.support.llama_peer import KEY, LlamaPeer, llama_peer
from tests.support.smg_peer import SmgPeer
from tests.unit.engines.smg_support import SmgSubject, opened
from tests.unit.engines.support import ESSAY, user


class Subject(Protocol):
    """An engine under test."""

    @property
    def engine(self) -> Engine: ...
    @property
    def model(self) -> str: ...
    @property
    def most_wasted(self) -> int:
        """Tokens that may be computed and not given out while the reader keeps up."""
        ...

    @property
    def settle_s(self) -> float:
        """How long the engine may work on after a stop: 0 for one that confirms it."""
        ...

    def talk(self, max_tokens: int = 1000) -> Generation:
        """Start an answer of just so many tokens."""
        ...

    def prefill(self) -> Generation:
        """Start an answer whose first token is a long time coming."""
        ...

    def call(self) -> Generation:
        """Start an answer that calls the tool `essay` at length, perhaps again and again."""
        ...

    def fail(self) -> Generation:
        """Start an answer that fails."""
        ...

    async def busy(self) -> int:
        """How many answers the engine itself works on."""
        ...


class ScriptedSubject:
    """`scripted`."""

    model = "count"
    most_wasted = 0
    settle_s = 0.0

    def __init__(self, engine: ScriptedEngine) -> None:
        self.engine = engine

    def talk(self, max_tokens: int = 1000) -> Generation:
        sampling = session_pb2.Sampling(max_tokens=max_tokens)
        return self.engine.start(Prompt("count", "", [user("go")], sampling=sampling))

    def prefill(self) -> Generation:
        options = {"prefill_ms": "600000"}
        return self.engine.start(Prompt("count", "", [user("go")], options=options))

    def call(self) -> Generation:
        return self.engine.start(Prompt("tool", "", [user("word " * 200)], [ESSAY]))

    def fail(self) -> Generation:
        return self.engine.start(Prompt("fail", "", [user("go")]))

    async def busy(self) -> int:
        return self.engine.running


class LlamaSubject:
    """`llama` with the bundled model, whatever that has to say."""

    model = "house"
    # One or two steps, but on a busy machine it computes on while its callback waits for a turn.
    most_wasted = 60
    settle_s = 0.0

    def __init__(self, engine: LlamaEngine) -> None:
        self.engine = engine

    def talk(self, max_tokens: int = 1000) -> Generation:
        sampling = session_pb2.Sampling(max_tokens=max_tokens)
        # It goes on to `max_tokens`, whatever the model would rather do.
        return asked(
            self.engine.start(Prompt("house", "", [user("What are you?")], sampling=sampling)),
            ignore_eos=True,
        )

    def prefill(self) -> Generation:
        return self.engine.start(Prompt("house", "", [user("what is it " * 400)]))

    def call(self) -> Generation:
        # Nothing but a call is possible, whatever the model would rather say.
        return asked(
            self.engine.start(
                Prompt("house", "", [user("Write.")], [ESSAY], continue_text="<tool_call>\n")
            ),
            tool_choice="required",
        )

    def fail(self) -> Generation:
        return self.engine.start(Prompt("house", "", [user("what is it " * 2000)]))

    async def busy(self) -> int:
        return await self.engine.busy()


class OpenAISubject:
    """`openai`, in front of a llama.cpp server in another process."""

    model = "house"
    # As above, and what is on its way through the socket.
    most_wasted = 60
    # It looks once a second whether anybody listens while it has nothing to say.
    settle_s = 5.0

    def __init__(self, engine: OpenAIEngine, caller: OpenAIEngine, peer: LlamaPeer) -> None:
        """Two in front of one: what no session can ask for stands in an engine's settings.

        `engine` goes on to `max_tokens`, whatever the model would rather do; `caller` calls a tool.
        """
        self.engine = engine
        self._caller = caller
        self._peer = peer
        # The peer outlives a test, and what it has seen once it does not compute again.
        self._fresh = (f"{random.getrandbits(64):x}{count}" for count in itertools.count())

    def talk(self, max_tokens: int = 1000) -> Generation:
        sampling = session_pb2.Sampling(max_tokens=max_tokens, temperature=0.0)
        prompt = Prompt("house", "", [user("What are you?")], sampling=sampling)
        return self.engine.start(prompt)

    def prefill(self) -> Generation:
        return self.engine.start(
            Prompt("house", "", [user(next(self._fresh) + "what is it " * 400)])
        )

    def call(self) -> Generation:
        sampling = session_pb2.Sampling(temperature=0.0)
        prompt = Prompt(
            "house", "", [user("Write.")], [ESSAY], sampling, continue_text="<tool_call>\n"
        )
        return self._caller.start(prompt)

    def fail(self) -> Generation:
        return self.engine.start(Prompt("house", "", [user("what is it " * 2000)]))

    async def busy(self) -> int:
        return await asyncio.to_thread(self._peer.busy)


def asked(generation: LlamaGeneration, **more: object) -> LlamaGeneration:
    """Ask llama.cpp for something that no session can ask for."""
    generation._request = json.dumps(json.loads(generation._request) | more).encode()
    return generation


@pytest.fixture
async def llama() -> AsyncIterator[LlamaEngine]:
    """The embedded engine with the bundled model, two answers at a time."""
    pytest.importorskip("xllamacpp", reason="the embedded engine has no wheel here")
    model = replace(HOUSE_MODEL, n_parallel=2)
    async with LlamaEngine(LlamaConfig((model,))) as engine:
        yield engine


@pytest.fixture(scope="session")
def peer() -> Iterator[LlamaPeer]:
    """A llama.cpp server with the bundled model, in a process of its own."""
    pytest.importorskip("xllamacpp", reason="the peer has no wheel here")
    with llama_peer() as peer:
        yield peer


@pytest.fixture(params=["scripted", "llama", "openai", "smg"])
async def subject(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Subject]:
    """Each engine in turn."""
    if request.param == "scripted":
        async with ScriptedEngine() as scripted:
            yield ScriptedSubject(scripted)
        return
    if request.param == "openai":
        peer: LlamaPeer = request.getfixturevalue("peer")
        monkeypatch.setenv("PEER_KEY", KEY)
        config = OpenAIConfig(peer.base_url, api_key_env="PEER_KEY")
        async with (
            OpenAIEngine("peer", replace(config, extra_body={"ignore_eos": True})) as engine,
            OpenAIEngine("peer", replace(config, extra_body={"tool_choice": "required"})) as caller,
        ):
            yield OpenAISubject(engine, caller, peer)
        return
    if request.param == "smg":
        vllm = SmgPeer()
        async with opened(vllm) as smg:
            yield SmgSubject(smg, vllm)
        return
    pytest.importorskip("xllamacpp", reason="the embedded engine has no wheel here")
    model = replace(HOUSE_MODEL, n_parallel=2)
    async with LlamaEngine(LlamaConfig((model,))) as llama:
        yield LlamaSubject(llama)


@pytest.fixture
async def upstream() -> AsyncIterator[HostileUpstream]:
    """A server of the OpenAI API that does what it is told; at first it greets."""
    async with HostileUpstream() as upstream:
        upstream.will(says("Hello", " there", "."))
        yield upstream
