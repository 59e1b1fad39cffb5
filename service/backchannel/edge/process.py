"""Envoy as our child: started, watched, started again when it dies, and gone when we are.

async with Edge(placement) as edge:
    await edge.start()
    print(edge.address)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import structlog

from backchannel.edge import binary
from backchannel.edge.admin import Admin
from backchannel.edge.rendering import DESCRIPTORS_NAME, EdgeError, Placement, write
from backchannel.listen import Address

_LISTENER: Final = "edge"
_READY_S: Final = 15.0
_POLL_S: Final = 0.02
# An Envoy of a process that was killed outright may hold the port for a moment.
_PORT_FREE_S: Final = 2.0
_STOP_S: Final = 3.0
_BACK_OFF_FIRST_S: Final = 0.1
_BACK_OFF_MOST_S: Final = 10.0
# Whoever lived so long did not die of how it was started.
_STABLE_S: Final = 30.0
_LAST_WORDS: Final = 5
_MAX_LINE_BYTES: Final = 256 * 1024

_log = structlog.get_logger(__name__)
_envoy_log = structlog.get_logger("envoy")
_access_log = structlog.get_logger("envoy.access")


class Edge:
    """One Envoy for as long as the block lasts; it begins to run at `start`.

    Args:
        placement: Where it is to be. `admin` and `descriptors` are chosen here: a socket and a file
            in a folder that only this user can open.
        drain_s: How long a drain may take.
        threads: How many it uses.
    """

    def __init__(self, placement: Placement, *, drain_s: float, threads: int = 2) -> None:
        self._placement = placement
        self._drain_s = drain_s
        self._threads = threads
        self._exits = contextlib.AsyncExitStack()
        self._process: asyncio.subprocess.Process | None = None
        self._last_words: deque[str] = deque(maxlen=_LAST_WORDS)
        self._readers: set[asyncio.Task[None]] = set()

    address: Address
    """Where it listens, with the port that was really taken."""

    @property
    def pid(self) -> int | None:
        """The process's id; None while there is none."""
        return None if self._process is None else self._process.pid

    async def __aenter__(self) -> Self:
        """Begin to own it."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """End it. What is still open is cut: drain before."""
        await self._exits.aclose()

    async def start(self) -> None:
        """Start it and wait until it takes connections.

        Raises:
            EdgeError: There is no Envoy, or it does not run like this; says why.
        """
        self._binary = binary.find()
        async with contextlib.AsyncExitStack() as exits:
            # As little to trust as possible: nobody else can open this folder.
            folder = exits.enter_context(tempfile.TemporaryDirectory(prefix="backchannel-"))
            self._folder = Path(folder)
            self._admin = Admin(self._folder / "admin.sock")
            exits.push_async_callback(self._kill)
            await _wait_until_free(self._placement.listen)
            await self._launch()
            self.address = await self._admin.listens_at(_LISTENER)
            keeper = asyncio.create_task(self._keep(), name="edge")
            exits.push_async_callback(_cancel, keeper)
            self._exits = exits.pop_all()
        _log.info("edge_serving", address=str(self.address), pid=self.pid)

    async def drain(self) -> None:
        """Ask clients to leave; the service's own drain ends their streams."""
        with contextlib.suppress(OSError, AttributeError):
            await self._admin.drain()

    # --- its life ----------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Start it again whenever it dies."""
        loop = asyncio.get_running_loop()
        delay_s, started_s = _BACK_OFF_FIRST_S, loop.time()
        # After a first start at any free port it must come back at the same.
        self._placement = replace(
            self._placement, listen=self._placement.listen.with_port(self.address.port or 0)
        )
        while self._process is not None:
            code = await self._process.wait()
            if loop.time() - started_s >= _STABLE_S:
                delay_s = _BACK_OFF_FIRST_S
            _log.error("edge_died", code=code, again_in_s=delay_s)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _BACK_OFF_MOST_S)
            started_s = loop.time()
            try:
                await self._launch()
            except EdgeError as error:
                _log.error("edge_not_restarted", reason=str(error))
            else:
                _log.warning("edge_restarted", address=str(self.address), pid=self.pid)

    async def _launch(self) -> None:
        """Start the process and wait until it is ready.

        Raises:
            EdgeError: It died or hangs.
        """
        socket_path = self._folder / "admin.sock"
        socket_path.unlink(missing_ok=True)
        config = write(
            self._folder,
            replace(
                self._placement,
                admin=Address(str(socket_path), None),
                descriptors=str(self._folder / DESCRIPTORS_NAME),
                linux=sys.platform == "linux",
            ),
        )
        self._last_words.clear()
        self._process = process = await asyncio.create_subprocess_exec(
            *_dies_with_us(),
            *self._command(config),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_MAX_LINE_BYTES,
            # Ctrl-C goes to every process of the terminal; ours drains first and then ends it.
            start_new_session=True,
        )
        self._follow(process)
        try:
            async with asyncio.timeout(_READY_S):
                while not await self._admin.is_ready():
                    if process.returncode is not None:
                        await self._heard_out()
                        raise EdgeError(self._why_dead(process.returncode))
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            await self._kill()
            raise EdgeError(f"Envoy was not ready within {_READY_S:g} s") from None

    def _command(self, config: Path) -> Sequence[str]:
        return [
            str(self._binary),
            *("--config-path", str(config)),
            # Nothing is handed over to a next one, so no shared memory and no base id.
            "--disable-hot-restart",
            *("--concurrency", str(self._threads)),
            *("--drain-time-s", str(max(1, round(self._drain_s)))),
            *("--drain-strategy", "immediate"),
            # What was asked for is in the log a second later, not ten.
            *("--file-flush-interval-msec", "1000"),
            *("--log-level", "warning"),
            *("--log-format", "%l\t%n\t%v"),
        ]

    async def _kill(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        # From here on what it says is what it was told to do.
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(_STOP_S):
                    await process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        await self._heard_out()

    # --- what it says ------------------------------------------------------------------------

    def _follow(self, process: asyncio.subprocess.Process) -> None:
        for stream, tell in ((process.stdout, self._access), (process.stderr, self._said)):
            assert stream is not None  # noqa: S101 - both are pipes
            task = asyncio.create_task(_each_line(stream, tell), name="edge log")
            self._readers.add(task)
            task.add_done_callback(self._readers.discard)

    async def _heard_out(self) -> None:
        """Wait for the last that a process which has ended has said."""
        if self._readers:
            await asyncio.wait(self._readers)

    def _said(self, line: str) -> None:
        """A line of Envoy's own log becomes one of ours."""
        level, _, rest = line.partition("\t")
        component, _, text = rest.partition("\t")
        if not text:
            level, component, text = "warning", "", line
        self._last_words.append(text)
        if self._process is None and level == "warning":
            level = "debug"
        tell = {
            "critical": _envoy_log.critical,
            "error": _envoy_log.error,
            "info": _envoy_log.info,
            "debug": _envoy_log.debug,
            "trace": _envoy_log.debug,
        }.get(level, _envoy_log.warning)
        tell("envoy", component=component, said=text)

    @staticmethod
    def _access(line: str) -> None:
        """A line of its access log, which is JSON, becomes one of ours."""
        try:
            fields = json.loads(line)
        except ValueError:
            return
        fields.pop("time", None)
        said = {name: value for name, value in fields.items() if value not in ("", "-", None)}
        _access_log.info("request", **said)

    def _why_dead(self, code: int) -> str:
        words = "; ".join(self._last_words) or "it said nothing"
        return f"Envoy ended with {code}: {words}"


async def _each_line(stream: asyncio.StreamReader, tell: Callable[[str], None]) -> None:
    while True:
        try:
            line = await stream.readline()
        except ValueError:  # Longer than the limit; the rest of it comes as the next line.
            continue
        if not line:
            return
        if text := line.decode(errors="replace").rstrip():
            tell(text)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _dies_with_us() -> Sequence[str]:
    """What makes the kernel end it when we are killed, so that it does not hold the port."""
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    return () if setpriv is None else (setpriv, "--pdeathsig", "KILL", "--")


async def _wait_until_free(address: Address) -> None:
    """Envoys can share a port, and would share its connections: so look first.

    Raises:
        EdgeError: Somebody listens there, or nobody can.
    """
    loop = asyncio.get_running_loop()
    end_s = loop.time() + _PORT_FREE_S
    while (why := _why_taken(address)) is not None:
        if loop.time() >= end_s:
            raise EdgeError(
                f"cannot listen on {address}: {why}; choose another with --edge-listen (port 0"
                " takes a free one), or stop the program that has it"
            )
        await asyncio.sleep(0.1)


def _why_taken(address: Address) -> str | None:
    try:
        family, kind, proto, _, place = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, proto) as probe:
            # As servers do: connections that have ended do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        return error.strerror or str(error)
    return None
