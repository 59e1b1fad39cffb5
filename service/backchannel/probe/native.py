"""Measuring at the port of gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import Final

# What the library says about connections is said by us.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc

from backchannel.probe.plan import CANCEL_WAIT_S, PATIENCE_S, Plan, Tell, UnreachableError, leaves
from backchannel.probe.verdict import Arrival, Cancel, Measured, Refusal, Silence, Stream
from backchannel.v1 import (
    conversation_service_pb2,
    conversation_service_pb2_grpc,
    frame_pb2,
    probe_service_pb2,
    probe_service_pb2_grpc,
    session_pb2,
)

DOOR: Final = "gRPC"
_PROBE: Final = "backchannel.v1.ProbeService/Probe"


async def measure(target: str, *, tls: bool, plan: Plan, tell: Tell) -> Measured:
    """Measure everything at once.

    Args:
        target: `host:port` or `unix:/path`.
        tls: Whether to speak TLS, with the machine's own roots.
        plan: How much.
        tell: Called as it goes on.

    Raises:
        UnreachableError: Nobody is there.
    """
    channel = (
        grpc.aio.secure_channel(target, grpc.ssl_channel_credentials())
        if tls
        else grpc.aio.insecure_channel(target)
    )
    async with channel:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await channel.channel_ready()
        except TimeoutError:
            raise UnreachableError(f"nothing speaks gRPC at {target}") from None
        async with asyncio.TaskGroup() as group:
            stream = group.create_task(_stream(channel, plan, tell))
            silence = group.create_task(_silence(channel, plan, tell))
            cancel = group.create_task(_cancel(channel))
    quiet, left = silence.result(), cancel.result()
    return Measured(
        url=("grpcs://" if tls else "grpc://") + target,
        streams=[stream.result()],
        silences=[quiet] if quiet else [],
        cancels=[left] if left else [],
    )


async def _stream(channel: grpc.aio.Channel, plan: Plan, tell: Tell) -> Stream:
    request = probe_service_pb2.ProbeRequest(count=plan.frames)
    request.interval.FromNanoseconds(round(plan.interval_s * 1e9))
    arrivals: list[Arrival] = []
    stub = probe_service_pb2_grpc.ProbeServiceStub(channel)
    try:
        async for frame in stub.Probe(request, timeout=plan.deadline_s):
            sent_s = frame.send_time.ToNanoseconds() / 1e9
            arrivals.append(Arrival(sent_s, time.monotonic()))
            tell(DOOR, len(arrivals), plan.frames)
    except grpc.aio.AioRpcError as error:
        if not arrivals and error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return Stream(door=DOOR, refusal=Refusal(_PROBE, 0))
        if not arrivals and error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
            return Stream(door=DOOR, refusal=Refusal(_PROBE, 0, error.details() or "no reason"))
        return Stream(door=DOOR, arrivals=arrivals, whole=False, http_version="HTTP/2")
    return Stream(door=DOOR, arrivals=arrivals, http_version="HTTP/2")


async def _silence(channel: grpc.aio.Channel, plan: Plan, tell: Tell) -> Silence | None:
    """Two frames with nothing between them."""
    if not plan.idle_s:
        return None
    request = probe_service_pb2.ProbeRequest(count=2)
    request.interval.FromNanoseconds(round(plan.idle_s * 1e9))
    began_s = time.monotonic()
    stub = probe_service_pb2_grpc.ProbeServiceStub(channel)
    try:
        async with plan.watching(f"{DOOR}, silent", tell):
            async for _ in stub.Probe(request, timeout=plan.idle_s + PATIENCE_S):
                pass
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return None
        return Silence(DOOR, plan.idle_s, time.monotonic() - began_s)
    return Silence(DOOR, plan.idle_s, None)


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
