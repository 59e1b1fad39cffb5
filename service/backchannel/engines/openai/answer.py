"""One answer of an upstream: how it is asked for, read, and stopped.

A stop cancels the task that reads, and with it the connection is closed, which is how such a
server is told to stop. What it had computed by then is known as far as it had said so; whether it
made one token more, nobody can tell. So the count of a stopped answer is the upstream's last word,
marked as an estimate.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

import stamina

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
from backchannel.engines.protocol import EngineUsage, Prompt, StopCause
from backchannel.engines.relay import Relay

_EVENT_BYTES: Final = 2**20
"""The most bytes of an event. A whole tool call may come in one."""
_HELD_BYTES: Final = 2**20
"""So much is read ahead of whoever takes the chunks."""
_TAIL_S: Final = 2.0
"""How long the usage and the end of the stream may take after the answer's end."""
_DRAIN_S: Final = 0.1
"""How long the end of the connection's turn is waited for, so that it can be used again."""
_RETRY_WAIT_MOST_S: Final = 8.0


class OpenAIAnswer:
    """See `Answer`; what it has on the relay is measured in bytes.

    Args:
        prompt: What is asked.
        upstream: Whom.
        config: For how long, how often, and what else.
    """

    most_held = _HELD_BYTES

    def __init__(self, prompt: Prompt, upstream: Upstream, config: OpenAIConfig) -> None:
        self._prompt = prompt
        self._upstream = upstream
        self._config = config
        self._stream = self._new_stream()

    def stop(self, reading: asyncio.Task[StopCause]) -> None:
        """Close the connection."""
        reading.cancel()

    def usage(self) -> EngineUsage:
        """What the upstream has told."""
        return self._stream.usage()

    async def read(self, relay: Relay) -> StopCause:
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
                    await self._ask(relay)
        except UpstreamError as error:
            self._upstream.report(error)
            raise
        return self._stream.cause

    def _again(self, error: Exception) -> bool | float:
        """Whether to ask again after a failure, or after how many seconds."""
        if not isinstance(error, UpstreamError) or not error.again or self._stream.begun:
            return False
        if error.wait_s is None:
            return True
        return error.wait_s if error.wait_s <= self._config.retry_after_limit_s else False

    async def _ask(self, relay: Relay) -> None:
        """One request and its answer.

        Raises:
            BackchannelError: Any failure.
        """
        upstream, blame = self._upstream, self._upstream.blame
        self._stream = stream = self._new_stream()
        body = request(self._prompt, upstream.dialect, self._config.extra_body)
        try:
            async with asyncio.timeout(None) as limit:
                limit.reschedule(self._now() + self._config.first_token_timeout_s)
                async with upstream.chat(body) as pieces:
                    await self._read(pieces, relay, limit)
        except TimeoutError:
            if stream.ended:
                relay.put(stream.finish())  # Only its tail is missing.
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

    async def _read(
        self, pieces: AsyncIterator[bytes], relay: Relay, limit: asyncio.Timeout
    ) -> None:
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
                relay.put(chunks, len(piece))
                if relay.full:  # Which is not the upstream's time.
                    limit.reschedule(None)
                    await relay.room()
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
        relay.put(stream.finish())

    @staticmethod
    async def _drain(pieces: AsyncIterator[bytes]) -> None:
        """Take the end of the response, so that its connection can be used again."""
        # Whatever comes instead, the answer is whole.
        with suppress(Exception):
            async with asyncio.timeout(_DRAIN_S):
                await anext(pieces, b"")

    def _new_stream(self) -> OpenAIStream:
        sampling = self._prompt.sampling
        return OpenAIStream(sampling.logprobs if sampling.HasField("logprobs") else None)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
