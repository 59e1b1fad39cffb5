"""Admission: how many generations of a model run at once, and who is next.

An engine is given no more than `ModelCard.parallel` generations: what it cannot work on would only
wait inside it, where a stop does not reach. The rest wait here, first come first served, and can
leave at any moment.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from backchannel.errors import BackchannelError, Reason


@dataclass(slots=True)
class _Model:
    name: str
    running: int = 0
    waiting: deque[Ticket] = field(default_factory=deque)


class Ticket:
    """One generation's place with its model, or in the queue for one."""

    def __init__(self, admission: Admission, model: _Model, admitted: bool) -> None:
        self._admission = admission
        self._model = model
        self._admitted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._left = False
        if admitted:
            self._admitted.set_result(True)

    async def wait(self) -> bool:
        """Wait for the place; False if `leave` was called first."""
        return await asyncio.shield(self._admitted)

    def leave(self) -> None:
        """Give the place back, or leave the queue. Idempotent."""
        if self._left:
            return
        self._left = True
        if self._admitted.done():
            self._admission._give_back(self._model)  # noqa: SLF001 - the two are one thing
        else:
            self._model.waiting.remove(self)
            self._admitted.set_result(False)

    def admit(self) -> None:
        """The place is free."""
        self._admitted.set_result(True)


class Admission:
    """The places of all models.

    Args:
        max_waiting: How many may wait for one model.
    """

    def __init__(self, *, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._models: dict[str, _Model] = {}

    def running(self, model: str) -> int:
        """How many generations of this model have a place."""
        entry = self._models.get(model)
        return entry.running if entry else 0

    def waiting(self, model: str) -> int:
        """How many wait for one."""
        entry = self._models.get(model)
        return len(entry.waiting) if entry else 0

    def enter(self, model: str, limit: int) -> Ticket:
        """Take one of `limit` places (0: no limit), or a place in the queue.

        Raises:
            BackchannelError: `ENGINE_BUSY` if too many wait already.
        """
        entry = self._models.setdefault(model, _Model(model))
        if not limit or (entry.running < limit and not entry.waiting):
            entry.running += 1
            return Ticket(self, entry, admitted=True)
        if len(entry.waiting) >= self._max_waiting:
            raise BackchannelError(
                Reason.ENGINE_BUSY,
                f"{model}: {entry.running} generations run and {len(entry.waiting)} wait;"
                " try again later",
                metadata={"model": model},
            )
        ticket = Ticket(self, entry, admitted=False)
        entry.waiting.append(ticket)
        return ticket

    def _give_back(self, entry: _Model) -> None:
        if entry.waiting:
            entry.waiting.popleft().admit()  # The place changes hands; `running` stays.
            return
        entry.running -= 1
        if not entry.running:
            del self._models[entry.name]
