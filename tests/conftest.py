"""What holds for every test: what it needs, what it leaves out, and how much it does."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, settings

from scripts import tools
from tests.scale import full

# A shared machine's pauses say nothing about our code. `make test` gives the same verdict
# twice on the same code; finding something new is the nightly run's business.
settings.register_profile(
    "small",
    deadline=None,
    derandomize=True,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "full",
    deadline=None,
    max_examples=2000,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("full" if full() else "small")

# Under CI whatever is left out is a failure: a green run has run everything.
CI = os.environ.get("CI", "") not in ("", "0", "false")

# Files that take longest, in seconds of waiting rather than of work.
LONG = frozenset({"test_page.py", "test_proxies.py", "test_build.py", "test_probe_reach.py"})

# (what lacks, why, remedy) → how many tests it left out.
LEFT_OUT = pytest.StashKey[Counter[tuple[str, str, str]]]()


def pytest_configure(config: pytest.Config) -> None:
    """Start the list of what is left out."""
    config.stash[LEFT_OUT] = Counter()


def lacking(item: pytest.Item) -> str | None:
    """The first tool that a test needs and that is not to be had."""
    names = [name for marker in item.iter_markers("needs") for name in marker.args]
    unknown = sorted(set(names) - tools.TOOLS.keys())
    if unknown:
        raise pytest.UsageError(f"{item.nodeid}: scripts/tools.py has no tool {unknown[0]!r}")
    return next((name for name in names if tools.why_missing(name) is not None), None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests whose tools lack (under CI keep them, to fail); long files first.

    Where several processes share the work by files, a long one begun last is waited for.
    """
    items.sort(key=lambda item: item.path.name not in LONG)
    if CI:
        return
    kept, dropped = [], []
    for item in items:
        name = lacking(item)
        if name is None:
            kept.append(item)
            continue
        dropped.append(item)
        row = (name, tools.why_missing(name) or "", tools.TOOLS[name].remedy)
        config.stash[LEFT_OUT][row] += 1
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail, under CI, a test whose tool lacks."""
    name = lacking(item) if CI else None
    if name is not None:
        pytest.fail(
            f"needs {name}: {tools.why_missing(name)}; {tools.TOOLS[name].remedy}", pytrace=False
        )


def judge_skip(
    config: pytest.Config, report: pytest.TestReport | pytest.CollectReport, where: str
) -> None:
    """List a skip with what else was left out; under CI make it a failure."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if CI:
        report.outcome = "failed"
        report.longrepr = f"{where}: left out, which CI does not allow: {why}"
    else:
        config.stash[LEFT_OUT][(where, why, "see the test")] += 1


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Judge the tests that skip themselves."""
    report = yield
    judge_skip(item.config, report, item.nodeid)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Judge the modules that skip themselves."""
    report = yield
    judge_skip(collector.config, report, collector.nodeid)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, object, object]:
    """Escape half surrogate pairs, which some tests are about and no pipe carries."""
    data = yield
    return writable(data)


def writable(data: object) -> object:
    """The same with every string such that UTF-8 can hold it."""
    match data:
        case str():
            return data.encode(errors="backslashreplace").decode()
        case dict():
            return {key: writable(value) for key, value in data.items()}
        case list() | tuple():
            return type(data)(map(writable, data))
    return data


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the process that prints what this one has left out, where several share the work."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["left_out"] = [(*row, n) for row, n in session.config.stash[LEFT_OUT].items()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take it in. Each of them leaves out the same tests, but skips only those that it ran."""
    for *row, count in getattr(node, "workeroutput", {}).get("left_out", ()):
        kept = node.config.stash[LEFT_OUT]
        kept[tuple(row)] = max(kept[tuple(row)], count)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was left out as one table, with the remedies."""
    left_out = terminalreporter.config.stash[LEFT_OUT]
    if not left_out:
        return
    terminalreporter.section("left out here, run by CI")
    rows = [("tests", "need", "which", "remedy")]
    rows += [(str(count), *row) for row, count in sorted(left_out.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for *cells, remedy in rows:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        terminalreporter.line("  ".join([*padded, remedy]))


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Undo what a test sets up: a stream that it captured is closed when the next one logs."""
    root = logging.getLogger()
    handlers, level, complain = root.handlers[:], root.level, logging.raiseExceptions
    yield
    root.handlers[:], root.level, logging.raiseExceptions = handlers, level, complain
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def grpcurl() -> Path:
    """The grpcurl program; mark the test `needs("grpcurl")`."""
    path = tools.TOOLS["grpcurl"].find()
    assert path is not None, "mark the test with needs('grpcurl')"
    return path


@pytest.fixture(scope="session")
def go_client() -> Path:
    """The client in tests/clients/go, built; mark the test `needs(*tools.GO_CLIENT)`."""
    return tools.build_go_client()
