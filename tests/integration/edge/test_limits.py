"""What Envoy allows and for how long: each number of envoy.yaml, made small enough to be met."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h2.settings
import httpx
import pytest

from backchannel.edge import binary
from backchannel.edge.process import Edge
from backchannel.host.config import HostConfig
from backchannel.listen import Address
from tests.support.doors import THROUGH_ENVOY
from tests.support.edge import (
    RawH2,
    Site,
    attach,
    create,
    events,
    gone,
    placement,
    readers,
    site,
    web_call,
)
from tests.support.proxies import free_port
from tests.support.server import START_S, ServerProcess, connected, healthy
from tests.support.stream import PATIENCE_S

# Envoy's own time for a route, unless it is told otherwise.
DEFAULT_ROUTE_S = 15.0


def manager(folder: Path, **settings: str) -> tuple[str]:
    """An overlay for the connection manager."""
    lines = "\n".join(f"                {name}: {value}" for name, value in settings.items())
    return overlay(
        folder,
        "static_resources:\n"
        "  listeners:\n"
        "    - name: edge\n"
        "      filter_chains:\n"
        "        - name: main\n"
        "          filters:\n"
        "            - name: envoy.filters.network.http_connection_manager\n"
        f"              typed_config:\n{lines}\n",
    )


def overlay(folder: Path, text: str) -> tuple[str]:
    path = folder / "overlay.yaml"
    path.write_text(text)
    return (str(path),)


async def test_no_stream_ends_because_it_has_lasted(edge: Site) -> None:
    async with edge.client() as browser, contextlib.AsyncExitStack() as exits:
        session_id = await create(browser, model="scripted/echo")
        streams = {
            name: await exits.enter_async_context(door(edge, session_id))
            for name, door in THROUGH_ENVOY.items()
        }
        for each in streams.values():
            assert (await anext(each)).seq == 1
        await asyncio.sleep(DEFAULT_ROUTE_S + 0.5)
        assert len(readers(edge.server, session_id)) == len(streams)
        await browser.delete(f"/v1/sessions/{session_id}")
        for name, each in streams.items():
            async with asyncio.timeout(PATIENCE_S):
                assert (await anext(each)).HasField("session_closed"), name


async def test_connections_are_counted(tmp_path: Path) -> None:
    few = overlay(
        tmp_path,
        "overload_manager:\n"
        "  resource_monitors:\n"
        "    - name: envoy.resource_monitors.global_downstream_max_connections\n"
        "      typed_config: {max_active_downstream_connections: 3}\n",
    )
    async with site(overlays=few) as edge, contextlib.AsyncExitStack() as exits:
        for _ in range(3):
            browser = await exits.enter_async_context(edge.client())
            assert (await browser.get("/")).status_code == 200
        async with edge.client() as browser:
            with pytest.raises(httpx.TransportError):
                await browser.get("/")


async def test_one_connection_may_have_thousands_of_streams(edge: Site) -> None:
    async with RawH2.connected(edge.edge.address) as connection:
        connection.get("/")
        await connection.next()
        allowed = connection.http.remote_settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS]
    assert allowed == 4096


async def test_who_dawdles_with_the_headers_is_no_client(tmp_path: Path) -> None:
    async with site(overlays=manager(tmp_path, request_headers_timeout="0.2s")) as edge:
        host, port = edge.edge.address.host, edge.edge.address.port
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
            async with asyncio.timeout(PATIENCE_S):
                answer = await reader.read()
        finally:
            writer.close()
        assert answer.startswith(b"HTTP/1.1 408 ")


async def test_a_client_that_is_gone_without_a_word_is_noticed(tmp_path: Path) -> None:
    quick = manager(
        tmp_path,
        http2_protocol_options="{connection_keepalive: {interval: 0.2s, timeout: 0.2s}}",
    )
    async with site(overlays=quick) as edge, edge.client() as browser:
        session_id = await create(browser, model="scripted/echo")
        async with RawH2.connected(edge.edge.address) as connection:
            connection.get(f"/v1/sessions/{session_id}/events")
            while not readers(edge.server, session_id):
                await connection.next()
            # From here on nobody answers a ping; the socket stays open.
            await gone(edge.server, session_id)


async def test_a_service_that_is_frozen_is_noticed(
    tmp_path: Path, server_command: ServerProcess
) -> None:
    name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    ping = "{connection_keepalive: {interval: 1s, timeout: 0.5s}}"
    options = f"{{{name}: {{explicit_http_config: {{http2_protocol_options: {ping}}}}}}}"
    quick = overlay(
        tmp_path,
        "static_resources:\n  clusters:\n"
        f"    - {{name: backchannel, typed_extension_protocol_options: {options}}}\n",
    )
    await server_command.start()
    assert server_command.process is not None
    service = Address("127.0.0.1", server_command.port)
    async with Edge(placement(service, overlays=quick), drain_s=1, threads=1) as edge:
        await edge.start()
        async with httpx.AsyncClient(base_url=f"http://{edge.address}", timeout=60) as browser:
            session_id = await create(browser, model="scripted/echo")
            async with events(browser, session_id) as stream:
                await stream.until("session_opened")
                start_s = time.perf_counter()
                os.kill(server_command.process.pid, signal.SIGSTOP)
                try:
                    with pytest.raises(httpx.RemoteProtocolError):
                        await stream.rest()
                finally:
                    os.kill(server_command.process.pid, signal.SIGCONT)
    # By its pings, and not by the stream's silence.
    assert time.perf_counter() - start_s < 3 * HostConfig().heartbeat_s


async def test_envoys_own_errors_are_gRPCs_to_grpc_web(  # noqa: N802 - its name
    edge: Site,
) -> None:
    await edge.server.drain(0)
    for text in (False, True):
        async with (
            edge.client() as browser,
            web_call(browser, "Attach", attach("nobody-is-there-to-ask"), text=text) as call,
        ):
            assert await call.next() is None
            assert call.ending is not None
            assert call.ending.code == 14
            # Not the JSON that REST gets.
            assert call.response.headers["content-type"].startswith("application/grpc-web")
            assert "{" not in call.response.headers["grpc-message"]


async def test_several_envoys_share_a_machine(edge: Site) -> None:
    # With hot restart they would take each other for one that hands over.
    async with Edge(placement(edge.server.address), drain_s=1, threads=1) as other:
        await other.start()
        for address in (edge.edge.address, other.address):
            async with connected(address) as client:
                assert await healthy(client)


async def test_the_rendered_file_is_all_that_an_envoy_elsewhere_needs(
    edge: Site, tmp_path: Path
) -> None:
    port = free_port()
    command = [sys.executable, "-m", "backchannel", "edge", "render", "--output", str(tmp_path)]
    command += ["--listen", f"127.0.0.1:{port}", "--upstream", str(edge.server.address)]
    command += ["--admin", "127.0.0.1:0", "--descriptors", str(tmp_path / "backchannel.pb")]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    process = await asyncio.create_subprocess_exec(
        *(str(binary.find()), "--config-path", str(tmp_path / "envoy.yaml")),
        *("--disable-hot-restart", "--concurrency", "1"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as browser:
            async with asyncio.timeout(START_S):
                while True:
                    with contextlib.suppress(httpx.TransportError):
                        if (await browser.get("/")).status_code == 200:
                            break
                    await asyncio.sleep(0.05)
            session_id = await create(browser, model="scripted/echo")
            async with events(browser, session_id) as stream:
                await stream.until("session_opened")
    finally:
        process.terminate()
        await process.wait()
