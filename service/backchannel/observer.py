"""What is told to whoever watches the service: traces and metrics hang here.

The service knows only this module. `Observer` hears nothing; `backchannel.telemetry` has one that
does. Where a watch is None nobody watches, so the way of a token pays one comparison.

Whatever is called here returns at once and raises nothing: a watch is a guest on the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, Protocol

AfterCommit = Callable[[Exception | None], None]

OUTGOING: Final[ContextVar[Mapping[str, str]]] = ContextVar(
    "outgoing", default=MappingProxyType({})
)
"""Headers that go along to whoever is asked on behalf of the present work: W3C trace context
(https://www.w3.org/TR/trace-context/). Set in the task of an engine run."""

CHANNEL_INTERCEPTORS: Final[ContextVar[Sequence[Any]]] = ContextVar(
    "channel_interceptors", default=()
)
"""For the gRPC channels of engines (`grpc.aio.ClientInterceptor`), which are made while it is set:
they see to unary calls as `OUTGOING` sees to the rest."""


class Outcome(StrEnum):
    """How an RPC ended."""

    OK = "ok"
    ABORT = "abort"
    """The service refused it, or gave it up, with a status of its choice."""
    EXCEPTION = "exception"
    """A bug of ours."""
    CANCEL = "cancel"
    """The client went away, or took it back."""
    DEADLINE = "deadline"
    """The client's deadline passed."""


class CallWatch(Protocol):
    """Watches one RPC. Made, and told of the end, in the RPC's own task."""

    def ended(self, outcome: Outcome, code: str) -> None:
        """The end: how, and with which status, by its name (`NOT_FOUND`)."""
        ...


class RunWatch(Protocol):
    """Watches one question to an engine, fallbacks included; all but `stop` in the run's task."""

    def queued(self, engine: str, model: str) -> None:
        """It waits for a place with this model, or has one at once."""
        ...

    def admitted(self) -> None:
        """It has it, and the engine is asked next."""
        ...

    def output(self, chunk: object) -> None:
        """A chunk came; every token's way."""
        ...

    def pause(self) -> None:
        """What is not taken from the engine for a while is no gap of the engine's."""
        ...

    def stop(self) -> None:
        """The engine is told to stop."""
        ...

    def failed(self, error: Exception, *, passed_over: bool = False) -> None:
        """The model failed; if it is passed over, another one is asked."""
        ...

    def finished(self, finished: Any) -> None:
        """The run ended with this `engines.protocol.Finished`."""
        ...


class ReaderWatch(Protocol):
    """Watches one attached reader."""

    def heartbeat(self) -> None:
        """One was handed out."""
        ...

    def closed(self, *, goodbye: bool) -> None:
        """It is gone; whether it had said so."""
        ...


class Lagging(Protocol):
    """A reader, as far as its watch looks at it."""

    @property
    def lag(self) -> int:
        """How many committed events it has not taken."""
        ...


class SessionWatch(Protocol):
    """Watches one session in memory."""

    def decided(self, kind: str, event: Any) -> AfterCommit | None:
        """An event was decided, deltas and progress left out.

        Returns:
            What is to be called when it is committed, or with why it will not be.
        """
        ...

    def refused(self, reason: str) -> None:
        """A frame was refused, for this reason (`errors.Reason`)."""
        ...

    def trace(self, turn_id: str) -> dict[str, str]:
        """For the log: `trace_id` and `span_id` of a turn whose end was just decided."""
        ...

    def run(self, effect: Any) -> RunWatch | None:
        """An engine is to be asked (`session.decision.StartEngine`)."""
        ...

    def reader(
        self, reader: Lagging, *, after_seq: int, last_seq: int, snapshot: bool
    ) -> ReaderWatch:
        """Somebody reads from here on."""
        ...

    def lost(self, reason: str) -> None:
        """The log refused: what was decided and is not committed never was."""
        ...

    def gone(self, reason: str) -> None:
        """The session leaves memory."""
        ...


class Viewed(Protocol):
    """A host, as far as an observer looks at it from time to time."""

    def figures(self) -> Mapping[str, Mapping[str, float]]:
        """What there is now: a figure's name, and its values by what they are about."""
        ...


class Observer:
    """Hears nothing. What watches is a subclass.

    Attributes:
        metrics_url: Where people find the metrics; empty for nowhere.
    """

    metrics_url: str = ""

    def call(self, method: str, metadata: Sequence[tuple[str, str | bytes]]) -> CallWatch | None:
        """An RPC of this full method name begins."""
        return None

    def session(self, session_id: str) -> SessionWatch | None:
        """A session is in memory."""
        return None

    def appended(self, took_ns: int, events: int) -> None:
        """The log took an append."""

    def append_failed(self, reason: str) -> None:
        """The log refused one."""

    def channel_interceptors(self) -> Sequence[Any]:
        """What engines put around the unary calls of their gRPC channels."""
        return ()

    @contextmanager
    def channels(self) -> Iterator[None]:
        """Inside the block engines make their channels (`CHANNEL_INTERCEPTORS`)."""
        token = CHANNEL_INTERCEPTORS.set(self.channel_interceptors())
        try:
            yield
        finally:
            CHANNEL_INTERCEPTORS.reset(token)

    def watching(self, host: Viewed) -> AbstractAsyncContextManager[object]:
        """Look at the host from time to time while this is open."""
        return nullcontext()


SILENT: Final = Observer()
