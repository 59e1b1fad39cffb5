"""nginx as it comes, in front: each message is passed on before there is a next one."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from backchannel.v1 import frame_pb2
from tests.support.edge import Site, attach, create, events, say, web_call
from tests.support.proxies import proxy
from tests.support.stream import PATIENCE_S

# HTTP/1.0 to what is behind it, and buffering of whatever does not ask for something else.
AS_IT_COMES = """
server {
    listen 80;
    location / { proxy_pass http://127.0.0.1:8080; proxy_set_header Host localhost; }
}
"""
MESSAGES = 10


@pytest.mark.needs("nginx")
@pytest.mark.parametrize("door", ["gRPC-Web", "gRPC-Web-Text", "SSE"])
async def test_it_holds_nothing_back(edge: Site, tmp_path: Path, door: str) -> None:
    async with (
        proxy("nginx", tmp_path, edge.address, AS_IT_COMES) as nginx,
        httpx.AsyncClient(base_url=nginx.url, timeout=PATIENCE_S) as browser,
    ):
        # What is said while an answer is stuck waits, and is one event each.
        session_id = await create(browser, model="scripted/stall")
        if door == "SSE":
            async with events(browser, session_id) as stream:
                assert stream.response.headers["server"].startswith("nginx")
                for number in range(MESSAGES):
                    receipt = await say(browser, session_id, f"{number}")
                    while int(stream.last_event_id or 0) < int(receipt["seq"]):
                        assert await stream.next() is not None
            return
        text = door.endswith("Text")
        async with web_call(browser, "Attach", attach(session_id), text=text) as call:
            assert call.response.headers["server"].startswith("nginx")
            seq = 0
            for number in range(MESSAGES):
                receipt = await say(browser, session_id, f"{number}")
                while seq < int(receipt["seq"]):
                    raw = await call.next()
                    assert raw is not None
                    for event in frame_pb2.ServerFrame.FromString(raw).events:
                        seq = event.seq
