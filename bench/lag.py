"""How long the server's event loop makes others wait while the embedded engine generates.

`python -m bench.lag PORT` is the service as people run it, with a probe on its event loop: a timer
every 5 ms, and by how much it comes too late. The clients are another process: so many sessions,
each saying something again as soon as it is answered.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import grpc

from backchannel import logging
from backchannel.config import ServeConfig
from backchannel.logging import LogFormat, LogLevel
from backchannel.rpc.server import Server
from backchannel.v1 import conversation_service_pb2_grpc as service_grpc
from backchannel.v1 import frame_pb2, session_pb2
from bench.servers import free_port

EVERY_S: Final = 0.005


@dataclass(frozen=True, slots=True)
class Lag:
    """What the probe saw.

    Attributes:
        late_ms: By how much each timer came too late.
        tokens_per_s: Of all sessions together.
    """

    late_ms: Sequence[float]
    tokens_per_s: float


async def lag(sessions: int, prompt: str, seconds: float) -> Lag:
    """Measure for so long, with so many sessions on the house model; 0 for an idle server."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "bench.lag", str(port)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        await process.stdout.readline()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            counted = [0]
            async with asyncio.TaskGroup() as group:
                talks = [
                    group.create_task(_talk(channel, prompt, counted)) for _ in range(sessions)
                ]
                await asyncio.sleep(1)  # Until all are in the midst of it.
                process.stdin.write(b"\n")
                before = counted[0]
                await asyncio.sleep(seconds)
                process.stdin.write(b"\n")
                said = await process.stdout.readline()
                rate = (counted[0] - before) / seconds
                for talk in talks:
                    talk.cancel()
        return Lag(json.loads(said), rate)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _talk(channel: grpc.aio.Channel, prompt: str, counted: list[int]) -> None:
    """Turn after turn, each in a session of its own, so that none outgrows the model."""
    stub = service_grpc.ConversationServiceStub(channel)
    config = session_pb2.SessionConfig(model="llama/house")
    message = session_pb2.UserMessage(parts=[session_pb2.Part(text=prompt)])
    while True:
        call = stub.Converse()
        try:
            create = frame_pb2.Open(create=config)
            await call.write(frame_pb2.ClientFrame(frame_id="f1", open=create))
            await call.write(frame_pb2.ClientFrame(frame_id="f2", message=message))
            async for frame in call:
                counted[0] += sum(event.output_delta.token_count for event in frame.events)
                if any(event.HasField("turn_finished") for event in frame.events):
                    break
        finally:
            call.cancel()


async def _serve(port: int) -> None:
    logging.configure(LogLevel.WARNING, LogFormat.JSON)
    loop = asyncio.get_running_loop()
    asked = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(asked), sys.stdin)
    with tempfile.TemporaryDirectory() as folder:
        config = ServeConfig(
            listen=f"127.0.0.1:{port}", engine=("llama",), log=f"sqlite:///{folder}/lag.db"
        )
        async with Server(config):
            print("serves", flush=True)
            await asked.readline()
            late: list[float] = []
            probe = asyncio.create_task(_probe(late))
            await asked.readline()
            probe.cancel()
            print(json.dumps([late_s * 1e3 for late_s in late]), flush=True)
            await asked.read()


async def _probe(late: list[float]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + EVERY_S
        turn = asyncio.Event()
        loop.call_at(due, turn.set)
        await turn.wait()
        late.append(loop.time() - due)


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
