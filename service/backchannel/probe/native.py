"""Measuring at the port of gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import secrets
import ssl
import time
from collections.abc import Iterable
from typing import Final, TypeAlias

# What the library says about connections is said by us.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import httpx

from backchannel.listen import Address
from backchannel.probe.measured import (
    DUPLEX,
    Arrival,
    Cancel,
    Duplex,
    Listing,
    Measured,
    Refusal,
    Silence,
    Stream,
)
from backchannel.probe.plan import CANCEL_WAIT_S, PATIENCE_S, Plan, Tell, UnreachableError, leaves
from backchannel.probe.reach import Trust, agree_on_tls, authorities, is_local, knock, speaks
from backchannel.v1 import (
    conversation_service_pb2,
    conversation_service_pb2_grpc,
    frame_pb2,
    probe_service_pb2,
    probe_service_pb2_grpc,
    session_pb2,
)

DOOR: Final = "gRPC"
_Converse: TypeAlias = grpc.aio.StreamStreamCall[frame_pb2.ClientFrame, frame_pb2.ServerFrame]
_PROBE: Final = "/backchannel.v1.ProbeService/Probe"


async def measure(address: Address, *, tls: bool, trust: Trust, plan: Plan, tell: Tell) -> Measured:
    """Measure everything at once.

    Args:
        address: Where.
        tls: Whether to speak TLS.
        trust: Whose certificates to believe.
        plan: How much.
        tell: Called as it goes on.

    Raises:
        UnreachableError: Nobody is there, or its certificate is not to be trusted.
        ValueError: `trust` names no authority.
    """
    target = str(address)
    context = trust.context()
    if tls:
        await agree_on_tls(address, context, "h2")
        credentials = grpc.ssl_channel_credentials(authorities(context))
        channel = grpc.aio.secure_channel(target, credentials)
    else:
        await _greet(address)
        channel = grpc.aio.insecure_channel(target)
    async with channel:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await channel.channel_ready()
        except TimeoutError:
            raise UnreachableError(
                f"nothing speaks gRPC at {target}",
                "give the address that `backchannel serve` prints",
            ) from None
        async with asyncio.TaskGroup() as group:
            stream = group.create_task(_stream(channel, plan, tell))
            silence = group.create_task(_silence(channel, plan, tell))
            cancel = group.create_task(_cancel(channel))
            duplex = group.create_task(_duplex(channel, plan, tell))
            listing = group.create_task(_listing(channel, address))
    left = cancel.result()
    answered, quiet = duplex.result()
    measured = stream.result()
    if measured.refusal is not None and not measured.refusal.said:
        measured = await _blame(measured, address, context if tls else None)
    return Measured(
        url=("grpcs://" if tls else "grpc://") + target,
        streams=[measured],
        silences=[found for found in (silence.result(), quiet) if found],
        cancels=[left] if left else [],
        duplexes=[answered] if answered else [],
        listings=[found] if (found := listing.result()) else [],
    )


async def _greet(address: Address) -> None:
    """See that HTTP/2 is spoken without TLS.

    Raises:
        UnreachableError: It is not.
    """
    await knock(address)
    spoken = await speaks(address)
    if spoken == "TLS":
        raise UnreachableError(f"{address} speaks TLS", "write grpcs:// before it")
    if spoken == "HTTP/1":
        raise UnreachableError(
            f"{address} speaks HTTP/1, and gRPC needs HTTP/2",
            "write http:// before it for what browsers use; or let the proxy take HTTP/2 without"
            " TLS (nginx: `listen … http2`; Caddy: `protocols h1 h2c`)",
        )


async def _stream(channel: grpc.aio.Channel, plan: Plan, tell: Tell) -> Stream:
    request = probe_service_pb2.ProbeRequest(count=plan.frames)
    request.interval.FromNanoseconds(round(plan.interval_s * 1e9))
    arrivals: list[Arrival] = []
    call = probe_service_pb2_grpc.ProbeServiceStub(channel).Probe(request, timeout=plan.deadline_s)
    whole = True
    try:
        async for frame in call:
            sent_s = frame.send_time.ToNanoseconds() / 1e9
            arrivals.append(Arrival(sent_s, time.monotonic()))
            tell(DOOR, len(arrivals), plan.frames)
    except grpc.aio.AioRpcError as error:
        if not arrivals and error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
            return Stream(door=DOOR, refusal=_refusal(error))
        whole = False
    server = _server_in(await call.initial_metadata())
    return Stream(door=DOOR, arrivals=arrivals, whole=whole, http_version="HTTP/2", server=server)


def _refusal(error: grpc.aio.AioRpcError) -> Refusal:
    """Why there is no stream; says nothing unless Backchannel itself refused."""
    trailers = {name for name, _ in error.trailing_metadata() or ()}
    ours = "grpc-status-details-bin" in trailers
    return Refusal(f"POST {_PROBE}", 0, (error.details() or "no reason") if ours else "")


async def _blame(stream: Stream, address: Address, context: ssl.SSLContext | None) -> Stream:
    """Ask again without gRPC, whose library keeps for itself what a proxy said."""
    if stream.refusal is None or address.port is None:
        return stream
    headers = {"content-type": "application/grpc", "te": "trailers"}
    url = f"{'https' if context else 'http'}://{address}"
    # The body: a message without anything in it, which asks for ten frames.
    with contextlib.suppress(httpx.HTTPError):
        async with (
            httpx.AsyncClient(
                base_url=url, verify=context or True, http1=False, http2=True, trust_env=False
            ) as client,
            client.stream("POST", _PROBE, headers=headers, content=bytes(5)) as response,
        ):
            status = response.status_code
            if status != httpx.codes.OK:
                server = str(response.headers.get("server") or "")[:80]
                refusal = dataclasses.replace(stream.refusal, status=status)
                return dataclasses.replace(stream, server=server, refusal=refusal)
    return stream


def _server_in(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """Who answered, by its own header."""
    given = {name: str(value) for name, value in metadata or ()}
    return (given.get("server") or given.get("via") or "")[:80]


async def _silence(channel: grpc.aio.Channel, plan: Plan, tell: Tell) -> Silence | None:
    """Two frames with nothing between them."""
    if not plan.idle_s:
        return None
    request = probe_service_pb2.ProbeRequest(count=2)
    request.interval.FromNanoseconds(round(plan.idle_s * 1e9))
    began_s = time.monotonic()
    stub = probe_service_pb2_grpc.ProbeServiceStub(channel)
    call = stub.Probe(request, timeout=plan.idle_s + PATIENCE_S)
    count = 0
    try:
        async with plan.watching(f"{DOOR}, silent", tell):
            async for _ in call:
                count += 1
    except grpc.aio.AioRpcError:
        if not count:
            return None  # The other stream has it.
    cut_s = None if count == 2 else time.monotonic() - began_s
    return Silence(DOOR, plan.idle_s, cut_s, server=_server_in(await call.initial_metadata()))


async def _duplex(
    channel: grpc.aio.Channel, plan: Plan, tell: Tell
) -> tuple[Duplex | None, Silence | None]:
    """Open a session by `Converse`, say nothing for a while, and ping."""
    stub = conversation_service_pb2_grpc.ConversationServiceStub(channel)
    session_id = secrets.token_urlsafe(16)
    config = session_pb2.SessionConfig(session_id=session_id, model="scripted/count")
    began_s = time.monotonic()
    call = stub.Converse()
    try:
        await call.write(frame_pb2.ClientFrame(open=frame_pb2.Open(create=config)))
        async with asyncio.timeout(PATIENCE_S):
            if await call.read() is grpc.aio.EOF:
                return None, None
        answered = Duplex(
            DUPLEX,
            PATIENCE_S,
            time.monotonic() - began_s,
            server=_server_in(await call.initial_metadata()),
        )
        if not plan.idle_s:
            return answered, None
        cut_s = await _quiet(call, plan, tell)
        return answered, Silence(DUPLEX, plan.idle_s, cut_s, server=answered.server)
    except TimeoutError:
        return Duplex(DUPLEX, PATIENCE_S, None), None
    except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError):
        return None, None  # The other stream has it.
    finally:
        call.cancel()
        with contextlib.suppress(grpc.aio.AioRpcError):
            request = conversation_service_pb2.DeleteSessionRequest(session_id=session_id)
            await stub.DeleteSession(request, timeout=PATIENCE_S)


async def _quiet(call: _Converse, plan: Plan, tell: Tell) -> float | None:
    """Say nothing, then ping; after how long the call was cut, None if it was not."""
    pinged = False

    async def read() -> None:
        """Read until the ping is answered, or the call ends."""
        with contextlib.suppress(grpc.aio.AioRpcError):
            # EOF is no frame.
            while isinstance(frame := await call.read(), frame_pb2.ServerFrame):
                if pinged and frame.HasField("heartbeat"):
                    return

    began_s = time.monotonic()
    reading = asyncio.create_task(read())
    try:
        async with plan.watching(f"{DUPLEX}, silent", tell):
            await asyncio.wait({reading}, timeout=plan.idle_s)
        if not reading.done():
            pinged = True
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await call.write(frame_pb2.ClientFrame(ping=frame_pb2.Ping()))
            await asyncio.wait({reading}, timeout=PATIENCE_S)
        if call.done() or not reading.done():
            return time.monotonic() - began_s
        return None
    finally:
        reading.cancel()
        await asyncio.wait({reading})


async def _listing(channel: grpc.aio.Channel, address: Address) -> Listing | None:
    """Ask for the sessions, whose ids are secrets."""
    stub = conversation_service_pb2_grpc.ConversationServiceStub(channel)
    call = stub.ListSessions(
        conversation_service_pb2.ListSessionsRequest(page_size=1), timeout=PATIENCE_S
    )
    try:
        await call
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.PERMISSION_DENIED:
            return None  # The streams have it.
    listed = await call.code() is grpc.StatusCode.OK
    server = _server_in(await call.initial_metadata())
    return Listing(DOOR, listed, await is_local(address), server=server)


async def _cancel(channel: grpc.aio.Channel) -> Cancel | None:
    """Leave an answer that stops when nobody reads it."""
    stub = conversation_service_pb2_grpc.ConversationServiceStub(channel)
    config = session_pb2.SessionConfig(
        model="scripted/count",
        engine_options={"rate": "10"},
        sampling=session_pb2.Sampling(max_tokens=10_000),
        on_disconnect=session_pb2.DisconnectPolicy(
            action=session_pb2.DisconnectPolicy.ACTION_CANCEL_NOW
        ),
    )
    try:
        created = await stub.CreateSession(
            conversation_service_pb2.CreateSessionRequest(config=config), timeout=PATIENCE_S
        )
    except grpc.aio.AioRpcError:
        return None
    session_id = created.session.session_id

    async def running() -> bool:
        request = conversation_service_pb2.GetSessionRequest(session_id=session_id)
        found = await stub.GetSession(request, timeout=PATIENCE_S)
        return bool(found.session.running_turn_id)

    try:
        reading = stub.Attach(conversation_service_pb2.AttachRequest(session_id=session_id))
        said = session_pb2.UserMessage(parts=[session_pb2.Part(text="go")])
        frame = frame_pb2.ClientFrame(frame_id="probe", message=said)
        await stub.Send(
            conversation_service_pb2.SendRequest(session_id=session_id, frame=frame),
            timeout=PATIENCE_S,
        )

        async def leave() -> None:
            reading.cancel()

        return Cancel(DOOR, CANCEL_WAIT_S, await leaves(running, leave))
    except (grpc.aio.AioRpcError, TimeoutError):
        return None
    finally:
        with contextlib.suppress(grpc.aio.AioRpcError):
            request = conversation_service_pb2.DeleteSessionRequest(session_id=session_id)
            await stub.DeleteSession(request, timeout=PATIENCE_S)
