"""Every log against a model of a few lines: whatever is done to it, it answers as the model does.

SQLite's is closed and opened again between steps too, which must change nothing.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from backchannel.errors import BackchannelError
from backchannel.log.protocol import (
    Append,
    AppendConflictError,
    Checkpoint,
    Head,
    Log,
    Origin,
    Retention,
)
from tests.scale import scale
from tests.unit.log.backends import BACKENDS

T = TypeVar("T")

IDS = [f"session-{n:016}" for n in range(4)]
DAY_NS = 86_400_000_000_000


@dataclass
class Session:
    head: Head
    update_time_ns: int
    origin: Origin
    events: list[tuple[int, bytes]] = field(default_factory=list)
    trimmed: int = 0
    checkpoint: Checkpoint | None = None

    def too_much(self, now: int, age: int, count: int, size: int) -> int:
        """How many of the events still there retention wants gone."""
        kept = self.events[self.trimmed :]
        gone = 0
        while gone < len(kept) and (
            kept[gone][0] < now - age
            or len(kept) - gone > count
            or sum(len(data) for _, data in kept[gone:]) > size
        ):
            gone += 1
        return gone


heads = st.builds(
    Head, session=st.binary(max_size=20), active=st.booleans(), expire_time_ns=st.integers(0, 5000)
)
label = st.tuples(st.sampled_from("ab"), st.sampled_from(["x", "y", '"é%']))
origins = st.builds(
    Origin, session=st.binary(max_size=20), labels=st.lists(label, max_size=3).map(dict)
)
payloads = st.lists(st.binary(max_size=60), min_size=1, max_size=100)


class LogMachine(RuleBasedStateMachine):
    """The model is `sessions` and `tombstones`; the log is whichever `backend` names."""

    backend = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp(prefix="backchannel-log-"))
        self.sessions: dict[str, Session] = {}
        self.tombstones: dict[str, int] = {}
        self.now = 1

    @initialize()
    def open(self) -> None:
        self.log: Log = BACKENDS[self.backend](self.folder)
        self.run(self.log.__aenter__())

    def teardown(self) -> None:
        if hasattr(self, "log"):
            self.run(self.log.__aexit__(None, None, None))
        self.runner.close()
        shutil.rmtree(self.folder)

    def run(self, call: Awaitable[T]) -> T:
        async def main() -> T:
            return await call

        return self.runner.run(main())

    def fits(self, append: Append, model: dict[str, Session]) -> bool:
        """Apply it to the model if it fits."""
        session = model.get(append.session_id)
        if append.first_seq == 1:
            if session or self.tombstones.get(append.session_id, 0) > append.time_ns:
                return False
            assert append.head is not None
            session = model[append.session_id] = Session(
                append.head, append.time_ns, append.origin or Origin()
            )
        elif not session or append.first_seq != len(session.events) + 1:
            return False
        elif append.head is not None:
            session.head, session.update_time_ns = append.head, append.time_ns
        session.events += [(append.time_ns, data) for data in append.events]
        return True

    @rule(
        data=st.data(),
        ids=st.lists(st.sampled_from(IDS), min_size=1, max_size=5),
        step=st.integers(0, 50),
    )
    def append(self, data: st.DataObject, ids: list[str], step: int) -> None:
        self.now += step
        model = {
            sid: replace(session, events=list(session.events))
            for sid, session in self.sessions.items()
        }
        batch = []
        fit = True
        for sid in ids:
            at = len(model[sid].events) + 1 if sid in model else 1
            # Mostly what fits, now and then what does not.
            at = max(1, at + data.draw(st.sampled_from([0] * 12 + [-1, 1])))
            new = data.draw(heads) if at == 1 else data.draw(st.none() | heads)
            origin = data.draw(st.none() | origins) if at == 1 else None
            batch.append(Append(sid, at, data.draw(payloads), self.now, new, origin))
            fit = fit and self.fits(batch[-1], model)
        if fit:
            self.run(self.log.append(batch))
            for sid in ids:
                self.tombstones.pop(sid, None)
            self.sessions = model
        else:
            with pytest.raises(AppendConflictError):
                self.run(self.log.append(batch))

    @rule(sid=st.sampled_from(IDS), seq=st.integers(1, 200), state=st.binary(max_size=30))
    def save_checkpoint(self, sid: str, seq: int, state: bytes) -> None:
        session = self.sessions.get(sid)
        call = self.log.save_checkpoint(sid, Checkpoint(seq, state))
        if session is None:
            with pytest.raises(BackchannelError):
                self.run(call)
        elif seq > len(session.events) or (session.checkpoint and seq < session.checkpoint.seq):
            with pytest.raises(AppendConflictError):
                self.run(call)
        else:
            self.run(call)
            session.checkpoint = Checkpoint(seq, state)

    @precondition(lambda self: self.sessions)
    @rule(
        data=st.data(),
        age=st.integers(0, 500),
        count=st.integers(0, 200),
        size=st.integers(0, 4000),
        save=st.booleans(),
    )
    def trim(self, data: st.DataObject, age: int, count: int, size: int, save: bool) -> None:
        sid = data.draw(st.sampled_from(sorted(self.sessions)))
        session = self.sessions[sid]
        if save:
            self.save_checkpoint(sid, len(session.events), b"saved")
        gone = session.too_much(self.now, age, count, size)
        seq = self.run(self.log.trimmable_seq(sid, Retention(age / 1e9, count, size), self.now))
        assert seq == (session.trimmed + gone if gone else 0)
        limit = session.checkpoint.seq if session.checkpoint else 0
        session.trimmed = max(session.trimmed, min(seq, limit))
        assert self.run(self.log.trim(sid, seq)) == session.trimmed + 1

    @rule(
        age=st.integers(0, 500),
        count=st.integers(0, 200),
        size=st.integers(0, 4000),
        since=st.integers(0, 500),
    )
    def excess(self, age: int, count: int, size: int, since: int) -> None:
        retention = Retention(age / 1e9, count, size)
        told = set(self.run(self.log.excess(retention, self.now, since)))
        most, least = set(), set()
        for sid, session in self.sessions.items():
            gone = session.too_much(self.now, age, count, size)
            if gone:
                saved = session.checkpoint.seq if session.checkpoint else 0
                most.add((sid, session.trimmed + gone, saved))
                oldest_ns = session.events[session.trimmed][0]
                if session.update_time_ns >= since or oldest_ns < self.now - age:
                    least.add((sid, session.trimmed + gone, saved))
        assert least <= told <= most

    @rule(sid=st.sampled_from(IDS), keep=st.integers(0, 100))
    def delete(self, sid: str, keep: int) -> None:
        self.run(self.log.delete(sid, self.now + keep))
        if self.sessions.pop(sid, None):
            self.tombstones[sid] = self.now + keep

    @rule()
    def sweep(self) -> None:
        self.run(self.log.sweep(self.now))
        self.tombstones = {s: t for s, t in self.tombstones.items() if t > self.now}

    @rule()
    def reopen(self) -> None:
        if self.backend != "memory":
            self.run(self.log.__aexit__(None, None, None))
            self.open()

    @rule(
        sid=st.sampled_from(IDS),
        after=st.integers(0, 300),
        count=st.integers(1, 50),
        size=st.integers(0, 500),
    )
    def read(self, sid: str, after: int, count: int, size: int) -> None:
        session = self.sessions.get(sid)
        call = self.log.read(sid, after, max_events=count, max_bytes=size)
        if session is None or after < session.trimmed:
            with pytest.raises(BackchannelError) as caught:
                self.run(call)
            if session is not None:
                assert caught.value.metadata["earliest_seq"] == str(session.trimmed + 1)
            return
        expected = [data for _, data in session.events[after : after + count]]
        while len(expected) > 1 and sum(map(len, expected)) > size:
            expected.pop()
        assert list(self.run(call)) == expected

    @rule(
        before=st.none() | st.tuples(st.integers(0, 500), st.sampled_from(IDS)),
        labels=st.lists(label, max_size=2),
        size=st.integers(0, 60),
    )
    def listing(
        self, before: tuple[int, str] | None, labels: list[tuple[str, str]], size: int
    ) -> None:
        places = sorted(
            (s.update_time_ns, sid)
            for sid, s in self.sessions.items()
            if all(s.origin.labels.get(name) == value for name, value in labels)
        )[::-1]
        expected = []
        for place in [place for place in places if before is None or place < before][:3]:
            session = self.sessions[place[1]]
            expected.append((*place, session.head, session.origin.session + session.head.session))
            if sum(len(line[3]) for line in expected) >= size:
                break
        found = self.run(self.log.list(before=before, limit=3, labels=labels, max_bytes=size))
        assert [
            (line.update_time_ns, line.session_id, line.head, line.session) for line in found
        ] == expected

    @invariant()
    def answers_as_the_model(self) -> None:
        if not hasattr(self, "log"):
            return
        assert self.run(self.log.count()) == len(self.sessions)
        active = [sid for sid, s in self.sessions.items() if s.head.active]
        assert sorted(self.run(self.log.active())) == sorted(active)
        expired = {s for s, v in self.sessions.items() if v.head.expire_time_ns <= self.now}
        assert set(self.run(self.log.expired(self.now, 10))) == expired
        for sid in IDS:
            assert self.run(self.log.retired_until_ns(sid)) == self.tombstones.get(sid, 0)
            stored = self.run(self.log.load(sid))
            session = self.sessions.get(sid)
            assert (stored is None) == (session is None)
            if stored is not None and session is not None:
                assert stored.earliest_seq == session.trimmed + 1
                assert stored.last_seq == len(session.events)
                assert stored.checkpoint == session.checkpoint
                assert stored.head == session.head


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_log_answers_as_the_model_does(backend: str) -> None:
    machine: Any = type("Machine", (LogMachine,), {"backend": backend})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=scale(25, 500), stateful_step_count=scale(25, 60), deadline=None
        ),
    )
