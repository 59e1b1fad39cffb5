"""What a delivered token costs the server, beside a bare grpc.aio loop in the same run.

The two servers take turns: so many streams, each at the same rate, one event a frame on both. CPU
time of the server process alone is counted, for the whole of each stream: with ours also what comes
before its first token and after its last. The clients are another process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc

from backchannel.v1 import conversation_service_pb2 as service_pb2
from backchannel.v1 import conversation_service_pb2_grpc as service_grpc
from backchannel.v1 import frame_pb2, session_pb2
from bench.bare import METHOD
from bench.servers import Target


@dataclass(frozen=True, slots=True)
class Load:
    """How much is asked of a server.

    Attributes:
        streams: At the same time.
        rate: Tokens a second of each.
        tokens: Of each.
    """

    streams: int
    rate: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What it took.

    Attributes:
        us_per_token: CPU microseconds of the server for each delivered token.
        events_per_frame: 1.0 when no frames were merged.
    """

    us_per_token: float
    events_per_frame: float


async def _measure(
    target: Target, load: Load, one: Callable[[grpc.aio.Channel], Awaitable[tuple[int, int]]]
) -> Cost:
    # Several connections, as several clients would have.
    channels = [
        grpc.aio.insecure_channel(target.address, options=[("bench.channel", number)])
        for number in range(8)
    ]
    try:
        before = target.cpu_s()
        counts = await asyncio.gather(
            *(one(channels[number % len(channels)]) for number in range(load.streams))
        )
        spent = target.cpu_s() - before
    finally:
        for channel in channels:
            await channel.close()
    tokens = sum(tokens for tokens, _ in counts)
    frames = sum(frames for _, frames in counts)
    if tokens != load.streams * load.tokens:
        raise RuntimeError(f"{tokens} tokens came, not {load.streams * load.tokens}")
    return Cost(spent / tokens * 1e6, tokens / frames)


async def bare_cost(target: Target, load: Load) -> Cost:
    """The yardstick's."""

    async def one(channel: grpc.aio.Channel) -> tuple[int, int]:
        stream: Any = channel.unary_stream(METHOD)
        call = stream(f"{load.rate} {load.tokens}".encode())
        frames = 0
        async for _ in call:
            frames += 1
        return frames, frames

    return await _measure(target, load, one)


async def session_cost(target: Target, load: Load) -> Cost:
    """The service's: a whole turn of `scripted/count`, from the message to `TurnFinished`."""

    async def one(channel: grpc.aio.Channel) -> tuple[int, int]:
        stub = service_grpc.ConversationServiceStub(channel)
        config = session_pb2.SessionConfig(
            model="scripted/count", engine_options={"rate": str(load.rate)}
        )
        created = await stub.CreateSession(service_pb2.CreateSessionRequest(config=config))
        session_id = created.session.session_id
        call = stub.Attach(service_pb2.AttachRequest(session_id=session_id))
        message = session_pb2.UserMessage(
            parts=[session_pb2.Part(text="count")],
            sampling=session_pb2.Sampling(max_tokens=load.tokens),
        )
        frame = frame_pb2.ClientFrame(frame_id="f1", message=message)
        await stub.Send(service_pb2.SendRequest(session_id=session_id, frame=frame))
        tokens = frames = 0
        async for down in call:
            kinds = [event.WhichOneof("kind") for event in down.events]
            if "output_delta" in kinds:
                frames += 1
                tokens += sum(event.output_delta.token_count for event in down.events)
            if "turn_finished" in kinds:
                break
        call.cancel()
        return tokens, frames

    return await _measure(target, load, one)
