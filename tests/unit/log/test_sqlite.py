"""What is the SQLite log's own: its file, its lock, and that it keeps what it was given."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from backchannel.errors import BackchannelError, Reason
from backchannel.log import sqlite_writer
from backchannel.log.protocol import Append, AppendConflictError, Checkpoint, Survival
from backchannel.log.sqlite import SqliteLog
from tests.scale import scale
from tests.unit.log.backends import OTHER, SESSION, T0, S, create, events, head, more, read_all

ROOT = Path(__file__).parents[3]


def program(source: str, *args: object) -> list[str]:
    """A Python program that can import what is tested."""
    path = [str(ROOT), str(ROOT / "service")]
    return [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{source}", *map(str, args)]


def start(source: str, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        program(source, *args), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def run(source: str, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        program(source, *args), capture_output=True, text=True, input="", check=False, cwd="/"
    )


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


async def test_it_survives_the_process_and_names_its_file(tmp_path: Path) -> None:
    async with SqliteLog(tmp_path / "log.db") as log:
        assert (log.survival, log.address) == (Survival.PROCESS, str(tmp_path / "log.db"))


async def test_all_of_it_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    async with SqliteLog(path) as log:
        await log.append([create(count=100), create(OTHER), create("session-retired-0")])
        await log.append([more(101, 5, new=head("new", active=True))])
        await log.save_checkpoint(SESSION, Checkpoint(50, b"state"))
        await log.trim(SESSION, 20)
        await log.delete("session-retired-0", T0 + S)
        before = await log.load(SESSION)
    # One file holds it all: a copy of it is a backup.
    assert [found.name for found in files(tmp_path)] == ["log.db", "log.db.lock"]
    async with SqliteLog(path) as log:
        assert await log.load(SESSION) == before
        assert await read_all(log, after_seq=20) == events(21, 85)
        assert await log.active() == [SESSION]
        assert await log.count() == 2
        assert await log.retired_until_ns("session-retired-0") == T0 + S
        # Keys are not used again, and numbering goes on.
        await log.append([more(106), create("session-another-00")])
        assert await read_all(log, "session-another-00") == events(1, 1)


async def test_the_file_and_its_folders_are_private(tmp_path: Path) -> None:
    path = tmp_path / "state" / "backchannel" / "log.db"
    before = os.umask(0)
    try:
        async with SqliteLog(path) as log:
            await log.append([create()])
            for found in files(path.parent):
                assert stat.S_IMODE(found.stat().st_mode) == 0o600, found
    finally:
        os.umask(before)
    for folder in (path.parent, path.parent.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_relative_path_is_a_bug() -> None:
    with pytest.raises(ValueError, match="absolute"):
        SqliteLog(Path("log.db"))


async def test_an_open_log_is_needed(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db")
    with pytest.raises(RuntimeError, match="not open"):
        await log.append([create()])
    async with log:
        await log.append([create()])
    for call in (log.append([more(2)]), read_all(log)):
        with pytest.raises(RuntimeError, match="not open"):
            await call


async def test_a_second_opener_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    async with SqliteLog(path) as log:
        await log.append([create()])
        with pytest.raises(BackchannelError) as caught:
            async with SqliteLog(path):
                pass
        assert caught.value.reason is Reason.LOG_UNAVAILABLE
        assert str(path) in caught.value.message
        assert f"process {os.getpid()}" in caught.value.message
        assert caught.value.metadata["file"] == str(path)
        # The refusal has not disturbed the first one.
        await log.append([more(2)])
    async with SqliteLog(path) as log:
        assert await read_all(log) == events(1, 2)


OPEN = """
import asyncio, sys
from pathlib import Path
from backchannel.errors import BackchannelError
from backchannel.log.sqlite import SqliteLog

async def main():
    async with SqliteLog(Path(sys.argv[1])):
        print("open", flush=True)
        await asyncio.to_thread(sys.stdin.read)
try:
    asyncio.run(main())
except BackchannelError as error:
    print(error.reason, error)
"""


async def test_another_process_is_refused_until_the_holder_ends_however_it_ends(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log.db"
    with start(OPEN, path) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(BackchannelError, match=f"process {holder.pid} has it open"):
            async with SqliteLog(path):
                pass
        holder.kill()
    async with SqliteLog(path) as log:
        await log.append([create()])
        second = run(OPEN, path)
    assert second.stdout.startswith("LOG_UNAVAILABLE")
    assert f"process {os.getpid()} has it open" in second.stdout


WRITE = """
import asyncio, sys
from pathlib import Path
from backchannel.log.sqlite import SqliteLog
from tests.unit.log.backends import OTHER, SESSION, create, head, more

async def main():
    async with SqliteLog(Path(sys.argv[1])) as log:
        await log.append([create(), create(OTHER)])
        seq = 2
        while True:
            # Both sessions in one batch, alternately with and without a head: the two ways it
            # is committed.
            new = head(str(seq)) if seq % 2 else None
            await log.append([more(seq, new=new), more(seq, session_id=OTHER, new=new)])
            print(seq, flush=True)
            seq += 1
asyncio.run(main())
"""


@pytest.mark.parametrize("moment", range(scale(4, 50)))
async def test_what_was_acknowledged_is_there_after_a_kill(tmp_path: Path, moment: int) -> None:
    path = tmp_path / "log.db"
    with start(WRITE, path) as writer:
        assert writer.stdout is not None
        for _ in range(1 + 211 * moment):
            assert writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        # What it managed to say before it died was acknowledged too.
        acknowledged = [int(line) for line in writer.stdout if line.endswith("\n")]
    last = acknowledged[-1] if acknowledged else 1 + 1 + 211 * moment
    async with SqliteLog(path) as log:
        stored = await log.load(SESSION)
        other = await log.load(OTHER)
        assert stored is not None
        assert other is not None
        assert stored.last_seq >= last
        # Of the batch it died in, either both sessions' parts are there, or neither.
        assert other.last_seq == stored.last_seq
        newest_head = (stored.last_seq - 1) // 2 * 2 + 1
        if newest_head > 1:
            assert stored.head == other.head == head(str(newest_head))
        assert await read_all(log) == await read_all(log, OTHER) == events(1, stored.last_seq)
        await log.append([more(stored.last_seq + 1)])


async def test_a_cancelled_append_is_committed_all_the_same(tmp_path: Path) -> None:
    async with SqliteLog(tmp_path / "log.db") as log:
        await log.append([create()])
        append = asyncio.create_task(log.append([more(2, 3)]))
        await asyncio.sleep(0)
        append.cancel()
        with pytest.raises(asyncio.CancelledError):
            await append
        # In the queue it stood before this one, which would not fit without it.
        await log.append([more(5)])
        assert await read_all(log) == events(1, 5)


async def test_an_opening_that_is_cancelled_leaves_nothing_open(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    log = SqliteLog(path)
    opening = asyncio.create_task(log.__aenter__())
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await asyncio.to_thread(log._writing.wait)
    async with SqliteLog(path):
        pass


async def test_a_stranger_who_writes_into_the_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    async with SqliteLog(path) as log:
        await log.append([create(), create(OTHER)])
        stranger = sqlite3.connect(path)
        with stranger:
            stranger.execute("INSERT INTO events VALUES (1, 2, 0, 20, 0, 'theirs')")
        stranger.close()
        with pytest.raises(AppendConflictError) as caught:
            await log.append([more(2, session_id=OTHER), more(2)])
        assert caught.value.session_id == SESSION
        assert await read_all(log, OTHER) == events(1, 1)
        await log.append([more(2, session_id=OTHER)])


async def test_a_batch_of_several_statements_is_undone_as_one(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    async with SqliteLog(path) as log:
        await log.append([create(), create(OTHER)])
        stranger = sqlite3.connect(path)
        with stranger:
            stranger.execute("INSERT INTO events VALUES (1, 150, 0, 20, 0, 'theirs')")
        # It fails at the row of the stranger, when some statements have gone through.
        with pytest.raises(AppendConflictError):
            await log.append([more(2, 90, OTHER, new=head("new")), more(2, 300)])
        assert stranger.execute("SELECT count(*) FROM events").fetchone() == (3,)
        stranger.close()
        assert await read_all(log, OTHER) == events(1, 1)
        stored = await log.load(OTHER)
        assert stored is not None
        assert stored.head == head()
        await log.append([more(2, 90, OTHER)])


async def test_more_sessions_than_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_writer, "_TAILS", 3)
    async with SqliteLog(tmp_path / "log.db") as log:
        ids = [f"session-{n:016}" for n in range(10)]
        await log.append([create(session_id) for session_id in ids])
        for seq in (2, 3):
            for session_id in ids:
                await log.append([more(seq, session_id=session_id)])
        assert log._w is not None
        assert len(log._w._tails) == 3
        for session_id in ids:
            assert await read_all(log, session_id) == events(1, 3)


async def test_the_write_ahead_log_does_not_grow_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    wal = path.with_name("log.db-wal")
    async with SqliteLog(path) as log:
        await log.append([create()])
        seq = 2
        sizes = []
        for _ in range(12):
            # Each round is a third of what it takes before the write-ahead log is moved back.
            for _ in range(55):
                await log.append([more(seq, 1, size=100_000)])
                seq += 1
            # What was asked of the other threads is done.
            await log._syncing.call(int)
            await log._writing.call(int)
            sizes.append(wal.stat().st_size)
        assert len(await read_all(log)) == seq - 1
    written = (seq - 1) * 100_000
    assert sizes[-1] < written * 0.75, (sizes, written)
    assert path.stat().st_size > written


async def test_a_long_replay_does_not_delay_an_append(tmp_path: Path) -> None:
    async with SqliteLog(tmp_path / "log.db") as log:
        await log.append([create(count=1)])
        for start in range(2, 50_000, 10_000):
            await log.append([more(start, 10_000)])
        replay = asyncio.create_task(read_all(log))
        appends = 0
        while not replay.done():
            await log.append([more(50_002 + appends)])
            appends += 1
        # With one thread for both there would be one.
        assert appends > 3
        assert len(await replay) >= 50_001


async def test_what_a_crash_left_of_a_deletion_is_swept(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    async with SqliteLog(path) as log:
        await log.append([create(count=5000), create(OTHER)])
        # The deletion itself, without the slices of work that follow it.
        await log._writing.call(log._w.delete, SESSION, T0)
    async with SqliteLog(path) as log:
        await log.append([create(time_ns=T0, count=2)])
        assert await read_all(log) == events(1, 2)
        await log.sweep(T0)
        assert await read_all(log) == events(1, 2)
    db = sqlite3.connect(path)
    assert db.execute("SELECT count(*) FROM events").fetchone() == (3,)
    assert db.execute("SELECT count(*) FROM doomed").fetchone() == (0,)
    db.close()


async def test_deleted_words_are_not_left_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    secret = b"the-words-of-a-conversation"
    async with SqliteLog(path) as log:
        await log.append([Append(SESSION, 1, [secret] * 500, T0, head()), create(OTHER)])
        await log.save_checkpoint(SESSION, Checkpoint(1, secret))
    assert secret in path.read_bytes()
    async with SqliteLog(path) as log:
        await log.delete(SESSION, T0)
    assert secret not in path.read_bytes()
