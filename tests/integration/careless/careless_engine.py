"""An engine that breaks in every way that there is, with what it was told in its mouth.

Put this folder on PYTHONPATH: it declares itself as packages of engines do. The model's name says
how it breaks.
"""

from __future__ import annotations

import asyncio
import logging
import threading
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

WAYS = ("start", "first", "later", "cause", "group", "task", "thread", "nowhere", "loop", "logs")
_logger = logging.getLogger("careless")


class Careless:
    """What fails where nobody can catch it."""

    def __init__(self, words: str) -> None:
        self._words = words

    def __del__(self) -> None:
        raise ValueError(self._words)


class CarelessGeneration:
    """One answer that does not come to an end, or does so and leaves something broken behind."""

    def __init__(self, way: str, words: str) -> None:
        self._way = way
        self._words = words

    async def __aiter__(self) -> AsyncIterator[Chunk | Finished]:
        if self._way != "first":
            yield TextChunk(self._words, 1)
        await self._break()
        yield Finished(StopCause.STOP, EngineUsage(output_tokens=1))

    async def _break(self) -> None:
        words = self._words
        match self._way:
            case "first" | "later":
                raise ValueError(words)
            case "cause":
                try:
                    raise KeyError(words)
                except KeyError as error:
                    raise RuntimeError(words) from error
            case "group":
                raise ExceptionGroup(words, [OSError(5, words), UnicodeError(words)])
            case "task":
                task = asyncio.ensure_future(_fail(words))
                await asyncio.wait([task])
            case "thread":
                thread = threading.Thread(target=_fail_now, args=(words,), name=words)
                thread.start()
                thread.join()
            case "nowhere":
                Careless(words)
            case "loop":
                asyncio.get_running_loop().call_soon(_fail_now, words)
                await asyncio.sleep(0.01)
            case "logs":
                _logger.debug("told %s", words)
                _logger.info(words)
                _logger.warning("told %s and %r", words, [words])
                try:
                    _fail_now(words)
                except ValueError:
                    _logger.exception("failed with %s", words)

    def stop(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


async def _fail(words: str) -> None:
    raise ValueError(words)


def _fail_now(words: str) -> None:
    raise ValueError(words)


class CarelessEngine:
    """The engine."""

    def __init__(self, name: str) -> None:
        self.name = name

    def models(self) -> Sequence[ModelCard]:
        return [ModelCard(way, "Breaks.") for way in WAYS]

    def check(self, prompt: Prompt) -> None:
        pass

    def start(self, prompt: Prompt) -> CarelessGeneration:
        words = "".join(part.text for part in prompt.messages[-1].parts)
        if prompt.model == "start":
            raise ValueError(words)
        return CarelessGeneration(prompt.model, words)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        pass


def create(name: str, options: Mapping[str, object]) -> CarelessEngine:
    """The entry point."""
    return CarelessEngine(name)
