"""A client in another language, made from proto/ alone, holds a conversation."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from scripts import tools
from tests.support.server import ServerProcess


async def _run(program: Path, address: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        program, address, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    seen: dict[str, Any] = json.loads(out)
    return seen


@pytest.mark.needs(*tools.GO_CLIENT)
@pytest.mark.timeout(300)
async def test_a_go_client_interrupts_and_answers_a_tool_call(
    server_process: ServerProcess, go_client: Path
) -> None:
    seen = await _run(go_client, server_process.address)
    stop, tool = seen["interrupt"], seen["tool"]
    for one in (stop, tool):
        assert one["seqs"] == list(range(1, len(one["seqs"]) + 1))
        assert set(one["receipts"].values()) == {"RECEIPT_STATUS_ACCEPTED"}
        assert one["generated"] == one["accounted"]
        assert one["ended_politely"]

    assert stop["endings"] == ["FINISH_REASON_INTERRUPTED"]
    assert stop["kept_chars"] == len(stop["displayed"]) == len("1 2 3")
    assert stop["dropped_chars"] == len(stop["text"][0]) + len("1 2 3 4 5") - len("1 2 3")
    # After the stop the log holds no further token of that turn.
    after = stop["kinds"][stop["kinds"].index("TurnInterrupted") + 1 :]
    assert "OutputDelta" not in after

    assert json.loads(tool["arguments"]) == {"input": "the question"}
    assert tool["text"] == ['result: {"answer":42}']
    assert tool["endings"] == ["FINISH_REASON_STOP"]
    assert len(tool["receipts"]) == 4
