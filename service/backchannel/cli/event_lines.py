"""What happens in a session, as lines for people.

Most events are a line. Deltas that follow one another closely become one: a line for each token
would not be read.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from google.protobuf.timestamp_pb2 import Timestamp

from backchannel.cli.figures import ENDINGS, seconds, span
from backchannel.cli.markdown import clean
from backchannel.cli.screen import short
from backchannel.client.errors import status_error
from backchannel.v1.event_pb2 import Channel, Event, ToolCallReady, TurnFinished
from backchannel.v1.session_pb2 import (
    Delivery,
    FinishReason,
    Part,
    SessionConfig,
    ToolCallOutcome,
    ToolOutcome,
    ToolResult,
    UserMessage,
)

# Deltas become one line as long as they are no further apart from the first, and no longer.
JOIN_NS: Final = 1_000_000_000
JOIN_CHARS: Final = 160
# A session has few calls at a time; names of more are forgotten, the oldest first.
_MOST_CALLS: Final = 1024

_WHITE: Final = str.maketrans("\r\n\t", "   ")
_DELIVERIES: Final = {
    Delivery.DELIVERY_INTERRUPT: "interrupts",
    Delivery.DELIVERY_STEER: "steers",
}


@dataclass(frozen=True, slots=True)
class Line:
    """What is told at once.

    Attributes:
        time_ns: When it happened (when it began, of several events), by the server's clock.
        first_seq: Of the first event in it.
        last_seq: Of the last one.
        what: What happened, in a word or two.
        text: The particulars.
        style: How it is painted.
    """

    time_ns: int
    first_seq: int
    last_seq: int
    what: str
    text: str
    style: str

    @property
    def seqs(self) -> str:
        """`17`, or `17-42`."""
        if self.first_seq == self.last_seq:
            return str(self.first_seq)
        return f"{self.first_seq}-{self.last_seq}"


@dataclass(slots=True)
class _Piece:
    """Deltas of one voice, laid end to end."""

    key: tuple[str, str]
    time_ns: int
    first_seq: int
    last_seq: int
    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class _Call:
    name: str
    ready_ns: int


class EventLines:
    """Turns events into lines, in their order.

    Args:
        text: Whether what was said is told, too; else only how much it was.
        join: Whether deltas that follow one another closely become one line.
        whole: Whether long messages and results are told in full.
    """

    def __init__(self, *, text: bool = True, join: bool = True, whole: bool = False) -> None:
        self._text = text
        self._join = join
        self._whole = whole
        self._piece: _Piece | None = None
        self._calls: OrderedDict[str, _Call] = OrderedDict()

    @property
    def pending(self) -> bool:
        """Whether there are deltas that no line has told yet."""
        return self._piece is not None

    def feed(self, event: Event) -> list[Line]:
        """The lines that can be told now that this has happened."""
        match event.WhichOneof("kind"):
            case "output_delta":
                delta = event.output_delta
                reasons = delta.channel == Channel.CHANNEL_REASONING
                key = ("thinks" if reasons else "says", delta.turn_id)
                return self._extend(event, key, delta.text, delta.token_count)
            case "tool_call_delta":
                part = event.tool_call_delta
                key = ("writes", part.call_id)
                return self._extend(event, key, part.arguments_fragment, part.token_count)
        what, text, style = self._told(event)
        now = event.time.ToNanoseconds()
        return [*self.flush(), Line(now, event.seq, event.seq, what, text, style)]

    def flush(self) -> list[Line]:
        """Tell the deltas that wait for more to come."""
        piece, self._piece = self._piece, None
        if piece is None:
            return []
        what, style = piece.key[0], "dim" if piece.key[0] != "says" else ""
        text = f"{self._words(piece.text)} · {_count(piece.tokens, 'token')}"
        return [Line(piece.time_ns, piece.first_seq, piece.last_seq, what, text, style)]

    def _extend(self, event: Event, key: tuple[str, str], text: str, tokens: int) -> list[Line]:
        now, piece, lines = event.time.ToNanoseconds(), self._piece, []
        if piece is not None and (
            not self._join
            or piece.key != key
            or now - piece.time_ns > JOIN_NS
            or len(piece.text) >= JOIN_CHARS
            or piece.text.endswith("\n")
        ):
            lines, piece = self.flush(), None
        if piece is None:
            self._piece = _Piece(key, now, event.seq, event.seq, text, tokens)
        else:
            piece.last_seq = event.seq
            piece.text += text
            piece.tokens += tokens
        if not self._join:
            lines += self.flush()
        return lines

    # --- each kind ---------------------------------------------------------------------------

    def _told(self, event: Event) -> tuple[str, str, str]:
        """What happened, the particulars, and how they are painted."""
        kind = event.WhichOneof("kind") or ""
        tell = self._TELL.get(kind)
        if tell is None:
            return "unknown", "an event of a kind that this version does not know", "yellow"
        return tell(self, event)

    def _opened(self, event: Event) -> tuple[str, str, str]:
        config: SessionConfig = event.session_opened.session.config
        parts = [config.model or "the server's default model"]
        if config.system:
            parts.append(f"system {self._words(config.system)}")
        if config.tools:
            parts.append("tools " + ", ".join(tool.name for tool in config.tools))
        if config.history:
            parts.append(f"goes on from {_count(len(config.history), 'message')}")
        return "opened", clean(" · ".join(parts)), "bold"

    def _message(self, event: Event) -> tuple[str, str, str]:
        message: UserMessage = event.input_accepted.message
        parts = [self._parts(message.parts)]
        if message.delivery in _DELIVERIES:
            parts.append(_DELIVERIES[message.delivery])
        return "message", " · ".join(parts), "bold cyan"

    def _withdrawn(self, event: Event) -> tuple[str, str, str]:
        return "withdrawn", clean(event.input_withdrawn.frame_id), "yellow"

    def _turn(self, event: Event) -> tuple[str, str, str]:
        started = event.turn_started
        parts = [started.model]
        if len(started.frame_ids) > 1:
            parts.append(f"answers {len(started.frame_ids)} messages")
        if started.call_ids:
            parts.append(f"hears of {_count(len(started.call_ids), 'result')}")
        return "turn", clean(" · ".join(parts)), "bold"

    def _call_started(self, event: Event) -> tuple[str, str, str]:
        started = event.tool_call_started
        self._know(started.call_id, started.name, 0)
        return "calls", clean(started.name), "magenta"

    def _call_ready(self, event: Event) -> tuple[str, str, str]:
        ready: ToolCallReady = event.tool_call_ready
        self._know(ready.call_id, ready.name, event.time.ToNanoseconds())
        parts = [f"{clean(ready.name)} {self._json(ready.arguments_json)}"]
        if ready.HasField("idle_deadline"):
            parts.append(f"times out in {_left(event.time, ready.idle_deadline)}")
        return "tool", " · ".join(parts), "bold magenta"

    def _call_progressed(self, event: Event) -> tuple[str, str, str]:
        progress = event.tool_call_progressed
        parts = [self._name(progress.call_id)]
        if progress.HasField("fraction"):
            parts.append(f"{progress.fraction:.0%}")
        if progress.note:
            parts.append(self._words(progress.note))
        return "progress", " · ".join(parts), "magenta"

    def _call_output(self, event: Event) -> tuple[str, str, str]:
        output = event.tool_call_output
        if output.WhichOneof("part") == "content":
            said = self._parts(output.content.parts)
        else:
            said = self._json(output.json)
        return "part", f"{self._name(output.call_id)} · {said}", "magenta"

    def _call_cancelled(self, event: Event) -> tuple[str, str, str]:
        cancelled = event.tool_call_cancelled
        reason = _lower(cancelled.reason, "")
        return "cancelled", f"{self._name(cancelled.call_id)} · {reason}", "yellow"

    def _call_finished(self, event: Event) -> tuple[str, str, str]:
        finished = event.tool_call_finished
        outcome = _lower(ToolCallOutcome.Name(finished.outcome), "TOOL_CALL_OUTCOME_")
        call = self._calls.get(finished.call_id)
        parts = [f"{self._name(finished.call_id)} {outcome}"]
        if finished.late:
            parts[0] = f"{self._name(finished.call_id)} late, {outcome}"
        elif call is not None and call.ready_ns:
            waited_ns = event.time.ToNanoseconds() - call.ready_ns
            parts[0] += f" after {span(waited_ns / 1e9)}"
        if finished.HasField("result"):
            parts.append(self._result(finished.result))
        good = finished.outcome == ToolCallOutcome.TOOL_CALL_OUTCOME_COMPLETED
        return "result", " · ".join(parts), "magenta" if good else "red"

    def _interrupted(self, event: Event) -> tuple[str, str, str]:
        stopped = event.turn_interrupted
        parts = [_cut(stopped.kept_chars, stopped.dropped_chars)]
        for tool in stopped.tools:
            state = _lower(ToolOutcome.State.Name(tool.state), "STATE_")
            parts.append(f"{clean(tool.name)} {state}")
        return "stopped", " · ".join(parts), "yellow"

    def _truncated(self, event: Event) -> tuple[str, str, str]:
        cut = event.turn_truncated
        return "cut back", _cut(cut.kept_chars, cut.dropped_chars), "yellow"

    def _recovered(self, event: Event) -> tuple[str, str, str]:
        reason = _lower(event.turn_recovered.reason, "")
        return "goes on", f"after the process that ran it was lost ({reason})", "yellow"

    def _trimmed(self, event: Event) -> tuple[str, str, str]:
        trimmed = event.context_trimmed
        text = f"{_count(trimmed.dropped_turns, 'turn')} no longer fit and were left out"
        return "forgets", text, "yellow"

    def _finished(self, event: Event) -> tuple[str, str, str]:
        finished: TurnFinished = event.turn_finished
        good = finished.finish_reason == FinishReason.FINISH_REASON_STOP
        parts = [_ending(finished)]
        if finished.HasField("error"):
            error = status_error(finished.error)
            said = clean(short(str(error))) if self._text else ""
            parts.append(": ".join(filter(None, (error.reason, said))))
        parts += _figures(finished)
        bad = finished.finish_reason in _BAD
        return "finished", " · ".join(parts), "green" if good else "red" if bad else "yellow"

    def _closed(self, event: Event) -> tuple[str, str, str]:
        return "closed", _lower(event.session_closed.reason, ""), "bold"

    _TELL: ClassVar[Mapping[str, Callable[[EventLines, Event], tuple[str, str, str]]]] = {
        "session_opened": _opened,
        "input_accepted": _message,
        "input_withdrawn": _withdrawn,
        "turn_started": _turn,
        "tool_call_started": _call_started,
        "tool_call_ready": _call_ready,
        "tool_call_progressed": _call_progressed,
        "tool_call_output": _call_output,
        "tool_call_cancelled": _call_cancelled,
        "tool_call_finished": _call_finished,
        "turn_interrupted": _interrupted,
        "turn_truncated": _truncated,
        "turn_recovered": _recovered,
        "context_trimmed": _trimmed,
        "turn_finished": _finished,
        "session_closed": _closed,
    }

    # --- words -------------------------------------------------------------------------------

    def _words(self, text: str) -> str:
        """In quotes, as JSON has them, so that a line stays one."""
        if not self._text:
            return _count(len(text), "character")
        return clean(json.dumps(text if self._whole else _clipped(text), ensure_ascii=False))

    def _json(self, text: str) -> str:
        """JSON as it came, on one line."""
        if not self._text:
            return _count(len(text), "character")
        # In JSON a line that ends, and a tab, are only white space.
        return clean(text.translate(_WHITE) if self._whole else short(text))

    def _parts(self, parts: Sequence[Part]) -> str:
        return self._words("".join(part.text for part in parts))

    def _result(self, result: ToolResult) -> str:
        match result.WhichOneof("outcome"):
            case "json":
                return self._json(result.json)
            case "content":
                return self._parts(result.content.parts)
            case "error":
                code = clean(result.error.code) if self._text else ""
                return " ".join(filter(None, ("error", code, self._words(result.error.message))))
            case _:
                return "no result"

    def _know(self, call_id: str, name: str, ready_ns: int) -> None:
        self._calls[call_id] = _Call(name, ready_ns)
        if len(self._calls) > _MOST_CALLS:
            self._calls.popitem(last=False)

    def _name(self, call_id: str) -> str:
        call = self._calls.get(call_id)
        return clean(call.name if call is not None else call_id)


_BAD: Final = frozenset({FinishReason.FINISH_REASON_ERROR, FinishReason.FINISH_REASON_OWNER_LOST})


def _ending(finished: TurnFinished) -> str:
    if finished.finish_reason == FinishReason.FINISH_REASON_STOP:
        return "stop"
    return ENDINGS.get(finished.finish_reason, "ended")


def _figures(finished: TurnFinished) -> list[str]:
    usage, timing, parts = finished.usage, finished.timing, []
    about = "about " if usage.estimated else ""
    fates = (
        (usage.delivered_tokens, "delivered"),
        (usage.displayed_tokens, "displayed"),
        (usage.kept_tokens, "kept"),
        (usage.wasted_tokens, "wasted"),
    )
    told = ", ".join(f"{count:,} {fate}" for count, fate in fates if count)
    count = f"{about}{_count(usage.generated_tokens, 'token')}"
    parts.append(f"{count}: {told}" if told else count)
    if timing.HasField("queued"):
        parts.append(f"queued {span(seconds(timing.queued))}")
    if timing.HasField("time_to_first_token"):
        parts.append(f"first token {span(seconds(timing.time_to_first_token))}")
    if timing.HasField("max_gap"):
        parts.append(f"longest gap {span(seconds(timing.max_gap))}")
    if timing.HasField("total"):
        parts.append(f"in all {span(seconds(timing.total))}")
    if finished.model:
        parts.append(clean(finished.model))
    return parts


def _cut(kept: int, dropped: int) -> str:
    return f"kept {_count(kept, 'character')}, dropped {dropped:,}"


def _clipped(text: str) -> str:
    """Long enough for a delta, and for the gist of a message."""
    return text if len(text) <= JOIN_CHARS * 3 else f"{text[: JOIN_CHARS * 3]}…"


def _left(now: Timestamp, then: Timestamp) -> str:
    return span(max(then.ToNanoseconds() - now.ToNanoseconds(), 0) / 1e9)


def _lower(name: str, prefix: str) -> str:
    return clean(name.removeprefix(prefix).lower().replace("_", " "))


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
