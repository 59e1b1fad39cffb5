"""How a client behaves: times, limits, patience."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """Settings of a `Client`. The defaults suit a program that should just keep going.

    Attributes:
        connect_timeout_s: How long to try to reach the server at first before `DisconnectedError`.
        give_up_after_s: How long to try to come back after a lost connection before
            `DisconnectedError`. None: for ever.
        call_timeout_s: How long one unary call may take.
        silence_timeout_s: A stream that is silent for longer is dead. The server sends a
            heartbeat every 15 s.
        close_timeout_s: How long to wait for the server's goodbye when a conversation is left.
        backoff_initial_s: The longest wait before the first attempt to come back; each wait is a
            random part of its longest, which doubles from one attempt to the next.
        backoff_max_s: The longest wait of all.
        keepalive_s: How often to ask an otherwise silent connection for a sign of life.
        keepalive_timeout_s: How long to wait for it.
        max_buffered_bytes: Events that have arrived and not been iterated yet. When there are
            more, the stream is not read until some are.
        max_pending_frames: Frames sent and not yet receipted. The next `send` waits.
        max_concurrent_calls: Tool calls run at the same time. More wait, their deadlines running.
        max_message_bytes: The largest message taken from the server.
    """

    connect_timeout_s: float = 10.0
    give_up_after_s: float | None = None
    call_timeout_s: float = 30.0
    silence_timeout_s: float = 30.0
    close_timeout_s: float = 1.0
    backoff_initial_s: float = 0.1
    backoff_max_s: float = 10.0
    keepalive_s: float = 20.0
    keepalive_timeout_s: float = 5.0
    max_buffered_bytes: int = 4 * 1024 * 1024
    max_pending_frames: int = 256
    max_concurrent_calls: int = 64
    max_message_bytes: int = 16 * 1024 * 1024

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"ClientConfig.{name} is {value}; it must be more than zero")
