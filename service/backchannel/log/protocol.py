"""What a log is: where the events of all sessions are kept, append-only and numbered.

Rules for a backend:

* `append` is atomic and ordered: when it returns, everything in it survives what `survival` names;
  when it raises, nothing of it is there.
* Events are opaque bytes (a serialised `backchannel.v1.Event`), numbered 1, 2, 3, … in a session.
* Only a `Checkpoint` allows a trim, and only up to its seq.
* One process writes a log at a time. A second one that opens it is refused.
* Failures are `BackchannelError`s: `LOG_UNAVAILABLE` (disk full, locked, gone: try again later) or
  `LOG_CORRUPT`; both name the file or address. After either, reading what was committed works as
  far as the medium allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Protocol, Self


class Survival(StrEnum):
    """What a committed event outlives."""

    NOTHING = "nothing"
    PROCESS = "process"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class Head:
    """A session's summary, kept beside its events for listing and recovery.

    Attributes:
        session: A serialised `backchannel.v1.Session` as of the append that carried it.
        active: A turn runs, a message waits or a call is open: recovery must look at it.
        expire_time_ns: Unix time in nanoseconds after which the session may be expired.
    """

    session: bytes
    active: bool
    expire_time_ns: int


@dataclass(frozen=True, slots=True)
class Append:
    """Events of one session, in order.

    Attributes:
        session_id: Which session. `first_seq == 1` creates it.
        first_seq: The seq of `events[0]`; must be the session's last seq + 1.
        events: Serialised events, at least one.
        time_ns: Unix time of the newest event.
        head: The new summary; None leaves it as it is. Required when `first_seq == 1`.
    """

    session_id: str
    first_seq: int
    events: Sequence[bytes]
    time_ns: int
    head: Head | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The folded state after event `seq`, in the core's private versioned encoding."""

    seq: int
    state: bytes


@dataclass(frozen=True, slots=True)
class Stored:
    """What there is of a session.

    Attributes:
        earliest_seq: The oldest event still there.
        last_seq: The newest event.
        checkpoint: The newest checkpoint, if one was made.
        head: The newest summary.
    """

    earliest_seq: int
    last_seq: int
    checkpoint: Checkpoint | None
    head: Head


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of a listing; `(update_time_ns, session_id)` is its place in the order."""

    session_id: str
    update_time_ns: int
    head: Head


@dataclass(frozen=True, slots=True)
class Retention:
    """How much of a session's past is kept; whichever limit is reached first counts.

    Attributes:
        max_age_s: Events older than this may go.
        max_events: At most so many events a session.
        max_bytes: At most so many bytes of events a session.
    """

    max_age_s: float = 7 * 24 * 3600.0
    max_events: int = 100_000
    max_bytes: int = 64 * 1024 * 1024


class Log(Protocol):
    """Where events are kept. Opened by `async with`; every method may raise as told above."""

    @property
    def survival(self) -> Survival:
        """What a committed event outlives."""
        ...

    @property
    def address(self) -> str:
        """For people: `memory`, or the file or server, without secrets."""
        ...

    async def append(self, batch: Sequence[Append]) -> None:
        """Commit the batch as one: all of it, or nothing.

        Raises:
            AppendConflictError: A session in it is not at `first_seq - 1`, is a tombstone, or (with
                `first_seq == 1`) exists already; names the session.
        """
        ...

    async def read(
        self, session_id: str, after_seq: int, *, max_events: int, max_bytes: int
    ) -> Sequence[bytes]:
        """Events from `after_seq + 1` on, in order, without gaps; at least one if there is one.

        Raises:
            BackchannelError: `CURSOR_TRIMMED` with `earliest_seq` in its metadata, if
                `after_seq + 1` is older than the oldest event; `SESSION_NOT_FOUND`.
        """
        ...

    async def load(self, session_id: str) -> Stored | None:
        """What there is of a session; None if it does not exist (or is a tombstone)."""
        ...

    async def retired_until_ns(self, session_id: str) -> int:
        """Until when the id is a tombstone, in Unix nanoseconds; 0 if it is none."""
        ...

    async def save_checkpoint(self, session_id: str, checkpoint: Checkpoint) -> None:
        """Replace the session's checkpoint."""
        ...

    async def trimmable_seq(self, session_id: str, retention: Retention, now_ns: int) -> int:
        """The newest seq that retention wants gone; 0 if none."""
        ...

    async def trim(self, session_id: str, up_to_seq: int) -> int:
        """Delete events up to `up_to_seq`, never beyond the checkpoint; the new earliest seq."""
        ...

    async def delete(self, session_id: str, retired_until_ns: int) -> None:
        """Delete a session and all that is kept of it, but for the tombstone of its id."""
        ...

    async def active(self) -> Sequence[str]:
        """Sessions whose head says `active`."""
        ...

    async def expired(self, now_ns: int, limit: int) -> Sequence[str]:
        """Sessions past their `expire_time_ns`, at most `limit`."""
        ...

    async def sweep(self, now_ns: int) -> None:
        """Forget tombstones whose time is over."""
        ...

    async def list(self, *, before: tuple[int, str] | None, limit: int) -> Sequence[Listed]:
        """Sessions by `(update_time_ns, session_id)`, newest first, from `before` on."""
        ...

    async def count(self) -> int:
        """How many sessions there are."""
        ...

    async def __aenter__(self) -> Self:
        """Open, creating what is not there.

        Raises:
            BackchannelError: `LOG_UNAVAILABLE` (also when another process has it open) or
                `LOG_CORRUPT`, saying what to do.
        """
        ...

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Close; everything appended is kept."""
        ...


class AppendConflictError(Exception):
    """An append does not fit a session's log: somebody else wrote, or it is gone.

    Args:
        session_id: Which session.
        message: How it does not fit.
    """

    def __init__(self, session_id: str, message: str) -> None:
        super().__init__(message)
        self.session_id = session_id
