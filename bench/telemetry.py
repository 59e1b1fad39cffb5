"""What metrics and traces cost a token: `python -m bench.telemetry [ROUNDS]`.

Three servers take turns under the same load: one that watches nothing, one with metrics, one with
metrics and traces of every turn, both sent to a collector in this process. CPU time of the server's
process counts, all its threads. Prints medians, and of the ratios of each round to the first.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import grpc

from bench.servers import Cores, Target, backchannel
from bench.tokens import Load, session_cost

LOAD: Final = Load(streams=40, rate=50.0, tokens=200)
_OFF: Final = ("--metrics-listen", "off")


@asynccontextmanager
async def collector() -> AsyncIterator[str]:
    """Takes whatever is exported, and forgets it."""

    async def take(_: bytes, context: Any) -> bytes:
        return b""

    handler: Any = grpc.unary_unary_rpc_method_handler(take)
    server = grpc.aio.server()
    for signal in ("trace", "metrics"):
        service = f"opentelemetry.proto.collector.{signal}.v1.{signal.capitalize()}Service"
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {"Export": handler}),)
        )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def main(rounds: int) -> None:
    """Measure, and print."""
    cores = Cores.of_this_machine()
    async with AsyncExitStack() as exits:
        endpoint = await exits.enter_async_context(collector())
        variants = {
            "off": _OFF,
            "metrics": ("--metrics-listen", "127.0.0.1:0"),
            "metrics and traces": ("--metrics-listen", "127.0.0.1:0", "--otlp-endpoint", endpoint),
        }
        targets: dict[str, Target] = {}
        for name, more in variants.items():
            server = backchannel(log="memory", cores=cores, more=more)
            targets[name] = await exits.enter_async_context(server)
        costs: dict[str, list[float]] = {name: [] for name in variants}
        for number in range(-1, rounds):
            names = list(variants)
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                cost = await session_cost(targets[name], LOAD)
                if number >= 0:  # The first is to warm up.
                    costs[name].append(cost.us_per_token)
    print(
        f"{LOAD.streams} streams at {LOAD.rate:g} tok/s, {LOAD.tokens} tokens a turn,"
        f" {rounds} rounds; {cores.words}"
    )
    for name, found in costs.items():
        ratios = [one / base for one, base in zip(found, costs["off"], strict=True)]
        print(
            f"{name:20} {statistics.median(found):6.1f} µs a token, "
            f"{statistics.median(ratios):.3f} of off ({min(ratios):.3f} to {max(ratios):.3f})"
        )


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 8))
