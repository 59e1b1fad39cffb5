"""A conversation in the words of the OpenAI chat API, which chat templates share."""

from __future__ import annotations

import json
from typing import Any, Final

from backchannel.engines.protocol import Prompt
from backchannel.v1 import session_pb2

_ROLES: Final = {
    session_pb2.ROLE_USER: "user",
    session_pb2.ROLE_ASSISTANT: "assistant",
    session_pb2.ROLE_TOOL: "tool",
}


def messages(prompt: Prompt) -> list[dict[str, Any]]:
    """The conversation, neighbours of one role joined, as chat templates want it."""
    out: list[dict[str, Any]] = []
    if prompt.system:
        out.append({"role": "system", "content": prompt.system})
    for message in prompt.messages:
        role = _ROLES[message.role]
        entry: dict[str, Any] = {
            "role": role,
            "content": "".join(part.text for part in message.parts),
        }
        if role == "tool":
            entry["tool_call_id"] = message.call_id
        elif message.tool_calls:
            entry["tool_calls"] = [_call(call) for call in message.tool_calls]
        last = out[-1] if out else {}
        if role == last.get("role") and role != "tool" and "tool_calls" not in last:
            entry["content"] = "\n".join(filter(None, [last["content"], entry["content"]]))
            out.pop()
        out.append(entry)
    if prompt.continue_text:
        # A trailing message of the assistant is gone on from, not closed.
        out.append({"role": "assistant", "content": prompt.continue_text})
    return out


def tools(prompt: Prompt) -> list[dict[str, Any]]:
    """What the model may call."""
    return [_tool(tool) for tool in prompt.tools]


def _call(call: session_pb2.ToolCall) -> dict[str, Any]:
    return {
        "id": call.call_id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments_json},
    }


def _tool(tool: session_pb2.ToolSpec) -> dict[str, Any]:
    schema = tool.parameters_json_schema
    parameters = json.loads(schema) if schema else {"type": "object", "properties": {}}
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": parameters,
        },
    }
