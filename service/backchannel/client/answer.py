"""One answer: piece by piece while it comes, and whole when it has ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self

from backchannel.client.errors import (
    ClientError,
    ClosedError,
    MessageWithdrawnError,
    TurnFailedError,
    status_error,
)
from backchannel.v1.event_pb2 import Channel, Event, TurnFinished
from backchannel.v1.frame_pb2 import Snapshot
from backchannel.v1.session_pb2 import FinishReason, Timing, Turn, Usage


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that has ended, by its TurnFinished.

    Attributes:
        turn_id: Which turn.
        text: All TEXT that was sent, cut or not.
        reasoning: All REASONING that was sent.
        finish_reason: Why it ended. Only FINISH_REASON_STOP says that the model was done.
        usage: What it cost.
        timing: Where the time went. Empty if the end was learned from a Snapshot.
        kept_chars: How much of `text` stays in the context of the conversation.
    """

    turn_id: str
    text: str
    reasoning: str
    finish_reason: FinishReason.ValueType
    usage: Usage
    timing: Timing
    kept_chars: int

    @property
    def complete(self) -> bool:
        """Whether the model said all it had to say."""
        return self.finish_reason == FinishReason.FINISH_REASON_STOP


class Answer:
    """The answer to one message: iterate it for the pieces of its text.

    Iterating ends when the turn has. It raises `TurnFailedError` if the turn did, and
    `MessageWithdrawnError` if the message was taken back; a lost connection it outlives. Events of
    other turns that lie before are passed over.

    Args:
        frame_id: The message.
        send: Sends it; called once, by the first step.
        receive: The next event or snapshot, None after the last.
    """

    def __init__(
        self,
        frame_id: str,
        send: Callable[[], Awaitable[object]],
        receive: Callable[[], Awaitable[Event | Snapshot | None]],
    ) -> None:
        self.frame_id = frame_id
        self._send: Callable[[], Awaitable[object]] | None = send
        self._receive = receive
        self._turn_id = ""
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._kept_chars: int | None = None
        self._reply: Reply | None = None

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
            await send()
        while self._reply is None:
            item = await self._receive()
            if item is None:
                raise ClosedError("the session was closed before the answer had ended")
            piece = self._adopt(item) if isinstance(item, Snapshot) else self._take(item)
            if piece:
                return piece
        raise StopAsyncIteration

    def _take(self, event: Event) -> str:
        kind = event.WhichOneof("kind")
        if kind == "turn_started":
            if self.frame_id in event.turn_started.frame_ids:
                self._turn_id = event.turn_started.turn_id
        elif kind == "input_withdrawn":
            if event.input_withdrawn.frame_id == self.frame_id:
                raise MessageWithdrawnError("the message was taken back before it was answered")
        elif kind == "output_delta":
            delta = event.output_delta
            if self._turn_id and delta.turn_id == self._turn_id:
                if delta.channel == Channel.CHANNEL_TEXT:
                    self._text.append(delta.text)
                    return delta.text
                self._reasoning.append(delta.text)
        elif kind == "turn_interrupted":
            if event.turn_interrupted.turn_id == self._turn_id:
                self._kept_chars = event.turn_interrupted.kept_chars
        elif kind == "turn_finished" and event.turn_finished.turn_id == self._turn_id:
            self._finish(event.turn_finished)
        return ""

    def _adopt(self, snapshot: Snapshot) -> str:
        """Go on from a snapshot, which stands in for events that are no longer kept."""
        for turn in snapshot.turns:
            if turn.turn_id == self._turn_id or turn.frame_id == self.frame_id:
                return self._catch_up(turn)
        if self._turn_id or all(waiting.frame_id != self.frame_id for waiting in snapshot.queued):
            raise ClientError("the answer is no longer kept by the server")
        return ""

    def _catch_up(self, turn: Turn) -> str:
        self._turn_id = turn.turn_id
        had = len("".join(self._text))
        piece = turn.text[had:]
        self._text, self._reasoning = [turn.text], [turn.reasoning]
        if turn.finish_reason != FinishReason.FINISH_REASON_UNSPECIFIED:
            self._kept_chars = turn.kept_chars
            self._finish(
                TurnFinished(
                    turn_id=turn.turn_id, finish_reason=turn.finish_reason, usage=turn.usage
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
            kept_chars=len(text) if self._kept_chars is None else self._kept_chars,
        )
        self._reply = reply
        if finished.finish_reason in (
            FinishReason.FINISH_REASON_ERROR,
            FinishReason.FINISH_REASON_OWNER_LOST,
        ):
            why = status_error(finished.error)
            said = str(why) if finished.HasField("error") else "the turn failed"
            raise TurnFailedError(said, reply) from why
