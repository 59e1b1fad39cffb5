"""Some minutes of traffic as a small service has it, with a bad moment of each kind.

The server is `backchannel serve` in a process of its own, with its log in SQLite; its engines are
the scripted one at several speeds and, where it is installed, the house model.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.duration_pb2 import Duration

from backchannel.v1 import frame_pb2, session_pb2
from tests.support.proxies import free_port
from tests.support.proxy import Proxy
from tests.support.server import ServerProcess, connected
from tests.support.stream import CONVERSATION, Client, Stream, create, duplex, interrupt, say

HOUSE: Final = "llama"
_SETTINGS: Final = """
[engine_options.quick]
adapter = "scripted"
max_parallel = 48

[engine_options.large]
adapter = "scripted"
max_parallel = 6
max_waiting = 64

[engine_options.agent]
adapter = "scripted"
max_parallel = 24

[engine_options.flaky]
adapter = "scripted"
max_parallel = 8
"""
# Turns that begin each second when it is quiet, and how many times that at the busiest.
_QUIET: Final = 1.6
_BUSY: Final = 2.6
# Longer than SQLite waits for another program: that an append is refused is to be seen.
_LOCKED_S: Final = 6.5
# How a raw client learns that its stream is over: on writing, on waiting for an event, or never.
_CUT: Final = (asyncio.InvalidStateError, AssertionError)
_LOST: Final = (*_CUT, grpc.aio.AioRpcError, TimeoutError)


@dataclass(frozen=True, slots=True)
class Scene:
    """Where the traffic goes.

    Attributes:
        server: The process.
        metrics: `host:port` for Prometheus.
        house: Whether it has the house model.
    """

    server: ServerProcess
    metrics: str
    house: bool


@asynccontextmanager
async def scene(folder: Path) -> AsyncIterator[Scene]:
    """A server with several engines."""
    house = find_spec("xllamacpp") is not None
    engines = ["quick", "large", "agent", "flaky", *([HOUSE] if house else [])]
    settings = folder / "backchannel.toml"
    settings.write_text(f"engine = {engines}\n{_SETTINGS}", encoding="utf-8")
    metrics = f"127.0.0.1:{free_port()}"
    arguments = ("--config", str(settings), "--metrics-listen", metrics)
    server = ServerProcess(folder, arguments=arguments, engines=())
    try:
        await server.start()
        yield Scene(server, metrics, house)
    finally:
        server.kill()


@dataclass(frozen=True, slots=True)
class Style:
    """How a model answers: from so much to so much.

    Attributes:
        prefill_ms: Before the first token.
        rate: Tokens a second.
        tokens: The length of an answer.
    """

    prefill_ms: tuple[int, int]
    rate: tuple[int, int]
    tokens: tuple[int, int]


@dataclass
class Traffic:
    """Visitors, and what befalls them.

    Attributes:
        scene: Where they go.
        lasts_s: For how long.
        dice: What is left to chance.
        happened: How often what.
    """

    scene: Scene
    lasts_s: float
    dice: random.Random
    happened: Counter[str] = field(default_factory=Counter)

    async def run(self) -> None:
        """All of it. What is still under way in the end is cut off."""
        async with (
            Proxy(self.scene.server.address) as line,
            connected(line.address) as client,
            asyncio.TaskGroup() as group,
        ):
            crowd = group.create_task(self._crowd(client))
            tasks = [crowd, group.create_task(self._network_breaks(line))]
            tasks.append(group.create_task(self._log_is_locked()))
            tasks.append(group.create_task(self._slow_reader()))
            if self.scene.house:
                tasks.append(group.create_task(self._house(client)))
            await asyncio.sleep(self.lasts_s)
            for task in tasks:
                task.cancel()

    # --- who comes ----------------------------------------------------------------------------

    async def _crowd(self, client: Client) -> None:
        begun_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            while True:
                passed = (time.monotonic() - begun_s) / self.lasts_s
                swell = 1 + (_BUSY - 1) * math.sin(math.pi * min(passed, 1)) ** 2
                await asyncio.sleep(self.dice.expovariate(_QUIET * swell))
                group.create_task(self._visit(self._kind(client, passed)))

    def _kind(self, client: Client, passed: float) -> Coroutine[Any, Any, None]:
        flaky = 0.3 if 0.55 < passed < 0.68 else 0.02
        kinds: list[tuple[Callable[[Client], Coroutine[Any, Any, None]], float]] = [
            (self._quick, 0.5),
            (self._large, 0.2),
            (self._agent, 0.2),
            (self._flaky, flaky),
        ]
        chosen = self.dice.choices([k for k, _ in kinds], [weight for _, weight in kinds])[0]
        self.happened[chosen.__name__.strip("_")] += 1
        return chosen(client)

    async def _visit(self, visit: Coroutine[Any, Any, None]) -> None:
        try:
            await visit
        except _LOST:
            self.happened["gave up"] += 1

    async def _quick(self, client: Client) -> None:
        await self._chat(client, "quick/count", Style((80, 250), (45, 80), (30, 160)))

    async def _large(self, client: Client) -> None:
        await self._chat(client, "large/count", Style((400, 1100), (18, 28), (40, 110)))

    async def _flaky(self, client: Client) -> None:
        await self._chat(client, "flaky/fail", Style((80, 250), (30, 60), (5, 6)))

    async def _chat(self, client: Client, model: str, style: Style) -> None:
        dice = self.dice
        options = {
            "prefill_ms": str(dice.randint(*style.prefill_ms)),
            "rate": str(dice.randint(*style.rate)),
        }
        opening = create(model=model, engine_options=options)
        async with client.converse(opening) as stream:
            opened = await stream.event("session_opened")
            session_id = opened.session_opened.session.session_id
            if await self._talk(stream, style.tokens):
                await client.get(session_id)
                await self._forget(client, session_id)
                return
            seen = stream.events[-1].seq
        await asyncio.sleep(dice.uniform(0.3, 4))
        self.happened["came back"] += 1
        snapshot = dice.random() < 0.3
        async with client.attach(session_id, 0 if snapshot else seen, snapshot=snapshot) as again:
            await again.next()
            await asyncio.sleep(dice.uniform(2, 6))

    async def _forget(self, client: Client, session_id: str) -> None:
        """Delete the session, as some do; and ask for it again, as fewer do."""
        if self.dice.random() < 0.5:
            await client.delete(session_id)
            if self.dice.random() < 0.2:
                await client.get(session_id)

    async def _talk(self, stream: Stream, tokens: tuple[int, int]) -> bool:
        """Some turns; whether it was there to their end."""
        dice = self.dice
        with contextlib.suppress(*_CUT):
            for nth in range(1, dice.choice((1, 1, 2, 3)) + 1):
                sampling = session_pb2.Sampling(max_tokens=dice.randint(*tokens))
                await stream.send(say("Go on, please.", sampling=sampling))
                if dice.random() < 0.08:  # It closes the laptop.
                    await asyncio.sleep(dice.uniform(0.3, 1.5))
                    return False
                if dice.random() < 0.18:
                    started = await stream.event("turn_started", nth)
                    await asyncio.sleep(dice.uniform(0.5, 2))
                    await stream.send(interrupt(started.turn_started.turn_id))
                    self.happened["interrupts"] += 1
                await self._read(stream, nth)
                await asyncio.sleep(dice.uniform(0.5, 3))
            return True
        return False  # The line has been cut.

    async def _read(self, stream: Stream, nth: int) -> None:
        """Take a turn in, saying from time to time how far it is on the screen."""
        reading = asyncio.ensure_future(stream.event("turn_finished", nth))
        try:
            while not reading.done():
                await asyncio.wait([reading], timeout=0.4)
                if stream.events:
                    ack = frame_pb2.Ack(displayed_seq=stream.events[-1].seq)
                    await stream.send(frame_pb2.ClientFrame(ack=ack))
            await reading
        finally:
            reading.cancel()

    async def _agent(self, client: Client) -> None:
        dice = self.dice
        tool = session_pb2.ToolSpec(name="look_up", idle_timeout=Duration(seconds=5))
        options = {"prefill_ms": str(dice.randint(100, 400)), "rate": "50"}
        opening = create(model="agent/tool", tools=[tool], engine_options=options)
        async with client.converse(opening, say("What do they say about it?")) as stream:
            ready = (await stream.event("tool_call_ready")).tool_call_ready
            result = session_pb2.ToolResult(call_id=ready.call_id, json='"they say so"')
            fate = dice.random()
            if fate < 0.1:  # Nobody answers in time.
                await stream.event("turn_finished")
                if fate < 0.05:
                    await stream.send(frame_pb2.ClientFrame(frame_id="late", tool_result=result))
                    await stream.receipt("late")
                return
            await asyncio.sleep(min(4.5, dice.lognormvariate(-0.3, 0.7)))
            if fate < 0.16:
                turn_id = stream.of("turn_started")[0].turn_started.turn_id
                await stream.send(interrupt(turn_id))
            elif fate < 0.24:
                error = session_pb2.ToolError(message="it is closed today")
                result = session_pb2.ToolResult(call_id=ready.call_id, error=error)
                await stream.send(frame_pb2.ClientFrame(tool_result=result))
            else:
                await stream.send(frame_pb2.ClientFrame(tool_result=result))
            await self._read(stream, 1)

    async def _house(self, client: Client) -> None:
        """One after the other asks the house model."""
        questions = ("What is a session?", "Tell me a story.", "Count from 1 to 30.", "Hello!")
        while True:
            with contextlib.suppress(*_LOST):
                opening = create(model=f"{HOUSE}/house")
                async with client.converse(opening, say(self.dice.choice(questions))) as stream:
                    await self._read(stream, 1)
                self.happened["house"] += 1
            await asyncio.sleep(self.dice.uniform(1, 4))

    # --- what befalls them --------------------------------------------------------------------

    async def _slow_reader(self) -> None:
        """A long answer, half of which nobody takes from the wire; then it is made up for."""
        await asyncio.sleep(0.2 * self.lasts_s)
        window = (("grpc.http2.lookahead_bytes", 4096), ("grpc.http2.bdp_probe", 0))
        async with connected(self.scene.server.address, *window) as client:
            rate = 90
            opening = create(
                model="quick/count",
                engine_options={"rate": str(rate)},
                sampling=session_pb2.Sampling(max_tokens=round(0.25 * self.lasts_s * rate)),
            )
            call = duplex(client.channel, CONVERSATION + "Converse")()
            try:
                await call.write(opening.SerializeToString())
                await call.read()
                await call.write(say("Everything, please.").SerializeToString())
                await asyncio.sleep(0.3 * self.lasts_s)
                while await call.read() is not grpc.aio.EOF:
                    pass
            except grpc.aio.AioRpcError:
                self.happened["gave up"] += 1
            finally:
                call.cancel()

    async def _network_breaks(self, line: Proxy) -> None:
        await asyncio.sleep(0.42 * self.lasts_s)
        line.cut()

    async def _log_is_locked(self) -> None:
        """Another program holds the log's file, longer than the server waits for it."""
        await asyncio.sleep(0.8 * self.lasts_s)
        holder = sqlite3.connect(self.scene.server.folder / "log.db", isolation_level=None)
        try:
            holder.execute("BEGIN IMMEDIATE")
            await asyncio.sleep(_LOCKED_S)
            holder.execute("ROLLBACK")
        finally:
            holder.close()
