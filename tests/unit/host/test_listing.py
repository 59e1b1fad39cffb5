"""Sessions listed by their labels, and what a listing leaves out."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backchannel.errors import BackchannelError, Reason
from backchannel.host.filtering import parse
from backchannel.v1 import session_pb2
from tests.support.hosting import ShakyLog, attach, config, hosting, say

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("", []),
        ("  ", []),
        ('labels.team = "x"', [("team", "x")]),
        ('labels.team="x"', [("team", "x")]),
        ('\tlabels.a.b-c_9 =\n"x y" ', [("a.b-c_9", "x y")]),
        ('labels.a = "1" AND labels.b = "2"', [("a", "1"), ("b", "2")]),
        ('labels.a = "1"AND labels.a = "2"', [("a", "1"), ("a", "2")]),
        ('labels.a = "say \\"AND\\" \\\\ é"', [("a", 'say "AND" \\ é')]),
        ('labels.a = ""', [("a", "")]),
    ],
)
def test_a_filter_names_labels(text: str, labels: list[tuple[str, str]]) -> None:
    assert parse(text) == labels


@pytest.mark.parametrize(
    ("text", "place", "wanted"),
    [
        ("team", 1, "labels.KEY"),
        ('labels = "x"', 1, "labels.KEY"),
        ('labels. = "x"', 8, "key"),
        ('labels.Team = "x"', 8, "key"),
        ("labels.a", 9, "="),
        ('labels.a : "x"', 10, "="),
        ("labels.a = x", 12, "quotation marks"),
        ('labels.a = "x', 12, "quotation marks"),
        ('labels.a = "\\n"', 12, "quotation marks"),
        ('labels.a = "x" labels.b = "y"', 16, "AND"),
        ('labels.a = "x" OR labels.b = "y"', 16, "AND"),
        ('labels.a = "x" ANDlabels.b = "y"', 16, "AND"),
        ('labels.a = "x" and labels.b = "y"', 16, "AND"),
        ('labels.a = "x" AND', 19, "labels.KEY"),
        ('labels.a = "x" AND  ', 21, "labels.KEY"),
    ],
)
def test_a_bad_filter_is_told_where_it_is_wrong(text: str, place: int, wanted: str) -> None:
    with pytest.raises(BackchannelError) as caught:
        parse(text)
    assert (caught.value.reason, caught.value.field) == (Reason.FIELD_INVALID, "filter")
    assert caught.value.message.startswith(f"at character {place} ")
    assert wanted in caught.value.message


def test_a_filter_has_an_end() -> None:
    with pytest.raises(BackchannelError) as caught:
        parse(" AND ".join(['labels.a = "x"'] * 65))
    assert "no more than 64" in caught.value.message
    with pytest.raises(BackchannelError) as caught:
        parse(" " * 40_000)
    assert caught.value.reason is Reason.FIELD_TOO_LONG


@given(st.lists(st.tuples(st.from_regex(r"[a-z0-9_.-]{1,63}", fullmatch=True), st.text())))
def test_every_value_can_be_written(labels: list[tuple[str, str]]) -> None:
    def quoted(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    text = " AND ".join(f"labels.{key} = {quoted(value)}" for key, value in labels)
    assert parse(text) == labels


@given(st.text(alphabet='labels.=" AND\\x', max_size=60))
def test_no_filter_raises_anything_else(text: str) -> None:
    with suppress(BackchannelError):
        parse(text)


def labelled(**labels: str) -> session_pb2.SessionConfig:
    made = config()
    made.labels.update(labels)
    return made


async def test_sessions_are_listed_by_label_page_by_page() -> None:
    async with hosting() as run:
        made = []
        for n in range(7):
            made.append((await run.host.sessions.create(labelled(odd=str(n % 2)))).live.session_id)
            await run.clock.advance(1)
        found, token = [], ""
        while True:
            page, token = await run.host.sessions.list(2, token, 'labels.odd = "0"')
            assert {session.config.labels["odd"] for session in page} <= {"0"}
            found += [session.session_id for session in page]
            if not token:
                break
        assert found == made[::2][::-1]
        assert (await run.host.sessions.list(2, "", 'labels.odd = "0" AND labels.odd = "1"')) == (
            [],
            "",
        )


async def test_a_history_is_neither_listed_nor_written_with_each_summary() -> None:
    log = ShakyLog()
    async with hosting(log) as run:
        wanted = config(max_tokens=3)
        wanted.system = "be brief " * 10_000
        for _ in range(20):
            message = wanted.history.add(role=session_pb2.ROLE_USER)
            message.parts.add(text="long ago " * 8_000)
        live = (await run.host.sessions.create(wanted)).live
        stream = attach(live)
        for _ in range(3):
            await live.send(say())
            await stream.until("turn_finished")
            stream.events.clear()
        heads = [append.head for batch in log.batches for append in batch if append.head]
        assert len(heads) > 6
        assert max(len(head.session) for head in heads) < 1024
        origins = [append.origin for batch in log.batches for append in batch if append.origin]
        assert len(origins) == 1
        assert len(origins[0].session) < 2 * len(wanted.system)
        (listed,), _ = await run.host.sessions.list(0, "", "")
        whole = await live.view()
        stream.close()
    # As it is in memory, and as it is in the log.
    async with hosting(log) as run:
        (logged,), _ = await run.host.sessions.list(0, "", "")
    assert len(whole.config.history) == 20
    whole.config.ClearField("history")
    assert listed == logged == whole


async def test_a_page_of_large_sessions_is_short_and_goes_on() -> None:
    async with hosting() as run:
        wanted = config()
        wanted.system = "x" * (600 * 1024)
        made = []
        for _ in range(3):
            made.append((await run.host.sessions.create(wanted)).live.session_id)
            await run.clock.advance(1)
        first, token = await run.host.sessions.list(3, "", "")
        rest, end = await run.host.sessions.list(3, token, "")
        assert [session.session_id for session in first + rest] == made[::-1]
        assert (len(first), end) == (2, "")
