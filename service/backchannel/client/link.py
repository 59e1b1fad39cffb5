"""One Converse call: one reader, one writer, and a watch for silence, all ended together."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import grpc

from backchannel.client.errors import call_error, plain_error
from backchannel.client.outbox import Outbox
from backchannel.client.schedule import Time
from backchannel.client.tracing import Tracing
from backchannel.v1 import conversation_service_pb2
from backchannel.v1.frame_pb2 import ClientFrame, Open, ServerFrame

if TYPE_CHECKING:
    from backchannel.v1.conversation_service_pb2_grpc import ConversationServiceAsyncStub

_SERVICE: Final = conversation_service_pb2.DESCRIPTOR.services_by_name["ConversationService"]
_METHOD: Final = f"{_SERVICE.full_name}/Converse"


class Link:
    """An `async with` that owns a call, and an iterator over its frames.

    Iterating ends when the server ends the stream with OK, and raises `StatusError` when the stream
    ends any other way, silence included. A read is never wrapped in a time-out, for that would kill
    the call; the watch ends the call from beside it.

    Args:
        stub: The service.
        opening: The first frame.
        outbox: Where the frames after it come from. It is rewound.
        silence_timeout_s: How long the server may say nothing while somebody reads.
        time: The clock.
        tracing: Watches the call; None if nobody does.
    """

    def __init__(
        self,
        stub: ConversationServiceAsyncStub,
        opening: Open,
        outbox: Outbox,
        silence_timeout_s: float,
        time: Time,
        tracing: Tracing | None = None,
    ) -> None:
        self._stub = stub
        self._opening = opening
        self._outbox = outbox
        self._silence_timeout_s = silence_timeout_s
        self._time = time
        self._tracing = tracing
        self._heard_s: float | None = None
        self._silent = False

    async def __aenter__(self) -> Self:
        span = self._tracing.stream(_METHOD) if self._tracing is not None else None
        self._call: grpc.aio.StreamStreamCall[ClientFrame, ServerFrame] = self._stub.Converse(
            metadata=span.metadata if span is not None else None
        )
        if span is not None:
            span.follow(self._call)
        self._outbox.rewind()
        self._tasks = [
            asyncio.create_task(self._write(), name="backchannel-write"),
            asyncio.create_task(self._watch(), name="backchannel-watch"),
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # A call that is merely dropped lives on.
        self._call.cancel()
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ServerFrame:
        self._heard_s = self._time.now_s()
        try:
            frame = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise call_error(error) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._silent or (task is not None and task.cancelling()):
                raise
            said = f"the server has said nothing for {self._silence_timeout_s:g} s"
            raise plain_error(grpc.StatusCode.UNAVAILABLE, said) from None
        # Between two reads the silence is ours.
        self._heard_s = None
        if isinstance(frame, ServerFrame):
            return frame
        code = await self._call.code()
        if code is not grpc.StatusCode.OK:
            raise plain_error(code, await self._call.details() or "")
        raise StopAsyncIteration

    async def _write(self) -> None:
        frame = ClientFrame(open=self._opening)
        try:
            while True:
                await self._call.write(frame)
                frame = await self._outbox.next()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The stream is over; how it ended is the reader's to say. The frame is kept.
            return

    async def _watch(self) -> None:
        while True:
            heard_s = self._heard_s
            if heard_s is None:
                left_s = self._silence_timeout_s
            else:
                left_s = heard_s + self._silence_timeout_s - self._time.now_s()
            if left_s <= 0:
                self._silent = True
                self._call.cancel()
                return
            await self._time.sleep(left_s)
