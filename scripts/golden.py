"""Record a golden history: a log as the program of today writes it, and what it makes of it.

    python scripts/golden.py HISTORY NAME

HISTORY is one of tests/unit/session/histories.py, NAME that of the recording. What is
recorded is never changed and never removed, and so an existing one is not written again: see
tests/unit/session/golden/README.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "service")]

from tests.unit.session.golden_files import FOLDER, Golden  # noqa: E402 - after the path
from tests.unit.session.histories import HISTORIES  # noqa: E402 - after the path


def main(words: Sequence[str]) -> int:
    """Record what is named."""
    if len(words) != 2 or words[0] not in HISTORIES:
        print(__doc__)
        print(f"There are: {', '.join(HISTORIES)}")
        return 2
    history, name = words
    golden = Golden(name)
    if golden.log_file.exists():
        print(f"{name} has been recorded; choose a new name")
        return 1
    golden.record(HISTORIES[history]().log)
    print(f"recorded {name} in {FOLDER.relative_to(ROOT)}; read what it is said to mean")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
