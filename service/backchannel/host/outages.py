"""Which targets of an alias were down a moment ago, so that not every turn waits to find out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from backchannel.engines.routing import DOWN, Target
from backchannel.errors import BackchannelError, Reason
from backchannel.host.clock import SECOND_NS, Clock

REST_S: Final = 10.0
"""A target that was down is asked after the others for so long; then it gets its place back."""

_RESTS: Final = DOWN - {Reason.ENGINE_BUSY}  # Who is busy says so at once, and for a moment only.


class Outages:
    """Remembers failures by the full names of models.

    Args:
        clock: Tells when a rest is over.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until_ns: dict[str, int] = {}

    def ordered(self, targets: Sequence[Target]) -> list[Target]:
        """The targets, those that rest behind the others."""
        if not self._until_ns or len(targets) == 1:
            return list(targets)
        now_ns = self._clock.now_ns()
        self._until_ns = {name: at for name, at in self._until_ns.items() if at > now_ns}
        return sorted(targets, key=lambda target: target.name in self._until_ns)

    def failed(self, target: Target, error: BackchannelError) -> None:
        """It did not begin to answer."""
        if error.reason in _RESTS:
            self._until_ns[target.name] = self._clock.now_ns() + round(REST_S * SECOND_NS)

    def answered(self, target: Target) -> None:
        """It did."""
        self._until_ns.pop(target.name, None)
