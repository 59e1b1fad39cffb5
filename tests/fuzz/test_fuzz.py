"""No input makes the process raise anything but the errors of the table.

Every target is run with as many inputs as the scale says: some in `make test`, a million in `make
nightly`. Both say the seed; `python -m tests.fuzz TARGET --seed SEED` does the same again.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable

import pytest

from tests.fuzz.fuzzing import Bender, FoundError, fuzz
from tests.fuzz.targets import TARGETS
from tests.scale import full, scale

EXECUTIONS = scale(3_000, 1_000_000)


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_errors_of_the_table(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    # The same each time where people wait for it, another one each night.
    seed = secrets.randbelow(2**32) if full() else 1
    print(f"python -m tests.fuzz {name} --seed {seed} --executions {EXECUTIONS}")
    report = TARGETS[name](random.Random(seed), EXECUTIONS)
    record_property("seed", seed)
    record_property("fuzzed", str(report))
    assert report.executions == EXECUTIONS
    assert len(report.signatures) > 5, "it always gets to the same place"


def test_an_input_that_breaks_something_is_named() -> None:
    def breaks(data: bytes) -> object:
        return 1 // (b"\xff" not in data)

    rng = random.Random(1)
    with pytest.raises(FoundError, match=r"input \d+, [0-9a-f]*ff[0-9a-f]*, led to ZeroDivision"):
        fuzz(breaks, Bender(rng).bend, [b"begin"], 10_000, rng)
