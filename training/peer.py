"""The GGUF as users run it: xllamacpp's server in this process, one conversation at a time."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import xllamacpp

CALCULATOR = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Evaluates an arithmetic expression.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string"}},
            "required": ["expression"],
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {
        "name": "clock",
        "description": "Tells the time.",
        "parameters": {"type": "object", "properties": {}},
    },
}


class Peer:
    """A loaded model that answers chat completions."""

    def __init__(self, model: Path, *, context: int = 2048, slots: int = 1) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(model)
        params.n_ctx = context
        params.n_parallel = slots
        params.kv_unified = True
        params.n_batch = params.n_ubatch = 256
        params.cpuparams.n_threads = 1
        params.cpuparams_batch.n_threads = 1
        params.warmup = False
        params.fit_params = False
        params.ui = False
        params.verbosity = 0
        params.use_jinja = True
        # The server always listens: a socket in a private folder keeps that to ourselves.
        self._folder = tempfile.TemporaryDirectory()
        params.hostnames = [f"{self._folder.name}/peer.sock"]
        self.server = xllamacpp.Server(params)

    def stream(self, messages: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
        """Every chunk of a streamed completion; greedy unless `options` say otherwise."""
        chunks: list[dict[str, Any]] = []

        def take(data: Any) -> bool:
            found = json.loads(data) if isinstance(data, bytes | str) else data
            chunks.extend(found if isinstance(found, list) else [found])
            return False

        body = {"messages": messages, "stream": True, "temperature": 0.0, "max_tokens": 300}
        body["stream_options"] = {"include_usage": True}
        self.server.handle_chat_completions(json.dumps(body | options).encode(), take)
        return chunks

    def chat(self, messages: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        """The whole answer as one assistant message: content and tool_calls."""
        text = ""
        calls: dict[int, dict[str, Any]] = {}
        for chunk in self.stream(messages, **options):
            if "error" in chunk:
                raise RuntimeError(chunk["error"])
            for choice in chunk.get("choices", []):
                delta = choice.get("delta", {})
                text += delta.get("content") or ""
                for piece in delta.get("tool_calls") or []:
                    function = piece.get("function", {})
                    call = calls.setdefault(
                        piece["index"],
                        {
                            "id": "",
                            "type": "function",
                            "function": {"name": "", "arguments": ""},
                        },
                    )
                    call["id"] = piece.get("id") or call["id"]
                    call["function"]["name"] += function.get("name") or ""
                    call["function"]["arguments"] += function.get("arguments") or ""
        answer: dict[str, Any] = {"role": "assistant", "content": text}
        if calls:
            answer["tool_calls"] = [calls[index] for index in sorted(calls)]
        return answer
