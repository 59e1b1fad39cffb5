"""Fuzz by hand: python -m tests.fuzz TARGET [--seed N] [--executions N]."""

from __future__ import annotations

import argparse
import random
import secrets

from tests.fuzz.targets import TARGETS


def main() -> None:
    """Run one target."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32))
    parser.add_argument("--executions", type=int, default=100_000)
    asked = parser.parse_args()
    print(f"{asked.target}: seed {asked.seed}", flush=True)
    report = TARGETS[asked.target](random.Random(asked.seed), asked.executions)
    print(f"{asked.target}: {report}")


if __name__ == "__main__":
    main()
