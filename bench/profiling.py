"""Where a token's time goes: the server under load, seen by `py-spy`, with native code.

A sample is a stack of a thread that is at work. It belongs to the innermost frame that says whose
work it is: C code of Python, of libc or of protobuf works for whoever called it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from bench.driver import Demand, Measured, drive
from bench.servers import START_S, Cores, Target, free_port, pin, speaks_grpc

# Each sample stops the server for a millisecond or two; more of them and it falls behind.
SAMPLES_A_SECOND: Final = 50

SEND: Final = "the kernel's send"
GRPC: Final = "gRPC"
LOOP: Final = "the event loop"
CORE: Final = "the core's decision"
HOST: Final = "the host"
LOG: Final = "the log"
ENGINE: Final = "the engine"
DOORS: Final = "the doors"
GARBAGE: Final = "garbage collection"
OTHER: Final = "other"

OWNERS: Final = {
    SEND: "`sendmsg` under gRPC, with the loopback's way to the client in it: one system call a "
    "message, as long as messages are not put together; a bare server has it too",
    GRPC: "its core and its Cython: framing, flow control, a batch for each write, the polling "
    "thread that hands each completion to the event loop; a bare server has it too",
    LOOP: "rounds of asyncio on a token's way: the engine's timer, the committer, the log's "
    "answer, the reader, gRPC's completions; fewer where sessions share appends and wakings",
    CORE: "`session/`: builds the `OutputDelta`, folds it into the state, makes it bytes, once",
    HOST: "`host/`: the run takes it from the engine, the ledger frames it, the committer gathers "
    "appends, each reader is woken and takes what is there",
    LOG: "`log/`: the hand-over to SQLite's thread and back, a row an append and session, and the "
    "write-ahead log; the disk's own time is a wait, not work",
    ENGINE: "`scripted`: a timer and a word; a model of its own would be elsewhere",
    DOORS: "`rpc/`: the servicer that passes frames on",
    GARBAGE: "Python's collector, on what the others have made",
    OTHER: "frames that say nothing",
}
"""Whose work there is, and what to know about it."""

# The first that the innermost frame matches, then the next frame further out.
_PATTERNS: Final = (
    (GARBAGE, re.compile(r"^gc_collect_main|^gc_collect_generations")),
    (GRPC, re.compile(r"cygrpc|\(grpc/")),
    (CORE, re.compile(r"\(backchannel/session/")),
    (HOST, re.compile(r"\(backchannel/host/")),
    (LOG, re.compile(r"\(backchannel/log/|sqlite")),
    (ENGINE, re.compile(r"\(backchannel/engines/")),
    (DOORS, re.compile(r"\(backchannel/rpc/|\(backchannel_gateway/")),
    (LOOP, re.compile(r"\(asyncio/|\(selectors\.py|_asynciomodule")),
)
_SENDS: Final = re.compile(r"^(__)?(sendmsg|writev)\b")
# Waits, for sockets, locks (Python's own among them) and disks. What they call has no names.
_WAITS: Final = re.compile(
    r"^(__)?(epoll_p?wait|select|poll|pthread_cond_\w*wait|sem_\w*wait|PyThread_acquire_lock\w*"
    r"|take_gil|fdatasync|fsync)\b"
)
_SERVING: Final = re.compile(r"run_forever|cygrpc|Worker\._run")


def owner(stack: str) -> str | None:
    """Whose work a sample shows; None for a wait, and for the server's start.

    Args:
        stack: Frames from the outermost to the innermost, with `;` between.
    """
    frames = stack.split(";")
    if "importlib" in stack or not any(map(_SERVING.search, frames)):
        return None
    if any(map(_WAITS.search, frames[-4:])):
        return None
    for frame in reversed(frames):
        for name, pattern in _PATTERNS:
            if pattern.search(frame):
                return SEND if name == GRPC and _SENDS.search(frames[-1]) else name
    return OTHER


@dataclass(frozen=True, slots=True)
class Profile:
    """What the samples say.

    Attributes:
        samples: By whose work it was.
        measured: What the driver saw meanwhile.
    """

    samples: Counter[str]
    measured: Measured

    def share(self, name: str) -> float:
        """Of all work, 0 to 1."""
        return self.samples[name] / self.samples.total()


def read(raw: str) -> Counter[str]:
    """Count the samples of py-spy's raw format: a stack and how often, a line each."""
    samples: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        name = owner(stack)
        if name is not None:
            samples[name] += int(count)
    return samples


async def profile(demand: Demand, cores: Cores, seed: int) -> Profile:
    """Sample the service with its SQLite log while it is loaded over gRPC.

    Raises:
        RuntimeError: `py-spy` may not look into processes here.
    """
    program = shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if program is None:
        raise RuntimeError("py-spy is not installed")
    port = free_port()
    address = f"127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        output = folder / "raw"
        # It starts the server itself: into its own children it may look without being root.
        command = await asyncio.create_subprocess_exec(
            program,
            *("record", "--native", "--rate", str(SAMPLES_A_SECOND), "--format", "raw"),
            *("--output", output, "--", sys.executable, "-m", "backchannel", "serve"),
            *("--listen", address, "--engine", "scripted", "--log-level", "warning", "--no-edge"),
            *("--log", f"sqlite:///{folder}/profile.db", "--metrics-listen", "127.0.0.1:0"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        assert command.stderr is not None
        said = asyncio.create_task(command.stderr.read())
        children: list[psutil.Process] = []
        try:
            async with asyncio.timeout(START_S):
                await speaks_grpc(address)
            children = psutil.Process(command.pid).children()
            (server,) = children
            pin(server, cores.server)
            measured = await drive(Target(address, server), "grpc", demand, cores, seed)
            server.send_signal(signal.SIGTERM)
            async with asyncio.timeout(START_S):
                await command.wait()
        finally:
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            with contextlib.suppress(ProcessLookupError):
                command.kill()
            await command.wait()
            complaint = (await said).decode(errors="replace").strip()
        if not output.exists():
            raise RuntimeError(f"py-spy found nothing: {complaint[-300:]}")
        return Profile(read(output.read_text(encoding="utf-8")), measured)
