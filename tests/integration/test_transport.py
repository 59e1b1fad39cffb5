"""What gRPC does under the doors: cancels, slow and frozen readers, pings, leaks."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from backchannel.rpc.server import ListenError, Server
from backchannel.v1 import frame_pb2, session_pb2
from tests.support.server import config, connected, healthy
from tests.support.stream import (
    CONVERSATION,
    PATIENCE_S,
    Client,
    Refused,
    check_log,
    create,
    duplex,
    interrupt,
    resume,
    say,
)

CANCEL_NOW = session_pb2.DisconnectPolicy(action=session_pb2.DisconnectPolicy.ACTION_CANCEL_NOW)
CONTINUE = session_pb2.DisconnectPolicy(action=session_pb2.DisconnectPolicy.ACTION_CONTINUE)


async def gone(tasks: Callable[[], list[asyncio.Task[Any]]]) -> None:
    """Wait until there are no such tasks; nothing tells when the server has noticed a cancel."""
    async with asyncio.timeout(PATIENCE_S):
        while tasks():  # noqa: ASYNC110 - so it has to be polled
            await asyncio.sleep(0.01)


def uplinks() -> list[asyncio.Task[Any]]:
    """Tasks of the server, in this process, that read a client's half of a stream."""
    return [task for task in asyncio.all_tasks() if task.get_name() == "uplink"]


async def test_an_interrupt_by_cancel_leaves_nothing_behind(client: Client) -> None:
    for _ in range(20):
        async with client.converse(create(model="scripted/count"), say("go")) as stream:
            await stream.event("output_delta")
    await gone(uplinks)


async def test_streams_that_come_and_go_leak_nothing(client: Client, server: Server) -> None:
    session_id = (await client.create(model="scripted/echo")).session_id

    async def come_and_go(times: int) -> None:
        for _ in range(times):
            async with client.converse(resume(session_id)) as stream:
                await stream.event("session_opened")
        await gone(uplinks)
        gc.collect()

    await come_and_go(30)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        await come_and_go(100)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # gRPC's own share is about nothing when a cancel is passed on, 100 B a stream when swallowed;
    # a reader or a task left behind is ten times that. Client and server are both in here.
    assert (after - before) / 100 < 500


async def test_a_reader_that_stops_reading_costs_no_memory(client: Client, server: Server) -> None:
    opening = create(
        session_id="the-one-who-is-not-read",
        model="scripted/count",
        on_disconnect=CONTINUE,
        sampling=session_pb2.Sampling(max_tokens=20_000),
    )
    method = duplex(client.channel, CONVERSATION + "Converse")
    call = method()
    await call.write(opening.SerializeToString())
    await call.read()
    # From here on nothing of it is read.
    await call.write(say("go").SerializeToString())
    async with client.attach("the-one-who-is-not-read") as other:
        process = psutil.Process()
        await other.event("output_delta", 50)
        before = process.memory_info().rss
        await other.event("turn_finished")
        grown = process.memory_info().rss - before
        size = sum(event.ByteSize() for event in other.events)
        length = len(other.events)
    # The log is in memory and the other reader's events are; the slow reader adds its window.
    assert grown < 20 * size + 16 * 1024 * 1024
    # It comes back for the rest and has missed nothing.
    seqs: list[int] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(seqs) < length - 1:
            raw = await call.read()
            assert isinstance(raw, bytes)
            seqs += [event.seq for event in frame_pb2.ServerFrame.FromString(raw).events]
    call.cancel()
    assert seqs == list(range(seqs[0], length + 1))


async def test_what_piled_up_leaves_as_few_frames(client: Client) -> None:
    session = await client.create(model="scripted/count", on_disconnect=CONTINUE)
    await client.send(session.session_id, say("go"))
    async with client.attach(session.session_id) as stream:
        await stream.event("turn_finished")
    async with client.attach(session.session_id) as stream:
        await stream.event("turn_finished")
        assert len(stream.events) > 100
        assert len(stream.frames) < 5


async def test_a_client_that_sends_and_never_reads_is_held_back(client: Client) -> None:
    method = duplex(client.channel, CONVERSATION + "Converse")
    call = method()
    await call.write(create(model="scripted/echo").SerializeToString())
    # Refused, with a receipt that says why at some length.
    wrong = interrupt(frame_id="w" * 128).SerializeToString()
    sent = 0

    async def pour() -> None:
        nonlocal sent
        while True:
            await call.write(wrong)
            sent += 1

    pouring = asyncio.create_task(pour())
    # It is held back when it no longer gets anything off, for longer than any pause.
    before = -1
    async with asyncio.timeout(40):
        while sent != before:
            before = sent
            await asyncio.sleep(0.5)
    assert sent > 100
    pouring.cancel()
    await asyncio.gather(pouring, return_exceptions=True)
    call.cancel()
    assert await healthy(client)


async def test_a_client_may_ask_every_second_whether_the_server_lives(
    server: Server,
) -> None:
    pings = (
        ("grpc.keepalive_time_ms", 1000),
        ("grpc.keepalive_timeout_ms", 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    )
    async with connected(server.address, *pings) as client:
        session = await client.create(model="scripted/echo")
        async with client.attach(session.session_id) as stream:
            await stream.event("session_opened")
            # By default the third ping already gets ENHANCE_YOUR_CALM.
            await asyncio.sleep(5)
            assert not stream.call.done()
            await client.send(session.session_id, say("still here"))
            await stream.event("turn_finished")


FROZEN = """
import asyncio, sys
import grpc
from backchannel.v1 import conversation_service_pb2 as pb

async def main(address, session_id):
    async with grpc.aio.insecure_channel(address) as channel:
        attach = channel.unary_stream("/backchannel.v1.ConversationService/Attach")
        call = attach(pb.AttachRequest(session_id=session_id).SerializeToString())
        await call.read()
        print("reading", flush=True)
        while await call.read():
            pass

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_frozen_client_is_noticed() -> None:
    watchful = config(keepalive_time_s=1.0, keepalive_timeout_s=1.0)
    async with Server(watchful) as server, connected(server.address) as client:
        session_id = (
            await client.create(model="scripted/stall", on_disconnect=CANCEL_NOW)
        ).session_id
        command = [sys.executable, "-c", FROZEN, str(server.address), session_id]
        frozen = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        try:
            assert frozen.stdout is not None
            assert await frozen.stdout.readline() == b"reading\n"
            await client.send(session_id, say("go"))
            frozen.send_signal(signal.SIGSTOP)
            assert (await client.get(session_id)).state == session_pb2.Session.STATE_GENERATING
            # Nobody reads any more, so the turn ends.
            async with asyncio.timeout(PATIENCE_S):
                while (  # noqa: ASYNC110 - another reader would keep the turn alive
                    await client.get(session_id)
                ).state != session_pb2.Session.STATE_IDLE:
                    await asyncio.sleep(0.1)
        finally:
            frozen.kill()
            await frozen.wait()


@pytest.mark.parametrize("door", ["Converse", "Attach"])
async def test_drain_tells_readers_to_go_and_when_to_come_back(
    server: Server, client: Client, door: str
) -> None:
    from backchannel import errors

    session = await client.create(model="scripted/stall")
    opened = client.converse(resume(session.session_id))
    if door == "Attach":
        opened = client.attach(session.session_id)
    async with opened as stream:
        await stream.event("session_opened")
        await client.send(session.session_id, say("go"))
        await stream.event("output_delta", 5)
        draining = asyncio.create_task(server.drain(0.5))
        away = await stream.until(
            lambda s: next((f.go_away for f in s.frames if f.HasField("go_away")), None)
        )
        assert 0 < away.time_left.ToNanoseconds() <= 500_000_000
        assert not await healthy(client)
        end = await stream.end()
        assert (end.code, end.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert errors.retry_after_s(end.status) is not None
        # On a log that survives nothing the turn cannot stay resumable.
        assert stream.kinds()[-1] == "turn_finished"
        await draining


async def test_an_idle_server_drains_at_once(client: Client, server: Server) -> None:
    session = await client.create(model="scripted/echo")
    async with client.attach(session.session_id) as stream:
        await stream.event("session_opened")
        async with asyncio.timeout(5):
            await server.drain(3600)
        assert (await stream.end()).reason == "DRAINING"


async def test_a_stop_does_not_wait_for_who_does_not_read(server: Server, client: Client) -> None:
    big = say("word " * 100_000)
    session = await client.create(model="scripted/echo", on_disconnect=CONTINUE)
    for _ in range(20):
        await client.send(session.session_id, big)
    call = duplex(client.channel, CONVERSATION + "Converse")()
    await call.write(resume(session.session_id).SerializeToString())
    await call.read()
    async with asyncio.timeout(5):
        await server.drain(2.0)
    call.cancel()


async def test_one_writer_for_events_receipts_and_heartbeats(client: Client) -> None:
    opening = create(model="scripted/count", sampling=session_pb2.Sampling(max_tokens=3000))
    async with client.converse(opening, say("go")) as stream:
        for number in range(500):
            ping = frame_pb2.ClientFrame(frame_id=f"p{number}", ping=frame_pb2.Ping())
            await stream.send(ping)
        await stream.receipt("p499")
        await stream.event("turn_finished")
        assert [one.frame_id for one in stream.receipts] == [f"p{n}" for n in range(500)]
        check_log(stream.events)
        # A heartbeat never runs ahead of what was delivered before it.
        seq = 0
        for frame in stream.frames:
            if frame.events:
                seq = frame.events[-1].seq
            if frame.HasField("heartbeat"):
                assert frame.heartbeat.seq == seq


async def test_a_stream_without_its_open_is_not_kept_for_ever() -> None:
    async with (
        Server(config(open_timeout_s=0.1)) as server,
        connected(server.address) as client,
        client.converse() as stream,
    ):
        end = await stream.end()
        assert (end.code, end.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "OPEN_REQUIRED",
        )


async def test_no_more_calls_than_there_may_be() -> None:
    async with Server(config(max_calls=2)) as server, connected(server.address) as client:
        session = await client.create(model="scripted/echo")
        async with (
            client.attach(session.session_id) as one,
            client.attach(session.session_id) as two,
        ):
            await one.event("session_opened")
            await two.event("session_opened")
            with Refused() as refused:
                await client.get(session.session_id)
            assert refused.ending is not None
            assert refused.ending.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        # The two have been cancelled, and the server hears of it in a moment.
        async with asyncio.timeout(10):
            while True:
                with Refused() as refused:
                    assert (await client.get(session.session_id)).last_seq == 1
                if refused.ending is None:
                    break


async def test_a_port_is_shared_only_where_that_is_wanted() -> None:
    async with Server(config(reuse_port=True)) as one:
        listen = str(one.address)
        async with Server(config(listen=listen, reuse_port=True)) as two:
            assert two.port == one.port
        with pytest.raises(ListenError, match="Address already in use"):
            async with Server(config(listen=listen)):
                pass


async def test_a_unix_socket_is_not_taken_from_a_server_that_uses_it(tmp_path: Path) -> None:
    listen = f"unix:{tmp_path / 'one.sock'}"
    async with Server(config(listen=listen)):
        with pytest.raises(ListenError, match="Address already in use"):
            async with Server(config(listen=listen)):
                pass
        async with connected(listen) as client:
            await client.create(model="scripted/echo")


async def test_a_unix_socket_that_a_killed_server_left_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "one.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with Server(config(listen=f"unix:{path}")), connected(f"unix:{path}") as client:
        await client.create(model="scripted/echo")


async def test_a_unix_socket_with_too_long_a_path_is_told_so(tmp_path: Path) -> None:
    listen = f"unix:{tmp_path / ('long' * 50)}"
    with pytest.raises(ListenError, match="longer than a Unix socket's may be"):
        async with Server(config(listen=listen)):
            pass
