"""What can be set about a host."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from backchannel.log.protocol import Retention

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class HostConfig:
    """Limits and times of one process. Every default is meant for production.

    Attributes:
        max_sessions: Sessions in the log, at rest or not; one more is `SESSIONS_FULL`.
        max_live: Sessions in memory. Idle ones without readers make room for others.
        max_readers: Readers attached to one session; one more is `READERS_FULL`.
        max_waiting_runs: Turns that wait for one engine, unless its own `max_waiting` says
            otherwise; one more is `ENGINE_BUSY`.
        max_owed_receipts: Receipts that one reader has not taken; at so many `Reader.room` waits.
        max_backlog_bytes: Events of all sessions, not committed yet; above that inputs wait.
        commit_pace_s: The least time between two appends that carry nothing but output; the price
            in latency of a cheaper token.
        max_ahead_events: How far a generation may run ahead of the log.
        heartbeat_s: The longest silence on a stream.
        frame_events: The most events in one frame.
        frame_bytes: The most bytes of events in one frame, unless one event alone is larger.
        tail_events: Committed events of a session kept in memory for its readers.
        tail_bytes: The most bytes of them.
        read_events: How many events are read from the log at once when a session is loaded; others
            get their turn in between.
        checkpoint_events: A session that comes to rest so many events after its last checkpoint
            gets a new one. No more than that are read when it is loaded, but for what came since it
            last was at rest.
        stop_limit_s: A generation that has not ended so long after it was told to stop is dropped.
        idle_before_passive_s: A session stays in memory at least so long after its last use.
        expire_after_s: A session in which nothing has happened for so long is deleted, unless a
            turn runs or a call is open. A change holds for a session from its next event on.
        sweep_s: Time between two rounds of expiry and retention.
        retired_s: How long the id of a deleted or expired session cannot be used again.
        farewell_s: How long a deletion waits for readers to take their `SessionClosed`.
        retry_first_s: After a write was refused, the log is asked again after about so long; the
            time doubles with each refusal.
        retry_most_s: But it never is longer than this.
        parallel_loads: Sessions that are read from the log at the same time.
        retention: How much of a session's past is kept.
    """

    max_sessions: int = 100_000
    max_live: int = 10_000
    max_readers: int = 64
    max_waiting_runs: int = 1_000
    max_owed_receipts: int = 1024
    max_backlog_bytes: int = 64 * MIB
    commit_pace_s: float = 0.004
    max_ahead_events: int = 16
    heartbeat_s: float = 15.0
    frame_events: int = 512
    frame_bytes: int = 256 * 1024
    tail_events: int = 1024
    tail_bytes: int = 256 * 1024
    read_events: int = 500
    checkpoint_events: int = 2000
    stop_limit_s: float = 10.0
    idle_before_passive_s: float = 10.0
    expire_after_s: float = 7 * 24 * 3600.0
    sweep_s: float = 60.0
    retired_s: float = 24 * 3600.0
    farewell_s: float = 2.0
    retry_first_s: float = 0.25
    retry_most_s: float = 15.0
    parallel_loads: int = 8
    retention: Retention = field(default_factory=Retention)

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            ValueError: A count is less than 1, or a time less than 0; names the setting.
        """
        for setting in fields(self):
            value = getattr(self, setting.name)
            least = 1 if isinstance(value, int) else 0
            if isinstance(value, int | float) and not value >= least:
                raise ValueError(f"{setting.name} must be at least {least}, not {value}")
