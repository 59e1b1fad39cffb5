"""An event without what was said in it: who did what and when, how much, and nobody's words.

What may stay is listed, not what has to go: a field that is added to the contract is withheld until
somebody has thought about it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from google.protobuf.descriptor import FieldDescriptor

from backchannel.v1.event_pb2 import Event

if TYPE_CHECKING:
    from google.protobuf.message import Message

# Strings that name things. A model's or a tool's name is its operator's word, not its user's.
KEPT: Final = frozenset(
    {
        "call_id",
        "call_ids",
        "frame_id",
        "frame_ids",
        "model",
        "name",
        "reason",
        "running_turn_id",
        "session_id",
        "turn_id",
    }
)
# Numbers that tell the words: how likely each was.
_TELLING: Final = frozenset({"logprobs"})


def withheld(event: Event) -> Event:
    """A copy of an event without what people, models and tools said.

    A choice between kinds of content stays visible: a text becomes an empty text.
    """
    copy = Event()
    copy.CopyFrom(event)
    _withhold(copy)
    return copy


def _withhold(message: Message) -> None:
    for field, value in message.ListFields():
        if field.name in _TELLING:
            message.ClearField(field.name)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            kind = field.message_type
            if (
                kind is None
                or kind.GetOptions().map_entry
                or kind.full_name == "google.protobuf.Any"
            ):
                message.ClearField(field.name)
            else:
                for inner in value if field.is_repeated else (value,):
                    _withhold(inner)
        elif _is_text(field) and field.name not in KEPT:
            message.ClearField(field.name)
            if field.containing_oneof is not None:
                setattr(message, field.name, "")


def _is_text(field: FieldDescriptor) -> bool:
    return field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
