"""Exactly-once input: which frames have been applied, and what they were answered.

Frames that caused an event are known from the events alone (`Event.frame_id`, `frame_digest`), so
their receipts are the same after a crash. Frames that caused none (acks, pings, stale stops) are
remembered by their owner, the newest few only; to repeat them is harmless.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from backchannel.session.encoding import intact, line
from backchannel.v1 import event_pb2, session_pb2

# Which event is a frame's own, if it caused several: the one with the highest rank.
_RANK: Final = {
    "session_opened": 9,
    "input_accepted": 9,
    "turn_interrupted": 8,
    "turn_truncated": 7,
    "input_withdrawn": 7,
    "tool_call_finished": 2,
    "tool_call_output": 1,
    "tool_call_progressed": 1,
}
_OWN_RESULT: Final = 10
_QUIET_KEPT: Final = 256


@dataclass(slots=True)
class FrameRecord:
    """What a frame was answered.

    Attributes:
        digest: SHA-256 of its content.
        seq: Its own event; 0 if it caused none.
        turn_id: The turn that its receipt named.
        time_ns: When it was applied.
        rank: Of the event that `seq` names.
        delivery: How a message met the session.
        line: Its part of a checkpoint, once it was made; empty if it was not, or something changed.
    """

    digest: bytes
    seq: int
    turn_id: str
    time_ns: int
    rank: int = 0
    delivery: session_pb2.Delivery.ValueType = session_pb2.DELIVERY_UNSPECIFIED
    line: bytes = field(default=b"", compare=False, repr=False)


def _write(frame: FrameRecord) -> bytes:
    """A frame's part of a checkpoint."""
    return line(
        [
            frame.digest.hex(),
            frame.seq,
            frame.turn_id,
            frame.time_ns,
            frame.rank,
            frame.delivery,
        ]
    )


def _read(line: bytes) -> FrameRecord:
    with intact():
        digest, seq, turn_id, time_ns, rank, delivery = json.loads(line)
        return FrameRecord(bytes.fromhex(digest), seq, turn_id, time_ns, rank, delivery, line)


class FrameBook:
    """The frames of one session by their ids. Those that a checkpoint tells are lines until asked.

    Any of them may raise `LOG_CORRUPT` when it is first asked for.

    Args:
        lines: Those frames, oldest first.
    """

    __slots__ = ("_applied", "_quiet")

    def __init__(self, lines: Mapping[str, bytes] | None = None) -> None:
        self._applied: dict[str, FrameRecord | bytes] = dict(lines or {})
        self._quiet: OrderedDict[str, FrameRecord] = OrderedDict()

    def _known(self, frame_id: str) -> FrameRecord | None:
        record = self._applied.get(frame_id)
        if isinstance(record, bytes):
            record = self._applied[frame_id] = _read(record)
        return record

    def find(self, frame_id: str) -> FrameRecord | None:
        """The record of a frame that was applied."""
        return self._known(frame_id) or self._quiet.get(frame_id)

    def record(
        self,
        event: event_pb2.Event,
        kind: str,
        turn_id: str,
        delivery: session_pb2.Delivery.ValueType,
    ) -> None:
        """An event that a frame caused was applied."""
        rank = _RANK.get(kind, 0)
        if kind == "tool_call_finished" and event.tool_call_finished.HasField("result"):
            rank = _OWN_RESULT  # It is the frame's own, whatever turn it also stops.
        known = self._known(event.frame_id)
        if known is None:
            now_ns = event.time.seconds * 1_000_000_000 + event.time.nanos
            self._applied[event.frame_id] = FrameRecord(
                event.frame_digest,
                event.seq,
                turn_id,
                now_ns,
                rank,
                delivery if kind == "input_accepted" else session_pb2.DELIVERY_UNSPECIFIED,
            )
            return
        known.line = b""
        if known.delivery and delivery:
            known.delivery = delivery  # A message that stops a turn is logged before the stop.
        if kind == "turn_started":
            # A message whose turn starts at once: its receipt names that turn.
            known.turn_id = turn_id
        if rank > known.rank:
            known.seq, known.rank, known.turn_id = event.seq, rank, turn_id

    def note_quiet(self, frame_id: str, digest: bytes, turn_id: str, now_ns: int) -> None:
        """A frame was taken that caused no event."""
        self._quiet[frame_id] = FrameRecord(digest, 0, turn_id, now_ns)
        if len(self._quiet) > _QUIET_KEPT:
            self._quiet.popitem(last=False)

    def restore(self, frame_id: str, record: FrameRecord) -> None:
        """Put back a record from a checkpoint."""
        self._applied[frame_id] = record

    def applied(self) -> Iterator[tuple[str, FrameRecord]]:
        """All frames that caused an event, oldest first."""
        for frame_id in list(self._applied):
            record = self._known(frame_id)
            if record is not None:
                yield frame_id, record

    def lines(self, since_ns: int) -> tuple[list[str], list[bytes]]:
        """The parts of a checkpoint of frames that were applied since then, and their ids."""
        ids, records = list(self._applied), list(self._applied.values())
        first = bisect_left(
            records,
            since_ns,
            key=lambda record: (_read(record) if isinstance(record, bytes) else record).time_ns,
        )
        made = []
        for record in records[first:]:
            if isinstance(record, bytes):
                made.append(record)
                continue
            if not record.line:
                record.line = _write(record)
            made.append(record.line)
        return ids[first:], made
