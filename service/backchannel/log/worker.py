"""A thread that runs calls one after the other, for a library that blocks.

`asyncio.to_thread` would do, but for two things: a database connection wants one and the same
thread for its life, and the way to it is on the way of every token. So the queue is a
`SimpleQueue` and a call costs one hop there and one back, about half of what an executor's two
futures cost.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

# One thread serves calls of all types, so only `call` is generic, not the class.
T = TypeVar("T")

_Job = Callable[[], None]


class Worker:
    """One thread and its calls, in the order they were asked for.

    The queue needs no bound of its own: a call is awaited by the one who asks, so there are never
    more than there are callers.

    Args:
        name: The thread's name.
        skip_abandoned: Whether a call whose caller was cancelled before the call began is left out.
            False for writes: what was asked for happens, whatever becomes of the one who asked.
    """

    def __init__(self, name: str, *, skip_abandoned: bool) -> None:
        self._jobs: Final[queue.SimpleQueue[_Job | None]] = queue.SimpleQueue()
        self._skip_abandoned = skip_abandoned
        self._running = False
        # A daemon, so that a program that forgot to close a log can still end; what is committed is
        # safe from that, as it is from a kill.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread, once."""
        self._thread.start()
        self._running = True

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """Run `function(*args)` in the thread; its result or error is the call's.

        Raises:
            RuntimeError: The worker does not run, or was stopped.
        """
        if not self._running:
            raise RuntimeError("the log is not open")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def job() -> None:
            if self._skip_abandoned and future.cancelled():
                return
            try:
                result = function(*args)
            except BaseException as error:  # noqa: BLE001 - it is handed to the one who asked
                _tell(loop, _fail, future, error)
            else:
                _tell(loop, _resolve, future, result)

        self._jobs.put(job)
        return await future

    def post(self, function: _Job) -> None:
        """Run `function`, which must not raise, without anybody waiting. Nothing after `stop`."""
        if self._running:
            self._jobs.put(function)

    def stop(self, last: _Job | None = None) -> None:
        """End the thread after what was asked for so far and `last`, which must not raise."""
        if not self._running:
            return
        self._running = False
        if last is not None:
            self._jobs.put(last)
        self._jobs.put(None)

    def wait(self) -> None:
        """Block until the thread, after `stop`, has ended. Not for the loop's thread."""
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            # Else the job, and with it all that it was called with, lives until the next one comes.
            del job


def _tell(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any) -> None:
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        # The loop is closed: nobody is left who waits.
        return


def _resolve(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[T], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
