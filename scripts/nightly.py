"""Run the tests with full counts, and write what came out to docs/nightly.md.

    python scripts/nightly.py [what to pass to pytest]

Takes about an hour on two cores with `--numprocesses 2 --dist loadfile`, as `make nightly` says it.
A test's own figures (`record_property(name, value)`) are listed with its result.
"""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "docs" / "nightly.md"
# One test with full counts may take this long.
TIMEOUT_S = 3600


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def commit() -> str:
    """The commit that was run, and whether the tree was clean."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def outcome(case: ElementTree.Element) -> str:
    """One word for how a test ended."""
    for tag, word in (("failure", "FAILED"), ("error", "FAILED"), ("skipped", "left out")):
        if case.find(tag) is not None:
            return word
    return "passed"


def table(cases: list[ElementTree.Element]) -> list[str]:
    """A row for each file of tests."""
    rows = ["| tests | passed | failed | left out | seconds |", "|---|--:|--:|--:|--:|"]
    files: dict[str, list[ElementTree.Element]] = {}
    for case in cases:
        files.setdefault(case.get("classname", ""), []).append(case)
    for name, members in sorted(files.items()):
        ends = [outcome(case) for case in members]
        counts = [ends.count(word) for word in ("passed", "FAILED", "left out")]
        seconds = sum(float(case.get("time", "0")) for case in members)
        rows.append(f"| {name} | {' | '.join(map(str, counts))} | {seconds:.1f} |")
    return rows


def figures(cases: list[ElementTree.Element]) -> list[str]:
    """What the tests recorded of themselves."""
    rows = [
        f"| {case.get('name')} | {item.get('name')} | {item.get('value')} |"
        for case in cases
        for item in case.iterfind("properties/property")
    ]
    return ["| test | figure | value |", "|---|---|--:|", *rows] if rows else ["None recorded."]


def write(results: Path, arguments: list[str]) -> None:
    """Turn pytest's own report into the page."""
    # Written by pytest a moment ago; no stranger's file.
    cases = list(ElementTree.parse(results).iter("testcase"))  # noqa: S314
    failed = [f"- {case.get('classname')}.{case.get('name')}" for case in cases]
    failed = [
        row for row, case in zip(failed, cases, strict=True) if outcome(case) == "FAILED"
    ] or ["None."]
    page = [
        "# Last run with full counts",
        "",
        "Written by `make nightly`; not edited by hand.",
        "",
        f"- when: {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        f"- commit: {commit()}",
        f"- machine: {os.cpu_count()} × {processor()}, {platform.system()} {platform.machine()}",
        f"- Python: {platform.python_version()}",
        *([f"- only: `{' '.join(arguments)}`"] if arguments else []),
        "",
        *table(cases),
        "",
        "## Failed",
        "",
        *failed,
        "",
        "## Figures",
        "",
        *figures(cases),
        "",
    ]
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text("\n".join(page), encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Run pytest, write the page, and end as pytest did."""
    with tempfile.TemporaryDirectory() as scratch:
        results = Path(scratch) / "results.xml"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", f"--junitxml={results}"),
                *("-o", "junit_family=xunit1", f"--timeout={TIMEOUT_S}", *arguments),
            ],
            cwd=ROOT,
            check=False,
            env=dict(os.environ) | {"BACKCHANNEL_TEST_SCALE": "full"},
        )
        if results.exists():
            write(results, arguments)
            print(f"Written: {REPORT.relative_to(ROOT)}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
