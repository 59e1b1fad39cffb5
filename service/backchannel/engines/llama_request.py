"""A prompt as llama.cpp's server takes it: an OpenAI chat completion, and a few fields more."""

from __future__ import annotations

import json
from typing import Any, Final

from backchannel.engines.protocol import Prompt
from backchannel.v1 import session_pb2

_RANDOM_SEED: Final = 2**32 - 1
"""The seed that llama.cpp reads as "any"."""

_ROLES: Final = {
    session_pb2.ROLE_USER: "user",
    session_pb2.ROLE_ASSISTANT: "assistant",
    session_pb2.ROLE_TOOL: "tool",
}


def request(prompt: Prompt, *, tag: int, temperature: float | None) -> bytes:
    """The request's JSON.

    Args:
        prompt: What is asked.
        tag: A number by which the slot that works on it can be found again.
        temperature: Where the prompt does not say; None for llama.cpp's own default.
    """
    body: dict[str, Any] = {
        "messages": messages(prompt),
        "stream": True,
        "stream_options": {"include_usage": True},
        "timings_per_token": True,  # Every chunk says how many tokens there were so far.
        "return_progress": True,  # The prefill calls back too, and so can be stopped.
        # Without a shifting context this has no effect, and the slot shows it.
        "n_discard": tag,
    }
    if temperature is not None:
        body["temperature"] = temperature
    if prompt.tools:
        body["tools"] = [_tool(tool) for tool in prompt.tools]
        body["parallel_tool_calls"] = True
    body |= _sampling(prompt.sampling)
    return json.dumps(body, ensure_ascii=False).encode()


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


def _sampling(sampling: session_pb2.Sampling) -> dict[str, Any]:
    body: dict[str, Any] = {
        name: getattr(sampling, name)
        for name in (
            "max_tokens",
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "presence_penalty",
            "frequency_penalty",
        )
        if sampling.HasField(name)
    }
    if sampling.HasField("seed"):
        body["seed"] = sampling.seed % _RANDOM_SEED
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.HasField("logprobs"):
        body["logprobs"] = True
        body["top_logprobs"] = max(1, sampling.logprobs)  # With 0 there are none at all.
    return body
