"""What is in the database file, and how a connection to it is made.

Why it looks as it does:

* Events are rows of one table without a rowid, so a session's events lie side by side in the order
  they are read. Sessions have a small number there instead of their id, which keeps rows and keys
  short.
* `total` is the running sum of the session's bytes and `trimmed_total` its value at the trim, so
  that retention by bytes needs no sum over the session.
* `crc` is the CRC-32 of the bytes, begun at the seq: SQLite notices a broken tree of pages, but
  not a changed byte inside a value.
* A plain append touches `events` alone. How far a session has got is its newest row there.
* Keys are never used again (AUTOINCREMENT), so that what is left of a deleted session, if the
  process died while deleting it, can never be taken for another's.
* What never changes of a session (`origins`, `labels`) is beside its row and not in it: SQLite
  writes a row anew as a whole, and the row of a session is written with each of its turns.
* `oldest_ns` is a time that no event still there is older than, so that retention by age looks
  only at sessions that have something to lose.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from backchannel.log.sqlite_file import corrupt, unavailable
from backchannel.log.sqlite_migration import TABLES_OF_2, migrate

VERSION: Final = 2
# "Bchl": tells our files from other programs', see https://www.sqlite.org/fileformat.html, 1.3.17.
APPLICATION_ID: Final = 0x4263686C

# How long to wait for a stranger (a person with the sqlite3 shell, a backup) that holds the
# database.
BUSY_TIMEOUT_S: Final = 5.0

# The service moves the write-ahead log back into the database itself, off the way of appends.
# Should that lag so far behind, SQLite does it within a commit: a slow commit is better than an
# endless file.
BACKSTOP_PAGES: Final = 32_000

_TABLES: Final = (
    """
    CREATE TABLE sessions (
        key INTEGER PRIMARY KEY AUTOINCREMENT,
        session_id TEXT NOT NULL UNIQUE,
        trimmed_seq INTEGER NOT NULL,
        trimmed_total INTEGER NOT NULL,
        update_time_ns INTEGER NOT NULL,
        expire_time_ns INTEGER NOT NULL,
        active INTEGER NOT NULL,
        head BLOB NOT NULL
    )
    """,
    "CREATE INDEX sessions_by_update ON sessions (update_time_ns, session_id)",
    "CREATE INDEX sessions_by_expiry ON sessions (expire_time_ns)",
    "CREATE INDEX sessions_active ON sessions (session_id) WHERE active",
    """
    CREATE TABLE events (
        session INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        time_ns INTEGER NOT NULL,
        total INTEGER NOT NULL,
        crc INTEGER NOT NULL,
        data BLOB NOT NULL,
        PRIMARY KEY (session, seq)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE checkpoints (
        session INTEGER PRIMARY KEY,
        seq INTEGER NOT NULL,
        crc INTEGER NOT NULL,
        state BLOB NOT NULL
    )
    """,
    """
    CREATE TABLE tombstones (
        session_id TEXT PRIMARY KEY,
        until_ns INTEGER NOT NULL
    ) WITHOUT ROWID
    """,
    "CREATE INDEX tombstones_by_end ON tombstones (until_ns)",
    # Deleted sessions whose events are still to be removed.
    "CREATE TABLE doomed (session INTEGER PRIMARY KEY)",
    *TABLES_OF_2,
)

_CORRUPT: Final = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        # Our statements are fixed: one that does not fit the tables means that these are not ours.
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_CONSTRAINT,
    }
)

_REMEDY: Final = {
    sqlite3.SQLITE_FULL: "the disk is full; make room, and it goes on by itself",
    sqlite3.SQLITE_BUSY: "another program holds it; end that program, and it goes on by itself",
    sqlite3.SQLITE_LOCKED: "another program holds it; end that program, and it goes on by itself",
    sqlite3.SQLITE_READONLY: "it may not be written; check permissions and how the disk is mounted",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; check the path, permissions and open-file limit",
    sqlite3.SQLITE_IOERR: "the disk refuses; check its health, its quota and limits on file size",
}


def kind_of(error: sqlite3.Error) -> int:
    """SQLite's primary result code: the low byte, https://www.sqlite.org/rescode.html."""
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF


@contextmanager
def blame(path: Path, session_id: str = "") -> Iterator[None]:
    """Turn SQLite's errors into ours, which name the file and the remedy.

    A misuse of the library is none of them: it is a bug and stays what it is.
    """
    try:
        yield
    except (sqlite3.ProgrammingError, sqlite3.InterfaceError):
        raise
    except sqlite3.Error as error:
        kind = kind_of(error)
        name = getattr(error, "sqlite_errorname", "SQLITE_ERROR")
        if kind in _CORRUPT:
            what = "where a session is, it is" if session_id else "it is"
            raise corrupt(
                path,
                f"{what} damaged or not a log ({name}: {error}); restore a backup, or move the "
                "file away to begin anew",
                session_id,
            ) from error
        remedy = _REMEDY.get(kind, "try again later")
        raise unavailable(path, f"{remedy} ({name}: {error})") from error


def open_writer(path: Path) -> sqlite3.Connection:
    """The one connection that writes, for the calling thread, in autocommit mode.

    Makes the tables, or brings those of an older file up to date.

    In WAL mode with ``synchronous=NORMAL`` a commit writes and does not sync. So it survives the
    death of the process; a crash of the kernel or a power cut may cost the newest commits, never
    the file's integrity.

    Raises:
        sqlite3.Error: It cannot be opened or is no database.
        BackchannelError: `LOG_UNAVAILABLE` if the file system is not up to it or the schema is
        newer,
            `LOG_CORRUPT` if it is another program's database.
    """
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    try:
        version = _version(connection, path)
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise unavailable(
                path,
                "its file system cannot share memory between connections, which the log needs; "
                "put it on a local disk",
            )
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA temp_store = MEMORY")
        # What is deleted is overwritten: conversations are nobody else's business.
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute(f"PRAGMA wal_autocheckpoint = {BACKSTOP_PAGES}")
        if version != VERSION:
            connection.execute("BEGIN IMMEDIATE")
            if version:
                migrate(connection, version)
            else:
                for statement in _TABLES:
                    connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """A connection that only reads, for the calling thread, once the writer is open.

    Raises:
        sqlite3.Error: It cannot be opened.
    """
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    try:
        # So it never moves pages from the write-ahead log back either. Two connections that do
        # meet a race that SQLite has before 3.51.3: https://www.sqlite.org/wal.html#walresetbug.
        connection.execute("PRAGMA query_only = ON")
        # SQLite opens its side files when it first reads. Read now, and what becomes of the file's
        # name later does not matter.
        connection.execute("SELECT count(*) FROM sessions WHERE key = 0").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _version(connection: sqlite3.Connection, path: Path) -> int:
    """The version of the tables; 0 if there are none yet."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if (application, version, tables) == (0, 0, 0):
        return 0
    if application != APPLICATION_ID:
        raise corrupt(path, "it is another program's database, not a log; give another path")
    if version > VERSION:
        raise unavailable(
            path,
            f"it has schema version {version} and this Backchannel knows up to {VERSION}; upgrade "
            "Backchannel, or give another file",
        )
    return int(version)
