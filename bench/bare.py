"""The yardstick: the least that a grpc.aio server can do to stream tokens, and nothing else.

`python -m bench.bare PORT` serves one method that takes a rate and a count and writes so many
ready-made frames, one a token, on the same absolute schedule as the scripted engine keeps. No
session, no log, no engine: what it costs is what gRPC costs.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from backchannel.v1 import event_pb2, frame_pb2

SERVICE = "bench.Bare"
METHOD = f"/{SERVICE}/Stream"


def _frame(number: int) -> bytes:
    """A frame like those that a session sends for a token, and as large."""
    event = event_pb2.Event(seq=number)
    event.time.GetCurrentTime()
    event.output_delta.turn_id = "turn_0123456789abcdefghijkl"
    event.output_delta.channel = event_pb2.CHANNEL_TEXT
    event.output_delta.text = f" {number}"
    event.output_delta.offset = 4 * number
    event.output_delta.token_count = 1
    return frame_pb2.ServerFrame(events=[event]).SerializeToString()


async def _stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
    rate, count = map(float, request.decode().split())
    begin = time.monotonic()
    for number in range(1, int(count) + 1):
        await asyncio.sleep(max(0.0, begin + (number - 1) / rate - time.monotonic()))
        yield _frame(number)


async def _serve(port: int) -> None:
    server = grpc.aio.server()
    handler: Any = grpc.unary_stream_rpc_method_handler(_stream)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"Stream": handler}),)
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
