"""What was measured on the way to a server, and what follows from it by counting alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

APART: Final = 0.25
"""A frame came by itself if it came after at least this part of the time that lay between its
sending and that of the frame before. Generous: a busy machine is no proxy."""

DUPLEX: Final = "Converse"
"""The door of which both sides stay open."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One frame.

    Attributes:
        sent_s: By the server's clock; only differences mean something.
        arrived_s: By the clock here; only differences mean something.
    """

    sent_s: float
    arrived_s: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is not the one of Backchannel.

    Attributes:
        request: Method and path.
        status: Of HTTP; 0 for gRPC, also within gRPC-Web.
        said: What the answer said, if it was one of the server's own errors.
        location: Where it sends, if it sends elsewhere.
    """

    request: str
    status: int
    said: str = ""
    location: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """What all that is measured has in common.

    Attributes:
        door: Its name, such as `gRPC-Web`.
        server: Who answered, by its own header; empty if it did not say (HAProxy never does).
    """

    door: str
    server: str = field(default="", kw_only=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream(Seen):
    """Frames at known times, through one door.

    Attributes:
        arrivals: In order.
        whole: Whether the stream came to its own end.
        http_version: As `HTTP/1.1`.
        encoding: How the answer was compressed; empty if it was not.
        refusal: Why there is no stream.
    """

    arrivals: Sequence[Arrival] = ()
    whole: bool = True
    http_version: str = ""
    encoding: str = ""
    refusal: Refusal | None = None

    @property
    def sent_over_s(self) -> float:
        """From the first frame's sending to the last one's."""
        return self.arrivals[-1].sent_s - self.arrivals[0].sent_s if self.arrivals else 0.0

    @property
    def arrived_over_s(self) -> float:
        """From the first frame's arrival to the last one's."""
        return self.arrivals[-1].arrived_s - self.arrivals[0].arrived_s if self.arrivals else 0.0

    @property
    def groups(self) -> int:
        """How many pieces the frames came in; as many as frames if each came by itself."""
        return sum(
            after.arrived_s - before.arrived_s >= APART * (after.sent_s - before.sent_s)
            for before, after in itertools.pairwise(self.arrivals)
        ) + bool(self.arrivals)

    @property
    def worst_lag_s(self) -> float:
        """How much later than the quickest frame the slowest one came."""
        lags = [arrival.arrived_s - arrival.sent_s for arrival in self.arrivals]
        return max(lags) - min(lags) if lags else 0.0


@dataclass(frozen=True, slots=True)
class Silence(Seen):
    """A stream on which nothing was said.

    Attributes:
        asked_s: How long it was to survive.
        cut_after_s: When it ended before that; None if it did not.
    """

    asked_s: float
    cut_after_s: float | None


@dataclass(frozen=True, slots=True)
class Cancel(Seen):
    """A reader that went away from a session which stops when nobody reads.

    Attributes:
        waited_s: How long it was watched.
        stopped_after_s: When the server had stopped; None if it had not.
    """

    waited_s: float
    stopped_after_s: float | None


@dataclass(frozen=True, slots=True)
class Duplex(Seen):
    """A call of which both sides stay open.

    Attributes:
        waited_s: How long it was watched.
        answered_after_s: When the first frame was answered; None if it was not.
    """

    waited_s: float
    answered_after_s: float | None


@dataclass(frozen=True, slots=True)
class Calls(Seen):
    """Calls with one answer each, made one after the other.

    Attributes:
        answered: How many were.
        slowest_s: How long the slowest answer took.
        refusal: Why the next one was not answered; None if all were.
    """

    answered: int
    slowest_s: float
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Listing(Seen):
    """Whether somebody without an id was told those of the sessions.

    Attributes:
        listed: Whether they were told.
        local: Whether the server was asked at a loopback address, from which it may.
    """

    listed: bool
    local: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """All that was measured at one URL."""

    url: str
    streams: Sequence[Stream] = ()
    silences: Sequence[Silence] = ()
    cancels: Sequence[Cancel] = ()
    duplexes: Sequence[Duplex] = ()
    calls: Sequence[Calls] = ()
    listings: Sequence[Listing] = ()
