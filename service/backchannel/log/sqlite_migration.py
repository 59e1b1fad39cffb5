"""Old files are brought up to date when they are opened, in one transaction: all or nothing."""

from __future__ import annotations

import sqlite3

from google.protobuf.message import DecodeError

from backchannel.v1 import session_pb2


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Bring the tables of `version` to those of today, within the caller's transaction.

    Raises:
        sqlite3.Error: The file is damaged, or there is no room.
    """
    if version < 2:
        _to_2(connection)


def _to_2(connection: sqlite3.Connection) -> None:
    """What never changes of a session leaves its summary, and the age of its events enters."""
    for statement in TABLES_OF_2:
        connection.execute(statement)
    connection.execute(
        "UPDATE sessions SET oldest_ns = ifnull((SELECT time_ns FROM events WHERE session = key"
        " AND seq > trimmed_seq ORDER BY seq LIMIT 1), update_time_ns)"
    )
    keys = [key for (key,) in connection.execute("SELECT key FROM sessions").fetchall()]
    for key in keys:
        (head,) = connection.execute("SELECT head FROM sessions WHERE key = ?", (key,)).fetchone()
        try:
            view = session_pb2.Session.FromString(head)
        except DecodeError:
            # A damaged summary is listed as it is; the session's events may well be whole.
            connection.execute("INSERT INTO origins VALUES (?, x'')", (key,))
            continue
        origin = session_pb2.Session(config=view.config)
        del origin.config.history[:]
        view.ClearField("config")
        connection.execute("INSERT INTO origins VALUES (?, ?)", (key, origin.SerializeToString()))
        connection.execute(
            "UPDATE sessions SET head = ? WHERE key = ?", (view.SerializeToString(), key)
        )
        connection.executemany(
            "INSERT INTO labels (name, value, session) VALUES (?, ?, ?)",
            [(name, value, key) for name, value in origin.config.labels.items()],
        )


TABLES_OF_2 = (
    "ALTER TABLE sessions ADD COLUMN oldest_ns INTEGER NOT NULL DEFAULT 0",
    "CREATE INDEX sessions_by_age ON sessions (oldest_ns)",
    "CREATE TABLE origins (session INTEGER PRIMARY KEY, data BLOB NOT NULL)",
    """
    CREATE TABLE labels (
        name TEXT NOT NULL,
        value TEXT NOT NULL,
        session INTEGER NOT NULL,
        PRIMARY KEY (name, value, session)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX labels_by_session ON labels (session)",
)
