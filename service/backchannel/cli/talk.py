"""One chat: show what happens in a session, until what was said is answered.

Everything shown comes from the session's events, so an answer resumed after a lost connection, or
in another process, looks as if nothing had happened, apart from the note that it was.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from backchannel.cli.figures import turn_line
from backchannel.cli.markdown import View
from backchannel.cli.screen import Screen, short
from backchannel.client import (
    Channel,
    ClientError,
    ClosedError,
    ConnectionChange,
    Conversation,
    Delivery,
    Event,
    FinishReason,
    Lost,
    Receipt,
    ReceiptStatus,
    Scheduling,
    Snapshot,
    ToolCallOutcome,
)
from backchannel.client.errors import status_error
from backchannel.client.outbox import new_id
from backchannel.v1.event_pb2 import ToolCallFinished, TurnFinished
from backchannel.v1.session_pb2 import Part, ToolResult, Turn, UserMessage

# How often the screen changes at most while text streams: as often as one can see.
_PAINT_INTERVAL_S: Final = 0.05

_OUTCOMES: Final = {
    ToolCallOutcome.TOOL_CALL_OUTCOME_TIMED_OUT: "timed out",
    ToolCallOutcome.TOOL_CALL_OUTCOME_CANCELLED: "cancelled; it may have run",
    ToolCallOutcome.TOOL_CALL_OUTCOME_UNKNOWN: "lost with the server; it may have run",
}

# When the model is told a result that its answer did not wait for.
_TOLD: Final = {
    Scheduling.SCHEDULING_WHEN_IDLE: "the model is told next",
    Scheduling.SCHEDULING_INTERRUPT: "the model is told at once",
    Scheduling.SCHEDULING_SILENT: "the model is told with your next message",
}


@dataclass(frozen=True, slots=True)
class Said:
    """A message that was said here, and the seq of its event."""

    text: str
    seq: int


class Talk:
    """A conversation on a screen.

    Args:
        screen: Where.
        figures: Whether each turn ends with a line about what it cost.
        only_mine: Show the answers to what is said here, and nothing else that happens.
    """

    def __init__(self, screen: Screen, *, figures: bool, only_mine: bool) -> None:
        self._screen = screen
        self._figures = figures
        self._only_mine = only_mine
        self._view: View | None = None
        self._paint_timer: asyncio.TimerHandle | None = None
        self._seq = 0
        # Of the running turn, in views that have ended: a tool call parts a text in two.
        self._shown_before = 0
        self._calls: dict[str, str] = {}
        self._reasons = False
        # While a stop is on its way nothing more is shown: what is on the screen is what stays.
        self._stop: asyncio.Task[Receipt] | None = None
        self._held: list[str] = []
        # The same while a message that stops it is.
        self._redirected = False
        # Of getting a lost connection back.
        self._attempts = 0
        self._mine: set[str] = set()
        # What waits for its turn, and was not shown where it is answered.
        self._queued: dict[str, str] = {}
        # The messages whose answers are being waited for.
        self._awaited: set[str] = set()
        # Cleared while somebody types: what comes meanwhile is shown afterwards.
        self._going = asyncio.Event()
        self._going.set()
        self.last: Said | None = None

    def attach(self, conversation: Conversation) -> None:
        """Say which conversation it is."""
        self._conversation = conversation

    def connection(self, change: ConnectionChange) -> None:
        """Show what happens to the connection."""
        if isinstance(change, Lost):
            self._attempts += 1
            if self._attempts == 1:
                why = short(str(change.error))
                self._screen.note(f"connection lost ({why}); resuming…", "yellow")
            elif self._attempts == 2:
                self._screen.note("the server does not answer; trying until it does", "yellow")
            return
        self._attempts = 0
        if change.resumed:
            self._screen.note(
                f"resumed at event {change.after_seq + 1}; nothing was lost", "yellow"
            )

    # --- talking ------------------------------------------------------------------------------

    async def ask(self, text: str) -> TurnFinished | None:
        """Say something and show the answer.

        Returns:
            How it ended; None if it was taken back before it began.

        Raises:
            ClientError: It can't be said, or the conversation can't be gone on with.
        """
        receipt = await self._conversation.send(text)
        self.last = Said(text, receipt.seq)
        self._mine.add(receipt.frame_id)
        try:
            return await self.follow({receipt.frame_id})
        finally:
            self._mine.discard(receipt.frame_id)

    async def interject(self, text: str, delivery: Delivery.ValueType) -> None:
        """Say something while an answer is being shown; its own answer is shown after it.

        Raises:
            ClientError: It can't be said.
        """
        frame_id = new_id()
        # Before it is sent: the answer that is being shown may end first.
        self._awaited.add(frame_id)
        self._mine.add(frame_id)
        self._queued[frame_id] = text
        message = UserMessage(parts=[Part(text=text)], delivery=delivery)
        if delivery == Delivery.DELIVERY_INTERRUPT:
            message.displayed_seq, message.displayed_offset = self._seq, self._shown_before
            self._redirected = True
        try:
            receipt = await self._conversation.send(message, frame_id=frame_id)
        except ClientError:
            self._redirected = False
            self._awaited.discard(frame_id)
            self._queued.pop(frame_id, None)
            raise
        self._redirected = receipt.delivery == Delivery.DELIVERY_INTERRUPT
        self.last = Said(text, receipt.seq)
        if receipt.delivery != delivery:
            self._screen.note("the answer has ended already; this is said after it", "yellow")

    def pause(self) -> None:
        """Show nothing more for now: somebody types."""
        self._end_view()
        self._going.clear()

    def resume(self) -> None:
        """Show what came meanwhile, and go on."""
        self._going.set()

    def stop(self) -> bool:
        """Stop the answer that is being shown, and keep what was shown. False if already asked."""
        if self._stop is not None:
            return False
        self._cancel_timer()
        shown = self._paint_now()
        self._stop = asyncio.ensure_future(
            self._conversation.interrupt(displayed_seq=self._seq, displayed_offset=shown)
        )
        if self._attempts:
            self._screen.note("the stop goes out once the server is back; Ctrl-C leaves", "yellow")
        return True

    def transcript(self, snapshot: Snapshot) -> None:
        """Show what was said so far."""
        for turn in snapshot.turns:
            self._show_turn(turn)
        self._end_view()
        for queued in snapshot.queued:
            self._screen.said(text_of(queued.message))

    async def show(self, snapshot: Snapshot) -> TurnFinished | None:
        """Show what was said so far, and go on with an answer that is under way."""
        for turn in snapshot.turns:
            self._show_turn(turn)
        turn_id = snapshot.session.running_turn_id
        self._queued = {one.frame_id: text_of(one.message) for one in snapshot.queued}
        waiting = set(self._queued)
        self._seq = snapshot.seq
        if not turn_id and not waiting:
            return None
        return await self.follow(waiting, turn_id)

    async def follow(self, frame_ids: set[str], turn_id: str = "") -> TurnFinished | None:
        """Show what happens until these messages, and this turn, have their answers."""
        waiting = {turn_id} if turn_id else set()
        self._mine |= frame_ids
        self._awaited = frame_ids
        last: TurnFinished | None = None
        try:
            async for event in self._conversation.events():
                await self._going.wait()
                self._seq = event.seq
                if event.HasField("turn_started"):
                    answered = frame_ids.intersection(event.turn_started.frame_ids)
                    frame_ids -= answered
                    if answered:
                        waiting.add(event.turn_started.turn_id)
                if waiting or not self._only_mine:
                    await self._show(event)
                if event.HasField("input_withdrawn"):
                    frame_ids.discard(event.input_withdrawn.frame_id)
                elif event.HasField("turn_finished"):
                    if event.turn_finished.turn_id in waiting:
                        last = event.turn_finished
                    waiting.discard(event.turn_finished.turn_id)
                if not waiting and not frame_ids:
                    return last
            raise ClosedError("the session is over: it was deleted, or has expired")
        finally:
            self._end_view()
            await self._forget_stop()

    # --- showing ------------------------------------------------------------------------------

    async def _show(self, event: Event) -> None:
        match event.WhichOneof("kind"):
            case "input_accepted":
                if event.input_accepted.frame_id not in self._mine:
                    self._end_view()
                    self._screen.said(text_of(event.input_accepted.message))
            case "turn_started":
                self._shown_before = 0
                for frame_id in event.turn_started.frame_ids:
                    if frame_id in self._queued:
                        self._screen.said(self._queued.pop(frame_id))
                if event.turn_started.call_ids and not event.turn_started.frame_ids:
                    self._screen.note("the model is told what a tool has found", "magenta")
            case "output_delta":
                delta = event.output_delta
                self._text(delta.text, reasoning=delta.channel == Channel.CHANNEL_REASONING)
            case "tool_call_started":
                started = event.tool_call_started
                self._call(started.call_id, started.name)
            case "tool_call_delta":
                if self._stop is None:
                    self._screen.piece(event.tool_call_delta.arguments_fragment)
            case "tool_call_ready":
                self._screen.end_line()
            case "tool_call_progressed":
                progress = event.tool_call_progressed
                done = f"{progress.fraction:.0%} " if progress.HasField("fraction") else ""
                name = self._calls.get(progress.call_id, "")
                self._screen.note(f"  {name}: {done}{short(progress.note)}")
            case "tool_call_output":
                output = event.tool_call_output
                name = self._calls.get(output.call_id, "a tool")
                text = output.json or "".join(part.text for part in output.content.parts)
                self._end_view()
                self._screen.note(f"  {name}: … {short(text)}")
            case "tool_call_finished":
                self._call_over(event.tool_call_finished)
            case "turn_interrupted":
                stopped = event.turn_interrupted
                self._note_cut(stopped.kept_chars, stopped.dropped_chars)
            case "turn_truncated":
                self._note_cut(event.turn_truncated.kept_chars, event.turn_truncated.dropped_chars)
            case "turn_finished":
                await self._end_turn(event.turn_finished)
            case "turn_recovered":
                self._end_view()
                self._screen.note("the server was restarted; the answer goes on", "yellow")
            case "input_withdrawn":
                self._screen.note("taken back before it was answered")
            case "context_trimmed":
                dropped = event.context_trimmed.dropped_turns
                self._screen.note(f"the oldest {dropped} turns no longer fit and were left out")

    def _text(self, text: str, *, reasoning: bool) -> None:
        if reasoning:
            if self._stop is None:
                if not self._reasons:
                    self._end_view()
                self._reasons = True
                self._screen.piece(text, "dim italic")
            return
        if self._reasons:
            self._reasons = False
            self._screen.end_line()
        if self._stop is not None or self._redirected:
            self._held.append(text)
            return
        if self._view is None:
            self._screen.end_line()
            self._view = self._screen.view()
        self._view.add(text)
        if self._paint_timer is None:
            loop = asyncio.get_running_loop()
            self._paint_timer = loop.call_later(_PAINT_INTERVAL_S, self._paint)

    def _paint(self) -> None:
        self._paint_timer = None
        if self._view is not None and self._stop is None:
            self._conversation.ack(self._seq, self._paint_now())

    def _paint_now(self) -> int:
        """How many characters of the turn's text are on the screen now."""
        return self._shown_before + (self._view.paint() if self._view is not None else 0)

    def _end_view(self) -> None:
        self._cancel_timer()
        if self._view is not None:
            self._shown_before = self._paint_now()
            self._view.end()
            self._view = None
        self._screen.end_line()

    def _cancel_timer(self) -> None:
        if self._paint_timer is not None:
            self._paint_timer.cancel()
            self._paint_timer = None

    def _call(self, call_id: str, name: str) -> None:
        self._end_view()
        self._calls[call_id] = name
        self._screen.piece(f"  {name} ", "bold magenta")

    def _call_over(self, finished: ToolCallFinished) -> None:
        self._end_view()
        name = self._calls.pop(finished.call_id, "a tool")
        if finished.late:
            self._screen.note(f"  {name} has answered too late: {_result(finished.result)}")
        elif finished.result.HasField("error"):
            self._screen.note(f"  {name} failed: {_result(finished.result)}", "red")
        elif finished.outcome in _OUTCOMES:
            self._screen.note(f"  {name} {_OUTCOMES[finished.outcome]}", "red")
        elif finished.scheduling:
            self._screen.note(
                f"  {name} → {_result(finished.result)} ({_TOLD[finished.scheduling]})"
            )
        else:
            self._screen.note(f"  → {_result(finished.result)}")

    async def _end_turn(self, finished: TurnFinished) -> None:
        receipt = await self._stop_receipt()
        took = receipt is not None and receipt.status != ReceiptStatus.RECEIPT_STATUS_STALE
        self._stop = None
        redirected, self._redirected = self._redirected, False
        held, self._held = self._held, []
        if not took and not redirected and held:
            # All of it stays in the conversation: then all of it is to be seen.
            self._text("".join(held), reasoning=False)
        self._end_view()
        if receipt is not None and took and finished.finish_reason in _UNSTOPPED:
            await self._truncated(receipt.seq)
        elif receipt is not None and not took:
            self._screen.note("the answer had already ended", "yellow")
        if finished.HasField("error"):
            self._screen.note(short(str(status_error(finished.error))), "red")
        if self._figures:
            self._screen.note(turn_line(finished, all_shown=not took and not redirected))

    async def _stop_receipt(self) -> Receipt | None:
        """What became of a stop; None if there was none, or it was refused."""
        if self._stop is None:
            return None
        try:
            return await self._stop
        except ClientError as error:
            self._screen.note(f"it could not be stopped: {error}", "red")
            return None

    async def _forget_stop(self) -> None:
        stop, self._stop = self._stop, None
        self._held.clear()
        if stop is not None:
            stop.cancel()
            await asyncio.wait([stop])

    async def _truncated(self, seq: int) -> None:
        """The stop came after the end, but what was not shown was cut off all the same."""
        async for event in self._conversation.events():
            self._seq = event.seq
            await self._show(event)
            if event.seq >= seq:
                return

    def _note_cut(self, kept_chars: int, dropped_chars: int) -> None:
        self._end_view()
        if kept_chars:
            what = "what you see above is what stays in the conversation"
        else:
            what = "nothing of the answer stays in the conversation"
        dropped = f"; {dropped_chars} characters more were dropped" if dropped_chars else ""
        self._screen.note(f"{what}{dropped}", "yellow")

    def _show_turn(self, turn: Turn) -> None:
        for message in (*((turn.input,) if turn.HasField("input") else ()), *turn.further_inputs):
            self._screen.said(text_of(message))
        for call in turn.tool_calls:
            self._screen.piece(f"  {call.name} ", "bold magenta")
            self._screen.piece(short(call.arguments_json))
            self._screen.end_line()
            if call.outcome in _OUTCOMES:
                self._screen.note(f"  {call.name} {_OUTCOMES[call.outcome]}", "red")
            elif call.HasField("result"):
                self._screen.note(f"  → {_result(call.result)}")
            else:
                self._calls[call.call_id] = call.name
        running = turn.finish_reason == FinishReason.FINISH_REASON_UNSPECIFIED
        self._shown_before = 0
        self._text(turn.text if running else turn.text[: turn.kept_chars], reasoning=False)
        if running:
            return
        self._end_view()
        if turn.finish_reason == FinishReason.FINISH_REASON_INTERRUPTED:
            self._screen.note("(stopped here)", "yellow")
        elif turn.finish_reason != FinishReason.FINISH_REASON_STOP:
            name = FinishReason.Name(turn.finish_reason).removeprefix("FINISH_REASON_")
            self._screen.note(f"({name.lower().replace('_', ' ')})", "yellow")
        self._screen.gap()


# Endings that a stop did not cause.
_UNSTOPPED: Final = frozenset(
    {
        FinishReason.FINISH_REASON_STOP,
        FinishReason.FINISH_REASON_LENGTH,
        FinishReason.FINISH_REASON_TOOL_CALLS,
    }
)


def text_of(message: UserMessage) -> str:
    """The text of a message."""
    return "".join(part.text for part in message.parts)


def _result(result: ToolResult) -> str:
    match result.WhichOneof("outcome"):
        case "json":
            return short(result.json)
        case "content":
            return short("".join(part.text for part in result.content.parts))
        case "error":
            return short(result.error.message)
        case _:
            return "no result"
