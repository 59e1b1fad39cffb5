"""Engine runs: each is a task that puts one question and feeds the answer to its session.

A run belongs to the host. No call, stream or reader owns it, so none takes it along when it ends.

The question goes to one model, or to the targets of an alias in their order until one of them
begins to answer. After the first chunk nobody else is asked: an answer has one author.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any, Final, Protocol

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
from backchannel.engines.routing import Target, moves_on, nobody
from backchannel.errors import BackchannelError, Reason
from backchannel.host.admission import Admission, Ticket
from backchannel.host.clock import SECOND_NS, Clock, Timer
from backchannel.host.outages import Outages
from backchannel.observer import RunWatch
from backchannel.session.decision import StartEngine
from backchannel.v1 import session_pb2

_logger = structlog.get_logger(__name__)

ANSWER_MAX_CHARS: Final = 2 * 1024 * 1024
"""What one answer may have, its reasoning and the arguments of its calls included: far beyond any
context, and little enough that a session with it can still be told in one snapshot."""

_NOTHING_DONE = Finished(StopCause.STOPPED, EngineUsage(output_tokens=0))

Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]
"""Starts a task that the host owns."""


class Listener(Protocol):
    """Whom a run feeds: its session."""

    def run_admitted(self, run_id: str, model: str) -> None:
        """This model, `engine/name`, is asked from now on; again after a fallback."""
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
    """One question, from the queue to the last chunk.

    Args:
        effect: What to ask.
        listener: Whom to feed.
        runner: What it needs of the process.
        watch: Watches it; None if nobody does.
    """

    def __init__(
        self,
        effect: StartEngine,
        listener: Listener,
        runner: Runner,
        watch: RunWatch | None = None,
    ) -> None:
        self._watch = watch
        self.run_id = effect.run_id
        self._effect = effect
        self._listener: Listener | None = listener
        self._runner = runner
        self._ticket: Ticket | None = None
        self._generation: Generation | None = None
        self._context = contextvars.Context()
        self._begun = False
        self._stopped = False
        self._held: asyncio.Future[None] | None = None
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
        if self._watch is not None:
            self._watch.stop()
        self.hold(False)
        generation, ticket = self._generation, self._ticket
        if generation is not None:
            # On behalf of the run, whoever stops it.
            self._context.run(generation.stop)
        elif ticket is not None:
            ticket.leave()
        clock = self._runner.clock
        limit_ns = clock.now_ns() + round(self._runner.stop_limit_s * SECOND_NS)
        self._limit = clock.call_at(limit_ns, self._drop)

    def hold(self, on: bool) -> None:
        """Take nothing more from the engine for now, or go on.

        An engine that works as it is read waits with us; one that does not (most, over a network or
        in threads of their own) fills what it has for a buffer, and what is then never taken is
        counted when it is stopped.
        """
        if on == (self._held is not None) or (on and self._stopped):
            return
        if on:
            self._held = asyncio.get_running_loop().create_future()
        elif self._held is not None:
            if not self._held.done():
                self._held.set_result(None)
            self._held = None

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
            self._finish(await self._ask())
        except asyncio.CancelledError:
            self._fail(BackchannelError(Reason.ENGINE_FAILED, "the engine did not stop when told"))
            raise
        except BackchannelError as error:
            _logger.warning("engine_failed", model=self._effect.model, reason=error.reason)
            self._fail(error)
        except Exception as error:  # noqa: BLE001 - a bug ends its turn, not the process
            self._fail(_broken(self._effect.model, error))
        finally:
            if self._limit is not None:
                self._limit.cancel()

    def _fail(self, error: BackchannelError) -> None:
        if self._watch is not None:
            self._watch.failed(error)
        if self._listener is not None:
            self._listener.run_failed(self.run_id, error)

    def _told_to_stop(self) -> bool:
        return self._stopped

    async def _ask(self) -> Finished:
        """Ask the targets one after the other, until one begins to answer."""
        route = self._runner.engines.route(self._effect.model)
        failures = list(route.absent)
        outages = self._runner.outages
        targets = outages.ordered(route.targets)
        for number, target in enumerate(targets, 1):
            if self._told_to_stop():
                return _NOTHING_DONE
            try:
                finished = await self._try(target, may_be_unable=len(targets) > 1)
            except BackchannelError as error:
                if self._begun or self._told_to_stop() or not moves_on(error):
                    raise
                failures.append((target.name, error))
                outages.failed(target, error)
                if self._watch is not None:
                    self._watch.failed(error, passed_over=True)
                if number < len(targets):
                    _logger.warning(
                        "engine_passed_over",
                        model=route.name,
                        target=target.name,
                        reason=error.reason,
                        next=targets[number].name,
                    )
            else:
                outages.answered(target)
                return finished
        raise nobody(route.name, failures)

    async def _try(self, target: Target, *, may_be_unable: bool) -> Finished:
        """Ask one target.

        Raises:
            BackchannelError: It failed, is busy, or cannot.
        """
        try:
            return await self._ask_one(target, may_be_unable=may_be_unable)
        except BackchannelError:
            raise
        except Exception as error:  # noqa: BLE001 - an adapter's bug is a failure like any other
            raise _broken(target.name, error) from None

    async def _ask_one(self, target: Target, *, may_be_unable: bool) -> Finished:
        effect = self._effect
        prompt = Prompt(
            model=target.card.name,
            system=effect.system,
            messages=effect.messages,
            tools=effect.tools,
            sampling=effect.sampling,
            options=effect.options,
            response_format=effect.response_format,
            continue_text=effect.continue_text,
        )
        if may_be_unable:
            _check(target, prompt)  # Before anybody waits for what cannot be.
        if self._watch is not None:
            self._watch.queued(target.engine.name, target.card.name)
        ticket = self._ticket = self._runner.admission.enter(target, goes_on=_goes_on(effect))
        try:
            if not await ticket.wait() or self._told_to_stop():
                return _NOTHING_DONE
            if self._watch is not None:
                self._watch.admitted()
            if self._listener is not None:
                self._listener.run_admitted(self.run_id, target.name)
            if self._told_to_stop():
                return _NOTHING_DONE
            async with aclosing(target.engine.start(prompt)) as generation:
                self._context = contextvars.copy_context()
                self._generation = generation
                finished = await self._feed(generation)
            # Reported after the engine has let go, so that whoever sees the end may rely on it.
            if finished is None:
                raise BackchannelError(Reason.ENGINE_FAILED, "the engine ended without an ending")
            return finished
        finally:
            self._generation = self._ticket = None
            ticket.leave()

    def _finish(self, finished: Finished) -> None:
        if self._watch is not None:
            self._watch.finished(finished)
        if self._listener is not None:
            self._listener.run_finished(self.run_id, finished.cause.value, finished.usage)

    async def _feed(self, generation: Generation) -> Finished | None:
        run_id = self.run_id
        watch = self._watch
        chars = len(self._effect.continue_text)
        if self._held is not None:
            await self._held
        async for item in generation:
            self._begun = True
            if watch is not None:
                watch.output(item)
            listener = self._listener
            if listener is None:
                if type(item) is Finished:
                    return item
                continue
            if type(item) is TextChunk:  # Nearly all items are this one.
                chars += len(item.text)
                _check_size(chars)
                listener.run_text(run_id, item)
            elif type(item) is ToolCallFragment:
                chars += len(item.text)
                _check_size(chars)
                listener.run_tool_fragment(run_id, item)
            elif type(item) is ToolCallStart:
                listener.run_tool_started(run_id, item)
            elif type(item) is ToolCallEnd:
                listener.run_tool_ready(run_id, item)
            elif type(item) is Finished:
                return item
            if listener.runs_ahead and not self._stopped:
                await listener.caught_up()
            if self._held is not None:
                await self._held
                if watch is not None:
                    watch.pause()
        return None


def _check_size(chars: int) -> None:
    """Keep an engine that does not end from growing a session beyond what can be told of it.

    Raises:
        BackchannelError: `ENGINE_FAILED`.
    """
    if chars > ANSWER_MAX_CHARS:
        raise BackchannelError(
            Reason.ENGINE_FAILED,
            f"the answer has more than {ANSWER_MAX_CHARS} characters; bound it by"
            " sampling.max_tokens, or look at what the engine sends",
        )


def _check(target: Target, prompt: Prompt) -> None:
    """Find out whether a target can do it, at the price of no place in its queue.

    Raises:
        BackchannelError: `CAPABILITY_MISSING`, whatever it is that one target of several refuses.
    """
    try:
        target.engine.check(prompt)
    except BackchannelError as error:
        if moves_on(error):
            raise
        raise BackchannelError(
            Reason.CAPABILITY_MISSING, error.message, field=error.field, metadata=error.metadata
        ) from None


def _broken(model: str, error: Exception) -> BackchannelError:
    # Neither the message nor the traceback: both may quote the prompt.
    _logger.error("engine_broke", model=model, kind=type(error).__name__)
    return BackchannelError(Reason.ENGINE_FAILED, "the engine failed unexpectedly")


def _goes_on(effect: StartEngine) -> bool:
    """Whether the turn has been served before: its tools have answered, or its text has begun."""
    answered = bool(effect.messages) and effect.messages[-1].role == session_pb2.ROLE_TOOL
    return answered or bool(effect.continue_text)


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
        self.outages = Outages(clock)

    def check_room(self, model: str) -> None:
        """Refuse a turn that would be turned away from every model it may go to.

        Raises:
            BackchannelError: `ENGINE_BUSY`, of the first of them; as `EngineRegistry.route`.
        """
        targets = self.engines.route(model).targets
        if all(map(self.admission.full, targets)):
            raise self.admission.busy(targets[0])

    def start(
        self, effect: StartEngine, listener: Listener, watch: RunWatch | None = None
    ) -> EngineRun:
        """Ask an engine; the answer goes to the listener."""
        run = EngineRun(effect, listener, self, watch)
        run.start()
        return run
