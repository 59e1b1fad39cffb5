"""The page in Chromium and the client in Node, through Envoy: gateway/web/browser/*.test.ts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from scripts import tools, web


@pytest.mark.needs("node", "web", "chromium")
@pytest.mark.timeout(600)
def test_the_page_and_the_client_through_envoy():
    node, chromium = tools.find_node(), tools.find_chromium()
    assert node is not None
    assert chromium is not None
    vitest = web.MODULES / "vitest" / "vitest.mjs"
    run = subprocess.run(
        [str(node), str(vitest), "run", "--config", "browser/vitest.config.ts"],
        cwd=web.WEB,
        env=os.environ
        | {"PYTHON": sys.executable, "CHROMIUM": str(chromium), "NO_COLOR": "1", "CI": "1"},
        check=False,
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert run.returncode == 0, f"{run.stdout[-8000:]}\n{run.stderr[-4000:]}"
    # As many as there are: a suite that runs nothing passes too.
    assert " skipped" not in run.stdout
    assert " passed" in run.stdout
