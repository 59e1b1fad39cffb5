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
    Excess,
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
            return self._trimmable_seq(key, trimmed_seq, trimmed_total, retention, now_ns)

    def excess(
        self, retention: Retention, now_ns: int, since_ns: int, after_key: int, limit: int
    ) -> tuple[Sequence[Excess], int]:
        """See `Log.excess`: some of them, and the key to go on after, or 0.

        Candidates come from two indexes: those whose oldest event may be too old, and those that
        have had a summary since.
        """
        oldest_ns = now_ns - round(retention.max_age_s * 1e9)
        with blame(self._path):
            rows = self._db.execute(
                "SELECT s.key, s.session_id, s.trimmed_seq, s.trimmed_total, ifnull(c.seq, 0)"
                " FROM (SELECT key FROM sessions WHERE oldest_ns < ?"
                " UNION SELECT key FROM sessions WHERE update_time_ns >= ?) AS due"
                " JOIN sessions s ON s.key = due.key"
                " LEFT JOIN checkpoints c ON c.session = s.key"
                " WHERE s.key > ? ORDER BY s.key LIMIT ?",
                (oldest_ns, since_ns, after_key, limit),
            ).fetchall()
            found = []
            for key, session_id, trimmed_seq, trimmed_total, saved in rows:
                seq = self._trimmable_seq(key, trimmed_seq, trimmed_total, retention, now_ns)
                if seq:
                    found.append(Excess(session_id, seq, saved))
        return found, rows[-1][0] if len(rows) == limit else 0

    def _trimmable_seq(
        self, key: int, trimmed_seq: int, trimmed_total: int, retention: Retention, now_ns: int
    ) -> int:
        newest = self._db.execute(
            "SELECT seq, total FROM events WHERE session = ? AND seq > ? ORDER BY seq DESC LIMIT 1",
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
        gone = max(young[0] - 1 if young is not None else last_seq, last_seq - retention.max_events)
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

    def list(
        self,
        before: tuple[int, str] | None,
        limit: int,
        labels: Sequence[tuple[str, str]],
        max_bytes: int,
    ) -> Sequence[Listed]:
        """See `Log.list`.

        Which sessions they are is found in the indexes first, then their summaries are read.
        """
        query = ["SELECT s.key AS key FROM"]
        values: list[object] = []
        wheres = []
        if labels:
            # In this order: from the sessions with the first label to their places in the list.
            query.append("labels l CROSS JOIN sessions s ON s.key = l.session")
            wheres.append("l.name = ? AND l.value = ?")
            wheres += [
                "(SELECT 1 FROM labels WHERE name = ? AND value = ? AND session = s.key)"
            ] * (len(labels) - 1)
            values += [text for label in labels for text in label]
        else:
            query.append("sessions s")
        if before is not None:
            wheres.append("(s.update_time_ns, s.session_id) < (?, ?)")
            values += before
        if wheres:
            query.append("WHERE " + " AND ".join(wheres))
        query.append("ORDER BY s.update_time_ns DESC, s.session_id DESC LIMIT ?")
        values.append(limit)
        lines: list[Listed] = []
        size = 0
        with blame(self._path):
            keys = self._db.execute(" ".join(query), values).fetchall()
            for (key,) in keys:
                row = self._db.execute(
                    "SELECT s.session_id, s.update_time_ns, s.head, s.active, s.expire_time_ns,"
                    " o.data FROM sessions s LEFT JOIN origins o ON o.session = s.key"
                    " WHERE s.key = ?",
                    (key,),
                ).fetchone()
                if row is None:
                    continue  # Deleted since.
                session_id, update_time_ns, head, active, expire_time_ns, origin = row
                whole = (origin or b"") + head
                summary = Head(head, bool(active), expire_time_ns)
                lines.append(Listed(session_id, update_time_ns, summary, whole))
                size += len(whole)
                if size >= max_bytes:
                    break
        return lines

    def _damaged(self, session_id: str, what: str) -> Exception:
        return corrupt(
            self._path,
            f"{what} of a session is damaged or missing; restore a backup, or delete the session",
            session_id,
        )
