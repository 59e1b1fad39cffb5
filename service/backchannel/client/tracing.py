"""What a client tells whoever traces its calls; `backchannel.telemetry.outgoing` has one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import grpc


class StreamSpan(Protocol):
    """Watches one stream."""

    @property
    def metadata(self) -> Sequence[tuple[str, str]]:
        """What is sent with the call, to go on with its trace."""
        ...

    def follow(self, call: grpc.aio.Call) -> None:
        """The call has been made."""
        ...


class Tracing(Protocol):
    """Watches all calls of a client."""

    @property
    def interceptors(self) -> Sequence[grpc.aio.ClientInterceptor]:
        """For the unary calls of its channel."""
        ...

    def stream(self, method: str) -> StreamSpan:
        """A stream of this full method name is about to be opened."""
        ...
