"""The backends that must pass what every backend must pass, and what their tests share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from backchannel.errors import BackchannelError, Reason
from backchannel.log.memory import MemoryLog
from backchannel.log.protocol import Append, Head, Log
from backchannel.log.sqlite import SqliteLog

LogT = TypeVar("LogT", bound=Log)

# A backend is listed here once, and every test of the suite and the model is run with it.
BACKENDS: Mapping[str, Callable[[Path], Log]] = {
    "memory": lambda folder: MemoryLog(),
    "sqlite": lambda folder: SqliteLog(folder / "log.db"),
}

SESSION = "session-0123456789"
OTHER = "session-9876543210"
T0 = 1_700_000_000_000_000_000
S = 1_000_000_000


def head(text: str = "head", *, active: bool = False, expire_time_ns: int = T0 + 7 * S) -> Head:
    return Head(text.encode(), active, expire_time_ns)


def create(
    session_id: str = SESSION,
    count: int = 1,
    *,
    time_ns: int = T0,
    size: int = 10,
    first: Head | None = None,
) -> Append:
    """An append that creates a session with `count` events of `size` bytes."""
    return Append(session_id, 1, events(1, count, size), time_ns, first or head())


def more(
    first_seq: int,
    count: int = 1,
    session_id: str = SESSION,
    *,
    time_ns: int = T0,
    size: int = 10,
    new: Head | None = None,
) -> Append:
    return Append(session_id, first_seq, events(first_seq, count, size), time_ns, new)


def events(first_seq: int, count: int, size: int = 10) -> list[bytes]:
    """Events that tell their seq."""
    return [str(seq).encode().ljust(size, b".") for seq in range(first_seq, first_seq + count)]


async def read_all(log: Log, session_id: str = SESSION, after_seq: int = 0) -> Sequence[bytes]:
    return await log.read(session_id, after_seq, max_events=1_000_000, max_bytes=1 << 40)


def is_unknown(error: BackchannelError) -> bool:
    return error.reason is Reason.SESSION_NOT_FOUND
