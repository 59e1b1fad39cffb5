"""One answer of an upstream.

It has a task that reads from the network, so that a stop need not wait for it: the task is
cancelled, and with it the connection closed, which is how such a server is told to stop. What it
had computed by then is known as far as it had said so; whether it made one token more, nobody can
tell. So the count of a stopped answer is the upstream's last word, marked as an estimate.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from types import AsyncGeneratorType
from typing import Final, cast

import stamina

from backchannel.engines.merging import merged
from backchannel.engines.openai.config import OpenAIConfig
from backchannel.engines.openai.errors import UpstreamError, UpstreamResponse
from backchannel.engines.openai.request import request
from backchannel.engines.openai.sse import EventData, EventTooLongError
from backchannel.engines.openai.stream import (
    AbandonedAnswerError,
    OpenAIStream,
    UnreadableAnswerError,
)
from backchannel.engines.openai.upstream import Upstream
from backchannel.engines.protocol import (
    Chunk,
    EngineUsage,
    Finished,
    Prompt,
    StopCause,
)
from backchannel.errors import BackchannelError, Reason

_EVENT_BYTES: Final = 2**20
"""The most bytes of an event. A whole tool call may come in one."""
_HELD_BYTES: Final = 2**20
"""So much is read ahead of whoever takes the chunks."""
_TAIL_S: Final = 2.0
"""How long the usage and the end of the stream may take after the answer's end."""
_DRAIN_S: Final = 0.1
"""How long the end of the connection's turn is waited for, so that it can be used again."""
_RETRY_WAIT_MOST_S: Final = 8.0


class OpenAIGeneration:
    """One answer of an upstream; see `Generation`."""

    def __init__(
        self,
        prompt: Prompt,
        upstream: Upstream,
        config: OpenAIConfig,
        ended: Callable[[OpenAIGeneration], None],
    ) -> None:
        self._prompt = prompt
        self._upstream = upstream
        self._config = config
        self._ended = ended
        self._extra: Mapping[str, object] = config.extra_body
        self._stream = self._new_stream()
        self._stopped = False
        self._task: asyncio.Task[None] | None = None
        self._chunks: deque[Chunk] = deque()
        self._held_bytes = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        # What an async generator is; the abstract type lacks `ag_running`.
        self._items = cast(AsyncGeneratorType[Chunk | Finished, None], self._answer())

    def __aiter__(self) -> AsyncIterator[Chunk | Finished]:
        return self._items

    def stop(self) -> None:
        """Close the connection, in whatever phase; see `Generation.stop`."""
        if self._task is None:
            self._ended(self)
        elif not self._stopped:
            self._task.cancel()
        self._stopped = True

    async def aclose(self) -> None:
        """Stop, wait until the connection is closed, and free the iteration."""
        self.stop()
        if self._task is not None:
            await asyncio.wait([self._task])
        if not self._items.ag_running:
            await self._items.aclose()

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
                self._held_bytes = 0
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
        if self._stopped:
            if not task.cancelled():
                task.exception()  # Looked at; it does not matter any more.
            return Finished(StopCause.STOPPED, self._stream.usage())
        if task.cancelled():
            raise BackchannelError(Reason.ENGINE_FAILED, "the answer's task was taken away")
        error = task.exception()
        if error is not None:
            raise error
        return Finished(self._stream.cause, self._stream.usage())

    def _done(self, _: asyncio.Task[None]) -> None:
        self._wake.set()
        self._ended(self)

    # --- the task

    async def _work(self) -> None:
        """Ask, and ask again while nothing has come."""
        config = self._config
        try:
            async for attempt in stamina.retry_context(
                on=self._again,
                attempts=config.retries + 1,
                timeout=None,
                wait_initial=config.retry_wait_s,
                wait_max=max(config.retry_wait_s, _RETRY_WAIT_MOST_S),
                wait_jitter=config.retry_wait_s,
            ):
                with attempt:
                    await self._ask()
        except UpstreamError as error:
            self._upstream.report(error)
            raise

    def _again(self, error: Exception) -> bool | float:
        """Whether to ask again after a failure, or after how many seconds."""
        if not isinstance(error, UpstreamError) or not error.again or self._stream.begun:
            return False
        if error.wait_s is None:
            return True
        return error.wait_s if error.wait_s <= self._config.retry_after_limit_s else False

    async def _ask(self) -> None:
        """One request and its answer.

        Raises:
            BackchannelError: Any failure.
        """
        upstream, blame = self._upstream, self._upstream.blame
        self._stream = stream = self._new_stream()
        body = request(self._prompt, upstream.dialect, self._extra)
        try:
            async with asyncio.timeout(None) as limit:
                limit.reschedule(self._now() + self._config.first_token_timeout_s)
                async with upstream.chat(body) as pieces:
                    await self._read(pieces, limit)
        except TimeoutError:
            if stream.ended:
                self._put(stream.finish())  # Only its tail is missing.
                return
            which = "token_timeout_s" if stream.begun else "first_token_timeout_s"
            phase = "stopped in mid-answer" if stream.begun else "gave no token"
            raise blame.stalled(f"{phase}: nothing within {which}") from None
        except UpstreamResponse as error:
            raise blame.of_response(error, self._prompt) from None
        except AbandonedAnswerError as error:
            raise blame.of_answer(error.error, self._prompt) from None
        except UnreadableAnswerError as error:
            raise blame.unreadable(str(error)) from None
        except EventTooLongError:
            raise blame.unreadable(f"an event of more than {_EVENT_BYTES} bytes") from None

    async def _read(self, pieces: AsyncIterator[bytes], limit: asyncio.Timeout) -> None:
        """Take the answer in, piece by piece."""
        stream, blame = self._stream, self._upstream.blame
        events = EventData(_EVENT_BYTES)
        tail = False
        while not stream.over:
            try:
                piece = await anext(pieces)
            except StopAsyncIteration:
                break
            # What the transport raises; its types differ with the SDK's version.
            except Exception as error:  # noqa: BLE001
                if stream.ended:
                    break
                raise blame.broke_off(
                    "in the middle of an answer" if stream.begun else "before the first token",
                    detail=type(error).__name__,
                ) from None
            chunks = [chunk for data in events.feed(piece) for chunk in stream.feed(data)]
            if chunks:
                self._held_bytes += len(piece)
                self._put(chunks)
                if self._held_bytes > _HELD_BYTES:
                    limit.reschedule(None)
                    await self._taken()
                if not tail:
                    limit.reschedule(self._now() + self._config.token_timeout_s)
            if stream.ended and not tail:
                tail = True
                limit.reschedule(self._now() + _TAIL_S)
        if not stream.ended:
            raise blame.broke_off(
                "in the middle of an answer" if stream.begun else "before the first token"
            )
        await self._drain(pieces)
        self._put(stream.finish())

    @staticmethod
    async def _drain(pieces: AsyncIterator[bytes]) -> None:
        """Take the end of the response, so that its connection can be used again."""
        # Whatever comes instead, the answer is whole.
        with suppress(Exception):
            async with asyncio.timeout(_DRAIN_S):
                await anext(pieces, b"")

    def _put(self, chunks: Sequence[Chunk]) -> None:
        self._chunks += chunks
        self._wake.set()

    async def _taken(self) -> None:
        """Wait until whoever takes the chunks has done so."""
        while self._held_bytes > _HELD_BYTES:
            self._room.clear()
            await self._room.wait()

    def _new_stream(self) -> OpenAIStream:
        sampling = self._prompt.sampling
        return OpenAIStream(sampling.logprobs if sampling.HasField("logprobs") else None)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
