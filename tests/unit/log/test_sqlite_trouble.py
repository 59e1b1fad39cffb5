"""The SQLite log on a disk that is full, a file that is damaged, gone or not its own."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from backchannel.errors import BackchannelError, Reason
from backchannel.log import sqlite_writer
from backchannel.log.protocol import Append, Checkpoint, Head, SessionDamagedError
from backchannel.log.sqlite import SqliteLog
from tests.unit.log.backends import OTHER, SESSION, T0, create, events, head, more, read_all
from tests.unit.log.test_sqlite import run


async def refused(path: Path) -> BackchannelError:
    """How opening is refused; it names the file, whatever it is."""
    with pytest.raises(BackchannelError) as caught:
        async with SqliteLog(path):
            pass
    assert str(path) in caught.value.message
    assert caught.value.metadata["file"] == str(path)
    return caught.value


async def test_a_full_database_refuses_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    async with SqliteLog(path) as log:
        await log.append([create(), create(OTHER)])

        async def limit(pages: int) -> None:
            # SQLite's own way to be full, which gives the same error as the disk's.
            await log._writing.call(log._w._db.execute, f"PRAGMA max_page_count = {pages}")

        await limit(40)
        seq = 2

        async def fill(new: Head | None) -> None:
            nonlocal seq
            for _ in range(100):
                await log.append([more(seq, session_id=OTHER, new=new), more(seq, size=9000)])
                seq += 1

        # Without and with a head: a single statement, and a transaction of several.
        for new in (None, head("new")):
            with pytest.raises(BackchannelError) as caught:
                await fill(new)
            assert caught.value.reason is Reason.LOG_UNAVAILABLE
            assert str(path) in caught.value.message
            assert "disk is full" in caught.value.message
            # Nothing of the refused batch is there, all before it is, and reading works.
            assert await read_all(log) == [*events(1, 1), *events(2, seq - 2, 9000)]
            assert await read_all(log, OTHER) == events(1, seq - 1)
            await limit(80)
        await limit(1 << 30)
        await log.append([more(seq, session_id=OTHER), more(seq, size=9000)])
    async with SqliteLog(path) as log:
        assert await read_all(log, OTHER) == events(1, seq)


FILL = """
import asyncio, resource, sys
from pathlib import Path
from backchannel.errors import BackchannelError
from backchannel.log.protocol import Checkpoint
from backchannel.log.sqlite import SqliteLog
from tests.unit.log.backends import OTHER, SESSION, T0, create, events, head, more, read_all

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

async def main():
    async with SqliteLog(Path(sys.argv[1])) as log:
        await log.append([create()])
        seq = 2
        # With and without a head, on the way to a commit and in the middle of one.
        for size in (300_000, 350_000, 400_001, 450_017):
            limit(size)
            new = head(str(size)) if size % 2 else None
            try:
                for _ in range(1000):
                    await log.append([more(seq, size=5000, new=new)])
                    seq += 1
                raise AssertionError("never refused")
            except BackchannelError as error:
                print(error.reason, error)
            assert await read_all(log) == [*events(1, 1), *events(2, seq - 2, 5000)]
            for call in (
                log.save_checkpoint(SESSION, Checkpoint(1, b"x" * 500_000)),
                log.append([more(seq, 100, size=5000)]),
            ):
                try:
                    await call
                    raise AssertionError("not refused")
                except BackchannelError as error:
                    assert error.reason == "LOG_UNAVAILABLE", error
        limit(resource.RLIM_INFINITY)
        await log.append([more(seq, size=5000)])
    print(seq)
asyncio.run(main())
"""


async def test_a_disk_that_refuses_to_write_loses_nothing_and_is_forgiven(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    # The kernel's limit on file size: a write that really fails, in the middle of a file.
    done = run(FILL, path)
    assert done.returncode == 0, done.stderr
    *refusals, last = done.stdout.splitlines()
    assert len(refusals) == 4
    for refusal in refusals:
        assert refusal.startswith(f"LOG_UNAVAILABLE log file {path}: ")
    async with SqliteLog(path) as log:
        assert await read_all(log) == [*events(1, 1), *events(2, int(last) - 1, 5000)]


@pytest.mark.parametrize("size", [1, 100, 5000, 100_000])
async def test_what_is_no_database_is_refused_and_left_as_it_is(tmp_path: Path, size: int) -> None:
    path = tmp_path / "log.db"
    path.write_bytes(b"garbage!" * size)
    error = await refused(path)
    assert error.reason is Reason.LOG_CORRUPT
    assert "move the file away" in error.message
    assert path.read_bytes() == b"garbage!" * size


async def test_another_programs_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE theirs (x)")
    db.close()
    before = path.read_bytes()
    error = await refused(path)
    assert error.reason is Reason.LOG_CORRUPT
    assert "another program" in error.message
    assert path.read_bytes() == before


async def test_a_newer_schema_is_refused_and_told_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    async with SqliteLog(path) as log:
        await log.append([create()])
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    error = await refused(path)
    assert error.reason is Reason.LOG_UNAVAILABLE
    assert "99" in error.message
    assert "upgrade" in error.message


async def test_an_empty_file_is_a_new_log(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    path.touch()
    async with SqliteLog(path) as log:
        await log.append([create()])


async def test_a_path_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.db").mkdir()
    for path in (tmp_path / "file" / "log.db", tmp_path / "folder.db", Path("/proc/log.db")):
        error = await refused(path)
        assert error.reason is Reason.LOG_UNAVAILABLE
        assert "check that the path is right" in error.message


FORBIDDEN = """
import asyncio, os, sys
from pathlib import Path
from backchannel.errors import BackchannelError
from backchannel.log.sqlite import SqliteLog

async def main():
    async with SqliteLog(Path(sys.argv[1])):
        print("open")
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    asyncio.run(main())
except BackchannelError as error:
    print(error.reason, error)
"""


def forbid(folder: Path, what: Path) -> None:
    folder.chmod(0o777)
    what.chmod(0 if os.geteuid() else 0o700)


@pytest.mark.parametrize("what", ["file", "folder"])
async def test_a_file_that_may_not_be_read(tmp_path: Path, what: str) -> None:
    # Somebody else's, where the test is run by root; else one's own without permission.
    for parent in [tmp_path, *tmp_path.parents[:2]]:
        parent.chmod(0o755)
    folder = tmp_path / "state"
    path = folder / "log.db"
    async with SqliteLog(path) as log:
        await log.append([create()])
    forbid(folder, path if what == "file" else folder)
    try:
        done = run(FORBIDDEN, path)
    finally:
        folder.chmod(0o700)
        path.chmod(0o600)
    assert done.stdout.startswith(f"LOG_UNAVAILABLE log file {path}: Permission denied"), done


async def test_a_file_that_may_not_be_written(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    async with SqliteLog(path) as log:
        await log.append([create()])
        await log._writing.call(log._w._db.execute, "PRAGMA query_only = ON")
        for call in (log.append([more(2)]), log.delete(SESSION, T0)):
            with pytest.raises(BackchannelError, match="may not be written") as caught:
                await call
            assert caught.value.reason is Reason.LOG_UNAVAILABLE
        assert await read_all(log) == events(1, 1)
        await log._writing.call(log._w._db.execute, "PRAGMA query_only = OFF")
        await log.append([more(2)])


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_file_that_is_removed_while_open_is_not_written_any_more(
    tmp_path: Path, replaced: bool
) -> None:
    path = tmp_path / "log.db"
    away = tmp_path / "away.db"
    async with SqliteLog(path) as log:
        await log.append([create()])
        path.rename(away)
        if replaced:
            path.touch()
        for call in (
            log.append([more(2)]),
            log.save_checkpoint(SESSION, Checkpoint(1, b"")),
            log.trim(SESSION, 1),
            log.delete(SESSION, T0),
        ):
            with pytest.raises(BackchannelError, match="removed or replaced") as caught:
                await call
            assert caught.value.reason is Reason.LOG_UNAVAILABLE
        assert await read_all(log) == events(1, 1)
        away.rename(path)
        await log.append([more(2)])
        assert await read_all(log) == events(1, 2)


async def test_a_changed_byte_is_noticed_and_only_its_session_suffers(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    async with SqliteLog(path) as log:
        told = [b"a word of it: %03d" % seq for seq in range(300)]
        await log.append([Append(SESSION, 1, told, T0, head()), create(OTHER, 300)])
    raw = path.read_bytes()
    assert raw.count(b"a word of it: 123") == 1
    path.write_bytes(raw.replace(b"a word of it: 123", b"a lord of it: 123"))
    async with SqliteLog(path) as log:
        with pytest.raises(SessionDamagedError) as caught:
            await read_all(log)
        assert (caught.value.reason, caught.value.session_id) == (Reason.LOG_CORRUPT, SESSION)
        assert str(path) in caught.value.message
        # The id is a secret, and the message may reach somebody else.
        assert SESSION not in str(caught.value.to_status())
        assert await log.read(SESSION, 0, max_events=123, max_bytes=1 << 20) == told[:123]
        assert await log.read(SESSION, 124, max_events=500, max_bytes=1 << 20) == told[124:]
        assert await read_all(log, OTHER) == events(1, 300)


async def test_a_damaged_checkpoint_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    async with SqliteLog(path) as log:
        await log.append([create(), create(OTHER)])
        await log.save_checkpoint(SESSION, Checkpoint(1, b"the folded state"))
    path.write_bytes(path.read_bytes().replace(b"the folded state", b"the bolded state"))
    async with SqliteLog(path) as log:
        with pytest.raises(SessionDamagedError) as caught:
            await log.load(SESSION)
        assert caught.value.session_id == SESSION
        assert await log.load(OTHER) is not None
        # What the message says to do works.
        await log.delete(SESSION, T0)
        assert await log.load(SESSION) is None


async def test_a_missing_event_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    async with SqliteLog(path) as log:
        await log.append([create(count=5)])
    db = sqlite3.connect(path)
    with db:
        db.execute("DELETE FROM events WHERE seq = 3")
    db.close()
    async with SqliteLog(path) as log:
        with pytest.raises(SessionDamagedError, match="event 3"):
            await read_all(log)
        assert await read_all(log, after_seq=3) == events(4, 2)


@pytest.mark.parametrize("remembered", [False, True])
async def test_garbage_over_pages_spoils_what_was_there_and_nothing_else(
    tmp_path: Path, remembered: bool
) -> None:
    path = tmp_path / "log.db"
    ids = [f"session-{n:016}" for n in range(8)]
    spoilt = ids[7]
    mark = b"only this session says so"
    async with SqliteLog(path) as log:
        for session_id in ids:
            await log.append([create(session_id, 200, size=100)])
        await log.append([Append(spoilt, 201, [mark] * 1000, T0)])
    raw = path.read_bytes()
    pages = [raw[at : at + 4096] for at in range(0, len(raw), 4096)]
    # 10: a leaf of the tree (https://www.sqlite.org/fileformat.html, 1.6): it leads nowhere else.
    hit = [
        n for n, page in enumerate(pages) if page[0] == 10 and mark in page and b"...." not in page
    ]
    assert len(hit) > 3
    for n in hit:
        pages[n] = os.urandom(4096)
    path.write_bytes(b"".join(pages))
    async with SqliteLog(path) as log:
        with pytest.raises(SessionDamagedError) as caught:
            await read_all(log, spoilt)
        assert caught.value.session_id == spoilt
        assert str(path) in caught.value.message
        # An append of all fails by the one and names it, and without it works.
        others = [session_id for session_id in ids if session_id != spoilt]
        if remembered:
            # Then the damage is met by writing; else by looking where the session's events end.
            log._w._tails[spoilt] = sqlite_writer._Tail(8, 1200, 45_000)
        batch = [more(201, session_id=session_id) for session_id in others]
        with pytest.raises(SessionDamagedError) as caught:
            await log.append([*batch, more(1201, session_id=spoilt)])
        assert caught.value.session_id == spoilt
        await log.append(batch)
        for session_id in others:
            assert len(await read_all(log, session_id)) == 201
