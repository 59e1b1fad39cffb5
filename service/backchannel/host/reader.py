"""A reader: a cursor into a session's log, and a short lane for control messages.

No event is ever queued for a reader. It is woken once a commit, looks from its cursor to the end of
what is committed, and takes all that has piled up as one frame; when it has fallen behind what is
kept in memory it reads from the log. A slow reader costs a number.

What comes first: the snapshot, if one was asked for, because a stream begins with it; then
`GoAway`, receipts and answers to pings; then events; then, when there was nothing for a while, a
heartbeat. A heartbeat tells the cursor, which is never ahead of what was handed out.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Protocol, Self

from google.protobuf.timestamp_pb2 import Timestamp

from backchannel.errors import BackchannelError, Reason
from backchannel.host.clock import SECOND_NS, Clock
from backchannel.host.config import HostConfig
from backchannel.host.ledger import Ledger
from backchannel.log.protocol import Log
from backchannel.observer import ReaderWatch
from backchannel.session.framing import framed
from backchannel.v1 import frame_pb2


class Readable(Protocol):
    """What a reader needs of its session."""

    session_id: str
    closed_seq: int
    ledger: Ledger

    @property
    def resting(self) -> bool:
        """No turn runs, and everything decided is committed."""
        ...

    def submit(self, frame: frame_pb2.ClientFrame, reader: Reader) -> None:
        """Take in a frame; its receipt goes to the reader."""
        ...

    async def room(self) -> None:
        """Wait while the log cannot take more."""
        ...


class Company(Protocol):
    """What a reader needs of whoever keeps the session's readers."""

    def changed(self, reader: Reader) -> None:
        """The reader was closed or half-closed."""
        ...

    def offer_snapshots(self) -> None:
        """Give a snapshot to each reader that wants one and has none."""
        ...


@dataclass(frozen=True, slots=True)
class Lag:
    """What is done about a reader that falls behind.

    Attributes:
        max_events: How far it may be behind; 0 for as far as it likes.
        snapshot: Further behind it gets a snapshot instead of the backlog; else its stream ends.
    """

    max_events: int = 0
    snapshot: bool = False


class Reader:
    """One attached reader. Iterate it in one task; close it in the end, best by `with`.

    Iterating gives serialised `ServerFrame`s. It ends after `SessionClosed`, after the receipt of a
    `Close`, and after a half-close once no turn runs; otherwise it raises `BackchannelError`:
    `DRAINING`, `READER_LAGS`, `CURSOR_TRIMMED` (retention overtook a slow reader), or what the log
    says.

    Args:
        session: What to read.
        company: All who read it.
        cursor: The seq of the last event that was handed out; None to begin with a snapshot.
        log: Where older events are.
        clock: Tells when silence has lasted too long.
        config: Sizes and times.
        lag: What is done when it falls behind.
    """

    def __init__(
        self,
        session: Readable,
        company: Company,
        cursor: int | None,
        log: Log,
        clock: Clock,
        config: HostConfig,
        lag: Lag,
    ) -> None:
        self._session = session
        self._company = company
        self._ledger = session.ledger
        self._cursor = cursor or 0
        self._log = log
        self._clock = clock
        self._config = config
        self._lag = lag
        # Asking for the loop costs a system call (Python 3.11), and this is every token's way.
        self._loop = asyncio.get_running_loop()
        self._snapshot: deque[bytes] = deque()
        self._snapshot_seq = 0
        self._lane: deque[tuple[bytes, bool]] = deque()
        self._pinged = False
        self._owed = 0
        self._waiter: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._error: BackchannelError | None = None
        self._half_closed = self._closed = self._goodbye = False
        self.wants_snapshot = cursor is None
        # A heartbeat is due: nothing was said for a while, or ever and nothing is about to be.
        self._quiet = not self.wants_snapshot
        self._spoke_ns = clock.now_ns()
        self._heartbeat_ns = round(config.heartbeat_s * SECOND_NS)
        self._timer = clock.call_at(self._spoke_ns + self._heartbeat_ns, self._look_at_clock)
        self._last_words: asyncio.Future[None] | None = None
        self.watch: ReaderWatch | None = None

    # --- for whoever writes the stream -------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        ledger = self._ledger
        config = self._config
        while not self._closed:
            frame = self._take_control()
            if frame is None:
                seq = self._cursor + 1
                if self._goodbye and not self._lane:
                    raise StopAsyncIteration
                if seq <= ledger.committed_seq and not self.wants_snapshot:
                    if 0 < self._lag.max_events <= ledger.committed_seq - seq:
                        self._skip()
                        continue
                    if ledger.tail.has(seq):
                        frame, self._cursor = ledger.tail.frame(
                            seq, max_events=config.frame_events, max_bytes=config.frame_bytes
                        )
                    else:
                        frame = await self._read_log()
                elif self._at_end():
                    raise StopAsyncIteration
                elif self._error is not None:
                    raise self._error.with_traceback(None)
                elif self._quiet:
                    frame = self._heartbeat()
                else:
                    self._waiter = self._loop.create_future()
                    await self._waiter
                    continue
            self._quiet = False
            self._spoke_ns = self._clock.now_ns()
            return frame
        raise StopAsyncIteration

    def _take_control(self) -> bytes | None:
        if self._snapshot and self._ledger.committed_seq >= self._snapshot_seq:
            part = self._snapshot.popleft()
            if not self._snapshot:
                self._cursor = self._snapshot_seq
                self.wants_snapshot = False
            return part
        if self._lane and (not self.wants_snapshot or not self._lane[0][1]):
            frame, receipt = self._lane.popleft()
            if receipt:
                self._owed -= 1
                self._make_room()
            return frame
        if self._pinged and not self.wants_snapshot:
            self._pinged = False
            return self._heartbeat()
        return None

    def _skip(self) -> None:
        """The reader is further behind than it wished to be."""
        if not self._lag.snapshot:
            raise BackchannelError(
                Reason.READER_LAGS,
                f"this reader is more than {self._lag.max_events} events behind (max_lag_events);"
                f" resume after {self._cursor}, or ask for a snapshot",
                metadata={"after_seq": str(self._cursor)},
            )
        self.wants_snapshot = True
        self._company.offer_snapshots()

    def _at_end(self) -> bool:
        """All was handed out that this stream will ever carry."""
        session = self._session
        if self.wants_snapshot or self._owed:
            return False
        if session.closed_seq and self._cursor >= session.closed_seq:
            return True
        return self._half_closed and session.resting and self._cursor >= self._ledger.committed_seq

    async def _read_log(self) -> bytes:
        config = self._config
        end = self._ledger.committed_seq
        events = await self._log.read(
            self._session.session_id,
            self._cursor,
            max_events=min(config.frame_events, end - self._cursor),
            max_bytes=config.frame_bytes,
        )
        self._cursor += len(events)
        return b"".join(map(framed, events))

    def _heartbeat(self) -> bytes:
        if self.watch is not None:
            self.watch.heartbeat()
        seconds, nanos = divmod(self._clock.now_ns(), SECOND_NS)
        heartbeat = frame_pb2.Heartbeat(
            seq=self._cursor, time=Timestamp(seconds=seconds, nanos=nanos)
        )
        return frame_pb2.ServerFrame(heartbeat=heartbeat).SerializeToString()

    def _look_at_clock(self) -> None:
        # One timer for the whole stream: moving it at each frame would cost more than the frame.
        now_ns = self._clock.now_ns()
        due_ns = self._spoke_ns + self._heartbeat_ns
        if now_ns >= due_ns:
            self._quiet = True
            self.wake()
            due_ns = now_ns + self._heartbeat_ns
        self._timer = self._clock.call_at(due_ns, self._look_at_clock)

    # --- for whoever reads the client's half -------------------------------------------------

    async def room(self) -> None:
        """Wait before reading the client's next frame, while it has receipts to take.

        Also while the log is far behind. Without this a client that sends and never reads would
        have its receipts pile up here.
        """
        while self._owed >= self._config.max_owed_receipts and not self._closed:
            self._room = asyncio.get_running_loop().create_future()
            await self._room
        await self._session.room()

    def half_close(self) -> None:
        """The client's half ended without `Close`: nobody reads any more, as far as one knows.

        What a running turn still says is delivered, in case somebody does.
        """
        if self._half_closed or self._closed:
            return
        self._half_closed = True
        self._company.changed(self)
        self.wake()

    def close_after(self, frame_id: str) -> None:
        """A `Close` came: end after its receipt, and after those of the frames before it."""
        accepted = frame_pb2.Receipt(frame_id=frame_id, status=frame_pb2.RECEIPT_STATUS_ACCEPTED)
        self._owed += 1
        self._ledger.after_commit(partial(self._say_goodbye, accepted))

    def _say_goodbye(self, receipt: frame_pb2.Receipt, _: BackchannelError | None) -> None:
        # A `Close` causes no event: whatever became of those before it, it was taken.
        if receipt.frame_id:
            self.deliver(receipt, None)
        else:
            self._owed -= 1
        self._goodbye = True
        self.wake()

    def ping(self, frame_id: str) -> None:
        """A `Ping` came: a heartbeat now, and the receipt if it has an id."""
        self._session.submit(frame_pb2.ClientFrame(frame_id=frame_id, ping=frame_pb2.Ping()), self)

    def close(self) -> None:
        """The reader is gone. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self.watch is not None:
            self.watch.closed(goodbye=self._goodbye)
        self._timer.cancel()
        self._snapshot.clear()
        self._lane.clear()
        self._make_room()
        if self._last_words is not None and not self._last_words.done():
            self._last_words.set_result(None)
        self._company.changed(self)
        self.wake()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    # --- for the session ---------------------------------------------------------------------

    @property
    def counts(self) -> bool:
        """Whether somebody reads, as far as the disconnect policy is concerned."""
        return not (self._closed or self._half_closed)

    @property
    def lag(self) -> int:
        """How many committed events it has not taken."""
        return 0 if self.wants_snapshot else self._ledger.committed_seq - self._cursor

    @property
    def is_closed(self) -> bool:
        """Whether the reader is gone."""
        return self._closed

    def gone(self) -> asyncio.Future[None]:
        """Done when the reader is gone."""
        if self._last_words is None:
            self._last_words = asyncio.get_running_loop().create_future()
        return self._last_words

    @property
    def has_snapshot(self) -> bool:
        """Whether the snapshot that it wants was offered, or begun."""
        return bool(self._snapshot)

    def wake(self) -> None:
        """There may be something to hand out."""
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def owe(self) -> None:
        """A frame was taken in whose receipt goes to this reader."""
        self._owed += 1

    def deliver(self, receipt: frame_pb2.Receipt, error: BackchannelError | None) -> None:
        """Hand out a receipt that is owed; with an error, that the frame came to nothing."""
        if self._closed:
            return
        if error is not None:
            receipt = frame_pb2.Receipt(
                frame_id=receipt.frame_id,
                status=frame_pb2.RECEIPT_STATUS_REJECTED,
                error=error.to_status(),
            )
        self._lane.append((frame_pb2.ServerFrame(receipt=receipt).SerializeToString(), True))
        self.wake()

    def answer_ping(self) -> None:
        """Hand out a heartbeat."""
        self._pinged = True
        self.wake()

    def go_away(self, frame: bytes) -> None:
        """Hand out a `GoAway`, before everything else."""
        self._lane.appendleft((frame, False))
        self.wake()

    def offer_snapshot(self, parts: Sequence[bytes], seq: int) -> None:
        """Begin with this snapshot once its last event is committed, and go on from there."""
        self._snapshot.clear()
        self._snapshot.extend(parts)
        self._snapshot_seq = seq
        self.wake()

    def withdraw_snapshot(self) -> None:
        """What the snapshot showed was not committed; another one will be offered."""
        if self._snapshot_seq > self._ledger.committed_seq:
            self._snapshot.clear()

    def fail(self, error: BackchannelError) -> None:
        """End the stream with an error, after what is committed was handed out."""
        if self._error is None:
            self._error = error
        self.wake()

    def _make_room(self) -> None:
        room = self._room
        if room is not None and (self._closed or self._owed < self._config.max_owed_receipts):
            self._room = None
            if not room.done():
                room.set_result(None)
