"""Inference servers over their own gRPC: they take tokens and give tokens, the rest is done here.

An answer has a task that reads from the network to the answer's end, whoever takes the chunks and
however long that takes them. A stop is a call of its own, `Abort`, for such a server does not mind
a stream that is dropped. It is repeated until the stream has ended, because an abort that is faster
than what it is to abort does nothing; and it has a deadline of its own. What came until the stream
ended is what the answer has cost.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import suppress
from types import AsyncGeneratorType, TracebackType
from typing import Any, Final, Self, cast

import grpc

from backchannel.engines.checks import (
    check_capabilities,
    check_known_options,
    find_card,
    option_field,
)
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
from backchannel.engines.smg.config import SmgConfig, unavailable
from backchannel.engines.smg.dialect import Question
from backchannel.engines.smg.stream import Reading, SmgStream
from backchannel.engines.smg.template import RefusedConversationError
from backchannel.engines.smg.upstream import LoadedModel, Upstream
from backchannel.engines.tool_calls import ToolCallParser
from backchannel.errors import BackchannelError, Reason

_HELD: Final = 1024
"""So many chunks are read ahead of whoever takes them."""
_ABORT_AGAIN_S: Final = 0.05
"""How long after an abort was taken the stream may go on until it is sent again."""

_THINKING: Final = "enable_thinking"
OPTIONS: Final = (_THINKING,)
"""The `engine_options` that a session may have."""


class SmgGeneration:
    """One answer of a server; see `Generation`."""

    def __init__(
        self,
        prompt: Prompt,
        upstream: Upstream,
        model: LoadedModel,
        config: SmgConfig,
        ended: Callable[[SmgGeneration], None],
    ) -> None:
        self._prompt = prompt
        self._upstream = upstream
        self._model = model
        self._config = config
        self._ended = ended
        self._request_id = f"backchannel-{uuid.uuid4().hex}"
        self._stream: SmgStream | None = None
        self._stopped = False
        self._confirmed = False  # The server has said how it ended.
        self._given_up = False  # It did not, although it was told to stop.
        self._task: asyncio.Task[None] | None = None
        self._aborting: asyncio.Task[None] | None = None
        self._limit: asyncio.Timeout | None = None
        self._over = asyncio.Event()  # The server's stream has ended.
        self._chunks: deque[Chunk] = deque()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        # What an async generator is; the abstract type lacks `ag_running`.
        self._items = cast(AsyncGeneratorType[Chunk | Finished, None], self._answer())

    def __aiter__(self) -> AsyncIterator[Chunk | Finished]:
        return self._items

    def stop(self) -> None:
        """Send an abort, in whatever phase; see `Generation.stop`."""
        if self._stopped:
            return
        self._stopped = True
        if self._task is None:
            self._ended(self)
        elif not self._task.done():
            self._room.set()
            self._abort()

    async def aclose(self) -> None:
        """Stop, wait until the server has let go, and free the iteration."""
        self.stop()
        await self.let_go()
        if not self._items.ag_running:
            await self._items.aclose()

    async def let_go(self) -> None:
        """Wait until the server has let go of it, which a stop makes it do."""
        if self._task is not None:
            await asyncio.wait([self._task])

    # --- whoever takes the chunks

    async def _answer(self) -> AsyncGenerator[Chunk | Finished, None]:
        too_late = self._stopped
        if too_late:
            yield Finished(StopCause.STOPPED, EngineUsage(output_tokens=0))
            return
        self._task = asyncio.create_task(self._work(), name=f"ask {self._prompt.model}")
        self._task.add_done_callback(self._done)
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                over = self._task.done()
                ready = list(self._chunks)
                self._chunks.clear()
                self._room.set()
                for chunk in merged(iter(ready)):
                    # After a stop everything is counted and nothing given out.
                    if not self._stopped:
                        yield chunk
                if over:
                    break
            yield self._finished(self._task)
        finally:
            self.stop()

    def _finished(self, task: asyncio.Task[None]) -> Finished:
        taken_away = task.cancelled()
        error = None if taken_away else task.exception()
        stream = self._stream
        if self._stopped:
            if stream is None:
                return Finished(StopCause.STOPPED, EngineUsage(output_tokens=0))
            return Finished(StopCause.STOPPED, stream.usage(exact=self._confirmed))
        if error is not None:
            raise error
        if taken_away or stream is None:
            raise BackchannelError(Reason.ENGINE_FAILED, "the answer's task was taken away")
        return Finished(stream.cause, stream.usage(exact=self._confirmed))

    def _done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()  # Looked at, also where nobody iterates any more.
        self._wake.set()
        self._ended(self)

    # --- the task

    async def _work(self) -> None:
        """Ask, and read the answer to its end."""
        try:
            question, stream = await asyncio.to_thread(self._question)
        except RefusedConversationError as error:
            raise BackchannelError(
                Reason.UPSTREAM_REFUSED,
                f"the chat template of {self._prompt.model[:64]} does not take this conversation: "
                f"{error}",
            ) from None
        if self._stopped:
            return
        self._stream = stream
        call = self._upstream.dialect.generate(question)
        try:
            async with asyncio.timeout(None) as self._limit:
                self._limit.reschedule(_now() + self._config.first_token_timeout_s)
                await self._read(call, stream)
        except TimeoutError:
            if not self._unwanted():
                raise self._stalled(stream) from None
            # The stop was not confirmed in time: nothing more can be done.
            self._given_up = True
        except grpc.aio.AioRpcError as error:
            if not self._unwanted():
                begun = stream.computed > 0
                raise self._upstream.blame.of(error, self._prompt, begun=begun) from None
        finally:
            self._limit = None
            self._over.set()
            await self._let_go(call)

    async def _read(self, call: grpc.aio.UnaryStreamCall[Any, Any], stream: SmgStream) -> None:
        """Take the answer in, message by message."""
        dialect = self._upstream.dialect
        while (message := await call.read()) is not grpc.aio.EOF:
            step = dialect.read(message)
            if self._unwanted():
                stream.count(step)
            elif chunks := stream.feed(step):
                self._chunks += chunks
                self._wake.set()
            if step.finish:
                self._confirmed = True
            if stream.cut and not step.finish:
                self._abort()
            if not self._unwanted():
                await self._taken()
        if self._unwanted():
            return
        # The stream itself may have ended in an error, which is told now.
        if not self._confirmed or stream.finish == "abort":
            raise self._upstream.blame.broke_off()
        if stream.finish == "error":
            raise self._upstream.blame.failed()

    async def _taken(self) -> None:
        """Wait until there is room for more, which is not the server's time."""
        while len(self._chunks) > _HELD and self._limit is not None and not self._unwanted():
            self._limit.reschedule(None)
            self._room.clear()
            await self._room.wait()
        if self._limit is not None and not self._unwanted():
            self._limit.reschedule(_now() + self._config.token_timeout_s)

    def _abort(self) -> None:
        """Send the abort and allow for its confirmation, unless that is done or too late."""
        if self._aborting is None and self._limit is not None and not self._limit.expired():
            self._limit.reschedule(_now() + self._config.abort_timeout_s)
            self._aborting = asyncio.create_task(self._abort_until_over(), name="abort")

    async def _abort_until_over(self) -> None:
        while not self._over.is_set():
            with suppress(grpc.aio.AioRpcError):
                await self._upstream.dialect.abort(self._request_id, self._config.abort_timeout_s)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), _ABORT_AGAIN_S)

    def _unwanted(self) -> bool:
        """Whether what the server does now is of no interest but for its count."""
        return self._stopped or (self._stream is not None and self._stream.cut)

    def _stalled(self, stream: SmgStream) -> BackchannelError:
        begun = stream.computed > 0
        which = "token_timeout_s" if begun else "first_token_timeout_s"
        phase = "stopped in mid-answer" if begun else "gave no token"
        return self._upstream.blame.stalled(f"{phase}: nothing within {which}")

    async def _let_go(self, call: grpc.aio.UnaryStreamCall[Any, Any]) -> None:
        """See to it that the server computes no longer, in whatever way this has ended."""
        call.cancel()
        if self._aborting is not None:
            self._aborting.cancel()
            await asyncio.wait([self._aborting])
        if not self._confirmed and not self._given_up:
            with suppress(grpc.aio.AioRpcError):
                await self._upstream.dialect.abort(self._request_id, self._config.abort_timeout_s)

    # --- on a thread

    def _question(self) -> tuple[Question, SmgStream]:
        """Make tokens of the conversation.

        Raises:
            BackchannelError: `PROMPT_TOO_LONG`, with both numbers.
            RefusedConversationError: The template does not take it.
        """
        prompt, model = self._prompt, self._model
        text, begun = self._text()
        input_ids = model.tokenizer.encode(text)
        context = model.facts.context_tokens
        room = context - len(input_ids) if context else None
        if room is not None and room < 1:
            raise BackchannelError(
                Reason.PROMPT_TOO_LONG,
                f"the conversation has {len(input_ids)} tokens, and the model's context holds "
                f"{context}, the answer included; begin a new session, or say less",
                metadata={
                    "prompt_tokens": str(len(input_ids)),
                    "max_context_tokens": str(context),
                },
            )
        sampling = prompt.sampling
        limits = [room, sampling.max_tokens if sampling.HasField("max_tokens") else None]
        question = Question(
            self._request_id,
            input_ids,
            sampling,
            min((limit for limit in limits if limit is not None), default=None),
            model.stop_ids,
            prompt.response_format,
        )
        # A constrained answer is what it is: what looks like a call in it is none.
        free = prompt.response_format is None
        reading = Reading(
            input_ids,
            list(sampling.stop),
            ToolCallParser(prompt.tools) if prompt.tools and free else None,
            ReasoningSplitter(model.thinks, begun=begun) if model.thinks else None,
            sampling.logprobs if sampling.HasField("logprobs") else None,
        )
        return question, SmgStream(model.tokenizer, reading)

    def _text(self) -> tuple[str, bool]:
        """The prompt, and whether it ends within reasoning."""
        prompt, model = self._prompt, self._model
        options = {}
        if _THINKING in prompt.options:
            options[_THINKING] = prompt.options[_THINKING] == "true"
        text = model.template.render(prompt, options)
        begun = model.thinks is not None and text.rstrip().endswith(model.thinks[0])
        constrained = prompt.response_format is not None and not model.facts.thinks_first
        if begun and model.thinks is not None and (prompt.continue_text or constrained):
            # The answer is begun with, or has to begin at once: the reasoning is over.
            text = f"{text.rstrip()}\n\n{model.thinks[1]}\n\n"
            begun = False
        return text + prompt.continue_text, begun


class SmgEngine:
    """An engine whose adapter is `smg`; see `Engine`.

    Args:
        name: Its own.
        config: Where its server is.

    Raises:
        BackchannelError: `ENGINE_UNAVAILABLE`: its key or its certificate cannot be read.
    """

    def __init__(self, name: str, config: SmgConfig) -> None:
        self._name = name
        self._config = config
        self._upstream = Upstream(name, config)
        self._live: set[SmgGeneration] = set()
        self._keeping_up: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """As configured."""
        return self._name

    def models(self) -> Sequence[ModelCard]:
        """The one that the server has."""
        return self._upstream.cards()

    def check(self, prompt: Prompt) -> None:
        """Refuse unknown models, unknown options, and what the model has not.

        Raises:
            BackchannelError: As told by `Engine.check`.
        """
        card = find_card(self._name, self.models(), prompt.model)
        check_known_options(self._name, prompt.options, OPTIONS)
        if prompt.options.get(_THINKING, "true") not in ("true", "false"):
            raise BackchannelError(
                Reason.FIELD_INVALID, "must be true or false", field=option_field(_THINKING)
            )
        check_capabilities(self._name, card, prompt)
        if prompt.tools and Capability.TOOLS not in card.capabilities:
            raise BackchannelError(
                Reason.CAPABILITY_MISSING,
                f"{self._name}/{card.name} knows no tools that can be read here; leave them out, "
                "take a model that ListModels shows with the capability tools, or name its "
                "tool_format and a chat_template that knows tools",
                field="tools",
                metadata={"capability": Capability.TOOLS.value},
            )

    def start(self, prompt: Prompt) -> SmgGeneration:
        """Begin an answer.

        Raises:
            BackchannelError: As told by `Engine.start`; and why the server cannot be asked now.
        """
        self.check(prompt)
        model = self._upstream.model
        if (problem := self._upstream.problem) is not None:
            raise problem.with_traceback(None)  # It is raised again and again.
        if model is None:
            raise unavailable(self._name, "its server has not been there yet; try again later")
        generation = SmgGeneration(prompt, self._upstream, model, self._config, self._live.discard)
        self._live.add(generation)
        return generation

    async def __aenter__(self) -> Self:
        """Ask the server what it has. One that is down may come up later.

        Raises:
            BackchannelError: `ENGINE_UNAVAILABLE`: the server answers, and can never serve with
                these settings.
        """
        self._upstream.open()
        try:
            await self._upstream.learn()
        except BackchannelError as error:
            if error.reason in (
                Reason.ENGINE_UNAVAILABLE,
                Reason.UPSTREAM_UNAUTHORIZED,
                Reason.UPSTREAM_NOT_AN_API,
            ):
                await self._upstream.close()
                raise BackchannelError(
                    Reason.ENGINE_UNAVAILABLE, f"{error.message} ({self._config.target})"
                ) from None
        except BaseException:
            await self._upstream.close()
            raise
        self._keeping_up = asyncio.create_task(
            self._upstream.keep_up(), name=f"health of {self._name}"
        )
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Stop all answers, wait until the server has let go of them, and close the channel."""
        live = list(self._live)
        for generation in live:
            generation.stop()
        for generation in live:
            await generation.let_go()
        if self._keeping_up is not None:
            self._keeping_up.cancel()
            await asyncio.wait([self._keeping_up])
        await self._upstream.close()
        if self._keeping_up is not None and not self._keeping_up.cancelled():
            self._keeping_up.result()  # It never ends by itself: this is our bug.


def _now() -> float:
    return asyncio.get_running_loop().time()
