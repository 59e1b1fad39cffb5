"""One answer of a server: how it is asked for, read, and stopped.

A stop is a call of its own, `Abort`, for such a server does not mind a stream that is dropped. It
is repeated until the stream has ended, because an abort that is faster than what it is to abort
does nothing; and it has a deadline of its own. What came until the stream ended is what the answer
has cost.
"""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress
from typing import Any, Final

import grpc

from backchannel.engines.protocol import EngineUsage, Prompt, StopCause
from backchannel.engines.relay import Relay
from backchannel.engines.smg.config import SmgConfig
from backchannel.engines.smg.dialect import Question
from backchannel.engines.smg.request import request
from backchannel.engines.smg.stream import SmgStream
from backchannel.engines.smg.upstream import LoadedModel, Upstream
from backchannel.errors import BackchannelError

_HELD: Final = 1024
"""So many chunks are read ahead of whoever takes them."""
_ABORT_AGAIN_S: Final = 0.05
"""How long after an abort was taken the stream may go on until it is sent again."""


class SmgAnswer:
    """See `Answer`; what it has on the relay is measured in chunks.

    Args:
        prompt: What is asked.
        upstream: Whom.
        model: What it has.
        config: For how long.
    """

    most_held = _HELD

    def __init__(
        self, prompt: Prompt, upstream: Upstream, model: LoadedModel, config: SmgConfig
    ) -> None:
        self._prompt = prompt
        self._upstream = upstream
        self._model = model
        self._config = config
        self._request_id = f"backchannel-{uuid.uuid4().hex}"
        self._stream: SmgStream | None = None
        self._confirmed = False  # The server has said how it ended.
        self._given_up = False  # It did not, although it was told to stop.
        self._aborting: asyncio.Task[None] | None = None
        self._limit: asyncio.Timeout | None = None  # While the server is read from.
        self._over = asyncio.Event()  # The server's stream has ended.

    def stop(self, reading: asyncio.Task[StopCause]) -> None:
        """Send an abort, if the server has been asked; the task goes on until it is confirmed."""
        self._abort()

    def usage(self) -> EngineUsage:
        """What was counted, which is all if the server has said how it ended."""
        if self._stream is None:
            return EngineUsage(output_tokens=0)
        return self._stream.usage(exact=self._confirmed)

    async def read(self, relay: Relay) -> StopCause:
        """Ask, and read the answer to its end."""
        question, reading = await asyncio.to_thread(
            request, self._prompt, self._model, self._request_id
        )
        if relay.stopped:
            return StopCause.STOPPED
        self._stream = stream = SmgStream(self._model.tokenizer, reading)
        await self._ask(question, relay, stream)
        return stream.cause

    async def _ask(self, question: Question, relay: Relay, stream: SmgStream) -> None:
        """The request and its answer.

        Raises:
            BackchannelError: Any failure, unless nobody wants the answer any more.
        """
        call = self._upstream.dialect.generate(question)
        try:
            async with asyncio.timeout(None) as self._limit:
                self._limit.reschedule(_now() + self._config.first_token_timeout_s)
                await self._read(call, relay, stream, self._limit)
        except TimeoutError:
            if not _unwanted(relay, stream):
                raise self._stalled(stream) from None
            # The stop was not confirmed in time: nothing more can be done.
            self._given_up = True
        except grpc.aio.AioRpcError as error:
            if not _unwanted(relay, stream):
                begun = stream.computed > 0
                raise self._upstream.blame.of(error, self._prompt, begun=begun) from None
        finally:
            self._limit = None
            self._over.set()
            await self._let_go(call)

    async def _read(
        self,
        call: grpc.aio.UnaryStreamCall[Any, Any],
        relay: Relay,
        stream: SmgStream,
        limit: asyncio.Timeout,
    ) -> None:
        """Take the answer in, message by message."""
        dialect = self._upstream.dialect
        while (message := await call.read()) is not grpc.aio.EOF:
            step = dialect.read(message)
            if _unwanted(relay, stream):
                stream.count(step)
            elif chunks := stream.feed(step):
                relay.put(chunks, len(chunks))
            if step.finish:
                self._confirmed = True
            if stream.cut and not step.finish:
                self._abort()
            if relay.full and not stream.cut:  # Which is not the server's time.
                limit.reschedule(None)
                await relay.room()
            if not _unwanted(relay, stream):
                limit.reschedule(_now() + self._config.token_timeout_s)
        if _unwanted(relay, stream):
            return
        # The stream itself may have ended in an error, which is told now.
        if not self._confirmed or stream.finish == "abort":
            raise self._upstream.blame.broke_off()
        if stream.finish == "error":
            raise self._upstream.blame.failed()

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


def _unwanted(relay: Relay, stream: SmgStream) -> bool:
    """Whether what the server does now is of no interest but for its count."""
    return relay.stopped or stream.cut


def _now() -> float:
    return asyncio.get_running_loop().time()
