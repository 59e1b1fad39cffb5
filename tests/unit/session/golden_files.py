"""Recorded logs and checkpoints: how they are kept, read and shown.

A log is the bytes of one `ServerFrame` with all its events, a checkpoint is what the log keeps of
one, and beside each is what it means, as JSON for people.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from backchannel.session.framing import framed
from backchannel.session.session import Session
from backchannel.session.transcript import past
from backchannel.v1 import event_pb2, frame_pb2, session_pb2

FOLDER = Path(__file__).parent / "golden"
# The details of an error can be written as JSON only when their types have been loaded.
_LOADED = error_details_pb2.DESCRIPTOR


def fold(checkpoint: bytes | None, events: Sequence[event_pb2.Event]) -> Session:
    """A session as it was recorded."""
    numbers = itertools.count(1)
    return Session.fold(checkpoint, events, ids=lambda prefix: f"new-{prefix}-{next(numbers)}")


@dataclass(frozen=True)
class Golden:
    """One recorded history."""

    name: str

    @property
    def log_file(self) -> Path:
        return FOLDER / f"{self.name}.log"

    @property
    def checkpoint_file(self) -> Path:
        return FOLDER / f"{self.name}.checkpoint"

    @property
    def events(self) -> Sequence[event_pb2.Event]:
        return frame_pb2.ServerFrame.FromString(self.log_file.read_bytes()).events

    def ways(self) -> Iterator[tuple[Path, Session]]:
        """Each way to come to the session, and the file that says what comes out."""
        events = self.events
        meant = FOLDER / f"{self.name}.json"
        yield meant, fold(None, events)
        if self.checkpoint_file.exists():
            checkpoint = self.checkpoint_file.read_bytes()
            seq = fold(checkpoint, ()).state.last_seq
            # What a checkpoint of an old version does not know has a file of its own.
            less = FOLDER / f"{self.name}.checkpoint.json"
            yield less if less.exists() else meant, fold(checkpoint, events[seq:])

    def record(self, log: Sequence[bytes]) -> None:
        """Keep a log, the last checkpoint of its first two thirds, and what they mean.

        The latter as this program understands it, for somebody to read.
        """
        self.log_file.write_bytes(b"".join(map(framed, log)))
        events = [event_pb2.Event.FromString(raw) for raw in log]
        for end in range(2 * len(events) // 3, 2, -1):
            session = fold(None, events[:end])
            if session.quiescent:
                self.checkpoint_file.write_bytes(session.checkpoint())
                break
        for file, session in self.ways():
            said = json.dumps(shown(session), ensure_ascii=False, indent=1)
            file.write_text(said + "\n", encoding="utf-8")


def recorded() -> list[Golden]:
    """All of them."""
    return [Golden(file.stem) for file in sorted(FOLDER.glob("*.log"))]


def shown(session: Session) -> dict[str, Any]:
    """A session as people read it, with everything that clients and engines are told."""
    whole = frame_pb2.Snapshot()
    for part in session.snapshots():
        whole.MergeFrom(part)
    return {
        "session": _plain(whole.session),
        "turns": [_plain(turn) for turn in whole.turns],
        "queued": [_plain(one) for one in whole.queued],
        "transcript": [_line(message) for message in past(session.state)],
        "frames": {
            frame_id: [
                record.seq,
                record.turn_id,
                session_pb2.Delivery.Name(record.delivery),
                record.digest.hex(),
            ]
            for frame_id, record in session.state.frames.applied()
        },
    }


def _plain(message: Message) -> dict[str, Any]:
    return MessageToDict(message, always_print_fields_with_no_presence=True)


def _line(message: session_pb2.Message) -> str:
    """Who said what; calls as `name(arguments)`."""
    said = "".join(part.text for part in message.parts)
    said += "".join(
        f" {one.name}({one.arguments_json})#{one.call_id}" for one in message.tool_calls
    )
    role = session_pb2.Role.Name(message.role).removeprefix("ROLE_").lower()
    return f"{role}{'#' * bool(message.call_id)}{message.call_id}: {said}"
