"""The writing half of the SQLite log: everything here runs in the one thread that writes.

An append without a new summary, the way of a token, is a single statement in autocommit mode,
however many sessions are in it: one commit, and the interpreter's lock is given up and taken back
once, not once a row. Where each session's events end is remembered, so nothing has to be read
first.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple
from zlib import crc32

from backchannel.log.protocol import Append, AppendConflictError, Checkpoint, Origin, not_found
from backchannel.log.sqlite_file import LogFile, unavailable
from backchannel.log.sqlite_gaps import clean
from backchannel.log.sqlite_schema import BUSY_TIMEOUT_S, blame, kind_of, open_writer

_logger = logging.getLogger(__name__)

# Rows in one INSERT: more, and each number of rows is one more statement to compile and keep.
_ROWS: Final = 64
# SQLite's page, and the pages after which the write-ahead log is moved back: about 16 MiB. A
# session's newest page is written again with each of its events, so the longer this waits, the
# fewer pages are moved; but the longer a move takes. 16 MiB moves in 10–40 ms on an SSD, once in
# some thousand appends.
_PAGE_BYTES: Final = 4096
_MOVE_BACK_PAGES: Final = 4000
# Sessions whose end is remembered.
_TAILS: Final = 10_000
# Rows removed in one go by a trim or a deletion, so that appends get their turn in between.
PURGE_ROWS: Final = 1000
# Pages cleaned in one go: about 4 MiB, some milliseconds.
SCRUB_PAGES: Final = 1024
# How long a scrub lets appends wait for a reader to be done.
_SCRUB_BUSY_MS: Final = 50

_Row = tuple[int, int, int, int, int, bytes]


class _Tail(NamedTuple):
    """Where a session's events end: its number, its last seq, and the running sum of bytes."""

    key: int
    last_seq: int
    total: int


class _Plan(NamedTuple):
    """What a batch writes, found to fit."""

    rows: list[_Row]
    created: list[tuple[object, ...]]
    origins: list[tuple[object, ...]]
    labels: list[tuple[object, ...]]
    updated: list[tuple[object, ...]]
    tails: dict[str, _Tail]
    pages: int


class Writer:
    """Writes a log file. Made, used and closed in one thread.

    Args:
        path: The database file, absolute.
        on_wal_full: Called when it is time for `move_back`; must not block.

    Raises:
        BackchannelError: `LOG_UNAVAILABLE`, `LOG_CORRUPT`.
    """

    def __init__(self, path: Path, on_wal_full: Callable[[], None]) -> None:
        self._path = path
        self._on_wal_full = on_wal_full
        self._tails: dict[str, _Tail] = {}
        self._wal_pages = 0
        self._moving_back = False
        self._looked_at_key = 0
        self._file = LogFile(path)
        # What another process has left, whose end may have come between deletion and scrub.
        self._soiled = path.with_name(path.name + "-wal").exists()
        try:
            with blame(path):
                self._db = open_writer(path)
                try:
                    (self.count,) = self._db.execute("SELECT count(*) FROM sessions").fetchone()
                    found = self._db.execute(
                        "SELECT seq FROM sqlite_sequence WHERE name = 'sessions'"
                    ).fetchone()
                except BaseException:
                    self._db.close()
                    raise
        except BaseException:
            self._file.release()
            raise
        self._next_key: int = found[0] + 1 if found else 1

    def close(self) -> None:
        """Close the file and let others open it."""
        try:
            self._db.close()
        except sqlite3.Error as error:
            # What is committed is in the write-ahead log, where the next one to open finds it.
            _logger.warning("closing log file %s: %s", self._path, error)
        finally:
            self._file.release()

    # Appends.

    def append(self, batch: Sequence[Append]) -> None:
        """See `Log.append`."""
        self._file.check_in_place()
        plan = self._plan(batch)
        if not plan.rows:
            return
        try:
            self._commit(plan)
        except sqlite3.IntegrityError:
            # A row is there already, so somebody else wrote and what is remembered is wrong.
            # Planned with what is in the file, the append that does not fit is found and named.
            self._tails.clear()
            plan = self._plan(batch)
            with blame(self._path):
                self._commit(plan)
        except sqlite3.Error as error:
            if kind_of(error) == sqlite3.SQLITE_CORRUPT:
                self._find_damaged(plan)
            elif kind_of(error) == sqlite3.SQLITE_FULL:
                # Once it is moved back, the write-ahead log begins anew in the room that it has.
                self.move_back()
            with blame(self._path):
                raise
        for session_id, tail in plan.tails.items():
            # Taken out first: the order of the dict is that of use, oldest first.
            self._tails.pop(session_id, None)
            self._tails[session_id] = tail
        while len(self._tails) > _TAILS:
            del self._tails[next(iter(self._tails))]
        self._next_key += len(plan.created)
        self.count += len(plan.created)
        self._grown(plan.pages)

    def _plan(self, batch: Sequence[Append]) -> _Plan:
        plan = _Plan([], [], [], [], [], {}, 0)
        size = 0
        for append in batch:
            if not append.events:
                raise ValueError("an append needs at least one event")
            head = append.head
            tail = plan.tails.get(append.session_id) or self._tail(append.session_id)
            if append.first_seq == 1 and head is not None:
                if tail is not None:
                    raise AppendConflictError(append.session_id, "the session exists already")
                self._check_not_retired(append)
                tail = _Tail(self._next_key + len(plan.created), 0, 0)
                origin = append.origin or Origin()
                plan.origins.append((tail.key, origin.session))
                plan.labels.extend((*label, tail.key) for label in origin.labels.items())
                size += len(origin.session)
                plan.created.append(
                    (
                        tail.key,
                        append.session_id,
                        append.time_ns,
                        head.expire_time_ns,
                        head.active,
                        head.session,
                        append.time_ns,
                    )
                )
            elif append.first_seq == 1:
                raise ValueError("the append that creates a session needs a head")
            elif tail is None:
                raise AppendConflictError(append.session_id, "there is no such session")
            elif append.first_seq != tail.last_seq + 1:
                raise AppendConflictError(
                    append.session_id,
                    f"the session is at seq {tail.last_seq}, and the append begins at "
                    f"{append.first_seq}",
                )
            elif head is not None:
                plan.updated.append(
                    (append.time_ns, head.expire_time_ns, head.active, head.session, tail.key)
                )
            key, seq, total = tail
            for data in append.events:
                seq += 1
                total += len(data)
                plan.rows.append((key, seq, append.time_ns, total, crc32(data, seq), data))
            size += total - tail.total + (len(head.session) if head is not None else 0)
            plan.tails[append.session_id] = _Tail(key, seq, total)
        # A guess that errs upwards: one page or two a session, and a few for a summary's indexes.
        heads = 2 * len(plan.created) + len(plan.updated) + len(plan.labels)
        return plan._replace(pages=len(plan.tails) + 2 * size // _PAGE_BYTES + 4 * heads)

    def _commit(self, plan: _Plan) -> None:
        if len(plan.rows) <= _ROWS and not plan.created and not plan.updated:
            self._insert(plan.rows)
            return
        with self._transaction():
            for start in range(0, len(plan.rows), _ROWS):
                self._insert(plan.rows[start : start + _ROWS])
            if plan.created:
                self._db.executemany(
                    "INSERT INTO sessions (key, session_id, trimmed_seq, trimmed_total,"
                    " update_time_ns, expire_time_ns, active, head, oldest_ns)"
                    " VALUES (?, ?, 0, 0, ?, ?, ?, ?, ?)",
                    plan.created,
                )
                self._db.executemany("INSERT INTO origins VALUES (?, ?)", plan.origins)
                self._db.executemany(
                    "INSERT INTO labels (name, value, session) VALUES (?, ?, ?)", plan.labels
                )
                # A tombstone whose time is over; any other would have been a conflict.
                self._db.executemany(
                    "DELETE FROM tombstones WHERE session_id = ?",
                    [(created[1],) for created in plan.created],
                )
            if plan.updated:
                self._db.executemany(
                    "UPDATE sessions SET update_time_ns = ?, expire_time_ns = ?, active = ?,"
                    " head = ? WHERE key = ?",
                    plan.updated,
                )

    def _insert(self, rows: Sequence[_Row]) -> None:
        self._db.execute(_insertion(len(rows)), tuple(chain.from_iterable(rows)))

    def _tail(self, session_id: str) -> _Tail | None:
        tail = self._tails.get(session_id)
        if tail is not None:
            return tail
        with blame(self._path, session_id):
            row = self._db.execute(
                "SELECT key, trimmed_seq, trimmed_total FROM sessions WHERE session_id = ?",
                (session_id,),
            ).fetchone()
            if row is None:
                return None
            key, seq, total = row
            newest = self._db.execute(
                "SELECT seq, total FROM events WHERE session = ? AND seq > ?"
                " ORDER BY seq DESC LIMIT 1",
                (key, seq),
            ).fetchone()
            return _Tail(key, *(newest or (seq, total)))

    def _check_not_retired(self, append: Append) -> None:
        with blame(self._path):
            found = self._db.execute(
                "SELECT 1 FROM tombstones WHERE session_id = ? AND until_ns > ?",
                (append.session_id, append.time_ns),
            ).fetchone()
        if found is not None:
            raise AppendConflictError(append.session_id, "the session's id is retired")

    def _find_damaged(self, plan: _Plan) -> None:
        """Raise `SessionDamagedError` for the one whose pages are damaged, if one can be blamed."""
        for session_id, tail in plan.tails.items():
            rows = [row for row in plan.rows if row[0] == tail.key]
            with blame(self._path, session_id):
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    for row in rows:
                        self._insert([row])
                finally:
                    self._rollback()

    # Checkpoints, trims and deletions.

    def save_checkpoint(self, session_id: str, checkpoint: Checkpoint) -> None:
        """See `Log.save_checkpoint`."""
        self._file.check_in_place()
        tail = self._existing(session_id)
        if checkpoint.seq > tail.last_seq:
            raise AppendConflictError(
                session_id,
                f"the checkpoint is at seq {checkpoint.seq}, and the session ends at "
                f"{tail.last_seq}",
            )
        state = checkpoint.state
        with blame(self._path, session_id):
            changed = self._db.execute(
                "INSERT INTO checkpoints (session, seq, crc, state) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (session) DO UPDATE"
                " SET seq = excluded.seq, crc = excluded.crc, state = excluded.state"
                " WHERE seq <= excluded.seq",
                (tail.key, checkpoint.seq, crc32(state, checkpoint.seq), state),
            ).rowcount
        if not changed:
            raise AppendConflictError(session_id, "the session has a newer checkpoint")
        self._grown(2 + len(state) // _PAGE_BYTES)

    def trim(self, session_id: str, up_to_seq: int) -> int:
        """See `Log.trim`. The rows themselves go by `purge_trimmed`."""
        self._file.check_in_place()
        tail = self._existing(session_id)
        with blame(self._path, session_id):
            (earliest,) = self._db.execute(
                "SELECT trimmed_seq + 1 FROM sessions WHERE key = ?", (tail.key,)
            ).fetchone()
            row = self._db.execute(
                "SELECT e.seq, e.total, e.time_ns FROM events e"
                " JOIN checkpoints c ON c.session = e.session"
                " WHERE e.session = ? AND e.seq = min(?, c.seq)",
                (tail.key, up_to_seq),
            ).fetchone()
            # None: there is no checkpoint, or it is trimmed up to there and further already.
            if row is None or row[0] < earliest:
                return int(earliest)
            oldest = self._db.execute(
                "SELECT time_ns FROM events WHERE session = ? AND seq = ?", (tail.key, row[0] + 1)
            ).fetchone()
            self._soiled = True
            self._db.execute(
                "UPDATE sessions SET trimmed_seq = ?, trimmed_total = ?, oldest_ns = ?"
                " WHERE key = ?",
                (*row[:2], oldest[0] if oldest is not None else row[2], tail.key),
            )
        self._grown(2)
        return int(row[0]) + 1

    def purge_trimmed(self, session_id: str) -> bool:
        """Remove some of the rows that a trim has left; whether there are more."""
        with blame(self._path, session_id):
            row = self._db.execute(
                "SELECT s.key, min(s.trimmed_seq, e.seq + ?) FROM sessions s"
                " JOIN events e ON e.session = s.key AND e.seq <= s.trimmed_seq"
                " WHERE s.session_id = ? ORDER BY e.seq LIMIT 1",
                (PURGE_ROWS - 1, session_id),
            ).fetchone()
            return row is not None and self._purge(*row)

    def delete(self, session_id: str, retired_until_ns: int) -> bool:
        """See `Log.delete`; whether there was one. The events go by `purge_deleted`."""
        self._file.check_in_place()
        with blame(self._path, session_id):
            row = self._db.execute(
                "SELECT key FROM sessions WHERE session_id = ?", (session_id,)
            ).fetchone()
            if row is None:
                return False
            self._soiled = True
            with self._transaction():
                self._db.execute("DELETE FROM sessions WHERE key = ?", row)
                self._db.execute("DELETE FROM origins WHERE session = ?", row)
                self._db.execute("DELETE FROM labels WHERE session = ?", row)
                self._db.execute("DELETE FROM checkpoints WHERE session = ?", row)
                self._db.execute("INSERT INTO doomed (session) VALUES (?)", row)
                self._db.execute(
                    "INSERT OR REPLACE INTO tombstones (session_id, until_ns) VALUES (?, ?)",
                    (session_id, retired_until_ns),
                )
        self._tails.pop(session_id, None)
        self.count -= 1
        self._grown(8)
        return True

    def purge_deleted(self) -> bool:
        """Remove some of the events of deleted sessions; whether there are more."""
        with blame(self._path):
            row = self._db.execute("SELECT session FROM doomed LIMIT 1").fetchone()
            if row is None:
                return False
            (key,) = row
            self._soiled = True
            oldest = self._db.execute(
                "SELECT seq FROM events WHERE session = ? ORDER BY seq LIMIT 1", (key,)
            ).fetchone()
            if oldest is not None and self._purge(key, oldest[0] + PURGE_ROWS - 1):
                return True
            self._db.execute("DELETE FROM doomed WHERE session = ?", (key,))
            return True

    def sweep(self, now_ns: int) -> bool:
        """Forget some of the tombstones whose time is over; whether there are more."""
        with blame(self._path):
            gone = self._db.execute(
                "DELETE FROM tombstones WHERE session_id IN"
                " (SELECT session_id FROM tombstones WHERE until_ns <= ? LIMIT ?)",
                (now_ns, PURGE_ROWS),
            ).rowcount
        self._grown(2 + gone)
        return gone == PURGE_ROWS

    def purge_left_over(self) -> bool:
        """Remove rows that a trim has left whose process died; whether there may be more.

        Looks at some sessions each time, and at each only once.
        """
        with blame(self._path):
            rows = self._db.execute(
                "SELECT key, trimmed_seq FROM sessions WHERE key > ? ORDER BY key LIMIT ?",
                (self._looked_at_key, PURGE_ROWS),
            ).fetchall()
            for key, trimmed_seq in rows:
                while trimmed_seq and self._purge_some(key, trimmed_seq):
                    self._soiled = True
                self._looked_at_key = key
        return len(rows) == PURGE_ROWS

    def _purge_some(self, key: int, up_to_seq: int) -> bool:
        oldest = self._db.execute(
            "SELECT seq FROM events WHERE session = ? AND seq <= ? ORDER BY seq LIMIT 1",
            (key, up_to_seq),
        ).fetchone()
        if oldest is None:
            return False
        self._purge(key, min(up_to_seq, oldest[0] + PURGE_ROWS - 1))
        return True

    def _purge(self, key: int, up_to_seq: int) -> bool:
        gone = self._db.execute(
            "DELETE FROM events WHERE session = ? AND seq <= ?", (key, up_to_seq)
        ).rowcount
        self._grown(2 + gone // 8)
        return gone == PURGE_ROWS

    def _existing(self, session_id: str) -> _Tail:
        tail = self._tail(session_id)
        if tail is None:
            raise not_found()
        return tail

    # The write-ahead log.

    def move_back(self) -> None:
        """Move what is in the write-ahead log into the database (SQLite's "checkpoint").

        Readers are neither waited for nor disturbed; what they still need stays for the next time.
        """
        self._moving_back = False
        self._wal_pages = 0
        try:
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            # Nothing is lost: it stays in the write-ahead log, and there will be a next time.
            _logger.warning("moving back the write-ahead log of %s: %s", self._path, error)

    @property
    def soiled(self) -> bool:
        """Something was deleted that may still be read from the write-ahead log."""
        return self._soiled

    def scrub(self, page: int) -> int:
        """Remove what may still be read of what was deleted, in some pages of the file.

        The write-ahead log is moved back as a whole and emptied, and the pages' gaps are cleaned.

        Args:
            page: Where to begin; 0 begins anew.

        Returns:
            Where to go on; 0 if it is done, -1 if it cannot be done while somebody reads what the
            file was before.
        """
        if not page:
            self._soiled = False
        done = -1
        try:
            with blame(self._path):
                self._db.execute(f"PRAGMA busy_timeout = {_SCRUB_BUSY_MS}")
                try:
                    (busy, *_) = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                finally:
                    self._db.execute(f"PRAGMA busy_timeout = {round(BUSY_TIMEOUT_S * 1000)}")
                if not busy:
                    self._wal_pages = 0
                    # What is in memory would come back with the next change of its page.
                    self._db.execute("PRAGMA shrink_memory")
                    (page_bytes,) = self._db.execute("PRAGMA page_size").fetchone()
                    done = clean(self._file.descriptor, page, SCRUB_PAGES, page_bytes)
        except OSError as error:
            raise unavailable(self._path, f"the disk refuses ({error.strerror})") from error
        finally:
            self._soiled |= done < 0
        return done

    def _grown(self, pages: int) -> None:
        self._wal_pages += pages
        if self._wal_pages >= _MOVE_BACK_PAGES and not self._moving_back:
            self._moving_back = True
            self._on_wal_full()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # Left open only if the last rollback failed, on a disk that refused.
        self._rollback()
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            self._rollback()
            raise

    def _rollback(self) -> None:
        # Some errors, a full disk among them, have rolled back already.
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")


@cache
def _insertion(rows: int) -> str:
    values = ", ".join(["(?, ?, ?, ?, ?, ?)"] * rows)
    return f"INSERT INTO events (session, seq, time_ns, total, crc, data) VALUES {values}"  # noqa: S608 - nothing but question marks
