"""The sessions in memory, each at most once.

Whatever puts one there or takes one away is work on its id, of which there is one at a time;
everybody else who wants that id waits for it. The work is a task of the host: who asked for it may
leave, and takes nothing along.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import structlog

from backchannel.errors import BackchannelError, Reason
from backchannel.host.clock import SECOND_NS, Clock
from backchannel.host.config import HostConfig
from backchannel.host.faults import broken_error, draining_error, moved_error, where
from backchannel.host.live import LiveSession
from backchannel.host.runner import Spawn

_logger = structlog.get_logger(__name__)

T = TypeVar("T")


class Residents:
    """Who is in memory, and whose coming or going is under way.

    Args:
        clock: Tells who was unused for how long.
        config: How many there may be.
        spawn: Starts a task that the host owns.
    """

    def __init__(self, clock: Clock, config: HostConfig, spawn: Spawn) -> None:
        self._clock = clock
        self._config = config
        self._spawn = spawn
        self._live: dict[str, LiveSession] = {}  # The longest unused first.
        self._loads: dict[str, asyncio.Future[LiveSession]] = {}
        self._busy: dict[str, asyncio.Future[Any]] = {}

    def __iter__(self) -> Iterator[LiveSession]:
        return iter(self._live.values())

    def __len__(self) -> int:
        return len(self._live)

    def find(self, session_id: str) -> LiveSession | None:
        """The session, if it is in memory."""
        return self._live.get(session_id)

    async def get(
        self, session_id: str, load: Callable[[str], Coroutine[Any, Any, LiveSession]]
    ) -> LiveSession:
        """The session, to be used: the one in memory, or as it is loaded, once for all who ask.

        Args:
            session_id: Which.
            load: Loads it, and `add`s it.

        Raises:
            BackchannelError: What `load` raises; `DRAINING`.
        """
        while (busy := self._busy.get(session_id)) is not None:
            await asyncio.wait([busy])
        live = self._live.pop(session_id, None)
        if live is not None:
            self._live[session_id] = live
            live.used_ns = self._clock.now_ns()
            return live
        loading = self._loads.get(session_id)
        if loading is None:
            loading = self._start(session_id, load(session_id), self._loads)
        return await asyncio.shield(loading)

    def add(self, live: LiveSession) -> None:
        """It is in memory from now on."""
        self._live[live.session_id] = live

    def remove(self, live: LiveSession) -> None:
        """It is not any more, unless another one of its id is."""
        if self._live.get(live.session_id) is live:
            del self._live[live.session_id]

    def make_room(self) -> None:
        """Put sessions away that have nothing to do, if memory is full.

        Raises:
            BackchannelError: `SESSIONS_FULL` if all have.
        """
        most = self._config.max_live
        if len(self._live) < most:
            return
        unused_ns = self._clock.now_ns() - round(self._config.idle_before_passive_s * SECOND_NS)
        idle = deque[LiveSession]()
        for live in self._live.values():
            if live.used_ns > unused_ns or len(idle) > most // 100:
                break
            if live.idle and live.session_id not in self._busy:
                idle.append(live)
        for live in idle:
            del self._live[live.session_id]
            live.forget(moved_error())
        if not idle:
            raise BackchannelError(
                Reason.SESSIONS_FULL, f"{most} sessions are at work here; try again later"
            )

    # --- work on one id ----------------------------------------------------------------------

    async def quiet(self, session_id: str) -> None:
        """Wait until nobody is at work on this id; the caller may begin at once."""
        while (under_way := self._busy.get(session_id) or self._loads.get(session_id)) is not None:
            await asyncio.wait([under_way])

    async def work(self, session_id: str, work: Coroutine[Any, Any, T]) -> T:
        """Do something that changes whether the session is in memory; it outlives the caller.

        Raises:
            BackchannelError: What the work raises; `INTERNAL` for a bug; `DRAINING` if it was cut.
        """
        return await asyncio.shield(self._start(session_id, work, self._busy))

    def _start(
        self,
        session_id: str,
        work: Coroutine[Any, Any, T],
        book: dict[str, asyncio.Future[T]] | dict[str, asyncio.Future[Any]],
    ) -> asyncio.Future[T]:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        # Whoever waits hears of an error; if all have left, nobody needs to.
        future.add_done_callback(_look)
        book[session_id] = future

        async def do() -> None:
            try:
                future.set_result(await work)
            except BackchannelError as refused:
                future.set_exception(refused)
            except Exception as broken:  # noqa: BLE001 - a bug fails this call, not the process
                _logger.error("work_broke", **where(broken))
                future.set_exception(broken_error())

        def done(_: asyncio.Task[None]) -> None:
            # Also when the task was cancelled before it had begun.
            work.close()
            if not future.done():
                future.set_exception(draining_error())
            del book[session_id]

        self._spawn(do(), "work").add_done_callback(done)
        return future


def _look(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
