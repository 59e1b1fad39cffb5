"""What a program that shows its connection is told about it."""

from __future__ import annotations

from dataclasses import dataclass

from backchannel.client.errors import ClientError


@dataclass(frozen=True, slots=True)
class Connected:
    """A stream is open.

    Attributes:
        after_seq: It begins with the event after this one.
        resumed: Whether it goes on from a stream that was lost.
    """

    after_seq: int
    resumed: bool


@dataclass(frozen=True, slots=True)
class Lost:
    """The stream was lost, or could not be opened; nothing that was said is.

    Attributes:
        error: How.
        retry_in_s: When it is tried again.
    """

    error: ClientError
    retry_in_s: float


ConnectionChange = Connected | Lost
