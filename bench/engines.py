"""What an engine still computes after it was told to stop, by its own count.

In this process and without a session, so that nothing lies between the stop and the engine. Each
sample stops a generation at a random moment. A token is one step of the model, and two things are
counted, both from the total of the engine's `Finished`:

* since it was told: what it computed afterwards. llama.cpp is told when its callback answers
  "stop", at the end of the step that was under way; `scripted` is told by `stop` itself.
* since `stop` was called: what it had not handed out by then. That holds the step under way and
  what was computed and on its way to the reader.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from backchannel.engines.llama.engine import LlamaGeneration
from backchannel.engines.protocol import (
    Engine,
    Finished,
    Generation,
    Prompt,
    TextChunk,
    ToolCallFragment,
)
from backchannel.v1 import session_pb2


@dataclass(frozen=True, slots=True)
class EngineStop:
    """One stop.

    Attributes:
        since_told: Tokens computed after the engine was told.
        since_stop: Tokens that had not been handed out when `stop` was called.
        exact: Whether the count is the engine's own.
    """

    since_told: int
    since_stop: int
    exact: bool


@dataclass(frozen=True, slots=True)
class EngineCase:
    """What is stopped.

    Attributes:
        create: Makes the engine.
        model: Without the engine's name.
        question: What the user says.
        options: Engine options.
        background: Other generations that run at the same time.
        longest_wait_s: The stop comes at a random moment up to so long after the first token.
    """

    create: Callable[[], Engine]
    model: str
    question: str
    options: dict[str, str] = field(default_factory=dict)
    background: int = 0
    longest_wait_s: float = 0.5

    def ask(self, engine: Engine) -> Generation:
        """Begin an answer."""
        message = session_pb2.Message(
            role=session_pb2.ROLE_USER, parts=[session_pb2.Part(text=self.question)]
        )
        return engine.start(Prompt(self.model, "", [message], options=self.options))


class _Reading:
    """Takes what a generation yields."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self.tokens = 0
        self.begun = asyncio.Event()
        self.end: Finished | None = None

    async def run(self) -> None:
        """To its end."""
        try:
            async for item in self._generation:
                if isinstance(item, TextChunk | ToolCallFragment):
                    self.tokens += item.token_count
                    self.begun.set()
                elif isinstance(item, Finished):
                    self.end = item
        finally:
            self.begun.set()
            await self._generation.aclose()


async def _run_on(engine: Engine, case: EngineCase) -> None:
    while True:
        await _Reading(case.ask(engine)).run()


async def _one(engine: Engine, case: EngineCase, rng: random.Random) -> EngineStop | None:
    generation = case.ask(engine)
    reading = _Reading(generation)
    task = asyncio.create_task(reading.run())
    await reading.begun.wait()
    await asyncio.sleep(rng.uniform(0, case.longest_wait_s))
    handed_out = reading.tokens
    too_late = reading.end is not None
    generation.stop()
    await task
    if reading.end is None:
        raise RuntimeError("a generation ended without saying so")
    if too_late:
        return None
    usage = reading.end.usage
    total = usage.output_tokens or 0
    told_at = generation.computed_when_told if isinstance(generation, LlamaGeneration) else None
    if told_at is None:  # `stop` itself, or it was over before it could be told.
        told_at = handed_out if not isinstance(generation, LlamaGeneration) else total
    return EngineStop(total - told_at, total - handed_out, usage.exact)


async def engine_stops(case: EngineCase, count: int, seed: int) -> list[EngineStop]:
    """Take `count` samples."""
    rng = random.Random(seed)
    taken: list[EngineStop] = []
    async with case.create() as engine, asyncio.TaskGroup() as group:
        company = [group.create_task(_run_on(engine, case)) for _ in range(case.background)]
        while len(taken) < count:
            stop = await _one(engine, case, rng)
            if stop is not None:
                taken.append(stop)
        for task in company:
            task.cancel()
    return taken
