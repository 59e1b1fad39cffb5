"""What the core answers to an input: events to append, effects to perform, perhaps a receipt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from backchannel.v1 import event_pb2, frame_pb2, session_pb2


@dataclass(frozen=True, slots=True)
class StartEngine:
    """Ask an engine. Its output comes back under `run_id`.

    Attributes:
        run_id: Names this question; outputs under another id are ignored.
        turn_id: The turn it belongs to.
        model: `engine/name`.
        system: The system prompt.
        messages: The transcript, valid for every engine: each tool call has one result.
        tools: What the model may call.
        sampling: With `max_tokens` reduced by what the turn has used.
        options: Engine-specific settings.
        response_format: None for free text.
        continue_text: What the answer begins with, to be gone on from; it is not in `messages`.
    """

    run_id: str
    turn_id: str
    model: str
    system: str
    messages: tuple[session_pb2.Message, ...]
    tools: tuple[session_pb2.ToolSpec, ...]
    sampling: session_pb2.Sampling
    options: Mapping[str, str]
    response_format: session_pb2.ResponseFormat | None = None
    continue_text: str = ""


@dataclass(frozen=True, slots=True)
class StopEngine:
    """Tell the engine to stop, now, before anything else; also a run that still waits its turn."""

    run_id: str


@dataclass(frozen=True, slots=True)
class HoldEngine:
    """Take no more output of a run (`hold`), or go on taking it: its reader is out of credit."""

    run_id: str
    hold: bool


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Call `Session.tick` at this Unix time in nanoseconds; None disarms. There is one timer."""

    at_ns: int | None


Effect = StartEngine | StopEngine | HoldEngine | SetTimer


class Decision(NamedTuple):
    """The outcome of one input. A tuple, which is made several times as fast as a dataclass.

    Attributes:
        events: To be appended as one. The session has applied them already, in memory.
        effects: To be performed at once.
        receipt: To be sent once the events are committed.
    """

    events: tuple[event_pb2.Event, ...] = ()
    effects: tuple[Effect, ...] = ()
    receipt: frame_pb2.Receipt | None = None


NOTHING = Decision()
