"""The folded state as bytes, so that the log may drop the events before it.

Private to the service and versioned: a reader refuses a version it does not know. Version 1 has
neither the timing of a turn nor the place of a call in its text; version 2 knows no calls that
outlive their turn; version 3 is one object and not lines; version 4 has to be read whole. Made only
while nothing runs and no call is open, so a running turn or an open call is always told by events
that are still there.

The encoding is a CRC-32 in hexadecimal and lines of JSON (see `encoding`): what there is one of;
the configuration; what has to be known of turns and frames without reading them; one line a turn
and one a frame. A turn that is not the last hardly ever changes again, nor does a frame that was
answered. So their lines are kept, and a checkpoint costs what is new since the one before; and when
it is read they stay lines until somebody asks for them, so that a session of many turns opens as
soon as one of few. Nor does reading it block: see `loading`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Final
from zlib import crc32

from backchannel.errors import BackchannelError, Reason
from backchannel.session import turn_record
from backchannel.session.configuration import SECOND_NS
from backchannel.session.encoding import intact, line, pack, unpack
from backchannel.session.receipts import FrameBook, FrameRecord
from backchannel.session.state import Queued, SessionState
from backchannel.session.table import Phase
from backchannel.session.turn_book import TurnBook
from backchannel.v1 import session_pb2

VERSION: Final = 5
READABLE: Final = (1, 2, 3, 4, VERSION)
# Bytes summed up, and turns of an old version read, before others get their turn: about a
# millisecond each.
_CHUNK_BYTES: Final = 1024 * 1024
_SLICE: Final = 50
FRAMES_KEPT_NS: Final = 24 * 3600 * SECOND_NS


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
    turns = state.turns
    record: dict[str, Any] = {
        "version": VERSION,
        "session_id": state.session_id,
        "config_digest": state.config_digest.hex(),
        "last_seq": state.last_seq,
        "create_ns": state.create_ns,
        "update_ns": state.update_ns,
        "content_bytes": state.content_bytes,
        "total_usage": pack(state.total_usage),
        "turns": len(turns),
        "queue": [
            [queued.frame_id, pack(queued.message), queued.seq, queued.time_ns, queued.urgent]
            for queued in state.queue
        ],
    }
    if state.deferred:
        record["deferred"] = [turn_record.dump_deferred(ended) for ended in state.deferred]
    if state.history_dropped:
        record["history_dropped"] = state.history_dropped
    if not state.config_line:
        state.config_line = base64.b64encode(state.config.SerializeToString())
    frame_ids, frames = state.frames.lines(state.update_ns - FRAMES_KEPT_NS)
    index = {
        "calls": dict(turns.calls.places),
        "dropped": sorted(state.dropped),
        "frames": frame_ids,
    }
    made = [line(record), state.config_line, line(index)]
    made += map(turns.line, range(len(turns) - 1))
    # The last turn may still be cut.
    made += map(turn_record.write, turns[-1:])
    return made + frames


def load(data: bytes) -> SessionState:
    """Decode a state.

    Raises:
        BackchannelError: `LOG_CORRUPT`: the bytes are damaged or of another version. What is wrong
            in the line of a turn or a frame is found when somebody asks for it.
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
        BackchannelError: As `load`.
    """
    with intact():
        found, rest = 0, memoryview(data)[8:]
        for begin in range(0, len(rest), _CHUNK_BYTES):
            found = crc32(rest[begin : begin + _CHUNK_BYTES], found)
            yield
        if int(data[:8], 16) != found:
            raise ValueError("the checksum does not fit")
        head, *parts = data[8:].split(b"\n")
        yield
        record = json.loads(head)
        match record["version"]:
            case 5:
                return (yield from _load(record, *parts))
            case 4:
                config, *parts = parts
                count = record["turns"]
                turns = map(json.loads, parts[:count])
                frames = map(json.loads, parts[count:])
                return (yield from _load_whole(record, config, turns, frames))
            case 1 | 2 | 3:
                # It was one object, of which turns and frames were parts.
                config = record["config"].encode()
                turns, frames = iter(record["turns"]), iter(record["frames"])
                return (yield from _load_whole(record, config, turns, frames))
            case version:
                raise BackchannelError(
                    Reason.LOG_CORRUPT,
                    f"a checkpoint of this session has version {ascii(version)[:32]}, "
                    f"this program reads up to {VERSION}; use the program that wrote it",
                )


def _load(
    record: dict[str, Any], config: bytes, index_line: bytes, *parts: bytes
) -> Generator[None, None, SessionState]:
    index = json.loads(index_line)
    count, places, dropped = record["turns"], index["calls"], index["dropped"]
    for place in (*places.values(), *dropped):
        if type(place) is not int or not 0 <= place < count:
            raise ValueError("there is no such turn")
    yield
    state = _load_head(record, config)
    state.turns = TurnBook(parts[:count], places)
    state.dropped = set(dropped)
    yield
    state.frames = FrameBook(dict(zip(index["frames"], parts[count:], strict=True)))
    _begin_after(state)
    return state


def _load_whole(
    record: dict[str, Any],
    config: bytes,
    turns: Iterator[dict[str, Any]],
    frames: Iterator[list[Any]],
) -> Generator[None, None, SessionState]:
    """A state as an older version wrote it, of which nothing can be known without reading all."""
    state = _load_head(record, config)
    for place, one in enumerate(turns):
        state.turns.append(turn_record.load(one))
        if one.get("dropped"):
            state.dropped.add(place)
        if place % _SLICE == _SLICE - 1:
            yield
    for place, (frame_id, digest, *answer) in enumerate(frames):
        state.frames.restore(frame_id, FrameRecord(bytes.fromhex(digest), *answer))
        if place % (10 * _SLICE) == 10 * _SLICE - 1:
            yield
    _begin_after(state)
    return state


def _load_head(record: dict[str, Any], config: bytes) -> SessionState:
    """What there is one of."""
    state = SessionState(
        session_id=record["session_id"],
        config=session_pb2.SessionConfig.FromString(base64.b64decode(config)),
        config_digest=bytes.fromhex(record["config_digest"]),
        phase=Phase.IDLE,
        last_seq=record["last_seq"],
        create_ns=record["create_ns"],
        update_ns=record["update_ns"],
        content_bytes=record["content_bytes"],
        total_usage=unpack(session_pb2.Usage, record["total_usage"]),
        config_line=config,
    )
    for frame_id, message, seq, time_ns, urgent in record["queue"]:
        waiting = unpack(session_pb2.UserMessage, message)
        state.queue.append(Queued(frame_id, waiting, seq, time_ns, bool(urgent)))
    state.deferred = [turn_record.load_deferred(ended) for ended in record.get("deferred", ())]
    state.history_dropped = record.get("history_dropped", 0)
    state.credit_window = state.config.limits.max_unacked_chars
    return state


def _begin_after(state: SessionState) -> None:
    for turn in state.turns[-1:]:
        turn.line = b""  # It may still be cut.
        state.last_turn = turn
