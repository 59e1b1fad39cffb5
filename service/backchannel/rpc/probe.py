"""`ProbeService`: frames at known times, to see what the way to the client does to them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc

from backchannel.errors import BackchannelError, Reason
from backchannel.v1 import probe_service_pb2, probe_service_pb2_grpc

DEFAULT_COUNT: Final = 10
DEFAULT_INTERVAL_NS: Final = 100_000_000
MAX_COUNT: Final = 10_000
MAX_INTERVAL_NS: Final = 60_000_000_000
MAX_PADDING_BYTES: Final = 65_536


class Probe(probe_service_pb2_grpc.ProbeServiceServicer):
    """Sends frames at fixed times, however long each takes to write."""

    async def Probe(  # noqa: N802 - the contract's name
        self,
        request: probe_service_pb2.ProbeRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[probe_service_pb2.ProbeResponse]:
        """One frame every `interval`, the first at once.

        Raises:
            BackchannelError: `FIELD_OUT_OF_RANGE`, naming the field.
        """
        count = request.count or DEFAULT_COUNT
        if count > MAX_COUNT:
            raise _out_of_range("count", f"at most {MAX_COUNT}")
        if request.padding_bytes > MAX_PADDING_BYTES:
            raise _out_of_range("padding_bytes", f"at most {MAX_PADDING_BYTES}")
        interval_ns = DEFAULT_INTERVAL_NS
        if request.HasField("interval"):
            # Not ToNanoseconds(), which has errors of its own for what a Duration must not hold.
            interval_ns = request.interval.seconds * 1_000_000_000 + request.interval.nanos
        if not 0 <= interval_ns <= MAX_INTERVAL_NS:
            raise _out_of_range("interval", "0 to 60 s")
        padding = bytes(request.padding_bytes)
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        for index in range(count):
            # Against the start, so that delays do not add up.
            await asyncio.sleep(max(0.0, start_s + index * interval_ns / 1e9 - loop.time()))
            response = probe_service_pb2.ProbeResponse(index=index, padding=padding)
            response.send_time.FromNanoseconds(time.time_ns())
            yield response


def _out_of_range(field: str, allowed: str) -> BackchannelError:
    return BackchannelError(Reason.FIELD_OUT_OF_RANGE, f"must be {allowed}", field=field)
