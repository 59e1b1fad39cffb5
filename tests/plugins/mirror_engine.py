"""An engine by a third party: it answers with what it was told, as JSON, one character a token.

So the answer of a turn proves what the transcript was. Found by its entry point, like any other.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Self

from backchannel.engines.protocol import (
    Chunk,
    EngineUsage,
    Finished,
    ModelCard,
    Prompt,
    StopCause,
    TextChunk,
)
from backchannel.v1 import session_pb2

ROLES = {
    session_pb2.ROLE_USER: "user",
    session_pb2.ROLE_ASSISTANT: "assistant",
    session_pb2.ROLE_TOOL: "tool",
}


def told(prompt: Prompt) -> str:
    """The transcript as the engine got it."""
    return json.dumps(
        [
            [ROLES[message.role], "".join(part.text for part in message.parts)]
            for message in prompt.messages
        ]
    )


class MirrorGeneration:
    """One answer."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._produced = 0
        self._stopped = False

    async def __aiter__(self) -> AsyncIterator[Chunk | Finished]:
        cause = StopCause.STOP
        for character in self._text:
            await asyncio.sleep(0)
            if self._stopped:
                cause = StopCause.STOPPED
                break
            self._produced += 1
            yield TextChunk(character, 1)
        yield Finished(cause, EngineUsage(output_tokens=self._produced))

    def stop(self) -> None:
        self._stopped = True

    async def aclose(self) -> None:
        self._stopped = True


class MirrorEngine:
    """The engine."""

    def __init__(self, name: str) -> None:
        self.name = name

    def models(self) -> Sequence[ModelCard]:
        return [ModelCard("mirror", "Says what it was told.")]

    def check(self, prompt: Prompt) -> None:
        pass

    def start(self, prompt: Prompt) -> MirrorGeneration:
        return MirrorGeneration(told(prompt))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        pass


def create(name: str, options: Mapping[str, object]) -> MirrorEngine:
    """The entry point."""
    return MirrorEngine(name)
