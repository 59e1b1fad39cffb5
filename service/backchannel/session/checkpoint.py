"""The folded state as bytes, so that the log may drop the events before it.

Private to the service and versioned: a reader refuses a version it does not know. Version 1 has
neither the timing of a turn nor the place of a call in its text; version 2 knows no calls that
outlive their turn; version 3 is one object and not lines. Made only while nothing runs and no call
is open, so a running turn or an open call is always told by events that are still there.

The encoding is a CRC-32 in hexadecimal and lines of JSON, with protobuf messages as base64 of their
bytes: what there is one of, the configuration, one line a turn and one a frame. A turn that is not
the last hardly ever changes again, nor does a frame that was answered, so their lines are kept and
a checkpoint costs what is new since the one before. Nor does reading it block: see `loading`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Final, TypeVar
from zlib import crc32

from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status

from backchannel.errors import BackchannelError, Reason
from backchannel.session.configuration import SECOND_NS
from backchannel.session.receipts import FrameRecord
from backchannel.session.state import Queued, SessionState
from backchannel.session.table import Phase
from backchannel.session.turn import Call, Deferred, Mark, Pace, Round, Turn
from backchannel.v1 import event_pb2, session_pb2

VERSION: Final = 4
READABLE: Final = (1, 2, 3, VERSION)
# Lines read before others get their turn: about a millisecond.
_SLICE: Final = 50
FRAMES_KEPT_NS: Final = 24 * 3600 * SECOND_NS

_M = TypeVar("_M", bound=Message)


def _pack(message: Message | None) -> str | None:
    if message is None:
        return None
    return base64.b64encode(message.SerializeToString()).decode()


def _unpack(kind: type[_M], text: str) -> _M:
    message = kind()
    message.ParseFromString(base64.b64decode(text))
    return message


def dump(state: SessionState) -> bytes:
    """Encode a state.

    Raises:
        ValueError: A turn runs, or a call is open.
    """
    return packed(lines(state))


def packed(parts: Sequence[bytes]) -> bytes:
    """A checkpoint of its lines. Touches nothing else, so that a large one may be made anywhere."""
    body = b"\n".join(parts)
    return b"%08x" % crc32(body) + body


def lines(state: SessionState) -> list[bytes]:
    """A checkpoint's lines.

    Raises:
        ValueError: A turn runs, or a call is open.
    """
    if state.phase is not Phase.IDLE or state.open:
        raise ValueError(f"no checkpoint while {state.phase.value}, {len(state.open)} calls open")
    oldest_ns = state.update_ns - FRAMES_KEPT_NS
    record: dict[str, Any] = {
        "version": VERSION,
        "session_id": state.session_id,
        "config_digest": state.config_digest.hex(),
        "last_seq": state.last_seq,
        "create_ns": state.create_ns,
        "update_ns": state.update_ns,
        "content_bytes": state.content_bytes,
        "total_usage": _pack(state.total_usage),
        "turns": len(state.turns),
        "queue": [
            [queued.frame_id, _pack(queued.message), queued.seq, queued.time_ns, queued.urgent]
            for queued in state.queue
        ],
    }
    if state.deferred:
        record["deferred"] = [_dump_deferred(ended) for ended in state.deferred]
    if state.history_dropped:
        record["history_dropped"] = state.history_dropped
    if not state.config_line:
        state.config_line = base64.b64encode(state.config.SerializeToString())
    made = [_line(record), state.config_line]
    for turn in state.turns[:-1]:
        if not turn.line:
            turn.line = _line(_dump_turn(turn))
        made.append(turn.line)
    # The last turn may still be cut.
    made += [_line(_dump_turn(turn)) for turn in state.turns[-1:]]
    for frame_id, frame in state.frames.applied():
        if frame.time_ns < oldest_ns:
            continue
        if not frame.line:
            frame.line = _line(
                [
                    frame_id,
                    frame.digest.hex(),
                    frame.seq,
                    frame.turn_id,
                    frame.time_ns,
                    frame.rank,
                    frame.delivery,
                ]
            )
        made.append(frame.line)
    return made


def _line(record: Any) -> bytes:
    # JSON has no line breaks in it but those that are asked for.
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()


def _dump_deferred(ended: Deferred) -> list[Any]:
    return [ended.call_id, ended.outcome, _pack(ended.result), ended.by_itself, ended.time_ns]


def _load_deferred(record: list[Any]) -> Deferred:
    call_id, outcome, result, by_itself, time_ns = record
    return Deferred(
        call_id,
        outcome,
        _unpack(session_pb2.ToolResult, result) if result is not None else None,
        by_itself,
        time_ns,
    )


def _dump_turn(turn: Turn) -> dict[str, Any]:
    return {
        # Most turns have none of these.
        **({"told": [_dump_deferred(ended) for ended in turn.told]} if turn.told else {}),
        **({"dropped": True} if turn.dropped else {}),
        **({"error": _pack(turn.error)} if turn.error is not None else {}),
        "turn_id": turn.turn_id,
        "frame_ids": turn.frame_ids,
        "inputs": [_pack(message) for message in turn.inputs],
        "model": turn.model,
        "times": [turn.accepted_ns, turn.started_ns, turn.started_seq, turn.ended_seq],
        "text": turn.text,
        "reasoning": turn.reasoning,
        "marks": [
            [mark.seq, mark.channel, mark.end, mark.tokens, mark.call_id] for mark in turn.marks
        ],
        "calls": [
            [
                call.call_id,
                call.name,
                call.text_offset,
                call.ready,
                call.arguments_json,
                call.idle_deadline_ns,
                call.deadline_ns,
                call.outcome,
                _pack(call.result),
                call.late_results,
                call.awaited,
                call.told_later,
            ]
            for call in turn.calls
        ],
        "rounds": [[one.text_end, one.reasoning_end, one.calls_end] for one in turn.rounds],
        "delivered_tokens": turn.delivered_tokens,
        "kept": [turn.kept_chars, turn.kept_reasoning_chars],
        "finish_reason": turn.finish_reason,
        "usage": _pack(turn.usage),
        "timing": _pack(turn.timing),
    }


def load(data: bytes) -> SessionState:
    """Decode a state.

    Raises:
        BackchannelError: `LOG_CORRUPT`: the bytes are damaged or of another version.
    """
    steps = loading(data)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            state: SessionState = end.value
            return state


def loading(data: bytes) -> Generator[None, None, SessionState]:
    """Decode a state in small steps, so that others get their turn in between.

    Raises:
        BackchannelError: `LOG_CORRUPT`: the bytes are damaged or of another version.
    """
    try:
        body = data[8:]
        if int(data[:8], 16) != crc32(body):
            raise ValueError("the checksum does not fit")
        head, *rest = body.split(b"\n")
        record = json.loads(head)
        if record["version"] not in READABLE:
            raise BackchannelError(
                Reason.LOG_CORRUPT,
                f"a checkpoint of this session has version {ascii(record['version'])[:32]}, "
                f"this program reads up to {VERSION}; use the program that wrote it",
            )
        if record["version"] < 4:
            # It was one object, of which turns and frames were parts.
            config, turns = record["config"].encode(), [(turn, b"") for turn in record["turns"]]
            frames = [(frame, b"") for frame in record["frames"]]
            yield
            return (yield from _load(record, config, iter(turns), iter(frames)))
        count = record["turns"]
        turns_read = ((json.loads(line), line) for line in rest[1 : 1 + count])
        frames_read = ((json.loads(line), line) for line in rest[1 + count :])
        return (yield from _load(record, rest[0], turns_read, frames_read))
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        # What is no number, not there, of another kind, or too large; JSON and base64 among them.
        raise _damaged() from error
    except (DecodeError, RecursionError) as error:
        raise _damaged() from error


def _damaged() -> BackchannelError:
    return BackchannelError(Reason.LOG_CORRUPT, "a checkpoint of this session is damaged")


def _load(
    record: dict[str, Any],
    config: bytes,
    turns: Iterator[tuple[dict[str, Any], bytes]],
    frames: Iterator[tuple[list[Any], bytes]],
) -> Generator[None, None, SessionState]:
    state = SessionState(
        session_id=record["session_id"],
        config=session_pb2.SessionConfig.FromString(base64.b64decode(config)),
        config_digest=bytes.fromhex(record["config_digest"]),
        phase=Phase.IDLE,
        last_seq=record["last_seq"],
        create_ns=record["create_ns"],
        update_ns=record["update_ns"],
        content_bytes=record["content_bytes"],
        total_usage=_unpack(session_pb2.Usage, record["total_usage"]),
        config_line=config,
    )
    for place, (one, line) in enumerate(turns):
        turn = _load_turn(one)
        turn.line = line
        state.turns.append(turn)
        if place % _SLICE == _SLICE - 1:
            yield
    for turn in state.turns[-1:]:
        turn.line = b""  # It may still be cut.
    state.calls = {call.call_id: call for turn in state.turns for call in turn.calls}
    for frame_id, message, seq, time_ns, urgent in record["queue"]:
        state.queue.append(
            Queued(frame_id, _unpack(session_pb2.UserMessage, message), seq, time_ns, bool(urgent))
        )
    for place, ((frame_id, digest, *answer), line) in enumerate(frames):
        frame = FrameRecord(bytes.fromhex(digest), *answer)
        frame.line = line
        state.frames.restore(frame_id, frame)
        if place % (10 * _SLICE) == 10 * _SLICE - 1:
            yield
    state.deferred = [_load_deferred(ended) for ended in record.get("deferred", ())]
    state.history_dropped = record.get("history_dropped", 0)
    state.credit_window = state.config.limits.max_unacked_chars
    return state


def _load_turn(record: dict[str, Any]) -> Turn:
    accepted_ns, started_ns, started_seq, ended_seq = record["times"]
    kept_chars, kept_reasoning_chars = record["kept"]
    usage, timing = record["usage"], record.get("timing")
    rounds = [Round(*one) for one in record["rounds"]]
    calls = [_load_call(record["turn_id"], call) for call in _placed(record, rounds)]
    return Turn(
        turn_id=record["turn_id"],
        frame_ids=record["frame_ids"],
        inputs=[_unpack(session_pb2.UserMessage, message) for message in record["inputs"]],
        model=record["model"],
        accepted_ns=accepted_ns,
        started_ns=started_ns,
        started_seq=started_seq,
        ended_seq=ended_seq,
        text_parts=[record["text"]],
        text_chars=len(record["text"]),
        reasoning_parts=[record["reasoning"]],
        reasoning_chars=len(record["reasoning"]),
        marks=[
            Mark(seq, event_pb2.Channel.ValueType(channel), end, tokens, call_id)
            for seq, channel, end, tokens, call_id in record["marks"]
        ],
        told=[_load_deferred(ended) for ended in record.get("told", ())],
        dropped=record.get("dropped", False),
        error=_unpack(Status, record["error"]) if "error" in record else None,
        calls=calls,
        rounds=rounds,
        delivered_tokens=record["delivered_tokens"],
        pace=Pace(),
        kept_chars=kept_chars,
        kept_reasoning_chars=kept_reasoning_chars,
        finish_reason=record["finish_reason"],
        usage=_unpack(session_pb2.Usage, usage) if usage is not None else None,
        timing=_unpack(session_pb2.Timing, timing) if timing is not None else None,
    )


def _placed(record: dict[str, Any], rounds: list[Round]) -> Iterator[list[Any]]:
    """The calls of a turn, in version 1 put where a model writes them: after their round's text."""
    for place, call in enumerate(record["calls"]):
        if "timing" in record:
            yield call
            continue
        ends = (one.text_end for one in rounds if place < one.calls_end)
        call_id, name, *rest = call
        yield [call_id, name, next(ends, len(record["text"])), *rest]


def _load_call(turn_id: str, record: list[Any]) -> Call:
    call_id, name, text_offset, ready, arguments, *rest = record
    idle_ns, deadline_ns, outcome, result, late, *since_3 = rest
    awaited, told_later = since_3 or (True, False)
    return Call(
        call_id=call_id,
        turn_id=turn_id,
        name=name,
        text_offset=text_offset,
        ready=ready,
        arguments=[arguments],
        idle_deadline_ns=idle_ns,
        deadline_ns=deadline_ns,
        outcome=outcome,
        result=_unpack(session_pb2.ToolResult, result) if result is not None else None,
        late_results=late,
        awaited=awaited,
        told_later=told_later,
    )
