"""What metrics and traces cost a token: `python -m bench.telemetry [ROUNDS]`.

Three servers take turns under the same load: one that watches nothing, one with metrics, one with
metrics and traces of every turn, both sent to a collector in this process. CPU time of the server's
process counts, all its threads. Prints medians, and of the ratios of each round to the first.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
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


async def costs(
    load: Load, rounds: int, cores: Cores, progress: Callable[[str], None]
) -> dict[str, list[float]]:
    """CPU microseconds for each token, of each round, by what is watched; `off` is nothing."""
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
        found: dict[str, list[float]] = {name: [] for name in variants}
        for number in range(-1, rounds):
            progress(f"round {number + 1} of {rounds}" if number >= 0 else "warming up")
            names = list(variants)
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                cost = await session_cost(targets[name], load)
                if number >= 0:  # The first is to warm up.
                    found[name].append(cost.us_per_token)
    return found


def rows(found: Mapping[str, Sequence[float]]) -> list[list[str]]:
    """Medians, and of the ratios of each round to `off`."""
    table = []
    for name, several in found.items():
        ratios = [one / base for one, base in zip(several, found["off"], strict=True)]
        table.append(
            [
                name,
                f"{statistics.median(several):.1f}",
                f"{statistics.median(ratios):.3f}",
                f"{min(ratios):.3f}-{max(ratios):.3f}",
            ]
        )
    return table


async def main(rounds: int) -> None:
    """Measure, and print."""
    cores = Cores.of_this_machine()
    found = await costs(LOAD, rounds, cores, lambda _: None)
    print(
        f"{LOAD.streams} streams at {LOAD.rate:g} tok/s, {LOAD.tokens} tokens a turn,"
        f" {rounds} rounds; {cores.words}"
    )
    for name, cost, ratio, spread in rows(found):
        print(f"{name:20} {cost:>6} µs a token, {ratio} of off ({spread})")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 8))
