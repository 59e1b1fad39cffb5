"""Events without what was said in them."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToJson
from hypothesis import given
from hypothesis import strategies as st

from backchannel.cli.withholding import KEPT, withheld
from backchannel.v1.event_pb2 import Event
from tests.unit.session.driver import Driver, tool

SECRET = "WORDS"


def fill(message: Any, depth: int = 0) -> None:
    """Put the secret wherever a message of the contract has room for words."""
    for field in message.DESCRIPTOR.fields:
        fill_field(message, field, depth)


def fill_field(message: Any, field: FieldDescriptor, depth: int) -> None:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        getattr(message, field.name)[SECRET] = SECRET
    elif kind is not None:
        if depth < 7:
            inner = getattr(message, field.name)
            inner = inner.add() if field.is_repeated else inner
            inner.SetInParent()
            fill(inner, depth + 1)
    elif field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
        if field.name in KEPT:
            return
        word: str | bytes = SECRET if field.type == FieldDescriptor.TYPE_STRING else SECRET.encode()
        if field.is_repeated:
            getattr(message, field.name).append(word)
        else:
            setattr(message, field.name, word)


def members(descriptor: Descriptor) -> list[str]:
    return [field.name for field in descriptor.oneofs_by_name["kind"].fields]


@given(kind=st.sampled_from(members(Event.DESCRIPTOR)))
def test_no_field_of_any_event_lets_words_out(kind: str) -> None:
    event = Event(seq=3)
    inner = getattr(event, kind)
    inner.SetInParent()
    fill(inner)
    event.frame_digest = SECRET.encode()
    before = event.SerializeToString()
    without = withheld(event)
    assert SECRET.encode() not in without.SerializeToString()
    assert event.SerializeToString() == before
    assert (without.seq, without.WhichOneof("kind")) == (3, kind)


def test_enough_is_filled_for_that_to_mean_something() -> None:
    event = Event()
    fill(event.input_accepted)
    fill(event.tool_call_ready)
    assert SECRET in MessageToJson(event)


def test_what_names_and_counts_stays() -> None:
    driver = Driver(tools=[tool("look")])
    driver.say("what is it?")
    driver.admit()
    driver.text("Let", " me")
    driver.call()
    events = [withheld(event) for event in driver.events]
    assert events[0].session_opened.session.config.tools[0].name == "look"
    assert events[1].input_accepted.message.parts[0].WhichOneof("content") == "text"
    assert events[2].turn_started.turn_id == driver.events[2].turn_started.turn_id
    assert sum(event.output_delta.token_count for event in events) == 2
    assert not any(event.output_delta.text for event in events)


def test_how_likely_each_word_was_is_withheld_too() -> None:
    event = Event(seq=1)
    event.output_delta.logprobs.add(token="yes", logprob=-0.1)
    assert not withheld(event).output_delta.logprobs
