"""`backchannel probe` as a program runs it, and what it said."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# 30 frames over 3 s, so that a busy machine's pauses are small against it.
SMALL = ("--frames", "30", "--interval", "0.1")


@dataclass
class Said:
    """What the command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def kinds(self) -> set[tuple[str, str]]:
        return {(finding["door"], finding["kind"]) for finding in self.json["findings"]}


async def probe(*arguments: str, env: Mapping[str, str] | None = None) -> Said:
    """Run it to its end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "backchannel", "probe", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(env or {})},
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    assert "Traceback" not in err.decode(), err.decode()
    return Said(process.returncode, out.decode(), err.decode())
