"""Break the session core in many places, one at a time, and see that the tests notice each.

    python scripts/mutants.py           all, and write the table in docs/track-record.md
    python scripts/mutants.py WORD...   only those whose description holds a WORD; writes nothing

The breaks are listed in scripts/mutants.toml. They are made in a copy of the tree in a temporary
folder, never in the tree itself. Two kinds of tests are asked about each: the examples, and the
random conversations of tests/unit/session/test_machine.py. What neither of them notices is missed,
and the exit status is then 1.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "scripts" / "mutants.toml"
PAGE = ROOT / "docs" / "track-record.md"
BEGIN, END = "<!-- scripts/mutants.py: begin -->", "<!-- scripts/mutants.py: end -->"
CORE = Path("service") / "backchannel" / "session"
TESTS = "tests/unit/session"
MACHINE = f"{TESTS}/test_machine.py"
COPIED = ("service", "tests", "scripts", "docs", "pyproject.toml")
# A break may make a test run for ever.
TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Mutant:
    """One way to break the code.

    Attributes:
        breaks: What is wrong then, for people.
        file: Below the core's folder.
        old: Stands there exactly once.
        new: Stands there instead.
    """

    breaks: str
    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Who noticed.

    Attributes:
        examples: The names of the examples that failed.
        machine: Whether a random conversation did.
    """

    mutant: Mutant
    examples: tuple[str, ...]
    machine: bool

    @property
    def caught(self) -> bool:
        """Somebody did."""
        return bool(self.examples) or self.machine


def mutants() -> list[Mutant]:
    """All of the list.

    Raises:
        SystemExit: One does not fit the code.
    """
    listed = [Mutant(**one) for one in tomllib.loads(LIST.read_text("utf-8"))["mutant"]]
    for mutant in listed:
        count = (ROOT / CORE / mutant.file).read_text("utf-8").count(mutant.old)
        if count != 1:
            raise SystemExit(
                f"{LIST.name}: {mutant.breaks!r}: `old` stands {count} times in {mutant.file}; "
                "mend the list"
            )
    return listed


def run(tree: Path, *arguments: str) -> tuple[bool, tuple[str, ...]]:
    """Run tests in a copy of the tree; returns whether all passed, and the names of the failed."""
    environment = {**os.environ, "BACKCHANNEL_TEST_SCALE": "small", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "--tb=no"]
    command += ["-p", "no:cacheprovider", *arguments]
    try:
        done = subprocess.run(
            command,
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return False, ("(ran too long)",)
    if done.returncode not in (0, 1):
        return False, ("(could not be collected)",)
    failed = re.findall(r"^(?:FAILED|ERROR) \S*::(\w+)", done.stdout, re.MULTILINE)
    return done.returncode == 0, tuple(dict.fromkeys(failed))


def judge(tree: Path, mutant: Mutant) -> Verdict:
    """Break the copy, ask the tests, mend the copy."""
    path = tree / CORE / mutant.file
    whole = path.read_text("utf-8")
    path.write_text(whole.replace(mutant.old, mutant.new), "utf-8")
    try:
        _, failed = run(tree, TESTS, f"--ignore={MACHINE}")
        passed, _ = run(tree, MACHINE, "--hypothesis-profile=unshrunk")
    finally:
        path.write_text(whole, "utf-8")
    return Verdict(mutant, failed, not passed)


def table(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as Markdown."""
    lines = [
        "| What is broken | in | Examples that fail | Random conversations |",
        "|---|---|---|---|",
    ]
    for verdict in verdicts:
        seen = "none"
        if verdict.examples:
            seen = f"`{verdict.examples[0]}`"
            if len(verdict.examples) > 1:
                seen += f" and {len(verdict.examples) - 1} more"
        machine = "fail" if verdict.machine else "pass"
        if not verdict.caught:
            machine = "**missed**"
        lines.append(f"| {verdict.mutant.breaks} | `{verdict.mutant.file}` | {seen} | {machine} |")
    return "\n".join(lines)


def main(words: Sequence[str]) -> int:
    """Judge the mutants that are asked for."""
    chosen = [
        mutant
        for mutant in mutants()
        if not words or any(word.lower() in mutant.breaks.lower() for word in words)
    ]
    verdicts = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Path(folder)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.gguf")
                shutil.copytree(source, tree / name, ignore=ignored)
            else:
                shutil.copy2(source, tree / name)
        for arguments in ((TESTS, f"--ignore={MACHINE}"), (MACHINE,)):
            passed, failed = run(tree, *arguments)
            if not passed:
                print(f"the tests fail on the code as it is: {', '.join(failed)}")
                return 1
        for mutant in chosen:
            verdict = judge(tree, mutant)
            verdicts.append(verdict)
            print(
                f"{'caught' if verdict.caught else 'MISSED'}  {mutant.breaks} "
                f"({len(verdict.examples)} examples, "
                f"{'' if verdict.machine else 'not '}the random conversations)",
                flush=True,
            )
    caught = sum(verdict.caught for verdict in verdicts)
    print(f"{caught} of {len(verdicts)} caught")
    if not words:
        before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text(f"{before}{BEGIN}\n{table(verdicts)}\n{END}{after}", "utf-8")
    return 0 if caught == len(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
