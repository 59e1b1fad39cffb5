"""What is deleted is in no file of the log, however the process ended."""

from __future__ import annotations

import asyncio
import random
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from backchannel.log import sqlite, sqlite_writer
from backchannel.log.protocol import NEVER_NS, Append, Checkpoint, Head, Origin
from backchannel.log.sqlite import SqliteLog
from tests.scale import scale
from tests.unit.log.backends import T0, S, create, more
from tests.unit.log.test_sqlite import program

NAMES = [f"session-{n:016}" for n in range(24)]


def secret(name: str) -> bytes:
    return f"What {name} said.".encode()


def found(folder: Path, *needles: bytes) -> dict[str, int]:
    """In which files any of it is, and how often."""
    counts = {}
    for file in folder.iterdir():
        data = file.read_bytes()
        count = sum(map(data.count, needles))
        if count:
            counts[file.name] = count
    return counts


async def talk(log: SqliteLog, rng: random.Random, steps: int) -> None:
    """Sessions grow side by side, so that their rows are moved from page to page."""
    last = dict.fromkeys(NAMES, 0)
    for step in range(steps):
        name = rng.choice(NAMES) if step >= len(NAMES) else NAMES[step]
        said = secret(name)
        events = [said * rng.choice([1, 3, 30, 300]) for _ in range(rng.randint(1, 5))]
        head = origin = None
        if not last[name]:
            origin = Origin(said * 9, {"said": said.decode()})
        if not last[name] or rng.random() < 0.3:
            head = Head(said * rng.randint(1, 20), False, NEVER_NS)
        await log.append([Append(name, last[name] + 1, events, T0 + step, head, origin)])
        last[name] += len(events)
        if rng.random() < 0.1:
            state = said * rng.choice([10, 500])
            await log.save_checkpoint(name, Checkpoint(last[name], state))


@pytest.mark.parametrize("seed", range(scale(3, 30)))
async def test_nothing_of_a_deleted_session_is_in_any_file(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    dead, living = NAMES[::2], NAMES[1::2]
    async with SqliteLog(tmp_path / "log.db") as log:
        await talk(log, rng, scale(600, 3000))
        for name in dead:
            assert found(tmp_path, secret(name))
            await log.delete(name, T0 + 9 * S)
            assert not found(tmp_path, secret(name))
        await talk_on(log, living)
        assert not found(tmp_path, *map(secret, dead))
    assert not found(tmp_path, *map(secret, dead))
    with closing(sqlite3.connect(tmp_path / "log.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    async with SqliteLog(tmp_path / "log.db") as log:
        for name in living:
            stored = await log.load(name)
            assert stored is not None
            events = await log.read(name, 0, max_events=10**6, max_bytes=10**12)
            assert len(events) == stored.last_seq
            assert all(secret(name) in event for event in events)


async def talk_on(log: SqliteLog, names: list[str]) -> None:
    for name in names:
        stored = await log.load(name)
        assert stored is not None
        await log.append([Append(name, stored.last_seq + 1, [secret(name)] * 50, T0 + S)])


async def test_nothing_of_trimmed_events_is_left_after_the_sweep(tmp_path: Path) -> None:
    async with SqliteLog(tmp_path / "log.db") as log:
        for n, name in enumerate(NAMES):
            await log.append([create(name)])
            for seq in range(2, 200, 10):
                said = [f"old {n} words " * 20 for _ in range(10)]
                await log.append([Append(name, seq, [text.encode() for text in said], T0 + seq)])
        for n, name in enumerate(NAMES[::3]):
            assert found(tmp_path, f"old {3 * n} words".encode())
            await log.save_checkpoint(name, Checkpoint(201, b"state"))
            assert await log.trim(name, 201) == 202
        await log.sweep(T0)
        for n in range(len(NAMES)):
            there = found(tmp_path, f"old {n} words".encode())
            assert bool(there) == (n % 3 != 0), (n, there)


DELETE_AND_DIE = """
import asyncio, os, signal
from pathlib import Path
from backchannel.log import sqlite_writer
from backchannel.log.protocol import *
from backchannel.log.sqlite import SqliteLog

async def main():
    async with SqliteLog(Path(sys.argv[1])) as log:
        for name in ("session-dead-0000", "session-alive-000", "session-trim-0000"):
            said = f"What {name} said.".encode() * 10
            head = Head(b"head", False, 0)
            await log.append([Append(name, 1, [said] * 5000, 1, head, Origin(said, {"a": "b"}))])
        await log.save_checkpoint("session-trim-0000", Checkpoint(5000, b"state"))
        die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        if sys.argv[2] == "midst":
            sqlite_writer.Writer.purge_deleted = die
            sqlite_writer.Writer.purge_trimmed = die
        elif sys.argv[2] == "before the scrub":
            sqlite_writer.Writer.scrub = die
        if sys.argv[3] == "trim":
            await log.trim("session-trim-0000", 5000)
            await log.sweep(1)
        else:
            await log.delete("session-dead-0000", 1)
        die()
asyncio.run(main())
"""


@pytest.mark.parametrize("moment", ["midst", "before the scrub", "after"])
@pytest.mark.parametrize("what", ["delete", "trim"])
async def test_a_crash_leaves_it_gone_or_to_the_next_sweep(
    tmp_path: Path, moment: str, what: str
) -> None:
    path = tmp_path / "log.db"
    dying = await asyncio.create_subprocess_exec(*program(DELETE_AND_DIE, path, moment, what))
    assert await dying.wait() == -signal.SIGKILL
    gone = b"What session-%s-0000 said." % (b"dead" if what == "delete" else b"trim")
    assert bool(found(tmp_path, gone)) == (moment != "after" or what == "trim")
    async with SqliteLog(path) as log:
        await log.sweep(T0)
        left = found(tmp_path, gone)
        # The summary of a session that goes on stays, and is the only place.
        assert left == ({} if what == "delete" else {"log.db": 10})
        assert found(tmp_path, b"What session-alive-000 said.")


async def test_a_deletion_does_not_wait_long_for_a_strange_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sqlite, "_SCRUB_RETRY_S", 0.0)
    monkeypatch.setattr(sqlite_writer, "_SCRUB_BUSY_MS", 1)
    path = tmp_path / "log.db"
    async with SqliteLog(path) as log:
        await log.append([create(NAMES[0], 10), create(NAMES[1])])
        await log.append([Append(NAMES[0], 11, [secret(NAMES[0])], T0)])
        with closing(sqlite3.connect(path, isolation_level=None)) as stranger:
            stranger.execute("BEGIN")
            stranger.execute("SELECT count(*) FROM events").fetchone()
            await log.delete(NAMES[0], T0)
            assert found(tmp_path, secret(NAMES[0]))
            await log.append([more(2, session_id=NAMES[1])])
        assert "somebody else reads" in caplog.text
        await log.sweep(T0)
        assert not found(tmp_path, secret(NAMES[0]))


async def test_appends_go_on_while_a_large_file_is_scrubbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_writer, "SCRUB_PAGES", 8)
    async with SqliteLog(tmp_path / "log.db") as log:
        await talk(log, random.Random(1), 300)
        slices: list[int] = []
        genuine = sqlite_writer.Writer.scrub

        def scrub(writer: sqlite_writer.Writer, page: int) -> int:
            slices.append(page)
            if page == 8:
                # Meanwhile the next one is deleted, whose rows are perhaps in pages done already.
                writer.delete(NAMES[2], T0)
                while writer.purge_deleted():
                    pass
            return genuine(writer, page)

        monkeypatch.setattr(sqlite_writer.Writer, "scrub", scrub)
        await log.delete(NAMES[0], T0)
        assert slices[:3] == [0, 8, 16]
        assert not found(tmp_path, secret(NAMES[0]))
        await log.sweep(T0)
        assert slices.count(0) == 2
        assert not found(tmp_path, secret(NAMES[2]))


@pytest.mark.parametrize("seed", [8, *range(scale(0, 40))])
async def test_pages_in_memory_do_not_bring_it_back(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    async with SqliteLog(tmp_path / "log.db") as log:
        last = dict.fromkeys(NAMES, 1)
        await log.append([create(name) for name in NAMES])
        for name in rng.choices(NAMES, k=800):
            last[name] += 1
            await log.append([Append(name, last[name], [secret(name) * 2], T0)])
        for dead in NAMES[::2]:
            await log.delete(dead, T0)
            for name in NAMES[1::2] * 3:
                last[name] += 1
                await log.append([Append(name, last[name], [b"y"], T0)])
    assert not found(tmp_path, *map(secret, NAMES[::2]))
