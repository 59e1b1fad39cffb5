"""A conversation as its user sees it: say something, hear the answer, stop it.

Below it a `Stream` keeps the connection; here is the other position, the seq of the last event that
was iterated, which is what the user has seen. A stop names it, so that the context keeps what was
seen and no more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from backchannel.client.answer import Answer, Reply
from backchannel.client.config import ClientConfig
from backchannel.client.errors import ClientError, ClosedError
from backchannel.client.outbox import new_id
from backchannel.client.shape import AnswerShape, response_format_of
from backchannel.client.stream import Stream
from backchannel.v1.event_pb2 import Event, Keep
from backchannel.v1.frame_pb2 import Ack, ClientFrame, Interrupt, Receipt, Snapshot
from backchannel.v1.session_pb2 import (
    Delivery,
    Part,
    Sampling,
    Session,
    ToolDisposition,
    UserMessage,
)


class Events:
    """The events of a conversation, in order, each once, across lost connections.

    Ends after SessionClosed. Raises `SessionGoneError` and the like when the session can't be gone
    on with, and `ClosedError` when the conversation was left.
    """

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while True:
            item = await self._conversation.receive()
            if item is None:
                raise StopAsyncIteration
            if isinstance(item, Event):
                return item


class Turns:
    """Every answer that begins from the reading position on, whoever or whatever began it.

    One that is not iterated to its end is passed over when the next is asked for. Ends after
    SessionClosed.
    """

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._answer: Answer | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Answer:
        if self._answer is not None:
            answer, self._answer = self._answer, None
            await answer.finish()
        while True:
            item = await self._conversation.receive()
            if item is None:
                raise StopAsyncIteration
            answer = Answer(self._conversation.receive)
            if isinstance(item, Snapshot):
                running = item.session.running_turn_id
                found = next((turn for turn in item.turns if turn.turn_id == running), None)
                if found is None:
                    continue
                answer.begin_amid(found)
            elif item.HasField("turn_started"):
                answer.begin(item.turn_started)
            else:
                continue
            self._answer = answer
            return answer


class Conversation:
    """A session that one talks to. Made by `Client.converse` and `Client.resume`.

    Use it with `async with`: the connection is open inside and closed at the end; the session
    itself goes on. Entering raises `DisconnectedError` when nobody answers and `StatusError` when
    the request is refused (`SessionGoneError`, `CursorTrimmedError`, ...). After that a lost
    connection is never an error, unless `ClientConfig.give_up_after_s` makes it one.

    There is one reading position: iterate `events`, or an `ask`, not both at once.

    Args:
        stream: Makes the stream, inside the event loop.
        config: Times and limits.
        session_id: The session.
        snapshot: Whether the first stream begins with a Snapshot.
        after_seq: Where the first stream begins.
        on_snapshot: Told, in its place among the events, when a Snapshot replaces what was known.

    Attributes:
        session_id: The session: a secret, and all one needs to resume.
        seq: The last event iterated: the cursor to keep for resuming.
        snapshot: The newest Snapshot iterated; None if there was none.
    """

    def __init__(
        self,
        stream: Callable[[], Stream],
        config: ClientConfig,
        *,
        session_id: str,
        snapshot: bool,
        after_seq: int,
        on_snapshot: Callable[[Snapshot], None] | None,
    ) -> None:
        self._make_stream = stream
        self._config = config
        self._begins_with_snapshot = snapshot
        self._on_snapshot = on_snapshot
        self.session_id = session_id
        self.seq = after_seq
        self.snapshot: Snapshot | None = None
        self._turn_id = ""
        self._turn_runs = False
        # Messages sent here whose turn has not been seen to start.
        self._unanswered: deque[str] = deque(maxlen=config.max_pending_frames)
        # Whether the caller says what was seen; else what is iterated has been.
        self._caller_acks = False
        self._acked_seq = after_seq
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._task is not None:
            raise ClosedError("a conversation is entered once; resume the session for another")
        self._stream = self._make_stream()
        self._task = asyncio.create_task(self._stream.run(), name="backchannel-stream")
        try:
            await self._stream.opened
            if self._begins_with_snapshot:
                await self.receive()
        except BaseException:
            await self._stop(self._task)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._task is None:
            return
        if error is None and not self._task.done():
            self._stream.close()
            await asyncio.wait([self._task], timeout=self._config.close_timeout_s)
        await self._stop(self._task)

    # --- hearing ------------------------------------------------------------------------------

    @property
    def session(self) -> Session:
        """The session as last heard of, with the configuration in force."""
        session = self._stream.session
        return Session(session_id=self.session_id) if session is None else session

    def events(self) -> Events:
        """Everything that happens, from the reading position on."""
        return Events(self)

    def turns(self) -> Turns:
        """Every answer, from the reading position on, each to be iterated in turn.

        Also those that nobody here asked for: to other readers' messages, and those that begin by
        themselves when a tool has a result that was not waited for. `Answer.frame_ids` and
        `Answer.call_ids` say what each answers.
        """
        return Turns(self)

    def answer(self, frame_id: str) -> Answer:
        """The answer to a message that was sent with `send`: its `Receipt.frame_id`.

        It is looked for from the reading position on, so ask before iterating past it.
        """
        return Answer(self.receive, frame_id)

    async def receive(self) -> Event | Snapshot | None:
        """The next event or snapshot; None after SessionClosed. What `events` is made of.

        Whoever asks for the next has seen those before: where the session has a credit window
        (`Limits.max_unacked_chars`) that is told to the server, unless the caller does (`ack`).
        """
        if not self._caller_acks and self._acked_seq < self.seq and self._has_window():
            self._acked_seq = self.seq
            self._stream.outbox.post_position(ClientFrame(ack=Ack(displayed_seq=self.seq)))
        item = await self._stream.inbox.get()
        if isinstance(item, Snapshot):
            self._see_snapshot(item)
        elif item is not None:
            self._see(item)
        return item

    # --- saying -------------------------------------------------------------------------------

    async def send(
        self,
        message: str | UserMessage,
        *,
        delivery: Delivery.ValueType = Delivery.DELIVERY_UNSPECIFIED,
        sampling: Sampling | None = None,
        response_format: AnswerShape | None = None,
        frame_id: str = "",
    ) -> Receipt:
        """Say something. Returns when it is in the log, exactly once, over whatever connection.

        While an answer runs, `delivery` says what becomes of it. DELIVERY_QUEUE: it ends first.
        DELIVERY_INTERRUPT: it stops now, and what was iterated counts as seen. DELIVERY_STEER: it
        ends at the next sentence, or when its tools have answered, and keeps all that it said. The
        receipt tells with `delivery` what it was: DELIVERY_QUEUE for one that came too late for
        anything else.

        Args:
            message: A text, or a whole message, to which the arguments after it then do nothing.
            delivery: How it meets a running turn. Default: after it.
            sampling: For this turn alone.
            response_format: For this turn alone: a pydantic model, a JSON schema as a dictionary,
                or the contract's message. Read the answer with `Reply.parse`.
            frame_id: To repeat a message of an earlier process safely. Default: a new one.

        Raises:
            StatusError: It was refused; e.g. QUEUE_FULL, with `retry_after_s`.
        """
        if isinstance(message, str):
            message = UserMessage(
                parts=[Part(text=message)],
                delivery=delivery,
                sampling=sampling,
                response_format=response_format_of(response_format),
            )
            if delivery == Delivery.DELIVERY_INTERRUPT:
                message.displayed_seq = self.seq
        frame = ClientFrame(frame_id=frame_id or new_id(), message=message)
        self._unanswered.append(frame.frame_id)
        try:
            return await self.send_frame(frame)
        except ClientError:
            if frame.frame_id in self._unanswered:
                self._unanswered.remove(frame.frame_id)
            raise

    def ask(
        self,
        text: str,
        *,
        delivery: Delivery.ValueType = Delivery.DELIVERY_UNSPECIFIED,
        sampling: Sampling | None = None,
        response_format: AnswerShape | None = None,
    ) -> Answer:
        """Say something and iterate the answer: ``async for piece in conversation.ask("...")``.

        See `send` for the arguments, `Answer` for what iterating does.
        """
        frame_id = new_id()

        async def send() -> Receipt:
            return await self.send(
                text,
                delivery=delivery,
                sampling=sampling,
                response_format=response_format,
                frame_id=frame_id,
            )

        return Answer(self.receive, frame_id, send)

    async def say(
        self,
        text: str,
        *,
        delivery: Delivery.ValueType = Delivery.DELIVERY_UNSPECIFIED,
        sampling: Sampling | None = None,
        response_format: AnswerShape | None = None,
    ) -> Reply:
        """Say something and wait for the whole answer.

        Look at `Reply.finish_reason`: an answer may have ended early. See `send` for the arguments.

        Raises:
            TurnFailedError: The turn did; it has what was said until then.
        """
        answer = self.ask(
            text, delivery=delivery, sampling=sampling, response_format=response_format
        )
        async for _ in answer:
            pass
        return answer.reply

    async def interrupt(
        self,
        *,
        turn_id: str = "",
        displayed_seq: int | None = None,
        displayed_offset: int | None = None,
        keep: Keep.ValueType = Keep.KEEP_UNSPECIFIED,
        tools: ToolDisposition.ValueType = ToolDisposition.TOOL_DISPOSITION_UNSPECIFIED,
    ) -> Receipt:
        """Stop the answer that is being iterated, or the one still to come.

        The receipt is RECEIPT_STATUS_STALE when there was nothing left to stop.

        Args:
            turn_id: Which turn. Default: the one being iterated, else the one that will answer the
                oldest unanswered message (which is withdrawn if it is queued), else the last.
            displayed_seq: The last event the user has seen. Default: the last one iterated.
            displayed_offset: Characters of the turn's text that the user has seen, where events are
                painted in parts; wins over `displayed_seq`.
            keep: What stays in the context. Default: what the user has seen.
            tools: What becomes of open tool calls. Default: as their specs say. With
                TOOL_DISPOSITION_LET_FINISH they go on; the model is told what they find with the
                next answer.

        Raises:
            StatusError: It was refused.
            ClientError: Nothing was ever said that could be stopped.
        """
        target_frame_id = ""
        if not turn_id:
            if not self._turn_runs and self._unanswered:
                target_frame_id = self._unanswered[0]
            elif self._turn_id:
                turn_id = self._turn_id
            else:
                raise ClientError("there is nothing to interrupt: nothing has been said yet")
        interrupt = Interrupt(
            turn_id=turn_id,
            target_frame_id=target_frame_id,
            displayed_seq=self.seq if displayed_seq is None else displayed_seq,
            displayed_offset=displayed_offset,
            keep=keep,
            tools=tools,
        )
        return await self.send_frame(ClientFrame(frame_id=new_id(), interrupt=interrupt))

    def ack(self, displayed_seq: int | None = None, displayed_offset: int | None = None) -> None:
        """Say what the user has seen. Never waits; only the newest counts.

        From the first call on, what is iterated no longer counts as seen by itself in a session
        with a credit window (`Limits.max_unacked_chars`): generation waits for the next call.

        Args:
            displayed_seq: The last event seen. Default: the last one iterated.
            displayed_offset: Characters of that event's turn seen; wins over `displayed_seq`.
        """
        seq = self.seq if displayed_seq is None else displayed_seq
        ack = Ack(displayed_seq=seq, displayed_offset=displayed_offset)
        self._caller_acks = True
        self._stream.outbox.post_position(ClientFrame(ack=ack))

    async def send_frame(self, frame: ClientFrame) -> Receipt:
        """Send any frame but Open and Close, exactly once, and wait for its receipt.

        Raises:
            StatusError: It was refused.
            ValueError: It has no frame_id.
        """
        if self._task is None:
            raise ClosedError("the conversation is not open; use it inside its `async with`")
        if self._task.done():
            raise self._stream.over()
        return await self._stream.outbox.send(frame)

    def _has_window(self) -> bool:
        session = self._stream.session
        return session is not None and session.config.limits.HasField("max_unacked_chars")

    # --- what was seen ------------------------------------------------------------------------

    def _see(self, event: Event) -> None:
        self.seq = event.seq
        kind = event.WhichOneof("kind")
        if kind == "turn_started":
            self._turn_id, self._turn_runs = event.turn_started.turn_id, True
            for frame_id in event.turn_started.frame_ids:
                self._forget(frame_id)
        elif kind == "turn_finished":
            self._turn_runs = False
        elif kind == "input_withdrawn":
            self._forget(event.input_withdrawn.frame_id)

    def _see_snapshot(self, snapshot: Snapshot) -> None:
        self.seq = snapshot.seq
        self.snapshot = snapshot
        if snapshot.turns:
            self._turn_id = snapshot.turns[-1].turn_id
        self._turn_runs = bool(snapshot.session.running_turn_id)
        for turn in snapshot.turns:
            self._forget(turn.frame_id)
        if self._on_snapshot is not None:
            self._on_snapshot(snapshot)

    def _forget(self, frame_id: str) -> None:
        if frame_id in self._unanswered:
            self._unanswered.remove(frame_id)

    async def _stop(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
