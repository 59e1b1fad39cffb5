"""What every log must do."""

from __future__ import annotations

import asyncio

import pytest

from backchannel.errors import BackchannelError, Reason
from backchannel.log.protocol import Append, AppendConflictError, Checkpoint, Log, Retention
from tests.unit.log.backends import (
    OTHER,
    SESSION,
    T0,
    S,
    create,
    events,
    head,
    more,
    read_all,
)

KEEP_ALL = Retention(max_age_s=1e9, max_events=10**9, max_bytes=10**12)


async def test_what_was_appended_is_read_in_order(log: Log) -> None:
    await log.append([create(count=3)])
    await log.append([more(4, 200)])
    await log.append([more(204)])
    assert await read_all(log) == events(1, 204)
    assert await read_all(log, after_seq=100) == events(101, 104)


async def test_events_are_any_bytes(log: Log) -> None:
    strange = [b"", b"\0", bytes(range(256)), b"x" * 1_000_000]
    await log.append([Append(SESSION, 1, strange, T0, head())])
    assert await read_all(log) == strange


async def test_a_batch_of_many_sessions_and_of_one_session_twice(log: Log) -> None:
    ids = [f"session-{n:016}" for n in range(100)]
    await log.append([create(session_id) for session_id in ids] + [more(2, 2, ids[0])])
    await log.append([more(2, 1, session_id) for session_id in ids[1:]] + [more(4, 1, ids[0])])
    assert await read_all(log, ids[0]) == events(1, 4)
    assert await read_all(log, ids[57]) == events(1, 2)
    assert await log.count() == 100


async def test_an_empty_batch_is_nothing(log: Log) -> None:
    await log.append([])
    assert await log.count() == 0


@pytest.mark.parametrize(
    "misfit",
    [
        more(3),
        more(1 + 4),
        more(2, session_id="session-unknown-0"),
        create(),
        create("session-retired-0"),
    ],
    ids=["repeats", "leaves a gap", "unknown", "exists", "retired"],
)
async def test_an_append_that_does_not_fit_leaves_nothing_of_its_batch(
    log: Log, misfit: Append
) -> None:
    await log.append([create(count=3), create(OTHER), create("session-retired-0")])
    await log.delete("session-retired-0", T0 + S)
    before = await log.load(SESSION)
    batch = [
        create("session-new-000000"),
        more(2, 5, OTHER, new=head("changed")),
        misfit,
    ]
    with pytest.raises(AppendConflictError) as caught:
        await log.append(batch)
    assert caught.value.session_id == misfit.session_id
    assert await log.load(SESSION) == before
    assert await read_all(log, OTHER) == events(1, 1)
    assert await log.load("session-new-000000") is None
    assert await log.count() == 2
    # And nothing of it stands in the way of what fits.
    await log.append([*batch[:2], more(4)])
    assert await read_all(log, OTHER) == events(1, 6)
    assert await read_all(log) == events(1, 4)


@pytest.mark.parametrize(
    "wrong", [Append(SESSION, 2, [], T0), Append(OTHER, 1, [b"x"], T0)], ids=["empty", "no head"]
)
async def test_an_append_that_makes_no_sense_is_a_bug(log: Log, wrong: Append) -> None:
    await log.append([create()])
    with pytest.raises(ValueError, match="needs"):
        await log.append([more(2), wrong])
    assert await read_all(log) == events(1, 1)


async def test_read_is_bounded_by_events_and_bytes_but_gives_at_least_one(log: Log) -> None:
    await log.append([create(count=10, size=100)])
    assert await log.read(SESSION, 2, max_events=3, max_bytes=10_000) == events(3, 3, 100)
    assert await log.read(SESSION, 2, max_events=9, max_bytes=399) == events(3, 3, 100)
    assert await log.read(SESSION, 2, max_events=9, max_bytes=400) == events(3, 4, 100)
    assert await log.read(SESSION, 2, max_events=9, max_bytes=1) == events(3, 1, 100)
    assert await log.read(SESSION, 2, max_events=0, max_bytes=0) == events(3, 1, 100)


async def test_nothing_is_read_at_the_end_and_beyond(log: Log) -> None:
    await log.append([create(count=3)])
    assert await read_all(log, after_seq=3) == []
    assert await read_all(log, after_seq=30) == []


async def test_the_newest_head_is_kept_and_an_append_without_one_leaves_it(log: Log) -> None:
    await log.append([create(time_ns=T0)])
    await log.append([more(2, time_ns=T0 + 1, new=head("second", active=True))])
    await log.append([more(3, time_ns=T0 + 2)])
    stored = await log.load(SESSION)
    assert stored is not None
    assert stored.head == head("second", active=True)
    assert (stored.earliest_seq, stored.last_seq, stored.checkpoint) == (1, 3, None)
    (listed,) = await log.list(before=None, limit=10)
    assert (listed.session_id, listed.update_time_ns) == (SESSION, T0 + 1)
    assert listed.head == stored.head


async def test_active_and_expired_follow_the_head(log: Log) -> None:
    await log.append([create(first=head(active=True, expire_time_ns=T0 + 5))])
    await log.append([create(OTHER, first=head(active=True, expire_time_ns=T0 + 3))])
    await log.append([create("session-idle-00000", first=head(expire_time_ns=T0 + 4))])
    assert sorted(await log.active()) == [SESSION, OTHER]
    assert await log.expired(T0 + 2, 10) == []
    assert await log.expired(T0 + 3, 10) == [OTHER]
    assert await log.expired(T0 + 9, 10) == [OTHER, "session-idle-00000", SESSION]
    assert await log.expired(T0 + 9, 2) == [OTHER, "session-idle-00000"]
    await log.append([more(2, session_id=OTHER, new=head(expire_time_ns=T0 + 100))])
    assert await log.active() == [SESSION]
    assert await log.expired(T0 + 9, 10) == ["session-idle-00000", SESSION]


async def test_the_list_is_newest_first_and_goes_on_where_it_was_left(log: Log) -> None:
    ids = [f"session-{n:016}" for n in range(25)]
    # Several share a time, so the id decides.
    await log.append([create(sid, time_ns=T0 + n // 4) for n, sid in enumerate(ids)])
    await log.append([more(2, session_id=ids[3], time_ns=T0 + 100, new=head("again"))])
    expected = sorted(((T0 + 100 if n == 3 else T0 + n // 4), sid) for n, sid in enumerate(ids))[
        ::-1
    ]
    found: list[tuple[int, str]] = []
    before = None
    while page := await log.list(before=before, limit=7):
        found += [(line.update_time_ns, line.session_id) for line in page]
        before = found[-1]
    assert found == expected
    assert await log.list(before=None, limit=0) == []


async def test_trim_goes_up_to_the_checkpoint_and_no_further(log: Log) -> None:
    await log.append([create(count=10)])
    assert await log.trim(SESSION, 5) == 1
    assert await read_all(log) == events(1, 10)
    await log.save_checkpoint(SESSION, Checkpoint(7, b"state"))
    assert await log.trim(SESSION, 5) == 6
    assert await read_all(log, after_seq=5) == events(6, 5)
    assert await log.trim(SESSION, 100) == 8
    assert await log.trim(SESSION, 3) == 8
    stored = await log.load(SESSION)
    assert stored is not None
    assert (stored.earliest_seq, stored.last_seq) == (8, 10)
    assert stored.checkpoint == Checkpoint(7, b"state")
    await log.append([more(11)])
    assert await read_all(log, after_seq=7) == events(8, 4)


async def test_a_session_whose_events_are_all_trimmed_goes_on(log: Log) -> None:
    # More than one slice of what is removed in one go.
    await log.append([create(count=2500)])
    await log.save_checkpoint(SESSION, Checkpoint(2500, b"state"))
    assert await log.trim(SESSION, 2500) == 2501
    assert await read_all(log, after_seq=2500) == []
    stored = await log.load(SESSION)
    assert stored is not None
    assert (stored.earliest_seq, stored.last_seq) == (2501, 2500)
    assert await log.trimmable_seq(SESSION, Retention(0, 0, 0), T0 + S) == 0
    await log.append([more(2501)])
    assert await read_all(log, after_seq=2500) == events(2501, 1)


async def test_a_cursor_older_than_the_oldest_event_is_told_which_that_is(log: Log) -> None:
    await log.append([create(count=10)])
    await log.save_checkpoint(SESSION, Checkpoint(6, b"state"))
    await log.trim(SESSION, 6)
    for after_seq in (0, 5):
        with pytest.raises(BackchannelError) as caught:
            await read_all(log, after_seq=after_seq)
        assert caught.value.reason is Reason.CURSOR_TRIMMED
        assert caught.value.metadata["earliest_seq"] == "7"
    assert await read_all(log, after_seq=6) == events(7, 4)


async def test_a_checkpoint_replaces_an_older_one_only(log: Log) -> None:
    await log.append([create(count=5)])
    await log.save_checkpoint(SESSION, Checkpoint(3, b"three"))
    await log.save_checkpoint(SESSION, Checkpoint(4, b"four"))
    await log.save_checkpoint(SESSION, Checkpoint(4, b"four again"))
    for seq in (3, 6):
        with pytest.raises(AppendConflictError) as caught:
            await log.save_checkpoint(SESSION, Checkpoint(seq, b"no"))
        assert caught.value.session_id == SESSION
    stored = await log.load(SESSION)
    assert stored is not None
    assert stored.checkpoint == Checkpoint(4, b"four again")


async def test_retention_by_age_count_and_bytes(log: Log) -> None:
    for seq in range(1, 11):
        append = create if seq == 1 else None
        when = T0 + seq * S
        await log.append([create(time_ns=when) if append else more(seq, time_ns=when)])
    now = T0 + 11 * S

    async def gone(**limits: float) -> int:
        kept = Retention(
            max_age_s=limits.get("max_age_s", KEEP_ALL.max_age_s),
            max_events=int(limits.get("max_events", KEEP_ALL.max_events)),
            max_bytes=int(limits.get("max_bytes", KEEP_ALL.max_bytes)),
        )
        return await log.trimmable_seq(SESSION, kept, now)

    assert await gone() == 0
    assert await gone(max_age_s=100) == 0
    assert await gone(max_age_s=10) == 0
    assert await gone(max_age_s=9.5) == 1
    assert await gone(max_age_s=4) == 6
    assert await gone(max_age_s=0.1) == 10
    assert await gone(max_events=10) == 0
    assert await gone(max_events=9) == 1
    assert await gone(max_events=0) == 10
    assert await gone(max_bytes=100) == 0
    assert await gone(max_bytes=99) == 1
    assert await gone(max_bytes=90) == 1
    assert await gone(max_bytes=0) == 10
    assert await gone(max_age_s=9.5, max_events=8, max_bytes=75) == 3
    # What is trimmed counts no more.
    await log.save_checkpoint(SESSION, Checkpoint(10, b"state"))
    assert await log.trim(SESSION, 4) == 5
    assert await gone(max_bytes=60, max_events=6, max_age_s=6) == 0
    assert await gone(max_bytes=59) == 5
    assert await gone(max_events=5) == 5
    assert await gone(max_age_s=5.5) == 5


async def test_a_deleted_session_is_gone_but_for_its_tombstone(log: Log) -> None:
    await log.append([create(count=2500, first=head(active=True)), create(OTHER)])
    await log.save_checkpoint(SESSION, Checkpoint(3, b"state"))
    await log.delete(SESSION, T0 + 5 * S)
    assert await log.load(SESSION) is None
    assert await log.active() == []
    assert [line.session_id for line in await log.list(before=None, limit=9)] == [OTHER]
    assert await log.expired(1 << 62, 9) == [OTHER]
    assert await log.count() == 1
    assert await log.retired_until_ns(SESSION) == T0 + 5 * S
    assert await log.retired_until_ns(OTHER) == 0
    with pytest.raises(AppendConflictError):
        await log.append([more(2501)])
    with pytest.raises(BackchannelError) as caught:
        await read_all(log)
    assert caught.value.reason is Reason.SESSION_NOT_FOUND
    assert await read_all(log, OTHER) == events(1, 1)


async def test_a_retired_id_is_free_when_its_time_is_over(log: Log) -> None:
    await log.append([create(count=5), create(OTHER)])
    await log.delete(SESSION, T0 + 5 * S)
    await log.delete(OTHER, T0 + 9 * S)
    with pytest.raises(AppendConflictError):
        await log.append([create(time_ns=T0 + 5 * S - 1)])
    await log.sweep(T0 + 5 * S - 1)
    assert await log.retired_until_ns(SESSION) == T0 + 5 * S
    # Free by the clock, swept or not.
    await log.append([create(time_ns=T0 + 5 * S)])
    assert await log.retired_until_ns(SESSION) == 0
    assert await read_all(log) == events(1, 1)
    await log.sweep(T0 + 9 * S)
    assert await log.retired_until_ns(OTHER) == 0
    await log.append([create(OTHER)])
    assert await read_all(log, OTHER) == events(1, 1)


async def test_an_unknown_session(log: Log) -> None:
    assert await log.load(SESSION) is None
    assert await log.retired_until_ns(SESSION) == 0
    for call in (
        read_all(log),
        log.save_checkpoint(SESSION, Checkpoint(1, b"")),
        log.trim(SESSION, 1),
        log.trimmable_seq(SESSION, KEEP_ALL, T0),
    ):
        with pytest.raises(BackchannelError) as caught:
            await call
        assert caught.value.reason is Reason.SESSION_NOT_FOUND
    # A stranger who deletes what never was leaves nothing behind.
    await log.delete(SESSION, T0 + S)
    assert await log.retired_until_ns(SESSION) == 0


async def test_a_cancelled_append_is_there_whole_or_not_at_all(log: Log) -> None:
    await log.append([create()])
    last_seq = 1
    for _ in range(30):
        append = asyncio.create_task(log.append([more(last_seq + 1, 3)]))
        await asyncio.sleep(0)
        append.cancel()
        await asyncio.gather(append, return_exceptions=True)
        # What is asked for next is answered after it, so it is decided by now.
        await log.append([create(f"session-{last_seq:016}")])
        await log.delete(f"session-{last_seq:016}", T0)
        stored = await log.load(SESSION)
        assert stored is not None
        assert stored.last_seq in (last_seq, last_seq + 3)
        last_seq = stored.last_seq
    assert await read_all(log) == events(1, last_seq)
    await log.append([more(last_seq + 1)])


async def test_appends_at_once_follow_each_other(log: Log) -> None:
    await log.append([create()])
    async with asyncio.TaskGroup() as group:
        for seq in range(2, 52):
            group.create_task(log.append([more(seq)]))
    assert await read_all(log) == events(1, 51)
