"""Engine runs: each is a task that asks an engine once and feeds the answer to its session.

A run belongs to the host. No call, stream or reader owns it, so none takes it along when it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any, Protocol

import structlog

from backchannel.engines.protocol import (
    EngineUsage,
    Finished,
    Generation,
    Prompt,
    StopCause,
    TextChunk,
    ToolCallEnd,
    ToolCallFragment,
    ToolCallStart,
)
from backchannel.engines.registry import EngineRegistry
from backchannel.errors import BackchannelError, Reason
from backchannel.host.admission import Admission, Ticket
from backchannel.host.clock import SECOND_NS, Clock, Timer
from backchannel.session.decision import StartEngine

_logger = structlog.get_logger(__name__)

_NOTHING_DONE = Finished(StopCause.STOPPED, EngineUsage(output_tokens=0))

Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]
"""Starts a task that the host owns."""


class Listener(Protocol):
    """Whom a run feeds: its session."""

    def run_admitted(self, run_id: str) -> None:
        """The engine is asked from now on."""
        ...

    def run_text(self, run_id: str, chunk: TextChunk) -> None:
        """Text came."""
        ...

    def run_tool_started(self, run_id: str, chunk: ToolCallStart) -> None:
        """The model begins a call."""
        ...

    def run_tool_fragment(self, run_id: str, chunk: ToolCallFragment) -> None:
        """A piece of a call's arguments came."""
        ...

    def run_tool_ready(self, run_id: str, chunk: ToolCallEnd) -> None:
        """A call is complete."""
        ...

    def run_finished(self, run_id: str, cause: str, usage: EngineUsage) -> None:
        """The engine is done."""
        ...

    def run_failed(self, run_id: str, error: BackchannelError) -> None:
        """The engine gave up."""
        ...

    @property
    def runs_ahead(self) -> bool:
        """Whether the log has fallen so far behind that the run should wait."""
        ...

    async def caught_up(self) -> None:
        """Wait until it has not."""
        ...


class EngineRun:
    """One question to an engine, from the queue to the last chunk.

    Args:
        effect: What to ask.
        listener: Whom to feed.
        runner: What it needs of the process.
    """

    def __init__(self, effect: StartEngine, listener: Listener, runner: Runner) -> None:
        self.run_id = effect.run_id
        self._effect = effect
        self._listener: Listener | None = listener
        self._runner = runner
        self._ticket: Ticket | None = None
        self._generation: Generation | None = None
        self._stopped = False
        self._limit: Timer | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, as a task of the host."""
        self._task = self._runner.spawn(self._run(), f"run {self.run_id}")

    def stop(self) -> None:
        """Tell the engine to stop, now. Idempotent, does not block.

        What the engine had computed is still reported, and then its end.
        """
        if self._stopped:
            return
        self._stopped = True
        generation, ticket = self._generation, self._ticket
        if generation is not None:
            generation.stop()
        elif ticket is not None:
            ticket.leave()
        clock = self._runner.clock
        limit_ns = clock.now_ns() + round(self._runner.stop_limit_s * SECOND_NS)
        self._limit = clock.call_at(limit_ns, self._drop)

    def abandon(self) -> None:
        """Stop, and report nothing more: the session is not there any more, or not as it was."""
        self._listener = None
        self.stop()

    def _drop(self) -> None:
        """The engine does not end: take its place away from it."""
        _logger.error("engine_ignores_stop", model=self._effect.model)
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            await self._ask()
        except asyncio.CancelledError:
            if self._listener is not None:
                error = BackchannelError(Reason.ENGINE_FAILED, "the engine did not stop when told")
                self._listener.run_failed(self.run_id, error)
            raise
        except BackchannelError as error:
            _logger.warning("engine_failed", model=self._effect.model, reason=error.reason)
            self._fail(error)
        except Exception as error:  # noqa: BLE001 - an adapter's bug ends its turn, not the process
            # Neither the message nor the traceback: both may quote the prompt.
            _logger.error("engine_broke", model=self._effect.model, kind=type(error).__name__)
            self._fail(BackchannelError(Reason.ENGINE_FAILED, "the engine failed unexpectedly"))
        finally:
            if self._limit is not None:
                self._limit.cancel()

    def _fail(self, error: BackchannelError) -> None:
        if self._listener is not None:
            self._listener.run_failed(self.run_id, error)

    def _told_to_stop(self) -> bool:
        return self._stopped

    async def _ask(self) -> None:
        effect = self._effect
        engine, card, full_name = self._runner.engines.resolve(effect.model)
        if self._told_to_stop():
            self._finish(_NOTHING_DONE)
            return
        ticket = self._ticket = self._runner.admission.enter(full_name, card.parallel)
        try:
            if not await ticket.wait() or self._told_to_stop():
                self._finish(_NOTHING_DONE)
                return
            if self._listener is not None:
                self._listener.run_admitted(self.run_id)
            if self._told_to_stop():
                self._finish(_NOTHING_DONE)
                return
            prompt = Prompt(
                model=card.name,
                system=effect.system,
                messages=effect.messages,
                tools=effect.tools,
                sampling=effect.sampling,
                options=effect.options,
                response_format=effect.response_format,
                continue_text=effect.continue_text,
            )
            async with aclosing(engine.start(prompt)) as generation:
                self._generation = generation
                finished = await self._feed(generation)
            # Reported after the engine has let go, so that whoever sees the end may rely on it.
            if finished is None:
                raise BackchannelError(Reason.ENGINE_FAILED, "the engine ended without an ending")
            self._finish(finished)
        finally:
            ticket.leave()

    def _finish(self, finished: Finished) -> None:
        if self._listener is not None:
            self._listener.run_finished(self.run_id, finished.cause.value, finished.usage)

    async def _feed(self, generation: Generation) -> Finished | None:
        run_id = self.run_id
        async for item in generation:
            listener = self._listener
            if listener is None:
                if type(item) is Finished:
                    return item
                continue
            if type(item) is TextChunk:  # Nearly all items are this one.
                listener.run_text(run_id, item)
            elif type(item) is ToolCallFragment:
                listener.run_tool_fragment(run_id, item)
            elif type(item) is ToolCallStart:
                listener.run_tool_started(run_id, item)
            elif type(item) is ToolCallEnd:
                listener.run_tool_ready(run_id, item)
            elif type(item) is Finished:
                return item
            if listener.runs_ahead and not self._stopped:
                await listener.caught_up()
        return None


class Runner:
    """Starts runs; what all of them share.

    Args:
        engines: Whom to ask.
        admission: Who may be asked at the same time.
        clock: For the limit on a stop.
        spawn: Starts a task of the host.
        stop_limit_s: A run that has not ended so long after its stop is cancelled.
    """

    def __init__(
        self,
        engines: EngineRegistry,
        admission: Admission,
        clock: Clock,
        spawn: Spawn,
        *,
        stop_limit_s: float,
    ) -> None:
        self.engines = engines
        self.admission = admission
        self.clock = clock
        self.spawn = spawn
        self.stop_limit_s = stop_limit_s

    def start(self, effect: StartEngine, listener: Listener) -> EngineRun:
        """Ask an engine; the answer goes to the listener."""
        run = EngineRun(effect, listener, self)
        run.start()
        return run
