"""A session's way into the log: what was decided, what is under way, what is committed.

An event becomes bytes here, once: the log gets them bare, the readers framed. What a caller wants
to do only when something is durable waits here for the commit.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol

from backchannel.errors import BackchannelError
from backchannel.host.committer import Committer
from backchannel.host.config import HostConfig
from backchannel.host.tail import Tail
from backchannel.host.turn_log import TurnLog
from backchannel.log.protocol import Append, Head, Origin
from backchannel.observer import SessionWatch
from backchannel.session.framing import framed
from backchannel.v1 import event_pb2

AfterCommit = Callable[[BackchannelError | None], None]

# Events that change nothing of what a listing shows or recovery asks; all others bring a new head.
_QUIET_KINDS: Final = frozenset({"output_delta", "tool_call_delta", "tool_call_progressed"})


class Author(Protocol):
    """Whose events they are: the session."""

    session_id: str

    def summary(self) -> Head:
        """What the log keeps beside the events, as of the newest decision."""
        ...

    def origin(self) -> Origin:
        """What it keeps of the session that never changes."""
        ...

    @property
    def newest_ns(self) -> int:
        """The time of the newest event."""
        ...

    def landed(self) -> None:
        """An append was committed."""
        ...

    def refused(self, error: Exception) -> None:
        """An append was refused, or could not even be made."""
        ...


class Ledger:
    """What one session writes; see `Writer`.

    Attributes:
        committed_seq: The newest event that is in the log.
        decided_seq: The newest event that there is.
        tail: The newest committed events.

    Args:
        author: Whose events they are.
        committed_seq: The newest event that is in the log already.
        committer: Who writes.
        config: The size of the tail.
        watch: Is told what is decided; None if nobody watches.
    """

    def __init__(
        self,
        author: Author,
        committed_seq: int,
        committer: Committer,
        config: HostConfig,
        watch: SessionWatch | None = None,
    ) -> None:
        turn_log = TurnLog(author.session_id, watch)
        self._hearers = (watch, turn_log) if watch is not None else (turn_log,)
        self._author = author
        self._committer = committer
        self._config = config
        self._raw: list[bytes] = []
        self._framed: list[bytes] = []
        self._flight: list[bytes] = []
        self._raw_bytes = self._flight_bytes = 0
        self._head_due = False
        self._due: deque[tuple[int, AfterCommit]] = deque()
        self._touchdown: asyncio.Future[None] | None = None
        self.restart(committed_seq)

    def restart(self, committed_seq: int) -> None:
        """Go on from what the log says; nothing may be under way."""
        config = self._config
        self.committed_seq = self.decided_seq = committed_seq
        self.tail = Tail(
            committed_seq + 1, max_events=config.tail_events, max_bytes=config.tail_bytes
        )

    # --- for the session ---------------------------------------------------------------------

    def write(self, events: Sequence[event_pb2.Event]) -> None:
        """Have the next events committed, soon."""
        if not self._raw:
            self._committer.enlist(self)
        size = 0
        loud = False
        for event in events:
            raw = event.SerializeToString()
            size += len(raw)
            self._raw.append(raw)
            self._framed.append(framed(raw))
            if event.WhichOneof("kind") not in _QUIET_KINDS:
                loud = self._head_due = True
                self._committer.hurry()
        self._raw_bytes += size
        self._committer.owe(size)
        self.decided_seq += len(events)
        if loud:
            self._tell(events)

    def _tell(self, events: Sequence[event_pb2.Event]) -> None:
        for event in events:
            kind = event.WhichOneof("kind")
            if kind is not None and kind not in _QUIET_KINDS:
                for hearer in self._hearers:
                    then = hearer.decided(kind, event)
                    if then is not None:
                        self.after_commit(then)

    @property
    def behind(self) -> int:
        """How many events are decided and not committed."""
        return self.decided_seq - self.committed_seq

    @property
    def settled(self) -> bool:
        """Whether everything decided is committed, and nobody waits to be told so."""
        return self.decided_seq == self.committed_seq and not self._due

    def after_commit(self, then: AfterCommit) -> None:
        """Call back once all that was decided so far is committed, or with why it will not be."""
        if self._due or self.decided_seq != self.committed_seq:
            self._due.append((self.decided_seq, then))
            self._committer.hurry()
        else:
            then(None)

    async def commit(self) -> None:
        """Wait until all that was decided so far is committed.

        Raises:
            BackchannelError: It will not be.
        """
        if self.decided_seq == self.committed_seq:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.after_commit(partial(settle, future))
        await future

    async def verdict(self) -> None:
        """The same, whatever became of it."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.after_commit(lambda _: settle(future))
        await future

    def give_up(self, error: BackchannelError) -> None:
        """Forget what was decided and is not under way, and tell whoever waits for it."""
        self._committer.owe(-self._raw_bytes)
        self._raw, self._framed, self._raw_bytes, self._head_due = [], [], 0, False
        self.decided_seq = self.committed_seq + len(self._flight)
        lost = [then for seq, then in self._due if seq > self.decided_seq]
        self._due = deque(due for due in self._due if due[0] <= self.decided_seq)
        for then in lost:
            then(error)

    async def landing(self) -> None:
        """Wait until nothing is under way."""
        if self._flight:
            self._touchdown = asyncio.get_running_loop().create_future()
            await self._touchdown

    def close(self, error: BackchannelError) -> None:
        """Nothing will be committed any more: tell whoever still waits."""
        due, self._due = self._due, deque()
        for _, then in due:
            then(error)

    # --- for the committer -------------------------------------------------------------------

    def take(self) -> Append | None:
        """What there is to write now."""
        if not self._raw:
            return None
        author, head, origin = self._author, None, None
        if self._head_due:
            try:
                head = author.summary()
                origin = None if self.committed_seq else author.origin()
            except Exception as error:  # noqa: BLE001 - one session's bug must not stop the writing
                author.refused(error)
                return None
            self._head_due = False
        raw, self._raw = self._raw, []
        self._flight, self._framed = self._framed, []
        self._flight_bytes, self._raw_bytes = self._raw_bytes, 0
        first_seq = self.committed_seq + 1
        return Append(author.session_id, first_seq, raw, author.newest_ns, head, origin)

    def committed(self) -> None:
        """What was taken last is in the log."""
        flight = self._land()
        self.tail.extend(flight)
        self.committed_seq += len(flight)
        due, seq = self._due, self.committed_seq
        while due and due[0][0] <= seq:
            due.popleft()[1](None)
        self._author.landed()

    def failed(self, error: BackchannelError) -> None:
        """What was taken last is not in the log."""
        self._land()
        self._author.refused(error)

    def _land(self) -> list[bytes]:
        flight, self._flight = self._flight, []
        self._committer.owe(-self._flight_bytes)
        self._flight_bytes = 0
        if self._touchdown is not None:
            settle(self._touchdown)
            self._touchdown = None
        return flight


def settle(future: asyncio.Future[None], error: BackchannelError | None = None) -> None:
    """Give a future its result, or its error, unless whoever waited has left."""
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
