"""How much a test does: little in `make test`, all of it in `make nightly`."""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")

VARIABLE = "BACKCHANNEL_TEST_SCALE"
# Read once: while a test runs, the variables of this machine may be out of its sight.
_said = os.environ.get(VARIABLE, "small")


def full() -> bool:
    """Whether this run is one with full counts."""
    if _said not in ("small", "full"):
        raise ValueError(f"{VARIABLE}={_said}: say small or full")
    return _said == "full"


def scale(small: T, large: T) -> T:
    """Choose a count, a duration or a list of cases by the size of the run.

    A result that somebody will want to read belongs in `record_property`, which
    `make nightly` copies into docs/nightly.md.
    """
    return large if full() else small
