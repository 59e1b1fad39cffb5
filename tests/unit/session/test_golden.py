"""Logs that were recorded once are read by every later version, and mean the same.

A failure here means that this version would misread sessions that people have. The code is to be
mended, never the golden file; golden/README.md says what to do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from backchannel.session.checkpoint import READABLE
from backchannel.session.session import Session
from backchannel.session.table import Phase
from backchannel.session.transcript import messages
from backchannel.v1 import event_pb2, frame_pb2
from tests.unit.session.driver import user
from tests.unit.session.golden_files import FOLDER, Golden, fold, recorded, shown

ADVICE = (
    "this version reads a recorded log otherwise than the one that wrote it. Mend the code, not "
    "the recording: see tests/unit/session/golden/README.md"
)
GOLDEN = pytest.mark.parametrize("golden", recorded(), ids=lambda golden: golden.name)

# What no log holds. A server writes `state` only as it is when a session is created.
UNWRITTEN_VALUES = {
    "backchannel.v1.Session.State.STATE_GENERATING",
    "backchannel.v1.Session.State.STATE_WAITING_FOR_TOOLS",
    "backchannel.v1.Session.State.STATE_CLOSED",
}
# Fields of messages that stand in events, but are used elsewhere only.
UNWRITTEN_FIELDS = {
    "backchannel.v1.ToolResult.partial",
    *(
        f"backchannel.v1.Session.{name}"
        for name in ("running_turn_id", "open_tool_calls", "total_usage")
    ),
    *(
        f"backchannel.v1.ToolCall.{name}"
        for name in ("turn_id", "idle_deadline", "deadline", "outcome", "result", "text_offset")
    ),
}


def differences(recorded: Any, found: Any, where: str = "") -> list[str]:
    """Where something is not as recorded; a later version may say more, but nothing else."""
    if isinstance(recorded, dict) and isinstance(found, dict):
        return [
            one
            for key, value in recorded.items()
            for one in differences(value, found.get(key), f"{where}.{key}")
        ]
    if isinstance(recorded, list) and isinstance(found, list) and len(recorded) == len(found):
        return [
            one
            for place, value in enumerate(recorded)
            for one in differences(value, found[place], f"{where}[{place}]")
        ]
    return [] if recorded == found else [f"{where}: {recorded!r} was recorded, found {found!r}"]


@GOLDEN
def test_a_recorded_log_means_what_it_meant(golden: Golden) -> None:
    for file, session in golden.ways():
        meant = json.loads(file.read_text("utf-8"))
        assert not differences(meant, shown(session)), f"{file.name}: {ADVICE}"


def answers(session: Session) -> dict[str, tuple[int, str]]:
    """What frames that come again are answered."""
    book = session.state.frames.applied()
    return {frame_id: (record.seq, record.turn_id) for frame_id, record in book}


@GOLDEN
def test_a_recorded_session_goes_on(golden: Golden) -> None:
    for _, session in golden.ways():
        log = list(golden.events)
        log += session.recover(session.state.update_ns + 1).events
        log += session.readers_changed(1, session.state.update_ns + 2).events
        frame = frame_pb2.ClientFrame(frame_id="a-new-one", message=user("still there?"))
        said = session.accept(frame, session.state.update_ns + 3)
        log += said.events
        assert said.receipt is not None
        if session.state.phase is Phase.CLOSED:
            assert said.receipt.status == frame_pb2.RECEIPT_STATUS_REJECTED
            continue
        assert said.receipt.status == frame_pb2.RECEIPT_STATUS_ACCEPTED
        running = session.state.running
        assert running is not None, "nothing was started for it"
        if not running.waits:
            assert messages(session.state)
        whole = fold(None, log)
        assert answers(whole) == answers(session)
        assert shown(whole)["queued"] == shown(session)["queued"]


def test_a_checkpoint_of_every_version_is_there() -> None:
    heads = [file.read_bytes()[8:].partition(b"\n")[0] for file in FOLDER.glob("*.checkpoint")]
    versions = {json.loads(head)["version"] for head in heads}
    assert versions == set(READABLE), "record one of the new version: scripts/golden.py"


# --- that they hold everything -------------------------------------------------------------------


def held(message: Message) -> Iterator[str]:
    """The fields and enum values that a message has, and all in it."""
    for field, value in message.ListFields():
        yield field.full_name
        several = value if field.is_repeated else [value]
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue
        for one in several:
            if field.message_type is not None:
                yield from held(one)
            elif field.enum_type is not None:
                yield f"{field.enum_type.full_name}.{field.enum_type.values_by_number[one].name}"


def holdable(field: FieldDescriptor, seen: set[str]) -> Iterator[str]:
    """All fields and enum values of ours that may stand in a field."""
    yield field.full_name
    enum: EnumDescriptor | None = field.enum_type
    if enum is not None:
        yield from (f"{enum.full_name}.{value.name}" for value in enum.values if value.number)
    inner = field.message_type
    if inner is None or inner.full_name in seen or inner.file.package != "backchannel.v1":
        return
    if inner.GetOptions().map_entry:
        return
    seen.add(inner.full_name)
    for one in inner.fields:
        yield from holdable(one, seen)


def test_every_kind_field_and_value_is_in_a_golden_history() -> None:
    seen: set[str] = set()
    there_are = {
        name for field in event_pb2.Event.DESCRIPTOR.fields for name in holdable(field, seen)
    }
    assert "backchannel.v1.FinishReason.FINISH_REASON_ERROR" in there_are
    recorded_ones = {
        name for golden in recorded() for event in golden.events for name in held(event)
    }
    left_out = there_are - recorded_ones - UNWRITTEN_VALUES - UNWRITTEN_FIELDS
    assert not left_out, (
        "no recorded log holds these. Let a history in histories.py, under a new name, come to "
        f"them, and record it with scripts/golden.py: {sorted(left_out)}"
    )
    assert not (UNWRITTEN_VALUES | UNWRITTEN_FIELDS) - there_are, "a name that is gone"
