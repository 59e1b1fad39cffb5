"""The engine `mirror`, for tests of pages: what the model is told of the answers before.

Its models are those of `scripted`, with two differences: to "What did you say?" any of them says as
JSON what the prompt has of its own answers, and `tool` says a few words before it calls the tool.
Put this folder on PYTHONPATH: it declares itself as packages of engines do.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

from backchannel.engines import scripted
from backchannel.engines.protocol import Chunk, Finished, Generation, Prompt, TextChunk
from backchannel.v1 import session_pb2

QUESTION = "What did you say?"
ASIDE = "Let me see. "


def _text(message: session_pb2.Message) -> str:
    return "".join(part.text for part in message.parts)


class Mirror(scripted.ScriptedEngine):
    """See above."""

    def start(self, prompt: Prompt) -> Generation:  # type: ignore[override]  # a wrapped one
        """Begin to answer."""
        last = prompt.messages[-1]
        if last.role == session_pb2.ROLE_USER and _text(last) == QUESTION:
            own = [_text(one) for one in prompt.messages if one.role == session_pb2.ROLE_ASSISTANT]
            part = session_pb2.Part(text=json.dumps(own))
            said = session_pb2.Message(role=session_pb2.ROLE_USER, parts=[part])
            return super().start(replace(prompt, model="echo", messages=[said]))
        generation = super().start(prompt)
        asks = prompt.model == "tool" and last.role == session_pb2.ROLE_USER
        return Aside(generation) if asks else generation


class Aside:
    """A generation after a few words."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    async def __aiter__(self) -> AsyncIterator[Chunk | Finished]:
        yield TextChunk(ASIDE, token_count=1)
        async for chunk in self._generation:
            if isinstance(chunk, Finished):
                usage = chunk.usage
                chunk = replace(
                    chunk, usage=replace(usage, output_tokens=(usage.output_tokens or 0) + 1)
                )
            yield chunk

    def stop(self) -> None:
        """Stop what follows the words."""
        self._generation.stop()

    async def aclose(self) -> None:
        """Stop, and free it."""
        await self._generation.aclose()


def create(name: str, options: Mapping[str, object]) -> Mirror:
    """Make it; it has no settings."""
    return Mirror(name=name)
