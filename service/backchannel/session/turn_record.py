"""A turn as a line of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from google.rpc.status_pb2 import Status

from backchannel.session.encoding import intact, line, pack, unpack
from backchannel.session.turn import Call, Deferred, Mark, Pace, Round, Turn
from backchannel.v1 import event_pb2, session_pb2


def write(turn: Turn) -> bytes:
    """A turn without an open call as a line."""
    return line(
        {
            # Most turns have none of these.
            **({"told": [dump_deferred(ended) for ended in turn.told]} if turn.told else {}),
            **({"error": pack(turn.error)} if turn.error is not None else {}),
            "turn_id": turn.turn_id,
            "frame_ids": turn.frame_ids,
            "inputs": [pack(message) for message in turn.inputs],
            "model": turn.model,
            "times": [turn.accepted_ns, turn.started_ns, turn.started_seq, turn.ended_seq],
            "text": turn.text,
            "reasoning": turn.reasoning,
            "marks": [
                [mark.seq, mark.channel, mark.end, mark.tokens, mark.call_id] for mark in turn.marks
            ],
            "calls": [_dump_call(call) for call in turn.calls],
            "rounds": [[one.text_end, one.reasoning_end, one.calls_end] for one in turn.rounds],
            "delivered_tokens": turn.delivered_tokens,
            "kept": [turn.kept_chars, turn.kept_reasoning_chars],
            "finish_reason": turn.finish_reason,
            "usage": pack(turn.usage),
            "timing": pack(turn.timing),
        }
    )


def read(line: bytes) -> Turn:
    """A turn of its line, which it keeps.

    Raises:
        BackchannelError: `LOG_CORRUPT`.
    """
    with intact():
        turn = load(json.loads(line))
    turn.line = line
    return turn


def load(record: dict[str, Any]) -> Turn:
    """A turn as any version wrote it."""
    accepted_ns, started_ns, started_seq, ended_seq = record["times"]
    kept_chars, kept_reasoning_chars = record["kept"]
    usage, timing = record["usage"], record.get("timing")
    rounds = [Round(*one) for one in record["rounds"]]
    calls = [_load_call(record["turn_id"], call) for call in _placed(record, rounds)]
    return Turn(
        turn_id=record["turn_id"],
        frame_ids=record["frame_ids"],
        inputs=[unpack(session_pb2.UserMessage, message) for message in record["inputs"]],
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
        told=[load_deferred(ended) for ended in record.get("told", ())],
        error=unpack(Status, record["error"]) if "error" in record else None,
        calls=calls,
        rounds=rounds,
        delivered_tokens=record["delivered_tokens"],
        pace=Pace(),
        kept_chars=kept_chars,
        kept_reasoning_chars=kept_reasoning_chars,
        finish_reason=record["finish_reason"],
        usage=unpack(session_pb2.Usage, usage) if usage is not None else None,
        timing=unpack(session_pb2.Timing, timing) if timing is not None else None,
    )


def dump_deferred(ended: Deferred) -> list[Any]:
    """The end of a call that is told later, as part of a record."""
    return [ended.call_id, ended.outcome, pack(ended.result), ended.by_itself, ended.time_ns]


def load_deferred(record: list[Any]) -> Deferred:
    """The same back again."""
    call_id, outcome, result, by_itself, time_ns = record
    return Deferred(
        call_id,
        outcome,
        unpack(session_pb2.ToolResult, result) if result is not None else None,
        by_itself,
        time_ns,
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


def _dump_call(call: Call) -> list[Any]:
    return [
        call.call_id,
        call.name,
        call.text_offset,
        call.ready,
        call.arguments_json,
        call.idle_deadline_ns,
        call.deadline_ns,
        call.outcome,
        pack(call.result),
        call.late_results,
        call.awaited,
        call.told_later,
    ]


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
        result=unpack(session_pb2.ToolResult, result) if result is not None else None,
        late_results=late,
        awaited=awaited,
        told_later=told_later,
    )
