"""What is under the doors: old HTTP, TLS, replicas, slow readers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from backchannel.edge.process import Edge
from backchannel.host.config import HostConfig
from backchannel.listen import Address
from backchannel.rpc.server import Server
from backchannel.v1 import conversation_service_pb2 as pb
from backchannel_gateway import doors
from tests.support.certificates import self_signed
from tests.support.edge import (
    Site,
    attach,
    create,
    events,
    gone,
    placement,
    say,
    site,
    web_unary,
)
from tests.support.server import config
from tests.support.stream import PATIENCE_S, unary


async def test_http_1_0_streams_until_the_connection_closes(edge: Site) -> None:
    async with edge.client() as browser:
        session_id = await create(browser, model="scripted/count", engineOptions={"rate": "50"})
        host, port = edge.edge.address.host, edge.edge.address.port
        reader, writer = await asyncio.open_connection(host, port)
        path = f"/v1/sessions/{session_id}/events"
        writer.write(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        async with asyncio.timeout(PATIENCE_S):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            # 1.0 knows no chunks: the body is what comes until the end.
            assert head.startswith(("http/1.0 200", "http/1.1 200"))
            assert "transfer-encoding" not in head
            assert await reader.readuntil(b"\n\n") == b"retry: 1500\n\n"
            await reader.readuntil(b"\n\n")
            await say(browser, session_id, "go")
            for _ in range(20):
                line = await reader.readuntil(b"\n\n")
                assert line.startswith(b"id: ")
        writer.close()
        await gone(edge.server, session_id)


@pytest.mark.parametrize("version", [1, 2])
async def test_tls_speaks_what_alpn_agrees_on(tmp_path: Path, version: int) -> None:
    certificate, key = self_signed(tmp_path)
    trust = ssl.create_default_context(cafile=str(tmp_path / "authority.crt"))
    given: dict[str, Any] = {"overlays": ("tls",), "tls_certificate": certificate, "tls_key": key}
    async with (
        site(**given) as edge,
        httpx.AsyncClient(
            base_url=f"https://{edge.address}",
            verify=trust,
            http1=True,
            http2=version == 2,
            timeout=PATIENCE_S,
        ) as browser,
    ):
        session_id = await create(browser, model="scripted/echo")
        await say(browser, session_id, "one two")
        async with events(browser, session_id) as stream:
            assert stream.response.http_version == {1: "HTTP/1.1", 2: "HTTP/2"}[version]
            await stream.until("turn_finished")
        authority = (tmp_path / "authority.crt").read_bytes()
        credentials = grpc.ssl_channel_credentials(authority)
        async with grpc.aio.secure_channel(edge.address, credentials) as channel:
            method = unary(channel, "/backchannel.v1.ConversationService/GetSession")
            request = pb.GetSessionRequest(session_id=session_id)
            assert await method(request.SerializeToString())


async def test_http3_is_offered(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    trust = ssl.create_default_context(cafile=str(tmp_path / "authority.crt"))
    given: dict[str, Any] = {
        "overlays": ("tls", "http3"),
        "tls_certificate": certificate,
        "tls_key": key,
    }
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with (
        site(listen=Address("127.0.0.1", port), **given) as edge,
        httpx.AsyncClient(base_url=f"https://{edge.address}", verify=trust) as browser,
    ):
        response = await browser.get("/")
        assert response.headers["alt-svc"] == f'h3=":{port}"; ma=86400'
        # Somebody has that port of UDP.
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken,
            pytest.raises(OSError, match="in use"),
        ):
            taken.bind(("127.0.0.1", port))


# --- replicas ---------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def replicas(count: int) -> AsyncIterator[tuple[list[Server], Edge]]:
    async with contextlib.AsyncExitStack() as exits:
        servers = [
            await exits.enter_async_context(Server(config(), doors=[doors])) for _ in range(count)
        ]
        addresses = [server.address for server in servers]
        edge = await exits.enter_async_context(Edge(placement(*addresses), drain_s=1, threads=1))
        await edge.start()
        yield servers, edge


async def taken(edge: Edge, cluster: str, stat: str = "rq_total") -> dict[int, int]:
    """How many calls each replica has had, by its port."""
    _, body = await edge._admin._ask("GET", "/clusters?format=json")
    found = {}
    for one in json.loads(body)["cluster_statuses"]:
        if one["name"] == cluster:
            for host in one["host_statuses"]:
                stats = {one["name"]: int(one.get("value", 0)) for one in host["stats"]}
                found[host["address"]["socket_address"]["port_value"]] = stats[stat]
    return found


async def test_a_session_has_one_replica_on_every_door() -> None:
    async with (
        replicas(3) as (_, edge),
        httpx.AsyncClient(base_url=f"http://{edge.address}") as browser,
    ):
        used = set()
        for number in range(12):
            session_id = f"a-session-without-a-home-{number}"
            path = f"/v1/sessions/{session_id}"
            before = await taken(edge, "backchannel")
            await browser.get(path)
            await browser.delete(path)
            await browser.get(f"{path}/events?after_seq=1")
            await browser.post(f"{path}/frames", json={"ping": {}})
            header = {"x-session-id": session_id}
            await web_unary(browser, "Attach", attach(session_id), headers=header)
            after = await taken(edge, "backchannel")
            (one,) = [port for port in after if after[port] != before[port]]
            assert after[one] - before[one] == 5
            used.add(one)
        # Which of them is chance, that it is not always the same one is not.
        assert len(used) > 1


async def test_calls_without_a_session_are_spread() -> None:
    async with (
        replicas(2) as (servers, edge),
        httpx.AsyncClient(base_url=f"http://{edge.address}") as browser,
    ):
        for _ in range(40):
            assert (await browser.get("/")).status_code == 200
        spread = await taken(edge, "backchannel_any")
        assert sum(spread.values()) == 40
        assert min(spread.values()) >= 5
        # One that leaves says so, and is not asked any more, and nobody notices.
        await servers[0].drain(0.5)
        for _ in range(40):
            assert (await browser.get("/")).status_code == 200


async def test_a_replica_that_is_gone_costs_nobody_a_call(tmp_path: Path) -> None:
    # Without health checks, so that Envoy finds out by calling.
    overlay = tmp_path / "blind.yaml"
    overlay.write_text(
        "static_resources:\n  clusters:\n"
        "    - {name: backchannel, health_checks: []}\n"
        "    - {name: backchannel_any, health_checks: []}\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = Address(*closed.getsockname())
    async with (
        Server(config(), doors=[doors]) as server,
        Edge(
            placement(server.address, nobody, overlays=(str(overlay),)), drain_s=1, threads=1
        ) as edge,
    ):
        await edge.start()
        async with httpx.AsyncClient(base_url=f"http://{edge.address}") as browser:
            for _ in range(20):
                assert (await browser.get("/")).status_code == 200
        tried = await taken(edge, "backchannel_any", "cx_connect_fail")
        assert tried[nobody.port or 0] > 0


async def test_what_a_replica_has_seen_is_never_repeated(tmp_path: Path) -> None:
    calls = 0

    async def refuse(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        nonlocal calls
        calls += 1
        await context.abort(grpc.StatusCode.UNAVAILABLE, "after it was done")
        raise AssertionError

    service = grpc.aio.server()
    handler: Any = grpc.unary_unary_rpc_method_handler(refuse)
    service.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "backchannel.v1.ConversationService", {"Send": handler}
            ),
        )
    )
    port = service.add_insecure_port("127.0.0.1:0")
    await service.start()
    try:
        async with Edge(placement(Address("127.0.0.1", port)), drain_s=1) as edge:
            await edge.start()
            async with httpx.AsyncClient(base_url=f"http://{edge.address}") as browser:
                response = await browser.post("/v1/sessions/some-session-id/frames", json={})
        assert response.status_code == 503
        assert calls == 1
    finally:
        await service.stop(None)


# --- slow and silent ones ---------------------------------------------------------------------


async def test_who_stops_reading_holds_little_and_stops_nobody(edge: Site) -> None:
    tokens = 40_000
    async with edge.client() as browser:
        session_id = await create(browser, model="scripted/count", sampling={"maxTokens": tokens})
        host, port = edge.edge.address.host, edge.edge.address.port
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.setblocking(False)
            await asyncio.get_running_loop().sock_connect(slow, (host, port))
            path = f"/v1/sessions/{session_id}/events"
            slow.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            async with events(browser, session_id) as stream:
                await say(browser, session_id, "go")
                (live,) = edge.server.host.residents
                while len(live.audience.readers) < 2:  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(0.01)
                sizes = []
                while not stream.seen or stream.seen[-1].name != "turn_finished":
                    sent = await stream.next()
                    assert sent is not None
                    sizes.append(len(sent.data) + 30)
                held = min(reader._cursor for reader in live.audience.readers)
            # What has left the service for somebody who takes nothing: sockets, windows, buffers,
            # and one frame.
            assert sum(sizes[:held]) < 1_000_000 < sum(sizes)


async def test_a_silent_stream_is_cut_unless_it_has_heartbeats(tmp_path: Path) -> None:
    overlay = tmp_path / "hasty.yaml"
    overlay.write_text(
        "static_resources:\n"
        "  listeners:\n"
        "    - name: edge\n"
        "      filter_chains:\n"
        "        - name: main\n"
        "          filters:\n"
        "            - name: envoy.filters.network.http_connection_manager\n"
        "              typed_config: {stream_idle_timeout: 1s}\n"
    )
    hasty = (str(overlay),)
    async with site(overlays=hasty) as edge, edge.client() as browser:
        session_id = await create(browser, model="scripted/echo")
        async with events(browser, session_id) as stream:
            await stream.until("session_opened")
            with pytest.raises(httpx.RemoteProtocolError):
                await stream.next()
            await gone(edge.server, session_id)
    lively = {"sessions": HostConfig(heartbeat_s=0.25)}
    async with site(server=lively, overlays=hasty) as edge, edge.client() as browser:
        session_id = await create(browser, model="scripted/echo")
        async with events(browser, session_id) as stream:
            await stream.until("heartbeat", 6)
