"""The receiving side of a conversation: a cursor, and a connection that comes back.

What arrives goes three ways: events and snapshots into the inbox, receipts to the outbox, open
calls to the tools. The one position kept here is the seq of the last event received. A stream that
ends without the session having ended was cut; it is resumed after that position, so every event
comes in once, in order, and frames without a receipt are sent again under the same id. What a turn
is and how it ends is the server's to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import grpc

from backchannel.client.calls import ToolCalls
from backchannel.client.config import ClientConfig
from backchannel.client.connection import Connected, ConnectionChange, Lost
from backchannel.client.errors import (
    ClientError,
    ClosedError,
    CursorTrimmedError,
    DisconnectedError,
    StatusError,
    call_error,
    plain_error,
)
from backchannel.client.inbox import Inbox
from backchannel.client.link import Link
from backchannel.client.outbox import Outbox
from backchannel.client.schedule import Backoff, Time
from backchannel.client.tools import Tool
from backchannel.client.tracing import Tracing
from backchannel.errors import Reason
from backchannel.v1.conversation_service_pb2 import GetSessionRequest
from backchannel.v1.event_pb2 import Event
from backchannel.v1.frame_pb2 import Open, Resume, ServerFrame, Snapshot
from backchannel.v1.session_pb2 import Session

if TYPE_CHECKING:
    from backchannel.v1.conversation_service_pb2_grpc import ConversationServiceAsyncStub

# What an event costs in memory beyond its bytes, roughly.
_OVERHEAD_BYTES: Final = 128


class Stream:
    """Keeps a session's stream open until the session ends.

    Args:
        stub: The service.
        config: Times and limits.
        opening: How the first stream begins. To create, the config must have its session_id.
        snapshot_if_trimmed: Take a Snapshot where events after the cursor are no longer kept.
        tools: What this side runs.
        on_connection: Told when the connection is lost and when it is back.
        tracing: Watches each stream; None if nobody does.
        time: The clock.
        backoff: Makes schedules for trying again.

    Attributes:
        inbox: What has come and was not taken yet.
        outbox: What is to be sent.
        session: The session as last heard of; None before that.
        opened: Done when the first stream is open; fails if it can't be.
    """

    def __init__(
        self,
        stub: ConversationServiceAsyncStub,
        config: ClientConfig,
        opening: Open,
        *,
        snapshot_if_trimmed: bool,
        tools: Sequence[Tool],
        on_connection: Callable[[ConnectionChange], None] | None,
        tracing: Tracing | None,
        time: Time,
        backoff: Callable[[], Backoff],
    ) -> None:
        self._stub = stub
        self._config = config
        self._opening = opening
        self._create = opening.HasField("create")
        start = opening.create if self._create else opening.resume
        self._session_id = start.session_id
        self._snapshot_if_trimmed = snapshot_if_trimmed
        self._want_snapshot = opening.resume.snapshot
        self._max_lag_events = opening.resume.max_lag_events
        self._tracing = tracing
        self._tell = on_connection or (lambda change: None)
        self._time = time
        self._backoff = backoff()
        self.inbox: Inbox[Event | Snapshot] = Inbox(config.max_buffered_bytes)
        self.outbox = Outbox(config.max_pending_frames, backoff, time, self.inbox.hurry)
        self.session: Session | None = None
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._calls = ToolCalls(tools, self.outbox, config.max_concurrent_calls)
        self._received_seq = opening.resume.after_seq
        # Calls announced up to here are open only if the session says so.
        self._settled_seq = 0
        self._turn_runs = False
        self._server_leaves = False
        self._session_ended = False
        self._trouble: ClientError | None = None
        self._closing = False
        self._parts: list[Snapshot] = []

    async def run(self) -> None:
        """Keep the stream open. Returns when it is over for good; the inbox says how it ended."""
        error: ClientError | None = None
        try:
            async with asyncio.TaskGroup() as group:
                self._calls.start(group)
                try:
                    await self._keep_open()
                except ClientError as trouble:
                    error = self._trouble = trouble
                finally:
                    self._calls.stop_all()
        except BaseException:
            error = ClosedError("the conversation was left")
            raise
        finally:
            self.outbox.fail(error or self.over())
            self.inbox.end(error)
            if not self.opened.done():
                if error is None:
                    self.opened.set_result(None)
                else:
                    self.opened.set_exception(error)

    def over(self) -> ClosedError:
        """What to say to somebody who uses the conversation once the stream is over."""
        if self._session_ended:
            return ClosedError("the session is over: it was deleted, or has expired")
        return ClosedError(f"the conversation is over: {self._trouble or 'it was left'}")

    def close(self) -> None:
        """Say goodbye; `run` returns when the server has answered."""
        self._closing = True
        self.outbox.close()

    async def _keep_open(self) -> None:
        while True:
            trouble = await self._open_once()
            if trouble is None:
                return
            patience_s = (
                self._config.give_up_after_s
                if self.opened.done()
                else self._config.connect_timeout_s
            )
            delay_s = self._backoff.next_s(patience_s, trouble.retry_after_s)
            if delay_s is None or self._closing:
                if trouble.reason:
                    raise trouble
                raise DisconnectedError(f"no connection to the server: {trouble}") from trouble
            self._tell(Lost(trouble, delay_s))
            await self._time.sleep(delay_s)

    async def _open_once(self) -> StatusError | None:
        """One stream, from its opening to its end. Returns what cut it, None if it was the end.

        Raises:
            StatusError: The server refuses, and would again.
        """
        heard = False
        try:
            opening = await self._next_opening()
            link = Link(
                self._stub,
                opening,
                self.outbox,
                self._config.silence_timeout_s,
                self._time,
                self._tracing,
            )
            async with link:
                async for frame in link:
                    if not heard:
                        heard = True
                        self._backoff.reset()
                        self._tell(Connected(self._received_seq, resumed=self.opened.done()))
                    self._take(frame)
                    if self._server_leaves and not self._turn_runs:
                        return plain_error(grpc.StatusCode.UNAVAILABLE, "the server is leaving")
                    await self.inbox.room()
        except CursorTrimmedError:
            if not self._snapshot_if_trimmed:
                raise
            self._want_snapshot = True
            return await self._open_once()
        except StatusError as error:
            if error.reason == Reason.READER_LAGS:
                # From the same cursor it would be as far behind.
                self._want_snapshot = True
                return await self._open_once()
            if not error.transient:
                raise
            return error
        if self._session_ended or self._closing:
            return None
        return plain_error(grpc.StatusCode.UNAVAILABLE, "the server ended the stream")

    async def _next_opening(self) -> Open:
        self._server_leaves = False
        self._parts.clear()
        if self._create and self._received_seq == 0:
            return self._opening
        # What is announced in the backlog may be over by now: the session tells what is not.
        request = GetSessionRequest(session_id=self._session_id)
        try:
            found = await self._stub.GetSession(request, timeout=self._config.call_timeout_s)
        except grpc.aio.AioRpcError as error:
            raise call_error(error) from None
        self._adopt(found.session)
        self._settled_seq = found.session.last_seq
        resume = Resume(
            session_id=self._session_id,
            after_seq=self._received_seq,
            snapshot=self._want_snapshot,
            max_lag_events=self._max_lag_events,
        )
        return Open(resume=resume)

    def _take(self, frame: ServerFrame) -> None:
        opened = True
        for event in frame.events:
            self._take_event(event)
        if frame.HasField("receipt"):
            self.outbox.settle(frame.receipt)
        if frame.HasField("snapshot"):
            opened = self._take_snapshot(frame.snapshot)
        if frame.HasField("go_away"):
            self._server_leaves = True
        if opened and not self.opened.done():
            self.opened.set_result(None)

    def _take_event(self, event: Event) -> None:
        if event.seq <= self._received_seq:
            return
        if event.seq != self._received_seq + 1:
            said = f"the stream jumped from event {self._received_seq} to {event.seq}"
            raise plain_error(grpc.StatusCode.UNAVAILABLE, said)
        self._received_seq = event.seq
        self.inbox.put(event, event.ByteSize() + _OVERHEAD_BYTES)
        kind = event.WhichOneof("kind")
        if kind == "tool_call_ready":
            if event.seq > self._settled_seq:
                self._calls.ready(event.tool_call_ready, event.time)
        elif kind == "tool_call_cancelled":
            self._calls.stop(event.tool_call_cancelled.call_id)
        elif kind == "tool_call_finished":
            self._calls.stop(event.tool_call_finished.call_id)
        elif kind == "turn_started":
            self._turn_runs = True
        elif kind == "turn_finished":
            self._turn_runs = False
        elif kind == "session_opened":
            self.session = event.session_opened.session
        elif kind == "session_closed":
            self._session_ended = True

    def _take_snapshot(self, part: Snapshot) -> bool:
        """One part; True when the snapshot is whole."""
        self._parts.append(part)
        if part.more:
            return False
        whole = Snapshot()
        for part in self._parts:
            # Turns and messages append; the session is told once.
            whole.turns.extend(part.turns)
            whole.queued.extend(part.queued)
            whole.seq = part.seq
            if part.HasField("session"):
                whole.session.CopyFrom(part.session)
        self._parts.clear()
        self._want_snapshot = False
        self._received_seq = self._settled_seq = whole.seq
        self._adopt(whole.session)
        self.inbox.put(whole, whole.ByteSize() + _OVERHEAD_BYTES)
        return True

    def _adopt(self, session: Session) -> None:
        self.session = session
        self._turn_runs = bool(session.running_turn_id)
        for call in session.open_tool_calls:
            # The true time is later by an unknown little; the server's deadline rules anyway.
            self._calls.ready(call, session.update_time)
