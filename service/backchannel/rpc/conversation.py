"""`ConversationService`: the doors to sessions. Thin: what a session does is the host's business.

A call owns one `Reader`, and one task writes: the one that runs the handler. The events arrive here
as bytes and leave as bytes. On `Converse` a second task reads what the client sends; the two end
together.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any, Final, TypeAlias

import grpc

from backchannel.errors import BackchannelError, Reason
from backchannel.host.live import LiveSession
from backchannel.host.reader import Reader
from backchannel.host.sessions import Sessions
from backchannel.rpc import wire
from backchannel.rpc.peers import is_forwarded, is_local
from backchannel.v1 import conversation_service_pb2 as pb
from backchannel.v1 import frame_pb2

SERVICE: Final = pb.DESCRIPTOR.services_by_name["ConversationService"].full_name

MAX_FRAME_ID_BYTES: Final = 128

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class Conversations:
    """The service.

    Args:
        sessions: What it speaks to.
        open_timeout_s: How long a `Converse` may stay without its first frame.
        list_for_browsers: Whether who comes through the edge from this machine may list sessions.
            Not where another proxy may stand before it: that one is on this machine, too.
    """

    def __init__(
        self, sessions: Sessions, *, open_timeout_s: float, list_for_browsers: bool = True
    ) -> None:
        self._sessions = sessions
        self._list_for_browsers = list_for_browsers
        self._open_timeout_s = open_timeout_s

    def handlers(self) -> grpc.GenericRpcHandler:
        """What a server registers.

        Not by the generated function: frames leave as the bytes that the log holds, without being
        serialised again, and `Converse` parses its frames one by one to say what is wrong.
        """
        unary = grpc.unary_unary_rpc_method_handler
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Converse": grpc.stream_stream_rpc_method_handler(self.converse),
                "Attach": grpc.unary_stream_rpc_method_handler(
                    self.attach, pb.AttachRequest.FromString
                ),
                "Send": unary(
                    self.send, pb.SendRequest.FromString, pb.SendResponse.SerializeToString
                ),
                "CreateSession": unary(
                    self.create_session,
                    pb.CreateSessionRequest.FromString,
                    pb.CreateSessionResponse.SerializeToString,
                ),
                "GetSession": unary(
                    self.get_session,
                    pb.GetSessionRequest.FromString,
                    pb.GetSessionResponse.SerializeToString,
                ),
                "ListSessions": unary(
                    self.list_sessions,
                    pb.ListSessionsRequest.FromString,
                    pb.ListSessionsResponse.SerializeToString,
                ),
                "DeleteSession": unary(
                    self.delete_session,
                    pb.DeleteSessionRequest.FromString,
                    pb.DeleteSessionResponse.SerializeToString,
                ),
            },
        )

    async def converse(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """Create or resume, then write down what comes up and up what comes down, until one ends.

        Raises:
            BackchannelError: `OPEN_REQUIRED`, `OPEN_REPEATED`, `UNREADABLE_MESSAGE`,
                `FRAME_TOO_LARGE`, what a bad `Open` is refused with, and what ends a `Reader`.
        """
        frame_id, start = await self._first(requests)
        live, receipt = await self._start(frame_id, start)
        resume = start.resume
        with closing(_reader(live, resume)) as reader:
            if frame_id:
                # By the reader, which knows what a stream must begin with.
                reader.owe()
                reader.deliver(receipt, None)
            try:
                async with asyncio.TaskGroup() as both:
                    uplink = both.create_task(_uplink(requests, live, reader), name="uplink")
                    async for frames in reader:
                        await context.write(frames)
                    uplink.cancel()
            except* BackchannelError as group:
                error = _first_error(group)
            else:
                return
        raise error

    async def _first(self, requests: AsyncIterator[bytes]) -> tuple[str, frame_pb2.Open]:
        """The `Open` that must come first, and the id of its frame."""
        try:
            async with asyncio.timeout(self._open_timeout_s):
                raw = await anext(aiter(requests), None)
        except TimeoutError:
            raise BackchannelError(
                Reason.OPEN_REQUIRED,
                f"no frame came within {self._open_timeout_s:g} s; begin with an Open",
            ) from None
        if raw is None:
            raise BackchannelError(
                Reason.OPEN_REQUIRED, "the stream ended without a frame; begin with an Open"
            )
        frame = wire.client_frame(raw)
        kind = frame.WhichOneof("frame")
        if kind != "open":
            raise BackchannelError(
                Reason.OPEN_REQUIRED,
                f"the first frame is {kind or 'empty'}; begin with an Open",
            )
        if (error := _frame_id_error(frame.frame_id)) is not None:
            raise error
        if frame.open.WhichOneof("start") is None:
            raise BackchannelError(
                Reason.FIELD_REQUIRED, "set either create or resume", field="open.start"
            )
        return frame.frame_id, frame.open

    async def _start(
        self, frame_id: str, start: frame_pb2.Open
    ) -> tuple[LiveSession, frame_pb2.Receipt]:
        """The session that an `Open` asks for, and its receipt."""
        if start.WhichOneof("start") == "create":
            created = await self._sessions.create(start.create, frame_id=frame_id)
            return created.live, created.receipt
        live = await self._session(start.resume.session_id, field="open.resume.session_id")
        accepted = frame_pb2.RECEIPT_STATUS_ACCEPTED
        return live, frame_pb2.Receipt(frame_id=frame_id, status=accepted)

    async def attach(self, request: pb.AttachRequest, context: Context) -> None:
        """Write a session's events from a cursor on, for as long as it lives.

        Raises:
            BackchannelError: `SESSION_NOT_FOUND`, and what ends a `Reader`.
        """
        live = await self._session(request.session_id)
        with closing(_reader(live, request)) as reader:
            async for frames in reader:
                await context.write(frames)

    async def send(self, request: pb.SendRequest, context: Context) -> pb.SendResponse:
        """Take one frame; whatever is wrong with it is in the receipt.

        Raises:
            BackchannelError: `SESSION_NOT_FOUND`, `DRAINING`, `LOG_UNAVAILABLE`, …
        """
        live = await self._session(request.session_id)
        kind = request.frame.WhichOneof("frame")
        if kind in ("open", "close"):
            error = BackchannelError(
                Reason.FRAME_NOT_FOR_SEND,
                f"{kind} is about a stream, which Send has not; use Converse",
                field=f"frame.{kind}",
            )
            return pb.SendResponse(receipt=_rejected(request.frame.frame_id, error))
        return pb.SendResponse(receipt=await live.send(request.frame))

    async def create_session(
        self, request: pb.CreateSessionRequest, context: Context
    ) -> pb.CreateSessionResponse:
        """Create a session, or find the same one again.

        Raises:
            BackchannelError: What is wrong with the configuration, `SESSION_EXISTS`, ….
        """
        fork = request.fork if request.HasField("fork") else None
        created = await self._sessions.create(request.config, fork=fork)
        return pb.CreateSessionResponse(session=await created.live.view())

    async def get_session(
        self, request: pb.GetSessionRequest, context: Context
    ) -> pb.GetSessionResponse:
        """The session as it stands.

        Raises:
            BackchannelError: `SESSION_NOT_FOUND`.
        """
        live = await self._session(request.session_id)
        return pb.GetSessionResponse(session=await live.view())

    async def list_sessions(
        self, request: pb.ListSessionsRequest, context: Context
    ) -> pb.ListSessionsResponse:
        """A page of sessions, newest first, for callers on this machine.

        Raises:
            BackchannelError: `LIST_NOT_PERMITTED`, `FIELD_OUT_OF_RANGE`, `FIELD_INVALID`,
                `FIELD_TOO_LONG`.
        """
        if not is_local(context) or (is_forwarded(context) and not self._list_for_browsers):
            raise BackchannelError(
                Reason.LIST_NOT_PERMITTED,
                "session ids are secrets here, so only callers on the server's own machine may"
                " list them; name the session you know with GetSession",
            )
        sessions, next_page_token = await self._sessions.list(
            request.page_size, request.page_token, request.filter
        )
        return pb.ListSessionsResponse(sessions=sessions, next_page_token=next_page_token)

    async def delete_session(
        self, request: pb.DeleteSessionRequest, context: Context
    ) -> pb.DeleteSessionResponse:
        """End a session and delete its log.

        Raises:
            BackchannelError: `SESSION_NOT_FOUND`.
        """
        _require_session_id(request.session_id, "session_id")
        await self._sessions.delete(request.session_id)
        return pb.DeleteSessionResponse()

    async def _session(self, session_id: str, *, field: str = "session_id") -> LiveSession:
        _require_session_id(session_id, field)
        return await self._sessions.get(session_id)


def _reader(live: LiveSession, wanted: frame_pb2.Resume | pb.AttachRequest) -> Reader:
    return live.attach(
        wanted.after_seq, snapshot=wanted.snapshot, max_lag_events=wanted.max_lag_events
    )


async def _uplink(requests: AsyncIterator[bytes], live: LiveSession, reader: Reader) -> None:
    """Take the client's frames in their order.

    The end of the stream says nothing about why: a cancel looks the same as a half-close. So only a
    `Close` is a goodbye.
    """
    async for raw in requests:
        frame = wire.client_frame(raw)
        kind = frame.WhichOneof("frame")
        if kind == "open":
            raise BackchannelError(
                Reason.OPEN_REPEATED,
                "an Open can only come first; open another stream for another session",
            )
        if kind == "ping":
            reader.ping(frame.frame_id)
        elif kind != "close":
            live.submit(frame, reader)
        elif (error := _frame_id_error(frame.frame_id)) is not None:
            reader.owe()
            reader.deliver(frame_pb2.Receipt(frame_id=_clipped(frame.frame_id)), error)
        else:
            reader.close_after(frame.frame_id)
            return
        # Whoever sends faster than receipts can be written waits here, and so does the network.
        await reader.room()
    reader.half_close()


def _first_error(group: BaseExceptionGroup[BackchannelError]) -> BackchannelError:
    """The error that ended the two tasks of a `Converse`."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, BackchannelError)  # noqa: S101 - what `except*` selects
    return error


def _require_session_id(session_id: str, field: str) -> None:
    if not session_id:
        raise BackchannelError(
            Reason.FIELD_REQUIRED, "name the session, as CreateSession gave it", field=field
        )


def _frame_id_error(frame_id: str) -> BackchannelError | None:
    """What is wrong with the id of a frame that the session never sees."""
    if len(frame_id.encode()) <= MAX_FRAME_ID_BYTES:
        return None
    return BackchannelError(
        Reason.FIELD_TOO_LONG, f"must be at most {MAX_FRAME_ID_BYTES} bytes", field="frame_id"
    )


def _clipped(frame_id: str) -> str:
    """Of an id that is too long only as much comes back as one may have."""
    return frame_id[:MAX_FRAME_ID_BYTES]


def _rejected(frame_id: str, error: BackchannelError) -> frame_pb2.Receipt:
    return frame_pb2.Receipt(
        frame_id=_clipped(frame_id),
        status=frame_pb2.RECEIPT_STATUS_REJECTED,
        error=error.to_status(),
    )
