"""The embedded engine: any GGUF file, run in this process by llama.cpp through xllamacpp.

Each answer has a thread that waits in llama.cpp, which batches all of them. llama.cpp calls back on
that thread for every token; the callback puts the message on a list and wakes the event loop, once
for all that piled up. It is also where a stop takes hold: the next callback answers "stop", and
llama.cpp computes at most the step it is in. A prefill calls back after every 256 tokens.

llama.cpp does not wait for its reader: an answer that nobody takes is made to its end, and what
was not taken yet is bounded by the model's context.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import AsyncGeneratorType, TracebackType
from typing import TYPE_CHECKING, Final, Self, cast

from backchannel.engines.checks import check_capabilities, check_known_options, find_card
from backchannel.engines.llama.config import LlamaConfig, LlamaModel
from backchannel.engines.llama.grammar import check_grammar
from backchannel.engines.llama.request import request
from backchannel.engines.llama.schema import check_schema
from backchannel.engines.llama.stream import LlamaStream, refusal, tokens_so_far
from backchannel.engines.merging import merged
from backchannel.engines.protocol import (
    Capability,
    Chunk,
    EngineUsage,
    Finished,
    ModelCard,
    Prompt,
    StopCause,
)
from backchannel.engines.reasoning import ReasoningSplitter
from backchannel.errors import BackchannelError, Reason

if TYPE_CHECKING:
    from backchannel.engines.llama.server import LlamaServer

NAME: Final = "llama"

_log = logging.getLogger(__name__)

_TAGS: Final = 2**31
"""Tags are numbers below this; llama.cpp reads them as an `int32_t`."""


class _Loaded:
    """A model in memory, and the threads that wait in it."""

    def __init__(self, model: LlamaModel, server: LlamaServer) -> None:
        self.model = model
        self.server = server
        self.threads = ThreadPoolExecutor(
            model.n_parallel, thread_name_prefix=f"llama-{model.name}"
        )
        facts = server.facts
        capabilities = {Capability.CONTINUE_PARTIAL, Capability.LOGPROBS, Capability.SEED}
        capabilities.add(Capability.JSON_SCHEMA)
        if model.allow_grammars:
            capabilities.add(Capability.GRAMMAR)
        if facts.tools:
            capabilities.add(Capability.TOOLS)
        if facts.reasoning or model.reasoning_tags:
            capabilities.add(Capability.REASONING)
        self.card = ModelCard(
            model.name,
            f"{model.description or f'From {model.file.name}.'} "
            f"{facts.parameters / 1e6:,.1f} million parameters.",
            facts.context_tokens,
            frozenset(capabilities),
            model.n_parallel,
        )

    def close(self) -> None:
        """Free it; blocks until its threads are done."""
        self.threads.shutdown()
        self.server.close()


class LlamaGeneration:
    """One answer of a loaded model; see `Generation`."""

    def __init__(
        self, prompt: Prompt, loaded: _Loaded, tag: int, ended: Callable[[LlamaGeneration], None]
    ) -> None:
        self._loaded = loaded
        self._tag = tag
        self._ended = ended
        self._request = request(prompt, tag=tag, temperature=loaded.model.temperature)
        tags = loaded.model.reasoning_tags
        self._field = _format_field(prompt)
        self._stream = LlamaStream(
            prompt.sampling.logprobs, ReasoningSplitter(tags) if tags else None, self._field
        )
        self._stopped = False
        self._thread: asyncio.Future[None] | None = None
        # Written by the thread, read by the event loop.
        self._messages: deque[bytes] = deque()
        self._signalled = False
        self._failure: BaseException | None = None
        self.computed_when_told: int | None = None
        """How many tokens there were when a callback first told llama.cpp to stop."""
        self._left: int | None = None  # The sequence that a stop left behind, in tokens.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        # What an async generator is; the abstract type lacks `ag_running`.
        self._items = cast(AsyncGeneratorType[Chunk | Finished, None], self._answer())

    def __aiter__(self) -> AsyncIterator[Chunk | Finished]:
        return self._items

    def stop(self) -> None:
        """Have llama.cpp stop at its next step; see `Generation.stop`."""
        self._stopped = True
        if self._thread is None:
            self._ended(self)

    async def aclose(self) -> None:
        """Stop, wait until llama.cpp has let go, and free the iteration."""
        self.stop()
        if self._thread is not None:
            await asyncio.wait([self._thread])
        if not self._items.ag_running:
            await self._items.aclose()

    # --- on the event loop

    async def _answer(self) -> AsyncGenerator[Chunk | Finished, None]:
        too_late = self._stopped
        if too_late:
            yield Finished(StopCause.STOPPED, self._stream.usage(0))
            return
        self._loop = asyncio.get_running_loop()
        self._thread = self._loop.run_in_executor(self._loaded.threads, self._work)
        self._thread.add_done_callback(self._done)
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                # Cleared before the list is emptied: whatever comes after that wakes anew.
                self._signalled = False
                over = self._thread.done()
                try:
                    for chunk in merged(self._read()):
                        # After a stop everything is counted and nothing given out.
                        if not self._stopped:
                            yield chunk
                except BackchannelError:
                    if not self._stopped:
                        raise
                if over:
                    break
            yield self._finished()
        finally:
            self.stop()

    def _read(self) -> Iterator[Chunk]:
        """The chunks of all that is on the list now."""
        for _ in range(len(self._messages)):
            yield from self._stream.feed(self._messages.popleft())

    def _finished(self) -> Finished:
        if self._stopped:
            return Finished(StopCause.STOPPED, self._stopped_usage())
        if isinstance(self._failure, ValueError):
            raise refusal(self._failure, self._field) from self._failure
        if self._failure is not None:
            raise BackchannelError(
                Reason.ENGINE_FAILED, f"the embedded engine failed: {self._failure}"
            ) from self._failure
        if not self._stream.complete or self._stream.cause is None:
            raise BackchannelError(
                Reason.ENGINE_FAILED, "llama.cpp broke the answer off without saying why"
            )
        return Finished(self._stream.cause, self._stream.usage())

    def _stopped_usage(self) -> EngineUsage:
        """What a stopped answer has cost, by what its slot has left behind."""
        if self._stream.prompt_tokens == 0:  # It was never begun with.
            return self._stream.usage(0)
        if self._left is not None:
            # The last token computed is not in the sequence: it was never fed back.
            computed = max(0, self._left - self._stream.prompt_tokens + 1)
            if computed >= self._stream.computed:
                return self._stream.usage(computed)
        return self._stream.usage(self._stream.computed, exact=False)

    def _done(self, _: asyncio.Future[None]) -> None:
        self._wake.set()
        self._ended(self)

    # --- on the thread

    def _work(self) -> None:
        try:
            if not self._stopped:
                self._loaded.server.complete(self._request, self._receive)
            if self._stopped or self._failure is not None:
                self._left = self._loaded.server.sequence_tokens(self._tag)
        # Whatever it is, the iteration must hear of it.
        except BaseException as error:  # noqa: BLE001
            self._failure = error

    def _receive(self, message: bytes) -> bool:
        """Take a message from llama.cpp; True makes it stop.

        llama.cpp swallows an exception from here, so none may leave.
        """
        try:
            self._messages.append(message)
            if not self._signalled and self._loop is not None:
                self._signalled = True
                self._loop.call_soon_threadsafe(self._wake.set)
            if self._stopped and self.computed_when_told is None:
                self.computed_when_told = tokens_so_far(message)
        except BaseException as error:  # noqa: BLE001 - as above
            self._failure = error
            return True
        return self._stopped


class LlamaEngine:
    """The engine `llama`; see `Engine`.

    Args:
        config: What to load.
        name: What the server calls it.
    """

    def __init__(self, config: LlamaConfig, name: str = NAME) -> None:
        self._config = config
        self._name = name
        self._loaded: dict[str, _Loaded] = {}
        self._live: set[LlamaGeneration] = set()
        self._tags = itertools.count(1)

    @property
    def name(self) -> str:
        """`llama`, unless the server calls it otherwise."""
        return self._name

    def models(self) -> Sequence[ModelCard]:
        """The loaded models, in the order of the settings."""
        return [loaded.card for loaded in self._loaded.values()]

    async def busy(self) -> int:
        """How many answers llama.cpp works on, by its own account."""
        counts = [
            await asyncio.to_thread(loaded.server.busy_slots) for loaded in self._loaded.values()
        ]
        return sum(counts)

    def check(self, prompt: Prompt) -> None:
        """Refuse unknown models, any option, and tools for a model that knows none.

        Raises:
            BackchannelError: As told by `Engine.check`.
        """
        card = find_card(self._name, self.models(), prompt.model)
        check_known_options(self._name, prompt.options, [])
        check_capabilities(self._name, card, prompt)
        if prompt.tools and Capability.TOOLS not in card.capabilities:
            raise BackchannelError(
                Reason.CAPABILITY_MISSING,
                f"the chat template of {self._name}/{card.name} knows no tools; leave them out, "
                "or take a model that ListModels shows with the capability tools",
                field="tools",
                metadata={"capability": Capability.TOOLS.value},
            )
        for at, tool in enumerate(prompt.tools):
            if tool.parameters_json_schema:
                field = f"tools[{at}].parameters_json_schema"
                check_schema(tool.parameters_json_schema, field, strictly=False)
        self._check_format(prompt)

    def _check_format(self, prompt: Prompt) -> None:
        wanted = prompt.response_format
        if wanted is None:
            return
        if wanted.HasField("json_schema"):
            check_schema(wanted.json_schema, "response_format.json_schema", strictly=True)
        if wanted.HasField("grammar"):
            check_grammar(wanted.grammar)
        if prompt.continue_text:
            raise BackchannelError(
                Reason.CAPABILITY_MISSING,
                "an answer that keeps to a format cannot be gone on from: how far it had got in "
                "the format is not known any more; begin it anew",
                field="continue_text",
                metadata={"capability": Capability.CONTINUE_PARTIAL.value},
            )

    def start(self, prompt: Prompt) -> LlamaGeneration:
        """Begin an answer."""
        self.check(prompt)
        tag = next(self._tags) % _TAGS
        generation = LlamaGeneration(prompt, self._loaded[prompt.model], tag, self._live.discard)
        self._live.add(generation)
        return generation

    async def __aenter__(self) -> Self:
        """Load the models, one after the other, off the event loop.

        Raises:
            BackchannelError: `ENGINE_UNAVAILABLE`, naming the file and the remedy.
        """
        try:
            for model in self._config.models:
                self._loaded[model.name] = await asyncio.to_thread(_load, model)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Stop all answers and free the models, off the event loop."""
        await self._close()

    async def _close(self) -> None:
        for generation in list(self._live):
            generation.stop()
        while self._loaded:
            _, loaded = self._loaded.popitem()
            await asyncio.to_thread(loaded.close)


def _load(model: LlamaModel) -> _Loaded:
    from backchannel.engines.llama.server import LlamaServer

    loaded = _Loaded(model, LlamaServer(model))
    if model.n_gpu_layers and not loaded.server.facts.gpu:
        _log.warning(
            "llama model %s: n_gpu_layers = %d changes nothing, for llama.cpp finds no GPU here; "
            "the CPU computes. It needs a build of xllamacpp for the GPU, and its driver",
            model.name,
            model.n_gpu_layers,
        )
    return loaded


def _format_field(prompt: Prompt) -> str:
    """What is at fault if llama.cpp can make no grammar of the request."""
    if prompt.response_format is not None:
        return f"response_format.{prompt.response_format.WhichOneof('format')}"
    return "tools" if prompt.tools else ""


def create(name: str, options: Mapping[str, object]) -> LlamaEngine:
    """Make the engine of this name from its settings, which are those of `LlamaConfig`.

    Raises:
        BackchannelError: `FIELD_INVALID` for bad settings; `ENGINE_UNAVAILABLE` where xllamacpp is
            not installed.
    """
    config = LlamaConfig.of(options)
    try:
        importlib.import_module("xllamacpp")
    except ImportError as error:
        raise BackchannelError(
            Reason.ENGINE_UNAVAILABLE,
            f"the embedded engine needs xllamacpp, which is not installed here ({error}); it has "
            "wheels for Linux on x86-64 and for macOS; elsewhere build it, or name another engine",
        ) from error
    return LlamaEngine(config, name)
