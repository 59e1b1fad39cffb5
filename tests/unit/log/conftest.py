from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backchannel.log.protocol import Log
from tests.unit.log.backends import BACKENDS


@pytest.fixture(params=BACKENDS)
async def log(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Log]:
    """An open, empty log of every backend in turn."""
    async with BACKENDS[request.param](tmp_path) as opened:
        yield opened
