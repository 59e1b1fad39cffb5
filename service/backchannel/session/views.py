"""The state as clients see it: `Session`, `Turn`, `ToolCall`, `Snapshot`."""

from __future__ import annotations

from typing import Final

from google.protobuf.message import Message

from backchannel.session.state import SessionState, stamp_of
from backchannel.session.table import Phase
from backchannel.session.turn import Call, Turn
from backchannel.v1 import event_pb2, frame_pb2, session_pb2

SNAPSHOT_MAX_BYTES: Final = 1024 * 1024
# What `more` takes, and the tag and length before an entry.
_MORE_BYTES: Final = 2
_FIELD_BYTES: Final = 8

_STATES: Final = {
    Phase.NEW: session_pb2.Session.STATE_IDLE,
    Phase.IDLE: session_pb2.Session.STATE_IDLE,
    Phase.GENERATING: session_pb2.Session.STATE_GENERATING,
    Phase.WAITING_FOR_TOOLS: session_pb2.Session.STATE_WAITING_FOR_TOOLS,
    Phase.STOPPING: session_pb2.Session.STATE_GENERATING,
    Phase.CLOSED: session_pb2.Session.STATE_CLOSED,
}


def call_view(call: Call) -> session_pb2.ToolCall:
    """A tool call as it stands."""
    view = session_pb2.ToolCall(
        call_id=call.call_id,
        turn_id=call.turn_id,
        name=call.name,
        arguments_json=call.arguments_json,
        outcome=call.outcome,
        result=call.result,
        text_offset=call.text_offset,
    )
    if call.ready:
        view.idle_deadline.CopyFrom(stamp_of(call.idle_deadline_ns))
        view.deadline.CopyFrom(stamp_of(call.deadline_ns))
    return view


def turn_view(turn: Turn) -> session_pb2.Turn:
    """A turn as it stands."""
    return session_pb2.Turn(
        turn_id=turn.turn_id,
        frame_id=turn.frame_ids[0] if turn.frame_ids else "",
        input=turn.inputs[0] if turn.inputs else None,
        further_inputs=turn.inputs[1:],
        error=turn.error,
        call_ids=[ended.call_id for ended in turn.told],
        text=turn.text,
        reasoning=turn.reasoning,
        kept_chars=turn.context_chars,
        tool_calls=[call_view(call) for call in turn.calls],
        finish_reason=turn.finish_reason,
        usage=turn.usage,
        timing=turn.timing,
    )


def brief_config(config: session_pb2.SessionConfig) -> session_pb2.SessionConfig:
    """A configuration without its history, which may be most of it."""
    brief = session_pb2.SessionConfig()
    for field, value in config.ListFields():
        if field.name == "history":
            continue
        if field.is_repeated or field.message_type is not None:
            getattr(brief, field.name).MergeFrom(value)
        else:
            setattr(brief, field.name, value)
    return brief


def _open_calls(state: SessionState) -> list[Call]:
    """In the order in which the model began to write them."""
    places = sorted({state.calls.places[call_id] for call_id in state.open})
    return [call for place in places for call in state.turns[place].open_calls]


def session_view(
    state: SessionState,
    config: session_pb2.SessionConfig | None,
    *,
    earliest_seq: int,
    expire_after_ns: int,
    engine_at_work: bool,
) -> session_pb2.Session:
    """The session as it stands.

    Args:
        state: The folded state.
        config: How much of the configuration is shown.
        earliest_seq: The oldest event that the log still has.
        expire_after_ns: How long it stays without an event.
        engine_at_work: An engine is being asked, so that the session generates even while some
            calls of the running round are already open.
    """
    running = state.running
    shown = _STATES[state.phase]
    if engine_at_work and state.phase is Phase.WAITING_FOR_TOOLS:
        shown = session_pb2.Session.STATE_GENERATING
    return session_pb2.Session(
        session_id=state.session_id,
        config=config,
        state=shown,
        last_seq=state.last_seq,
        earliest_seq=earliest_seq,
        running_turn_id=running.turn_id if running else "",
        open_tool_calls=[call_view(call) for call in _open_calls(state)],
        total_usage=state.total_usage,
        create_time=stamp_of(state.create_ns),
        update_time=stamp_of(state.update_ns),
        expire_time=stamp_of(state.update_ns + expire_after_ns),
    )


def snapshots(
    state: SessionState, session: session_pb2.Session, *, max_bytes: int = SNAPSHOT_MAX_BYTES
) -> list[frame_pb2.Snapshot]:
    """The whole session in as many frames as it takes, none over `max_bytes` if that can be."""
    frames = [frame_pb2.Snapshot(session=session, seq=state.last_seq)]
    size = frames[0].ByteSize() + _MORE_BYTES

    def room(view: Message) -> frame_pb2.Snapshot:
        """The frame to put this into: the newest, or one more if it is full."""
        nonlocal size
        grown = view.ByteSize() + _FIELD_BYTES
        if size + grown > max_bytes:
            frames[-1].more = True
            frames.append(frame_pb2.Snapshot(seq=state.last_seq))
            size = frames[-1].ByteSize() + _MORE_BYTES
        size += grown
        return frames[-1]

    for turn in state.turns:
        shown = turn_view(turn)
        room(shown).turns.append(shown)
    for queued in state.queue:
        waiting = event_pb2.InputAccepted(frame_id=queued.frame_id, message=queued.message)
        room(waiting).queued.append(waiting)
    return frames
