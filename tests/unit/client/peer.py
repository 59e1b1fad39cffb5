"""A server that does what a real one does only on a bad day.

Each Converse is handled by the next of the acts it was given: a function that reads and writes
frames and may cut the stream, refuse, or go silent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, Self

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from backchannel.client import Client, ClientConfig
from backchannel.client.schedule import Backoff
from backchannel.errors import BackchannelError, Reason
from backchannel.v1.conversation_service_pb2 import (
    DeleteSessionRequest,
    DeleteSessionResponse,
    GetSessionRequest,
    GetSessionResponse,
)
from backchannel.v1.event_pb2 import (
    CHANNEL_TEXT,
    Event,
    InputAccepted,
    OutputDelta,
    SessionOpened,
    ToolCallFinished,
    ToolCallReady,
    TurnFinished,
    TurnStarted,
)
from backchannel.v1.frame_pb2 import (
    RECEIPT_STATUS_ACCEPTED,
    ClientFrame,
    Receipt,
    ServerFrame,
)
from backchannel.v1.session_pb2 import (
    FINISH_REASON_STOP,
    TOOL_CALL_OUTCOME_COMPLETED,
    Session,
    ToolCall,
)

Act = Callable[["Wire"], Awaitable[None]]
Context = grpc.aio.ServicerContext[ClientFrame, ServerFrame]
GONE = BackchannelError(Reason.SESSION_NOT_FOUND, "there is no such session")
NOW_S = 1_700_000_000
# Waits up to this are over at once; longer ones when the test says so.
LONGEST_JUMP_S = 20.0


def stamp(after_s: float = 0.0) -> Timestamp:
    time = Timestamp()
    time.FromNanoseconds(int((NOW_S + after_s) * 1e9))
    return time


class Wire:
    """One stream, from the server's end."""

    def __init__(self, context: Context, peer: Peer, *, heard: bool = False) -> None:
        self._context = context
        self.peer = peer
        self._heard = heard

    async def read(self) -> ClientFrame:
        frame = await self._context.read()
        self._heard = True
        assert isinstance(frame, ClientFrame), "the client has half-closed"
        self.peer.frames.append(frame)
        return frame

    async def until(self, kind: str) -> ClientFrame:
        while (frame := await self.read()).WhichOneof("frame") != kind:
            pass
        return frame

    async def write(self, **frame: object) -> None:
        await self._context.write(ServerFrame(**frame))  # type: ignore[arg-type]  # fields by name

    async def events(self, *events: Event) -> None:
        await self.write(events=events)

    async def accept(self, frame: ClientFrame, **more: object) -> None:
        receipt = {"frame_id": frame.frame_id, "status": RECEIPT_STATUS_ACCEPTED, **more}
        await self.write(receipt=Receipt(**receipt))  # type: ignore[arg-type]  # fields by name

    async def cut(self, message: str = "cut") -> NoReturn:
        await self._context.abort(grpc.StatusCode.UNAVAILABLE, message)

    async def refuse(self, error: BackchannelError) -> NoReturn:
        if not self._heard:
            # A status that overtakes the client's own headers is lost in gRPC: it reports an
            # "Internal error from Core" instead, which is one more cut.
            await self._context.read()
        details = (("grpc-status-details-bin", error.to_status().SerializeToString()),)
        code = next(code for code in grpc.StatusCode if code.value[0] == error.grpc_code)
        await self._context.abort(code, str(error), details)

    async def hang(self) -> None:
        """Say nothing until the client has had enough."""
        try:
            await asyncio.Event().wait()
        finally:
            self.peer.hung_up.set()


class Peer:
    """The server, and the time of its client, which jumps instead of passing."""

    def __init__(self, *acts: Act, session: Session | None = None) -> None:
        self._acts = list(acts)
        self.session = session or Session(session_id="s" * 16)
        self.frames: list[ClientFrame] = []
        self.deleted = 0
        self.hung_up = asyncio.Event()
        self.slept_s: list[float] = []
        self._time_passes = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server()
        unary = grpc.unary_unary_rpc_method_handler
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Converse": grpc.stream_stream_rpc_method_handler(
                self.converse, ClientFrame.FromString, ServerFrame.SerializeToString
            ),
            "GetSession": unary(
                self.get_session, GetSessionRequest.FromString, GetSessionResponse.SerializeToString
            ),
            "DeleteSession": unary(
                self.delete_session,
                DeleteSessionRequest.FromString,
                DeleteSessionResponse.SerializeToString,
            ),
        }
        name = "backchannel.v1.ConversationService"
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(name, handlers),)
        )
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._server.stop(0)

    def client(self, **config: object) -> Client:
        settings = ClientConfig(**config)  # type: ignore[arg-type]  # fields by name
        return Client(
            f"127.0.0.1:{self.port}",
            config=settings,
            time=self,
            backoff=lambda: Backoff(settings, self, lambda low, high: high),
        )

    def now_s(self) -> float:
        return sum(self.slept_s)

    async def sleep(self, delay_s: float) -> None:
        if delay_s > LONGEST_JUMP_S:
            await self._time_passes.wait()
        self.slept_s.append(delay_s)
        await asyncio.sleep(0)

    def let_time_pass(self) -> None:
        """Wake who waits for long."""
        self._time_passes.set()
        self._time_passes = asyncio.Event()

    async def converse(self, requests: object, context: Context) -> None:
        wire = Wire(context, self)
        if not self._acts:
            # Not a cut, or a client that comes back once too often would come back for ever.
            await wire.refuse(BackchannelError(Reason.INTERNAL, "the play is over"))
        await self._acts.pop(0)(wire)

    async def get_session(self, request: GetSessionRequest, context: object) -> GetSessionResponse:
        return GetSessionResponse(session=self.session)

    async def delete_session(self, request: DeleteSessionRequest, context: Context) -> NoReturn:
        """Do it, and lose the answer."""
        self.deleted += 1
        if self.deleted == 1:
            await Wire(context, self).cut()
        await Wire(context, self, heard=True).refuse(GONE)


def opened(seq: int = 1) -> Event:
    return Event(seq=seq, session_opened=SessionOpened(session=Session(session_id="s" * 16)))


def accepted(seq: int, frame: ClientFrame) -> Event:
    kind = InputAccepted(frame_id=frame.frame_id, message=frame.message)
    return Event(seq=seq, frame_id=frame.frame_id, input_accepted=kind)


def started(seq: int, frame_id: str, turn_id: str = "t1") -> Event:
    kind = TurnStarted(turn_id=turn_id, frame_id=frame_id, frame_ids=[frame_id])
    return Event(seq=seq, turn_started=kind)


def delta(seq: int, text: str, turn_id: str = "t1", channel: int = CHANNEL_TEXT) -> Event:
    kind = OutputDelta(turn_id=turn_id, text=text, channel=channel)  # type: ignore[arg-type]  # a number
    return Event(seq=seq, output_delta=kind)


def finished(seq: int, turn_id: str = "t1", reason: int = FINISH_REASON_STOP) -> Event:
    kind = TurnFinished(turn_id=turn_id, finish_reason=reason)  # type: ignore[arg-type]  # a number
    return Event(seq=seq, turn_finished=kind)


def ready(seq: int, call_id: str, name: str, arguments: str = "{}", within_s: float = 60) -> Event:
    kind = ToolCallReady(
        call_id=call_id,
        name=name,
        arguments_json=arguments,
        idle_deadline=stamp(within_s),
        deadline=stamp(within_s),
    )
    return Event(seq=seq, time=stamp(), tool_call_ready=kind)


def call_over(seq: int, call_id: str) -> Event:
    kind = ToolCallFinished(call_id=call_id, outcome=TOOL_CALL_OUTCOME_COMPLETED)
    return Event(seq=seq, tool_call_finished=kind)


def open_call(call_id: str, name: str, arguments: str = "{}") -> ToolCall:
    return ToolCall(
        call_id=call_id,
        turn_id="t1",
        name=name,
        arguments_json=arguments,
        idle_deadline=stamp(60),
        deadline=stamp(60),
    )
