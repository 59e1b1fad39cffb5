"""Admission: how many generations an engine works on at once, and who is next.

A model is given no more than `ModelCard.parallel` generations, and its engine no more than
`max_parallel` in all: what they cannot work on would only wait inside them, where a stop does not
reach. The rest wait here, and can leave at any moment.

Who comes first is served first, for turns: a session has one turn at a time, so none has two places
in the queue, and nobody who comes later can keep it waiting. A turn that has been served and asks
again with the results of its tools goes before those that have not begun, and is never turned away:
else a crowd of newcomers could break turns off in their middle. Nor can it keep them waiting for
long, for the rounds of a turn are limited. A model that is full holds up nobody who waits for
another one of the same engine.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from backchannel.engines.routing import Target
from backchannel.errors import BackchannelError, Reason
from backchannel.host.clock import SECOND_NS, Clock

RETRY_LEAST_S: Final = 1.0
RETRY_MOST_S: Final = 60.0
# How much the latest generation counts in what the next one is expected to take.
_WEIGHT: Final = 0.2


@dataclass(slots=True)
class _Engine:
    """What one engine works on, and who waits for it, in two ordered sets."""

    running: Counter[str] = field(default_factory=Counter)
    goes_on: dict[Ticket, None] = field(default_factory=dict)
    begins: dict[Ticket, None] = field(default_factory=dict)
    takes_s: float = 0.0
    limit: int = 0

    def fits(self, target: Target) -> bool:
        """Whether there is a place."""
        model = target.card.parallel
        return not self.at_work(target) and (not model or self.running[target.card.name] < model)

    def at_work(self, target: Target) -> bool:
        """Whether the engine as a whole has no place."""
        return 0 < target.max_parallel <= self.running.total()


class Ticket:
    """One generation's place with its model, or in the queue for one."""

    def __init__(self, admission: Admission, engine: _Engine, target: Target) -> None:
        self.target = target
        self._admission = admission
        self._engine = engine
        self._admitted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._since_ns = 0
        self._left = False

    @property
    def admitted(self) -> bool:
        """Whether it has, or had, its place."""
        return self._admitted.done() and self._admitted.result()

    async def wait(self) -> bool:
        """Wait for the place; False if `leave` was called first."""
        return await asyncio.shield(self._admitted)

    def leave(self) -> None:
        """Give the place back, or leave the queue. Idempotent."""
        if self._left:
            return
        self._left = True
        if self._admitted.done():
            # The two are one thing.
            self._admission._give_back(self._engine, self.target, self._since_ns)  # noqa: SLF001
        else:
            self._engine.goes_on.pop(self, None)
            self._engine.begins.pop(self, None)
            self._admitted.set_result(False)

    def admit(self, now_ns: int) -> None:
        """The place is free."""
        self._since_ns = now_ns
        self._admitted.set_result(True)


class Admission:
    """The places of all engines.

    Args:
        max_waiting: How many turns may wait for one engine that says nothing else.
        clock: Tells how long generations take.
    """

    def __init__(self, *, max_waiting: int, clock: Clock) -> None:
        self._max_waiting = max_waiting
        self._clock = clock
        self._engines: dict[str, _Engine] = {}  # As many as are configured.

    @property
    def engines(self) -> tuple[str, ...]:
        """Those that have been asked for anything."""
        return tuple(self._engines)

    def running(self, engine: str) -> int:
        """How many generations of this engine have a place."""
        entry = self._engines.get(engine)
        return entry.running.total() if entry else 0

    def waiting(self, engine: str) -> int:
        """How many wait for one."""
        entry = self._engines.get(engine)
        return len(entry.goes_on) + len(entry.begins) if entry else 0

    def limit(self, engine: str) -> int:
        """How many it has for all; or, where it has no such limit, for the model asked last."""
        entry = self._engines.get(engine)
        return entry.limit if entry else 0

    def full(self, target: Target) -> bool:
        """Whether a turn that begins now would be turned away."""
        entry = self._engines.get(target.engine.name)
        if entry is None:
            return False
        return not entry.fits(target) and len(entry.begins) >= self._limit(target)

    def enter(self, target: Target, *, goes_on: bool = False) -> Ticket:
        """Take a place, or a place in the queue.

        Args:
            target: Whom to ask.
            goes_on: Whether the turn has been served before.

        Raises:
            BackchannelError: `ENGINE_BUSY` if too many wait already.
        """
        entry = self._engines.setdefault(target.engine.name, _Engine())
        entry.limit = target.max_parallel or target.card.parallel
        queue = entry.goes_on if goes_on else entry.begins
        ticket = Ticket(self, entry, target)
        queue[ticket] = None
        self._fill(entry)
        if not ticket.admitted and queue is entry.begins and len(queue) > self._limit(target):
            ticket.leave()
            raise self.busy(target)
        return ticket

    def busy(self, target: Target) -> BackchannelError:
        """The error for a turn that is turned away; it may retry when the queue has been served."""
        name = target.engine.name
        running, waiting = self.running(name), self.waiting(name)
        entry = self._engines.get(name)
        ahead_s = entry.takes_s * max(1, waiting) / max(1, running) if entry else 0.0
        return BackchannelError(
            Reason.ENGINE_BUSY,
            f"{target.name}: {running} generations run and {waiting} turns wait; try again later",
            metadata={"model": target.name},
            retry_after_s=min(max(ahead_s, RETRY_LEAST_S), RETRY_MOST_S),
        )

    def _limit(self, target: Target) -> int:
        return self._max_waiting if target.max_waiting is None else target.max_waiting

    def _fill(self, entry: _Engine) -> None:
        """Give each free place to whoever may have it and comes first."""
        for ticket in [*entry.goes_on, *entry.begins]:
            if entry.at_work(ticket.target):
                return
            if entry.fits(ticket.target):
                entry.goes_on.pop(ticket, None)
                entry.begins.pop(ticket, None)
                entry.running[ticket.target.card.name] += 1
                ticket.admit(self._clock.now_ns())

    def _give_back(self, entry: _Engine, target: Target, since_ns: int) -> None:
        took_s = (self._clock.now_ns() - since_ns) / SECOND_NS
        entry.takes_s += (took_s - entry.takes_s) * (_WEIGHT if entry.takes_s else 1.0)
        entry.running[target.card.name] -= 1
        if not entry.running[target.card.name]:
            del entry.running[target.card.name]
        self._fill(entry)
