"""A prompt as llama.cpp's server takes it: an OpenAI chat completion, and a few fields more."""

from __future__ import annotations

import json
from typing import Any, Final

from backchannel.engines.chat import messages, tools
from backchannel.engines.protocol import Prompt
from backchannel.v1 import session_pb2

_RANDOM_SEED: Final = 2**32 - 1
"""The seed that llama.cpp reads as "any"."""


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
    if prompt.response_format is not None:
        body |= _format(prompt.response_format)
        # For the template alone, which so writes the same prompt as in the session's other turns:
        # llama.cpp calls tools or keeps to a format, not both.
        body["chat_template_kwargs"] = {"tools": tools(prompt)} if prompt.tools else {}
    elif prompt.tools:
        body["tools"] = tools(prompt)
        body["parallel_tool_calls"] = True
    body |= _sampling(prompt.sampling)
    return json.dumps(body, ensure_ascii=False).encode()


def _format(response_format: session_pb2.ResponseFormat) -> dict[str, Any]:
    if response_format.HasField("json_schema"):
        return {"json_schema": json.loads(response_format.json_schema)}
    return {"grammar": response_format.grammar}


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
