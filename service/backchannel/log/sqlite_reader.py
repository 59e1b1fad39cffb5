"""The reading half of the SQLite log: everything here runs in the one thread that reads.

Its connection sees what is committed when a statement begins, and never waits for the writer nor
makes it wait: that is what SQLite's write-ahead log is for.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

from backchannel.log.protocol import (
    Checkpoint,
    Head,
    Listed,
    Retention,
    Stored,
    not_found,
    trimmed,
)
from backchannel.log.sqlite_file import corrupt
from backchannel.log.sqlite_schema import blame, open_reader


class Reader:
    """Reads a log file that a `Writer` has open. Made, used and closed in one thread.

    Args:
        path: The database file, absolute.

    Raises:
        BackchannelError: `LOG_UNAVAILABLE`, `LOG_CORRUPT`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with blame(path):
            self._db: sqlite3.Connection = open_reader(path)

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def read(
        self, session_id: str, after_seq: int, max_events: int, max_bytes: int
    ) -> Sequence[bytes]:
        """See `Log.read`."""
        events: list[bytes] = []
        size = 0
        expected = after_seq + 1
        with blame(self._path, session_id):
            # One statement, so one view: a trim in between cannot look like a gap. A session
            # without such events gives one row of nulls.
            cursor = self._db.execute(
                "SELECT s.trimmed_seq, e.seq, e.crc, e.data FROM sessions s"
                " LEFT JOIN events e ON e.session = s.key AND e.seq >= ?"
                " WHERE s.session_id = ? ORDER BY e.seq LIMIT ?",
                (expected, session_id, max(1, max_events)),
            )
            try:
                for trimmed_seq, seq, crc, data in cursor:
                    if after_seq < trimmed_seq:
                        raise trimmed(trimmed_seq + 1)
                    if seq is None:
                        return events
                    if seq != expected or crc32(data, seq) != crc:
                        raise self._damaged(session_id, f"event {expected}")
                    size += len(data)
                    if events and size > max_bytes:
                        return events
                    events.append(data)
                    expected += 1
            finally:
                # Else the view stays, and the write-ahead log cannot begin anew.
                cursor.close()
        if not events:
            raise not_found()
        return events

    def load(self, session_id: str) -> Stored | None:
        """See `Log.load`."""
        with blame(self._path, session_id):
            row = self._db.execute(
                "SELECT s.trimmed_seq,"
                " (SELECT max(seq) FROM events WHERE session = s.key),"
                " s.head, s.active, s.expire_time_ns, c.seq, c.crc, c.state"
                " FROM sessions s LEFT JOIN checkpoints c ON c.session = s.key"
                " WHERE s.session_id = ?",
                (session_id,),
            ).fetchone()
        if row is None:
            return None
        trimmed_seq, newest, head, active, expire_time_ns, seq, crc, state = row
        checkpoint = None
        if seq is not None:
            if crc32(state, seq) != crc:
                raise self._damaged(session_id, "the checkpoint")
            checkpoint = Checkpoint(seq, state)
        return Stored(
            earliest_seq=trimmed_seq + 1,
            last_seq=max(trimmed_seq, newest or 0),
            checkpoint=checkpoint,
            head=Head(head, bool(active), expire_time_ns),
        )

    def retired_until_ns(self, session_id: str) -> int:
        """See `Log.retired_until_ns`."""
        with blame(self._path):
            row = self._db.execute(
                "SELECT until_ns FROM tombstones WHERE session_id = ?", (session_id,)
            ).fetchone()
        return int(row[0]) if row is not None else 0

    def trimmable_seq(self, session_id: str, retention: Retention, now_ns: int) -> int:
        """See `Log.trimmable_seq`.

        The two searches end at the first event that stays, usually the oldest.
        """
        with blame(self._path, session_id):
            row = self._db.execute(
                "SELECT key, trimmed_seq, trimmed_total FROM sessions WHERE session_id = ?",
                (session_id,),
            ).fetchone()
            if row is None:
                raise not_found()
            key, trimmed_seq, trimmed_total = row
            newest = self._db.execute(
                "SELECT seq, total FROM events WHERE session = ? AND seq > ?"
                " ORDER BY seq DESC LIMIT 1",
                (key, trimmed_seq),
            ).fetchone()
            if newest is None:
                return 0
            last_seq, total = newest
            young = self._db.execute(
                "SELECT seq FROM events WHERE session = ? AND seq > ? AND time_ns >= ?"
                " ORDER BY seq LIMIT 1",
                (key, trimmed_seq, now_ns - round(retention.max_age_s * 1e9)),
            ).fetchone()
            gone = max(
                young[0] - 1 if young is not None else last_seq, last_seq - retention.max_events
            )
            if total - trimmed_total > retention.max_bytes:
                (seq,) = self._db.execute(
                    "SELECT seq FROM events WHERE session = ? AND seq > ? AND total >= ?"
                    " ORDER BY seq LIMIT 1",
                    (key, trimmed_seq, total - retention.max_bytes),
                ).fetchone()
                gone = max(gone, seq)
        return int(gone) if gone > trimmed_seq else 0

    def active(self) -> Sequence[str]:
        """See `Log.active`."""
        with blame(self._path):
            return [
                session_id
                for (session_id,) in self._db.execute(
                    "SELECT session_id FROM sessions WHERE active ORDER BY session_id"
                )
            ]

    def expired(self, now_ns: int, limit: int) -> Sequence[str]:
        """See `Log.expired`."""
        with blame(self._path):
            return [
                session_id
                for (session_id,) in self._db.execute(
                    "SELECT session_id FROM sessions WHERE expire_time_ns <= ?"
                    " ORDER BY expire_time_ns LIMIT ?",
                    (now_ns, limit),
                )
            ]

    def list(self, before: tuple[int, str] | None, limit: int) -> Sequence[Listed]:
        """See `Log.list`."""
        with blame(self._path):
            if before is None:
                cursor = self._db.execute(
                    "SELECT session_id, update_time_ns, head, active, expire_time_ns FROM sessions"
                    " ORDER BY update_time_ns DESC, session_id DESC LIMIT ?",
                    (limit,),
                )
            else:
                cursor = self._db.execute(
                    "SELECT session_id, update_time_ns, head, active, expire_time_ns FROM sessions"
                    " WHERE (update_time_ns, session_id) < (?, ?)"
                    " ORDER BY update_time_ns DESC, session_id DESC LIMIT ?",
                    (*before, limit),
                )
            return [
                Listed(session_id, update_time_ns, Head(head, bool(active), expire_time_ns))
                for session_id, update_time_ns, head, active, expire_time_ns in cursor
            ]

    def _damaged(self, session_id: str, what: str) -> Exception:
        return corrupt(
            self._path,
            f"{what} of a session is damaged or missing; restore a backup, or delete the session",
            session_id,
        )
