"""Break the service in many places, one at a time, and see that the tests notice each.

    python scripts/mutants.py           all, and write the table in docs/track-record.md
    python scripts/mutants.py WORD...   only those whose description holds a WORD; writes nothing

The breaks are listed in scripts/mutants.toml. They are made in a copy of the tree in a temporary
folder, never in the tree itself. The tests that a break names are asked about it, up to the first
that fails; if they notice nothing and it is in the session core, all its examples, then the
comparison with the reference and the random conversations. What nobody notices is missed, and the
exit status is then 1. Tests that do not come to an end have noticed nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "scripts" / "mutants.toml"
PAGE = ROOT / "docs" / "track-record.md"
BEGIN, END = "<!-- scripts/mutants.py: begin -->", "<!-- scripts/mutants.py: end -->"
CODE = Path("service") / "backchannel"
TESTS = "tests/unit/session"
REFERENCE = f"{TESTS}/test_reference.py"
MACHINE = f"{TESTS}/test_machine.py"
# The smallest case is of no use here, and takes minutes to find.
UNSHRUNK = ("--hypothesis-profile=unshrunk", "--hypothesis-seed=1")
COPIED = ("service", "gateway", "tests", "scripts", "bench", "docs", "pyproject.toml")
# A break may make a test run for ever. Longer than any test's own limit, whose end has a name.
LIMIT_S = 330


@dataclass(frozen=True, slots=True)
class Mutant:
    """One way to break the code.

    Attributes:
        breaks: What is wrong then, for people.
        file: Below the service's package.
        old: Stands there exactly once.
        new: Stands there instead.
        tests: Those that are asked first.
    """

    breaks: str
    file: str
    old: str
    new: str
    tests: Sequence[str]

    @property
    def asked(self) -> Iterator[tuple[str, ...]]:
        """What to ask pytest for, each only if the one before noticed nothing."""
        yield tuple(self.tests)
        if self.file.startswith("session/"):
            yield TESTS, f"--ignore={MACHINE}", f"--ignore={REFERENCE}"
            yield REFERENCE, *UNSHRUNK
            yield MACHINE, *UNSHRUNK


@dataclass(frozen=True, slots=True)
class Verdict:
    """Who noticed.

    Attributes:
        noticed_by: The first test that failed; empty if none did.
        endless: What was asked and did not come to an end, for people; mostly empty.
    """

    mutant: Mutant
    noticed_by: str
    endless: str = ""

    def __str__(self) -> str:
        said = f"{self.noticed_by or 'MISSED'}: {self.mutant.breaks}"
        return f"{said} (no end within {LIMIT_S} s: {self.endless})" if self.endless else said


def mutants() -> list[Mutant]:
    """All of the list.

    Raises:
        SystemExit: One does not fit the code.
    """
    listed = [Mutant(**one) for one in tomllib.loads(LIST.read_text("utf-8"))["mutant"]]
    for mutant in listed:
        count = (ROOT / CODE / mutant.file).read_text("utf-8").count(mutant.old)
        if count != 1:
            raise SystemExit(
                f"{LIST.name}: {mutant.breaks!r}: `old` stands {count} times in {mutant.file}; "
                "mend the list"
            )
    return listed


def first_failure(tree: Path, *arguments: str) -> str:
    """Run tests in a copy of the tree; the name of the first that fails, empty if none does.

    Raises:
        TimeoutError: They did not come to an end.
    """
    environment = {**os.environ, "BACKCHANNEL_TEST_SCALE": "small", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "--tb=no"]
    command += ["-p", "no:cacheprovider", *arguments]
    try:
        done = subprocess.run(
            command,
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(" ".join(arguments)) from error
    if done.returncode == 0:
        return ""
    if done.returncode != 1:
        return "(could not be collected)"
    failed = re.search(r"^(?:FAILED|ERROR) \S*::(\w+)", done.stdout, re.MULTILINE)
    if failed is None:
        return "(some test)"
    return "the random conversations" if failed[1] == "runTest" else failed[1]


def judge(tree: Path, mutant: Mutant) -> Verdict:
    """Break the copy, ask the tests, mend the copy."""
    path = tree / CODE / mutant.file
    whole = path.read_text("utf-8")
    endless = []
    for arguments in mutant.asked:
        path.write_text(whole.replace(mutant.old, mutant.new), "utf-8")
        try:
            failed = first_failure(tree, *arguments)
        except TimeoutError as error:
            failed = ""
            endless.append(str(error))
        finally:
            path.write_text(whole, "utf-8")
        # Those that the break names are known to pass without it.
        named = arguments == tuple(mutant.tests)
        if failed and (named or passes(tree, *arguments)):
            return Verdict(mutant, failed, "; ".join(endless))
    return Verdict(mutant, "", "; ".join(endless))


@cache
def passes(tree: Path, *arguments: str) -> bool:
    """Whether tests pass on the code as it is, within the same limit."""
    try:
        return not first_failure(tree, *arguments)
    except TimeoutError:
        return False


def table(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as Markdown."""
    lines = ["| What is broken | in | First noticed by |", "|---|---|---|"]
    for verdict in verdicts:
        seen = verdict.noticed_by or "**nobody**"
        if seen.startswith("test_"):
            seen = f"`{seen}`"
        lines.append(f"| {verdict.mutant.breaks} | `{verdict.mutant.file}` | {seen} |")
    return "\n".join(lines)


def copied(folder: str) -> Path:
    """A copy of what the tests need."""
    tree = Path(folder)
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.gguf", "node_modules")
            shutil.copytree(source, tree / name, ignore=ignored)
        else:
            shutil.copy2(source, tree / name)
    return tree


def main(words: Sequence[str]) -> int:
    """Judge the mutants that are asked for."""
    chosen = [
        mutant
        for mutant in mutants()
        if not words or any(word.lower() in mutant.breaks.lower() for word in words)
    ]
    verdicts = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = copied(folder)
        named = sorted({test for mutant in chosen for test in mutant.tests})
        if failed := first_failure(tree, *named):
            print(f"the tests fail on the code as it is: {failed}")
            return 1
        for number, mutant in enumerate(chosen, 1):
            began = time.monotonic()
            verdict = judge(tree, mutant)
            verdicts.append(verdict)
            took = f"{time.monotonic() - began:.0f} s"
            print(f"{number}/{len(chosen)} {took:>6}  {verdict}", flush=True)
    caught = sum(bool(verdict.noticed_by) for verdict in verdicts)
    print(f"{caught} of {len(verdicts)} caught")
    if not words:
        before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text(f"{before}{BEGIN}\n{table(verdicts)}\n{END}{after}", "utf-8")
    return 0 if caught == len(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
