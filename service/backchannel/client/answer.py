"""One answer: piece by piece while it comes, and whole when it has ended."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self, TypeVar

import pydantic

from backchannel.client.errors import (
    ClientError,
    ClosedError,
    MessageWithdrawnError,
    TurnFailedError,
    status_error,
)
from backchannel.v1.event_pb2 import Channel, Event, TurnFinished, TurnInterrupted, TurnStarted
from backchannel.v1.frame_pb2 import Receipt, Snapshot
from backchannel.v1.session_pb2 import (
    Delivery,
    FinishReason,
    Timing,
    ToolOutcome,
    Turn,
    Usage,
)

Shape = TypeVar("Shape")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that has ended, by its TurnFinished.

    Attributes:
        turn_id: Which turn.
        text: All TEXT that was sent, cut or not.
        reasoning: All REASONING that was sent.
        finish_reason: Why it ended. Only FINISH_REASON_STOP says that the model was done.
        usage: What it cost.
        timing: Where the time went.
        kept_chars: How much of `text` stays in the context of the conversation.
        frame_ids: The messages that it answers: several, if they steered together; none, if it
            began by itself to tell what tools had found.
        call_ids: The calls of earlier turns whose results the model was told with it.
        delivery: How the message met the session. DELIVERY_QUEUE for one that was to steer or
            interrupt and came too late. DELIVERY_UNSPECIFIED if it was not said by this answer.
        tools: After a stop: what it did to each call of the turn, with its side effect.
        recoveries: How often the server process was lost in the middle of it, and another one
            went on.
    """

    turn_id: str
    text: str
    reasoning: str
    finish_reason: FinishReason.ValueType
    usage: Usage
    timing: Timing
    kept_chars: int
    frame_ids: tuple[str, ...] = ()
    call_ids: tuple[str, ...] = ()
    delivery: Delivery.ValueType = Delivery.DELIVERY_UNSPECIFIED
    tools: tuple[ToolOutcome, ...] = ()
    recoveries: int = 0

    @property
    def complete(self) -> bool:
        """Whether the model said all it had to say."""
        return self.finish_reason == FinishReason.FINISH_REASON_STOP

    def parse(self, shape: type[Shape]) -> Shape:
        """The answer, read as JSON: for the type that was given as its `response_format`.

        Args:
            shape: A pydantic model, or whatever else pydantic can read; `dict` for no check.

        Raises:
            ClientError: It is not complete, so it is no whole JSON either.
            pydantic.ValidationError: It has another shape.
        """
        if not self.complete:
            ended = FinishReason.Name(self.finish_reason)
            raise ClientError(f"the answer is not whole ({ended}), so it can't be read as JSON")
        return pydantic.TypeAdapter(shape).validate_json(self.text)


class Answer:
    """An answer: iterate it for the pieces of its text.

    To one message (`Conversation.ask`, `Conversation.answer`), or one that the session began by
    itself (`Conversation.turns`). Iterating ends when the turn has. It raises `TurnFailedError` if
    the turn did, and `MessageWithdrawnError` if the message was taken back; a lost connection it
    outlives. Events of other turns that lie before are passed over.

    Args:
        receive: The next event or snapshot, None after the last.
        frame_id: The message. Empty: none; `begin` says which turn.
        send: Sends it; called once, by the first step. None: it has been sent.
    """

    def __init__(
        self,
        receive: Callable[[], Awaitable[Event | Snapshot | None]],
        frame_id: str = "",
        send: Callable[[], Awaitable[Receipt]] | None = None,
    ) -> None:
        self.frame_id = frame_id
        self._send = send
        self._receive = receive
        self._receipt: Receipt | None = None
        self._started = TurnStarted()
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._interrupted = TurnInterrupted()
        self._recoveries = 0
        self._reply: Reply | None = None
        # What is said of it at once, when it was met in its middle.
        self._ahead = ""

    @property
    def turn_id(self) -> str:
        """Its turn; empty until that has begun."""
        return self._started.turn_id

    @property
    def frame_ids(self) -> tuple[str, ...]:
        """The messages that it answers, once it has begun; none if it began by itself."""
        return tuple(self._started.frame_ids)

    @property
    def call_ids(self) -> tuple[str, ...]:
        """The calls of earlier turns whose results the model is told with it."""
        return tuple(self._started.call_ids)

    @property
    def receipt(self) -> Receipt | None:
        """Of the message, once it was sent by iterating. Its `delivery` says how it was taken."""
        return self._receipt

    @property
    def reply(self) -> Reply:
        """The whole answer, once it has ended.

        Raises:
            ClientError: It has not: what was iterated so far is a part, not an answer.
        """
        if self._reply is None:
            raise ClientError("the answer has not ended yet; iterate it to its end first")
        return self._reply

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        if self._send is not None:
            send, self._send = self._send, None
            self._receipt = await send()
        if self._ahead:
            ahead, self._ahead = self._ahead, ""
            return ahead
        while self._reply is None:
            item = await self._receive()
            if item is None:
                raise ClosedError("the session was closed before the answer had ended")
            piece = self._adopt(item) if isinstance(item, Snapshot) else self._take(item)
            if piece:
                return piece
        raise StopAsyncIteration

    def begin(self, started: TurnStarted) -> None:
        """It is this turn, whatever began it."""
        self._started = started

    def begin_amid(self, turn: Turn) -> None:
        """It is this turn, which has begun long ago."""
        self._ahead = self._catch_up(turn)

    async def finish(self) -> None:
        """Pass over what is left of it. A turn that fails is no error here."""
        with contextlib.suppress(TurnFailedError):
            async for _ in self:
                pass

    def _take(self, event: Event) -> str:
        kind = event.WhichOneof("kind")
        turn_id = self.turn_id
        if kind == "turn_started":
            if self.frame_id and self.frame_id in event.turn_started.frame_ids:
                self.begin(event.turn_started)
        elif kind == "input_withdrawn":
            if event.input_withdrawn.frame_id == self.frame_id:
                raise MessageWithdrawnError("the message was taken back before it was answered")
        elif kind == "output_delta":
            delta = event.output_delta
            if turn_id and delta.turn_id == turn_id:
                if delta.channel == Channel.CHANNEL_TEXT:
                    self._text.append(delta.text)
                    return delta.text
                self._reasoning.append(delta.text)
        elif kind == "turn_interrupted":
            if event.turn_interrupted.turn_id == turn_id:
                self._interrupted = event.turn_interrupted
        elif kind == "turn_recovered":
            self._recoveries += event.turn_recovered.turn_id == turn_id
        elif kind == "turn_finished" and event.turn_finished.turn_id == turn_id:
            self._finish(event.turn_finished)
        return ""

    def _adopt(self, snapshot: Snapshot) -> str:
        """Go on from a snapshot, which stands in for events that are no longer kept."""
        for turn in snapshot.turns:
            if turn.turn_id == self.turn_id or (self.frame_id and turn.frame_id == self.frame_id):
                return self._catch_up(turn)
        if self.turn_id or all(waiting.frame_id != self.frame_id for waiting in snapshot.queued):
            raise ClientError("the answer is no longer kept by the server")
        return ""

    def _catch_up(self, turn: Turn) -> str:
        if turn.turn_id != self.turn_id:
            frame_ids = [turn.frame_id] if turn.frame_id else []
            self._started = TurnStarted(
                turn_id=turn.turn_id, frame_ids=frame_ids, call_ids=turn.call_ids
            )
        had = len("".join(self._text))
        piece = turn.text[had:]
        self._text, self._reasoning = [turn.text], [turn.reasoning]
        if turn.finish_reason != FinishReason.FINISH_REASON_UNSPECIFIED:
            if turn.finish_reason == FinishReason.FINISH_REASON_INTERRUPTED:
                self._interrupted.turn_id = turn.turn_id
                self._interrupted.kept_chars = turn.kept_chars
            self._finish(
                TurnFinished(
                    turn_id=turn.turn_id,
                    finish_reason=turn.finish_reason,
                    usage=turn.usage,
                    timing=turn.timing,
                )
            )
        return piece

    def _finish(self, finished: TurnFinished) -> None:
        text = "".join(self._text)
        reply = Reply(
            turn_id=finished.turn_id,
            text=text,
            reasoning="".join(self._reasoning),
            finish_reason=finished.finish_reason,
            usage=finished.usage,
            timing=finished.timing,
            kept_chars=self._interrupted.kept_chars if self._interrupted.turn_id else len(text),
            frame_ids=self.frame_ids,
            call_ids=self.call_ids,
            delivery=(
                Delivery.DELIVERY_UNSPECIFIED if self._receipt is None else self._receipt.delivery
            ),
            tools=tuple(self._interrupted.tools),
            recoveries=self._recoveries,
        )
        self._reply = reply
        if finished.finish_reason in (
            FinishReason.FINISH_REASON_ERROR,
            FinishReason.FINISH_REASON_OWNER_LOST,
        ):
            why = status_error(finished.error)
            said = str(why) if finished.HasField("error") else "the turn failed"
            raise TurnFailedError(said, reply) from why
