"""Tests that cannot run are listed with the remedy, and under CI they fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import tools

ROOT = Path(__file__).resolve().parents[2]

# A tool that no machine has: the plugin is given one that is never found.
PLUGIN = """
from pathlib import Path
from scripts import tools

def install() -> None:
    raise OSError("never")

tools.TOOLS["unobtainium"] = tools.Tool(
    name="unobtainium", find=lambda: None, install=install, remedy="mine some"
)
"""

TESTS = """
import pytest

def test_plain():
    pass

@pytest.mark.needs("unobtainium")
def test_needy():
    raise AssertionError("ran without its tool")

def test_skips_itself():
    pytest.skip("not today")

@pytest.mark.xfail(strict=True)
def test_expected_to_fail():
    raise AssertionError
"""


def run(folder: Path, tests: str, *, ci: bool) -> subprocess.CompletedProcess[str]:
    """Run pytest with our configuration and plugin on other tests."""
    (folder / "unobtainium_plugin.py").write_text(PLUGIN, encoding="utf-8")
    (folder / "test_sample.py").write_text(tests, encoding="utf-8")
    environment = dict(os.environ) | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    environment.pop("CI", None)
    if ci:
        environment["CI"] = "true"
    plugins = ["-p", "unobtainium_plugin", "-p", "tests.conftest"]
    configuration = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder)]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *configuration, *plugins, "test_sample.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_newcomer_gets_a_table_with_the_remedy(tmp_path: Path) -> None:
    done = run(tmp_path, TESTS, ci=False)
    assert done.returncode == 0, done.stdout
    assert "left out here, run by CI" in done.stdout
    table = done.stdout[done.stdout.index("left out here") :]
    (tool,) = [line for line in table.splitlines() if "unobtainium" in line]
    assert tool.split()[0] == "1"
    assert tool.endswith("mine some")
    assert "not today" in table
    assert "1 passed, 1 skipped, 1 deselected, 1 xfailed" in done.stdout


def test_ci_fails_for_whatever_is_left_out(tmp_path: Path) -> None:
    done = run(tmp_path, TESTS, ci=True)
    assert done.returncode == 1, done.stdout
    assert "1 failed, 1 passed, 1 xfailed, 1 error" in done.stdout
    assert "mine some" in done.stdout
    assert "ran without its tool" not in done.stdout
    assert "not today" in done.stdout


def test_ci_fails_for_a_module_that_skips_itself(tmp_path: Path) -> None:
    skips = "import pytest\npytest.importorskip('no_such_module_anywhere')\n"
    assert "no_such_module_anywhere" in run(tmp_path, skips, ci=True).stdout
    assert run(tmp_path, skips, ci=True).returncode not in (0, 5)


def test_an_unknown_tool_is_a_mistake_in_the_test(tmp_path: Path) -> None:
    misspelt = "import pytest\n@pytest.mark.needs('grpcurll')\ndef test_x():\n    pass\n"
    for ci in (False, True):
        done = run(tmp_path, misspelt, ci=ci)
        assert done.returncode != 0
        assert "grpcurll" in done.stdout + done.stderr


@pytest.mark.needs("grpcurl", "go")
def test_what_is_found_runs(grpcurl: Path) -> None:
    assert subprocess.run([grpcurl, "-version"], check=False).returncode == 0
    go = tools.TOOLS["go"].find()
    assert go is not None
    assert tools.go_version(go) >= tools.GO_MINIMUM


def test_a_failed_install_is_remembered_as_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def install() -> None:
        tools.run(sys.executable, "-c", "print('no route to host'); raise SystemExit(1)")

    broken = tools.Tool(name="broken", find=lambda: None, install=install, remedy="none")
    monkeypatch.setattr(tools, "TOOLS", {"broken": broken})
    monkeypatch.setattr(tools, "HOME", tmp_path)
    monkeypatch.setattr(tools, "FAILURES", tmp_path / "failures.json")
    tools.main()
    assert tools.why_missing("broken") == "no route to host"
