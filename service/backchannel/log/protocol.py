"""What a log is: where the events of all sessions are kept, append-only and numbered.

Rules for a backend:

* `append` is atomic and ordered: when it returns, everything in it survives what `survival` names;
  when it raises, nothing of it is there.
* Events are opaque bytes (a serialised `backchannel.v1.Event`), numbered 1, 2, 3, … in a session.
* Only a `Checkpoint` allows a trim, and only up to its seq.
* One process writes a log at a time. A second one that opens it is refused.
* Failures are `BackchannelError`s: `LOG_UNAVAILABLE` (disk full, locked, gone: try again later) or
  `LOG_CORRUPT`; both name the file or address, in the message and in the metadata as `file`. After
  either, reading what was committed works as far as the medium allows, and once the cause is gone
  appending works again. If the damage is confined to one session, the error is a
  `SessionDamagedError` that names it, also when an append of several fails by it: without it, the
  others' appends work.
* A method that is given an unknown session raises `SESSION_NOT_FOUND` unless it says otherwise.
* Cancelling a call does no harm, but what was asked for may still happen: who cancels an `append`
  does not know whether it is in the log, and asks `load`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Final, NamedTuple, Protocol, Self

from backchannel.errors import BackchannelError, Reason

LIST_BYTES: Final = 1024 * 1024
"""How much a page of a listing holds, roughly."""

NEVER_NS: Final = 2**63 - 1
"""A time that does not come, in Unix nanoseconds."""


class Survival(StrEnum):
    """What a committed event outlives."""

    NOTHING = "nothing"
    PROCESS = "process"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class Head:
    """A session's summary, kept beside its events for listing and recovery.

    Attributes:
        session: A serialised `backchannel.v1.Session` as of the append that carried it, without
            what its `Origin` says.
        active: A turn runs, a message waits or a call is open: recovery must look at it.
        expire_time_ns: Unix time in nanoseconds after which the session may be expired; `NEVER_NS`
            while it is at work.
    """

    session: bytes
    active: bool
    expire_time_ns: int


@dataclass(frozen=True, slots=True)
class Origin:
    """What is known of a session when it begins and never changes, so that it is written once.

    Attributes:
        session: A serialised `backchannel.v1.Session` of those fields. Laid before `Head.session`
            the two are one message.
        labels: What a listing may ask for.
    """

    session: bytes = b""
    labels: Mapping[str, str] = field(default_factory=dict)


class Append(NamedTuple):
    """Events of one session, in order. A tuple, which is made several times as fast as a dataclass.

    Attributes:
        session_id: Which session. `first_seq == 1` creates it.
        first_seq: The seq of `events[0]`; must be the session's last seq + 1.
        events: Serialised events, at least one.
        time_ns: Unix time of the newest event, in nanoseconds; no less than that of the append
            before.
        head: The new summary; None leaves it as it is. Required when `first_seq == 1`.
        origin: What never changes; heeded when `first_seq == 1`.
    """

    session_id: str
    first_seq: int
    events: Sequence[bytes]
    time_ns: int
    head: Head | None = None
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The folded state after event `seq`, in the core's private versioned encoding."""

    seq: int
    state: bytes


@dataclass(frozen=True, slots=True)
class Stored:
    """What there is of a session.

    Attributes:
        earliest_seq: The oldest event still there; `last_seq + 1` if all are trimmed.
        last_seq: The newest event, trimmed or not.
        checkpoint: The newest checkpoint, if one was made.
        head: The newest summary.
    """

    earliest_seq: int
    last_seq: int
    checkpoint: Checkpoint | None
    head: Head


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of a listing; `(update_time_ns, session_id)` is its place in the order.

    Attributes:
        session_id: Which session.
        update_time_ns: `Append.time_ns` of the append that carried `head`. Appends without one
            leave it as it is, so that a token costs no change of the order.
        head: The newest summary.
        session: `Origin.session` and `Head.session`, one after the other.
    """

    session_id: str
    update_time_ns: int
    head: Head
    session: bytes


class Excess(NamedTuple):
    """A session of which retention wants something gone.

    Attributes:
        session_id: Which.
        up_to_seq: The newest event that is to go.
        checkpoint_seq: Its checkpoint; 0 if it has none.
    """

    session_id: str
    up_to_seq: int
    checkpoint_seq: int


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

        Several appends of one session in a batch follow each other.

        Raises:
            AppendConflictError: A session in it is not at `first_seq - 1`, is a tombstone (at
                `time_ns`), or (with `first_seq == 1`) exists already; names the session.
            ValueError: An append has no events, or creates a session without a head.
        """
        ...

    async def read(
        self, session_id: str, after_seq: int, *, max_events: int, max_bytes: int
    ) -> Sequence[bytes]:
        """Events from `after_seq + 1` on, in order, without gaps; at least one if there is one.

        Nothing if there is none, also if `after_seq` is beyond the end.

        Raises:
            BackchannelError: `CURSOR_TRIMMED` with `earliest_seq` in its metadata, if
                `after_seq + 1` is older than the oldest event; `SESSION_NOT_FOUND`.
        """
        ...

    async def load(self, session_id: str) -> Stored | None:
        """What there is of a session; None if it does not exist (or is a tombstone)."""
        ...

    async def retired_until_ns(self, session_id: str) -> int:
        """Until when the id is a tombstone, in Unix nanoseconds; 0 if it is none.

        May lie in the past, until the next `sweep`; then the id is free.
        """
        ...

    async def save_checkpoint(self, session_id: str, checkpoint: Checkpoint) -> None:
        """Replace the session's checkpoint.

        Raises:
            AppendConflictError: It is older than the one there, or beyond the end.
        """
        ...

    async def trimmable_seq(self, session_id: str, retention: Retention, now_ns: int) -> int:
        """The newest seq that retention wants gone; 0 if none."""
        ...

    async def excess(self, retention: Retention, now_ns: int, since_ns: int) -> Sequence[Excess]:
        """All sessions of which retention wants something gone.

        Args:
            retention: How much is kept.
            now_ns: The time.
            since_ns: Sessions that have had no summary since then may be left out, unless they have
                events that are too old: they are no larger than they were.
        """
        ...

    async def trim(self, session_id: str, up_to_seq: int) -> int:
        """Delete events up to `up_to_seq`, never beyond the checkpoint; the new earliest seq.

        What they said may be found in the medium until the next `sweep`.
        """
        ...

    async def delete(self, session_id: str, retired_until_ns: int) -> None:
        """Delete a session and all that is kept of it, but for the tombstone of its id.

        When it returns nothing that was said can be found in what the log keeps, also not by who
        reads the medium; unless somebody else holds on to the file, then it is done by a later
        `sweep`. An unknown session is left unknown: it leaves no tombstone.
        """
        ...

    async def active(self) -> Sequence[str]:
        """Sessions whose head says `active`."""
        ...

    async def expired(self, now_ns: int, limit: int) -> Sequence[str]:
        """Sessions whose `expire_time_ns` has come, the longest ago first, at most `limit`."""
        ...

    async def sweep(self, now_ns: int) -> None:
        """Forget tombstones whose time is over, and finish what trims and deletions have left."""
        ...

    async def list(
        self,
        *,
        before: tuple[int, str] | None,
        limit: int,
        labels: Sequence[tuple[str, str]] = (),
        max_bytes: int = LIST_BYTES,
    ) -> Sequence[Listed]:
        """Sessions by `(update_time_ns, session_id)`, newest first.

        Args:
            before: Only those before this place.
            limit: At most so many.
            labels: Only those that have all of these.
            max_bytes: The line with which `Listed.session` of all reaches so much is the last one.
        """
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


class SessionDamagedError(BackchannelError):
    """`LOG_CORRUPT` for one session alone.

    The id stands beside what crosses the wire, not in it: it is a secret, and an append may carry
    sessions of several clients.

    Args:
        session_id: Which session.
        message: What is damaged and what to do.
        metadata: Further facts, e.g. the file.
    """

    def __init__(self, session_id: str, message: str, *, metadata: dict[str, str]) -> None:
        super().__init__(Reason.LOG_CORRUPT, message, metadata=metadata)
        self.session_id = session_id


def not_found() -> BackchannelError:
    """What a backend says of an unknown session."""
    return BackchannelError(
        Reason.SESSION_NOT_FOUND,
        "there is no such session; check the id, or create it",
        field="session_id",
    )


def trimmed(earliest_seq: int) -> BackchannelError:
    """What a backend says of a cursor older than its oldest event."""
    return BackchannelError(
        Reason.CURSOR_TRIMMED,
        f"the events before seq {earliest_seq} are gone; resume with after_seq = "
        f"{earliest_seq - 1} or later, or ask for a snapshot",
        metadata={"earliest_seq": str(earliest_seq)},
    )
