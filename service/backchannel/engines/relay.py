"""The way of an answer's chunks from the task that reads them to whoever takes them.

A server is read from by a task of its own, so that a stop need not wait for the network. What that
task has read waits here until it is taken, and no more than so much: a reader that takes nothing
holds the task up, and by it the server, as far as the transport does.

How a server is asked, read and told to stop is the business of an `Answer`, one class an adapter.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from types import AsyncGeneratorType
from typing import Protocol, cast

from backchannel.engines.merging import merged
from backchannel.engines.protocol import Chunk, EngineUsage, Finished, StopCause
from backchannel.errors import BackchannelError, Reason


class Answer(Protocol):
    """One answer of a server: what a relay carries."""

    @property
    def most_held(self) -> int:
        """So much is read ahead of whoever takes the chunks, in the unit of `Relay.put`."""
        ...

    async def read(self, relay: Relay) -> StopCause:
        """Ask for it and read it to its end, which is returned; `put` on the relay what comes.

        Raises:
            BackchannelError: The server fails.
        """
        ...

    def stop(self, reading: asyncio.Task[StopCause]) -> None:
        """Have the server stop, and `reading`, the task of `read`, end soon. Does not block.

        Called once at most, and only while that task runs; what it ends with is not looked at.
        """
        ...

    def usage(self) -> EngineUsage:
        """What it has cost, as far as is known; asked for when `read` has ended."""
        ...


class Relay:
    """A `Generation` whose answer is read by a task; the first iteration starts it.

    Args:
        answer: What is to be read.
        name: The task's, for whoever debugs.
        ended: Called when no task runs, or ever will.
    """

    def __init__(self, answer: Answer, name: str, ended: Callable[[Relay], None]) -> None:
        self._answer = answer
        self._name = name
        self._most_held = answer.most_held
        self._ended = ended
        self._stopped = False
        self._reading: asyncio.Task[StopCause] | None = None
        self._chunks: list[Chunk] = []
        self._held = 0
        self._wake = asyncio.Event()
        self._taken = asyncio.Event()
        # What an async generator is; the abstract type lacks `ag_running`.
        self._items = cast(AsyncGeneratorType[Chunk | Finished, None], self._hand_out())

    # --- for whoever takes the chunks

    def __aiter__(self) -> AsyncIterator[Chunk | Finished]:
        return self._items

    def stop(self) -> None:
        """Have the server stop, in whatever phase; see `Generation.stop`."""
        if self._stopped:
            return
        self._stopped = True
        self._taken.set()
        if self._reading is None:
            self._ended(self)
        elif not self._reading.done():
            self._answer.stop(self._reading)

    async def let_go(self) -> None:
        """Wait until the task has ended, which a stop makes it do."""
        if self._reading is not None:
            await asyncio.wait([self._reading])

    async def aclose(self) -> None:
        """Stop, wait until the server has been let go of, and free the iteration."""
        self.stop()
        await self.let_go()
        if not self._items.ag_running:  # Else it ends by itself.
            await self._items.aclose()

    # --- for the answer

    @property
    def stopped(self) -> bool:
        """Whether nobody wants more of the answer."""
        return self._stopped

    @property
    def full(self) -> bool:
        """Whether as much waits to be taken as may."""
        return self._held > self._most_held and not self._stopped

    def put(self, chunks: Sequence[Chunk], size: int = 0) -> None:
        """Hand chunks on; after a stop nobody gets them.

        Args:
            chunks: The next ones.
            size: How much of the bound they take up until they are taken.
        """
        self._chunks += chunks
        self._held += size
        self._wake.set()

    async def room(self) -> None:
        """Wait until it is not full."""
        while self.full:
            self._taken.clear()
            await self._taken.wait()

    # --- the iteration

    async def _hand_out(self) -> AsyncGenerator[Chunk | Finished, None]:
        too_late = self._stopped
        if too_late:
            yield Finished(StopCause.STOPPED, EngineUsage(output_tokens=0))
            return
        self._reading = asyncio.create_task(self._answer.read(self), name=self._name)
        self._reading.add_done_callback(self._done)
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                over = self._reading.done()
                chunks, self._chunks = self._chunks, []
                self._held = 0
                self._taken.set()
                for chunk in merged(chunks):
                    # After a stop everything is counted and nothing given out.
                    if not self._stopped:
                        yield chunk
                if over:
                    break
            yield self._finished(self._reading)
        finally:
            self.stop()

    def _finished(self, reading: asyncio.Task[StopCause]) -> Finished:
        if self._stopped:
            return Finished(StopCause.STOPPED, self._answer.usage())
        if reading.cancelled():
            raise BackchannelError(Reason.ENGINE_FAILED, "the answer's task was taken away")
        return Finished(reading.result(), self._answer.usage())

    def _done(self, reading: asyncio.Task[StopCause]) -> None:
        if not reading.cancelled():
            reading.exception()  # Looked at, also where nobody iterates any more.
        self._wake.set()
        self._ended(self)


class Relays:
    """Those of one engine that are not over."""

    def __init__(self) -> None:
        self._live: set[Relay] = set()

    def begin(self, answer: Answer, name: str) -> Relay:
        """A relay for an answer; its arguments are those of `Relay`."""
        relay = Relay(answer, name, self._live.discard)
        self._live.add(relay)
        return relay

    async def aclose(self) -> None:
        """Stop all of them, and wait until their servers have been let go of.

        Whoever still iterates one gets its `Finished`.
        """
        live = list(self._live)
        for relay in live:
            relay.stop()
        for relay in live:
            await relay.let_go()
