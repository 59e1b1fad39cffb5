"""What is said, as spans tell it: in the conventions' form, bounded, and JSON all the same."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backchannel.engines.protocol import (
    REASONING,
    StopCause,
    TextChunk,
    ToolCallEnd,
    ToolCallFragment,
    ToolCallStart,
)
from backchannel.telemetry import content
from backchannel.telemetry.content import CUT, MAX_BYTES, Answer
from backchannel.v1 import session_pb2

USER, ASSISTANT, TOOL = (
    session_pb2.ROLE_USER,
    session_pb2.ROLE_ASSISTANT,
    session_pb2.ROLE_TOOL,
)


def message(role: session_pb2.Role.ValueType, text: str, **more: Any) -> session_pb2.Message:
    return session_pb2.Message(role=role, parts=[session_pb2.Part(text=text)], **more)


def texts(told: str) -> list[str]:
    return [part["content"] for one in json.loads(told) for part in one["parts"]]


def test_a_conversation_is_told_by_its_newest_messages() -> None:
    messages = [message(USER, f"{number} " + "x" * 20_000) for number in range(5)]
    told = texts(content.prompt(messages))
    # Three fit as they are, of one there is the beginning, of the oldest nothing.
    assert [text[0] for text in told] == ["1", "2", "3", "4"]
    assert [text.endswith(CUT) for text in told] == [True, False, False, False]


def test_a_call_and_its_result_are_told_as_values() -> None:
    call = session_pb2.ToolCall(call_id="c", name="look", arguments_json='{"at": [1, "ü"]}')
    asked = session_pb2.Message(role=ASSISTANT, tool_calls=[call])
    answered = message(TOOL, '{"found":true}', call_id="c")
    assert json.loads(content.prompt([asked, answered])) == [
        {
            "role": "assistant",
            "parts": [
                {"type": "tool_call", "id": "c", "name": "look", "arguments": {"at": [1, "ü"]}}
            ],
        },
        {
            "role": "tool",
            "parts": [{"type": "tool_call_response", "id": "c", "response": {"found": True}}],
        },
    ]


def test_values_that_are_too_long_are_cut_as_texts() -> None:
    arguments = json.dumps({"many": ["word"] * 50_000}, separators=(",", ":"))
    call = session_pb2.ToolCall(call_id="c", name="look", arguments_json=arguments)
    told = content.prompt([session_pb2.Message(role=ASSISTANT, tool_calls=[call])])
    assert len(told.encode()) <= MAX_BYTES
    (part,) = json.loads(told)[0]["parts"]
    assert part["arguments"].startswith('{"many":["word"')
    assert part["arguments"].endswith(CUT)


def test_an_answer_has_what_was_thought_said_and_called() -> None:
    answer = Answer()
    for chunk in (
        TextChunk("let me", 1, REASONING),
        TextChunk(" see", 1, REASONING),
        TextChunk("I look", 2),
        ToolCallStart(0, "look"),
        ToolCallFragment(0, '{"a', 1),
        ToolCallFragment(0, '":1}', 1),
        ToolCallEnd(0),
    ):
        answer.add(chunk)
    told = answer.told(StopCause.TOOL_CALLS)
    assert told is not None
    assert json.loads(told) == [
        {
            "role": "assistant",
            "parts": [
                {"type": "reasoning", "content": "let me see"},
                {"type": "text", "content": "I look"},
                {"type": "tool_call", "name": "look", "arguments": {"a": 1}},
            ],
            "finish_reason": "tool_call",
        }
    ]
    assert Answer().told(StopCause.STOP) is None


def test_of_an_endless_answer_no_more_is_kept_than_is_told() -> None:
    answer = Answer()
    piece = "word " * 100
    for index in range(2000):
        answer.add(TextChunk(piece, 100))
        answer.add(ToolCallStart(index, "look"))
        answer.add(ToolCallFragment(index, piece, 100))
    kept = sum(len(text) for pieces in answer._said.values() for text in pieces)
    kept += sum(len(text) for _, pieces in answer._calls.values() for text in pieces)
    assert kept <= 2 * (MAX_BYTES + 2 * len(piece))
    assert len(answer._calls) <= 64
    told = answer.told(StopCause.LENGTH)
    assert told is not None
    assert len(told.encode()) <= MAX_BYTES
    assert json.loads(told)[0]["parts"][0]["content"].endswith(CUT)


@pytest.mark.parametrize(
    "text", ["\x00" * MAX_BYTES, "\\" * MAX_BYTES, "👩‍👩‍👧‍👦" * MAX_BYTES, "ü"]
)
def test_whatever_is_said_stays_json_and_within_its_bounds(text: str) -> None:
    for told in (content.prompt([message(USER, text)]), content.instructions(text)):
        assert len(told.encode()) <= MAX_BYTES
        assert json.loads(told)
    result = session_pb2.ToolResult(
        content=session_pb2.Content(parts=[session_pb2.Part(text=text)])
    )
    assert len(content.result(result).encode()) <= MAX_BYTES


def test_half_a_surrogate_pair_can_be_sent() -> None:
    # JSON may have it as an escape; no protobuf message may.
    arguments = json.dumps({"a": "\ud800"})
    call = session_pb2.ToolCall(call_id="c", name="look", arguments_json=arguments)
    told = content.prompt([session_pb2.Message(role=ASSISTANT, tool_calls=[call])])
    assert told.encode()


@given(
    st.lists(
        st.builds(message, st.sampled_from([USER, ASSISTANT, TOOL]), st.text(max_size=200)),
        max_size=8,
    )
)
def test_what_fits_is_told_whole(messages: list[session_pb2.Message]) -> None:
    told = json.loads(content.prompt(messages))
    assert len(told) == len(messages)
    for one, said in zip(told, messages, strict=True):
        if said.role != TOOL and said.parts[0].text:
            assert one["parts"][0]["content"] == said.parts[0].text
