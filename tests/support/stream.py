"""A raw client: frames in, frames out, the status at the end. No state machine, no retries.

One task reads each call into a queue and time-outs are on the queue, since a time-out on the call's
own `read` ends the call; leaving the `async with` cancels it, since a call that is merely dropped
lives on.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status

from backchannel import errors
from backchannel.v1 import conversation_service_pb2 as pb
from backchannel.v1 import event_pb2, frame_pb2, session_pb2

CONVERSATION = "/backchannel.v1.ConversationService/"
PATIENCE_S = 15.0

Call: TypeAlias = Any  # grpc.aio's calls share no useful type


def unary(channel: grpc.aio.Channel, path: str) -> Call:
    """A method that takes bytes and answers with bytes."""
    return channel.unary_unary(path)


def server_stream(channel: grpc.aio.Channel, path: str) -> Call:
    """A method that takes bytes and answers with a stream of them."""
    return channel.unary_stream(path)


def duplex(channel: grpc.aio.Channel, path: str) -> Call:
    """A method that takes a stream of bytes and answers with one."""
    return channel.stream_stream(path)


@dataclass(frozen=True)
class Ending:
    """How a call ended."""

    code: grpc.StatusCode
    message: str
    status: Status

    @property
    def reason(self) -> str:
        return errors.reason_of(self.status)


def ending(code: grpc.StatusCode, message: str | None, metadata: Any) -> Ending:
    status = Status()
    for key, value in metadata or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    return Ending(code, message or "", status)


class Stream:
    """One call that answers with `ServerFrame`s."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.frames: list[frame_pb2.ServerFrame] = []
        self.events: list[event_pb2.Event] = []
        self._by_kind: defaultdict[str, list[event_pb2.Event]] = defaultdict(list)
        self._arrived = asyncio.Condition()
        self._ended = False
        self._given = 0
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for raw in self.call:
                async with self._arrived:
                    self._take(frame_pb2.ServerFrame.FromString(raw))
                    self._arrived.notify_all()
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            pass
        finally:
            async with self._arrived:
                self._ended = True
                self._arrived.notify_all()

    def _take(self, frame: frame_pb2.ServerFrame) -> None:
        self.frames.append(frame)
        self.events.extend(frame.events)
        for event in frame.events:
            self._by_kind[event.WhichOneof("kind") or ""].append(event)

    async def send(self, frame: frame_pb2.ClientFrame | bytes) -> None:
        raw = frame if isinstance(frame, bytes) else frame.SerializeToString()
        await self.call.write(raw)

    async def half_close(self) -> None:
        await self.call.done_writing()

    async def next(self) -> frame_pb2.ServerFrame | None:
        """The next frame; None at the end."""
        async with asyncio.timeout(PATIENCE_S), self._arrived:
            await self._arrived.wait_for(lambda: self._ended or len(self.frames) > self._given)
            if len(self.frames) == self._given:
                return None
            self._given += 1
            return self.frames[self._given - 1]

    async def until(self, found: Callable[[Stream], Any]) -> Any:
        """Wait until something is true of what has arrived, and what it said."""
        async with asyncio.timeout(PATIENCE_S), self._arrived:
            while not (said := found(self)):
                if self._ended:
                    break
                await self._arrived.wait()
            else:
                return said
        raise AssertionError(f"the stream ended before that: {await self.end()}")

    @property
    def receipts(self) -> list[frame_pb2.Receipt]:
        return [frame.receipt for frame in self.frames if frame.HasField("receipt")]

    @property
    def text(self) -> str:
        return text_of(self.events)

    def kinds(self) -> list[str]:
        return [event.WhichOneof("kind") or "" for event in self.events]

    def of(self, kind: str) -> list[event_pb2.Event]:
        """All events of a kind that have come."""
        return list(self._by_kind[kind])

    async def event(self, kind: str, nth: int = 1) -> event_pb2.Event:
        """The nth event of a kind."""

        def find(stream: Stream) -> event_pb2.Event | None:
            found = stream._by_kind[kind]
            return found[nth - 1] if len(found) >= nth else None

        return await self.until(find)  # type: ignore[no-any-return]  # what find returns

    async def receipt(self, frame_id: str) -> frame_pb2.Receipt:
        def find(stream: Stream) -> frame_pb2.Receipt | None:
            return next((one for one in stream.receipts if one.frame_id == frame_id), None)

        return await self.until(find)  # type: ignore[no-any-return]  # what find returns

    async def end(self) -> Ending:
        """How the call ended, once it has."""
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.shield(self._reader)
            return ending(
                await self.call.code(),
                await self.call.details(),
                await self.call.trailing_metadata(),
            )

    async def close(self) -> None:
        self.call.cancel()
        await self._reader


class Client:
    """The doors of a server, with nothing in between."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel

    @asynccontextmanager
    async def converse(self, *frames: frame_pb2.ClientFrame | bytes) -> AsyncIterator[Stream]:
        stream = Stream(duplex(self.channel, CONVERSATION + "Converse")())
        try:
            for frame in frames:
                await stream.send(frame)
            yield stream
        finally:
            await stream.close()

    @asynccontextmanager
    async def attach(
        self, session_id: str, after_seq: int = 0, **more: Any
    ) -> AsyncIterator[Stream]:
        request = pb.AttachRequest(session_id=session_id, after_seq=after_seq, **more)
        method = server_stream(self.channel, CONVERSATION + "Attach")
        stream = Stream(method(request.SerializeToString()))
        try:
            yield stream
        finally:
            await stream.close()

    async def raw(self, method: str, request: Message | bytes) -> bytes:
        """A unary call, bytes to bytes."""
        raw = request if isinstance(request, bytes) else request.SerializeToString()
        path = method if method.startswith("/") else CONVERSATION + method
        answer: bytes = await unary(self.channel, path)(raw, timeout=PATIENCE_S)
        return answer

    async def create(self, **config: Any) -> session_pb2.Session:
        request = pb.CreateSessionRequest(config=session_pb2.SessionConfig(**config))
        return pb.CreateSessionResponse.FromString(await self.raw("CreateSession", request)).session

    async def send(self, session_id: str, frame: frame_pb2.ClientFrame) -> frame_pb2.Receipt:
        request = pb.SendRequest(session_id=session_id, frame=frame)
        return pb.SendResponse.FromString(await self.raw("Send", request)).receipt

    async def get(self, session_id: str) -> session_pb2.Session:
        request = pb.GetSessionRequest(session_id=session_id)
        return pb.GetSessionResponse.FromString(await self.raw("GetSession", request)).session

    async def delete(self, session_id: str) -> None:
        await self.raw("DeleteSession", pb.DeleteSessionRequest(session_id=session_id))

    async def events(self, session_id: str) -> list[event_pb2.Event]:
        """The whole log of a session, as it is now."""
        last_seq = (await self.get(session_id)).last_seq
        async with self.attach(session_id) as stream:
            await stream.until(lambda s: s.events and s.events[-1].seq >= last_seq)
            return [event for event in stream.events if event.seq <= last_seq]


@dataclass
class Refused:
    """Catches the status of a call that is to fail."""

    ending: Ending | None = field(default=None)

    def __enter__(self) -> Refused:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if not isinstance(error, grpc.aio.AioRpcError):
            return False
        self.ending = ending(error.code(), error.details(), error.trailing_metadata())
        return True


def create(frame_id: str = "", **config: Any) -> frame_pb2.ClientFrame:
    opening = frame_pb2.Open(create=session_pb2.SessionConfig(**config))
    return frame_pb2.ClientFrame(frame_id=frame_id, open=opening)


def resume(session_id: str, after_seq: int = 0, **more: Any) -> frame_pb2.ClientFrame:
    resuming = frame_pb2.Resume(session_id=session_id, after_seq=after_seq, **more)
    return frame_pb2.ClientFrame(open=frame_pb2.Open(resume=resuming))


def say(text: str, frame_id: str = "", **more: Any) -> frame_pb2.ClientFrame:
    message = session_pb2.UserMessage(parts=[session_pb2.Part(text=text)], **more)
    return frame_pb2.ClientFrame(frame_id=frame_id, message=message)


def interrupt(turn_id: str = "", frame_id: str = "", **more: Any) -> frame_pb2.ClientFrame:
    stop = frame_pb2.Interrupt(turn_id=turn_id, **more)
    return frame_pb2.ClientFrame(frame_id=frame_id, interrupt=stop)


def text_of(events: list[event_pb2.Event]) -> str:
    return "".join(
        event.output_delta.text
        for event in events
        if event.output_delta.channel == event_pb2.CHANNEL_TEXT
    )


def check_log(events: list[event_pb2.Event]) -> None:
    """What holds for every log: numbers without gaps, one ending for each turn that began."""
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    started = [event.turn_started.turn_id for event in events if event.HasField("turn_started")]
    finished = [event.turn_finished.turn_id for event in events if event.HasField("turn_finished")]
    assert len(set(started)) == len(started)
    assert sorted(finished) == sorted(started)
    for event in events:
        if event.HasField("turn_finished"):
            usage = event.turn_finished.usage
            assert usage.generated_tokens == usage.delivered_tokens + usage.wasted_tokens
