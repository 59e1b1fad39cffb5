"""What is to be sent, and what has been sent but not receipted.

A frame with an id stays here until its receipt has come, over however many connections: sending it
again under the same id has no second effect. What only counts while it is new is kept once per
subject, the newest: progress is lost with a connection, a position is told again on the next one.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable
from typing import Final

from google.rpc import code_pb2

from backchannel.client.errors import ClientError, status_error
from backchannel.client.schedule import Backoff, Time
from backchannel.v1.frame_pb2 import ClientFrame, Close, Receipt, ReceiptStatus

_POSITION: Final = "position"


def new_id() -> str:
    """A frame or session id: 192 random bits in 32 characters of `A-Za-z0-9_-`.

    None begins with `-`: a command line would take it for an option.
    """
    while (made := secrets.token_urlsafe(24)).startswith("-"):
        pass
    return made


class Outbox:
    """Frames on their way up.

    Args:
        max_pending: Frames that may wait for a receipt; the next one waits for its turn.
        backoff: Makes the schedule by which a frame is repeated that was refused for now.
        time: The clock.
        on_pending: Told whether any frame waits for its receipt, whenever that changes.
    """

    def __init__(
        self,
        max_pending: int,
        backoff: Callable[[], Backoff],
        time: Time,
        on_pending: Callable[[bool], None],
    ) -> None:
        self._slots = asyncio.Semaphore(max_pending)
        self._backoff = backoff
        self._time = time
        self._on_pending = on_pending
        self._pending: dict[str, tuple[ClientFrame, asyncio.Future[Receipt]]] = {}
        self._unsent: deque[str] = deque()
        self._latest: dict[str, ClientFrame] = {}
        self._position: ClientFrame | None = None
        self._wake = asyncio.Event()
        self._closing = False
        self._error: ClientError | None = None

    async def send(self, frame: ClientFrame) -> Receipt:
        """Send a frame and wait for its receipt, however many connections that takes.

        A frame that is refused for now (the log is away, the server leaves) is sent again.

        Raises:
            StatusError: It was refused.
            ClientError: The conversation ended first; whether the frame was applied is not known.
        """
        backoff = self._backoff()
        async with self._slots:
            while True:
                receipt = await self._deliver(frame)
                if receipt.status != ReceiptStatus.RECEIPT_STATUS_REJECTED:
                    return receipt
                error = status_error(receipt.error)
                if error.code != code_pb2.UNAVAILABLE:
                    raise error
                delay_s = backoff.next_s(None, error.retry_after_s)
                if delay_s is None:
                    raise error
                await self._time.sleep(delay_s)

    def post(self, subject: str, frame: ClientFrame) -> None:
        """Send a frame without an id, in place of an older one on the same subject."""
        if self._error is None:
            self._latest[subject] = frame
            self._wake.set()

    def post_position(self, frame: ClientFrame) -> None:
        """Send what the user has seen, and again with each new connection.

        A server that lost its connection, or its life, may have lost it, and generation may wait
        for it.
        """
        self._position = frame
        self.post(_POSITION, frame)

    def close(self) -> None:
        """Say goodbye after what is still to be sent."""
        self._closing = True
        self._wake.set()

    def fail(self, error: ClientError) -> None:
        """The conversation is over: whoever waits is told, and so is whoever comes later."""
        self._error = error
        for _, receipt in self._pending.values():
            if not receipt.done():
                receipt.set_exception(error)

    def settle(self, receipt: Receipt) -> None:
        """A receipt has come."""
        _, waiting = self._pending.get(receipt.frame_id, (None, None))
        if waiting is not None and not waiting.done():
            waiting.set_result(receipt)

    def rewind(self) -> None:
        """A new connection: everything without a receipt is to be sent again."""
        self._unsent = deque(self._pending)
        self._latest.clear()
        if self._position is not None:
            self._latest[_POSITION] = self._position
        self._wake.set()

    async def next(self) -> ClientFrame:
        """The next frame for the current connection."""
        while True:
            if self._latest:
                return self._latest.pop(next(iter(self._latest)))
            while self._unsent:
                frame_id = self._unsent.popleft()
                if frame_id in self._pending:
                    return self._pending[frame_id][0]
            if self._closing:
                self._closing = False
                return ClientFrame(close=Close())
            self._wake.clear()
            await self._wake.wait()

    async def _deliver(self, frame: ClientFrame) -> Receipt:
        if self._error is not None:
            raise self._error
        if not frame.frame_id:
            raise ValueError("a frame needs a frame_id to be receipted and to be safe to repeat")
        if frame.frame_id in self._pending:
            raise ValueError(f"frame_id {frame.frame_id!r} is already on its way")
        receipt: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        self._pending[frame.frame_id] = (frame, receipt)
        self._unsent.append(frame.frame_id)
        self._wake.set()
        self._on_pending(True)
        try:
            return await receipt
        finally:
            # Also when the caller was cancelled: then it must not be sent behind their back.
            del self._pending[frame.frame_id]
            self._on_pending(bool(self._pending))
