"""What a listing says and costs: labels, pages, and files from before there were labels."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from zlib import crc32

import pytest

from backchannel.log.protocol import Append, Checkpoint, Log, Origin, Retention
from backchannel.log.sqlite import SqliteLog
from backchannel.v1 import session_pb2
from tests.unit.log.backends import OTHER, SESSION, T0, S, create, events, head, more, read_all

KEEP_ALL = Retention(max_age_s=1e9, max_events=10**9, max_bytes=10**12)


def labelled(session_id: str, time_ns: int = T0, **labels: str) -> Append:
    origin = Origin(b"origin ", labels)
    return Append(session_id, 1, [b"x"], time_ns, head(session_id), origin)


async def ids(log: Log, *labels: tuple[str, str]) -> list[str]:
    return [line.session_id for line in await log.list(before=None, limit=99, labels=labels)]


async def test_only_sessions_with_all_the_labels_are_listed(log: Log) -> None:
    await log.append(
        [
            labelled("session-a-000000000", T0, team="x", env="prod"),
            labelled("session-b-000000000", T0 + 1, team="x", env="test"),
            labelled("session-c-000000000", T0 + 2, team="y", env="prod"),
            create(time_ns=T0 + 3),
        ]
    )
    assert await ids(log, ("team", "x")) == ["session-b-000000000", "session-a-000000000"]
    assert await ids(log, ("team", "x"), ("env", "prod")) == ["session-a-000000000"]
    assert await ids(log, ("env", "prod"), ("team", "x")) == ["session-a-000000000"]
    assert await ids(log, ("team", "x"), ("team", "y")) == []
    assert await ids(log, ("team", "X")) == []
    assert await ids(log, ("x", "team")) == []
    assert len(await ids(log)) == 4
    # A session that is gone has no labels, and its id may come back with others.
    await log.delete("session-a-000000000", T0)
    assert await ids(log, ("team", "x")) == ["session-b-000000000"]
    await log.append([labelled("session-a-000000000", T0 + 9, team="y")])
    assert await ids(log, ("team", "y")) == ["session-a-000000000", "session-c-000000000"]


async def test_pages_go_on_where_they_were_left_with_labels_too(log: Log) -> None:
    names = [f"session-{n:016}" for n in range(25)]
    await log.append([labelled(name, T0 + n // 4, odd=str(n % 2)) for n, name in enumerate(names)])
    found: list[str] = []
    before = None
    while page := await log.list(before=before, limit=3, labels=[("odd", "1")]):
        found += [line.session_id for line in page]
        before = page[-1].update_time_ns, page[-1].session_id
    assert (
        found
        == [
            name
            for _, name in sorted(((T0 + n // 4), name) for n, name in enumerate(names) if n % 2)
        ][::-1]
    )


async def test_a_line_is_what_never_changes_and_the_newest_summary(log: Log) -> None:
    await log.append([labelled(SESSION)])
    await log.append([more(2, time_ns=T0 + 1, new=head("newest"))])
    (line,) = await log.list(before=None, limit=9)
    assert line.session == b"origin newest"


async def test_a_page_ends_with_the_line_that_fills_it(log: Log) -> None:
    for n in range(5):
        await log.append([create(f"session-{n:016}", time_ns=T0 + n, first=head("1234567890"))])
    for max_bytes, lines in ((0, 1), (10, 1), (11, 2), (30, 3), (31, 4), (1000, 5)):
        assert len(await log.list(before=None, limit=9, max_bytes=max_bytes)) == lines


async def test_an_index_answers_for_labels(tmp_path: Path) -> None:
    async with SqliteLog(tmp_path / "log.db") as log:
        seen: list[str] = []
        assert log._reader is not None
        await log._reading.call(log._reader._db.set_trace_callback, seen.append)
        await ids(log, ("team", "x"), ("env", "prod"))
    with closing(sqlite3.connect(tmp_path / "log.db")) as db:
        plan = " ".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {seen[0]}"))
    assert "SEARCH l USING PRIMARY KEY (name=? AND value=?)" in plan
    assert "SCAN" not in plan


async def test_only_sessions_that_have_something_to_lose_are_looked_at(log: Log) -> None:
    async def told(retention: Retention, since_ns: int = 0) -> list[tuple[str, int, int]]:
        return [tuple(one) for one in await log.excess(retention, T0 + 100 * S, since_ns)]  # type: ignore[misc] # a NamedTuple of three

    await log.append([create(count=10), create(OTHER, 3, time_ns=T0 + 99 * S)])
    assert await told(KEEP_ALL) == []
    assert await told(Retention(max_age_s=50)) == [(SESSION, 10, 0)]
    assert await told(Retention(max_age_s=1e9, max_events=4)) == [(SESSION, 6, 0)]
    assert await told(Retention(max_age_s=1e9, max_bytes=29)) == [(SESSION, 8, 0), (OTHER, 1, 0)]
    await log.save_checkpoint(SESSION, Checkpoint(7, b"state"))
    assert await told(Retention(max_age_s=50)) == [(SESSION, 10, 7)]
    await log.trim(SESSION, 10)
    assert await told(Retention(max_age_s=50)) == [(SESSION, 10, 7)]
    await log.save_checkpoint(SESSION, Checkpoint(10, b"state"))
    await log.trim(SESSION, 10)
    assert await told(Retention(max_age_s=50)) == []
    await log.append([more(11, time_ns=T0 + 20 * S)])
    assert await told(Retention(max_age_s=50), since_ns=T0 + 90 * S) == [(SESSION, 11, 10)]


OF_1 = """
CREATE TABLE sessions (key INTEGER PRIMARY KEY AUTOINCREMENT, session_id TEXT NOT NULL UNIQUE,
    trimmed_seq INTEGER NOT NULL, trimmed_total INTEGER NOT NULL, update_time_ns INTEGER NOT NULL,
    expire_time_ns INTEGER NOT NULL, active INTEGER NOT NULL, head BLOB NOT NULL);
CREATE INDEX sessions_by_update ON sessions (update_time_ns, session_id);
CREATE INDEX sessions_by_expiry ON sessions (expire_time_ns);
CREATE INDEX sessions_active ON sessions (session_id) WHERE active;
CREATE TABLE events (session INTEGER NOT NULL, seq INTEGER NOT NULL, time_ns INTEGER NOT NULL,
    total INTEGER NOT NULL, crc INTEGER NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (session, seq)) WITHOUT ROWID;
CREATE TABLE checkpoints (session INTEGER PRIMARY KEY, seq INTEGER NOT NULL,
    crc INTEGER NOT NULL, state BLOB NOT NULL);
CREATE TABLE tombstones (session_id TEXT PRIMARY KEY, until_ns INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX tombstones_by_end ON tombstones (until_ns);
CREATE TABLE doomed (session INTEGER PRIMARY KEY);
PRAGMA application_id = 0x4263686C;
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
"""


def old_file(path: Path) -> session_pb2.Session:
    """A file as the first version made it: two sessions, one of them trimmed and damaged."""
    view = session_pb2.Session(session_id=SESSION, last_seq=2)
    view.config.labels["team"] = "x"
    view.config.system = "be brief"
    view.config.history.add().parts.add(text="long ago")
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(OF_1)
        insert = "INSERT INTO sessions VALUES (?, ?, ?, 0, ?, ?, 0, ?)"
        db.execute(insert, (1, SESSION, 0, T0, T0 + 7 * S, view.SerializeToString()))
        db.execute(insert, (2, OTHER, 1, T0 + 5, T0 + 7 * S, b"\xff no summary"))
        for key, seq in ((1, 1), (1, 2), (2, 2)):
            (data,) = events(seq, 1)
            crc = crc32(data, seq)
            db.execute(
                "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)",
                (key, seq, T0 + seq, 10 * seq, crc, data),
            )
    return view


async def test_a_file_of_the_first_version_opens_and_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    view = old_file(path)
    for _ in range(2):
        async with SqliteLog(path) as log:
            assert await ids(log) == [OTHER, SESSION]
            assert await ids(log, ("team", "x")) == [SESSION]
            (line,) = await log.list(before=None, limit=9, labels=[("team", "x")])
            listed = session_pb2.Session.FromString(line.session)
            assert not listed.config.history
            view.config.ClearField("history")
            assert listed == view
            assert b"be brief" not in line.head.session
            assert await read_all(log) == events(1, 2)
            assert await read_all(log, OTHER, 1) == events(2, 1)
            old = await log.excess(Retention(max_age_s=0), T0 + 3, T0 + 100)
            assert [tuple(one) for one in old] == [(SESSION, 2, 0), (OTHER, 2, 0)]
    async with SqliteLog(path) as log:
        await log.append([more(3, new=head("new")), labelled("session-c-000000000", team="x")])
        assert await ids(log, ("team", "x")) == ["session-c-000000000", SESSION]


async def test_a_file_is_brought_up_to_date_as_a_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.db"
    old_file(path)
    with monkeypatch.context() as broken:

        class Dying:
            @staticmethod
            def FromString(data: bytes) -> None:  # noqa: N802 - protobuf's name
                raise KeyboardInterrupt

        pb2 = type("pb2", (), {"Session": Dying})
        broken.setattr("backchannel.log.sqlite_migration.session_pb2", pb2)
        with pytest.raises(KeyboardInterrupt):
            async with SqliteLog(path):
                pass
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
    async with SqliteLog(path) as log:
        assert await ids(log, ("team", "x")) == [SESSION]
