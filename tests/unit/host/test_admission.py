"""Who is served, and when: limits, order, and that no place is ever lost."""

from __future__ import annotations

import asyncio
from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from backchannel.engines.protocol import ModelCard
from backchannel.engines.routing import Target
from backchannel.engines.scripted import ScriptedEngine
from backchannel.errors import BackchannelError, Reason
from backchannel.host.admission import Admission, Ticket
from tests.support.clock import ManualClock

ENGINE = ScriptedEngine(name="e")


def places(max_waiting: int = 8, clock: ManualClock | None = None) -> Admission:
    return Admission(max_waiting=max_waiting, clock=clock or ManualClock())


def target(
    model: str = "m", parallel: int = 0, whole: int = 0, waiting: int | None = None
) -> Target:
    return Target(ENGINE, ModelCard(model, "", parallel=parallel), f"e/{model}", whole, waiting)


async def test_first_come_first_served() -> None:
    admission, two = places(), target(parallel=2)
    holders = [admission.enter(two) for _ in range(2)]
    order: list[int] = []

    async def wait(number: int) -> None:
        ticket = admission.enter(two)
        assert await ticket.wait()
        order.append(number)
        ticket.leave()

    tasks = [asyncio.create_task(wait(number)) for number in range(5)]
    await asyncio.sleep(0)
    assert (admission.running("e"), admission.waiting("e"), order) == (2, 5, [])
    for holder in holders:
        holder.leave()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4]
    assert (admission.running("e"), admission.waiting("e")) == (0, 0)


async def test_one_that_leaves_the_queue_takes_no_place() -> None:
    admission = places()
    holder, quitter, patient = (admission.enter(target(parallel=1)) for _ in range(3))
    quitter.leave()
    assert not await quitter.wait()
    holder.leave()
    assert await patient.wait()
    assert admission.running("e") == 1
    quitter.leave()
    holder.leave()
    assert admission.running("e") == 1


async def test_the_queue_is_bounded() -> None:
    admission, one = places(max_waiting=1), target(parallel=1)
    assert not admission.full(one)
    admission.enter(one)
    assert not admission.full(one)
    waiting = admission.enter(one)
    assert admission.full(one)
    with pytest.raises(BackchannelError, match="1 generations run and 1 turns wait") as refused:
        admission.enter(one)
    assert refused.value.reason is Reason.ENGINE_BUSY
    assert refused.value.metadata == {"model": "e/m"}
    assert admission.waiting("e") == 1
    waiting.leave()
    assert not admission.full(one)


async def test_an_engines_own_bound_wins_also_if_it_is_none_at_all() -> None:
    admission, impatient = places(max_waiting=5), target(parallel=1, waiting=0)
    assert not admission.full(impatient)
    admission.enter(impatient)
    assert admission.full(impatient)
    with pytest.raises(BackchannelError):
        admission.enter(impatient)


async def test_the_engines_limit_holds_for_all_its_models_together() -> None:
    admission = places()
    held = [admission.enter(target(model, whole=2)) for model in "ab"]
    third = admission.enter(target("c", whole=2))
    assert not third.admitted
    held[0].leave()
    assert third.admitted


async def test_a_full_model_holds_up_nobody_who_waits_for_another() -> None:
    admission = places()
    full, other = target("full", 1, whole=2), target("other", 0, whole=2)
    first, second = admission.enter(full), admission.enter(other)
    blocked, passing = admission.enter(full), admission.enter(other)
    second.leave()
    assert (blocked.admitted, passing.admitted) == (False, True)
    first.leave()
    assert blocked.admitted


async def test_a_turn_that_goes_on_comes_before_those_that_begin_and_is_never_turned_away() -> None:
    admission, one = places(max_waiting=1), target(parallel=1)
    holder, begins = admission.enter(one), admission.enter(one)
    first, second = (admission.enter(one, goes_on=True) for _ in range(2))
    for free, served in [(holder, first), (first, second), (second, begins)]:
        assert not served.admitted
        free.leave()
        assert served.admitted


async def test_when_to_try_again_follows_from_how_long_generations_take() -> None:
    clock = ManualClock()
    admission, one = places(2, clock), target(parallel=1)

    def retry_s() -> float:
        with pytest.raises(BackchannelError) as refused:
            admission.enter(one)
        return refused.value.retry_after_s or 0.0

    tickets = [admission.enter(one) for _ in range(3)]
    assert retry_s() == 1.0  # Nothing is known yet.
    for _ in range(3):
        await clock.advance(4)
        tickets.pop(0).leave()
        tickets.append(admission.enter(one))
    assert retry_s() == pytest.approx(8.0)  # Two wait for one place, for 4 s each.
    await clock.advance(10_000)
    tickets.pop(0).leave()
    tickets.append(admission.enter(one))
    assert retry_s() == 60.0


MODELS = ("a", "b")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("enter"), st.sampled_from(MODELS), st.booleans()),
        st.tuples(st.just("leave"), st.integers(0, 30), st.booleans()),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=STEPS,
    parallel=st.integers(0, 3),
    whole=st.integers(0, 3),
    max_waiting=st.integers(0, 4),
)
def test_places_are_kept_to_and_never_lost(
    steps: list[tuple[str, object, bool]], parallel: int, whole: int, max_waiting: int
) -> None:
    asyncio.run(_play(steps, parallel, whole, max_waiting))


async def _play(
    steps: list[tuple[str, object, bool]], parallel: int, whole: int, max_waiting: int
) -> None:
    """Against a model: lists in the order of their coming."""
    admission = places(max_waiting)
    tickets: list[Ticket] = []
    running: list[Ticket] = []
    queue: list[tuple[Ticket, bool]] = []

    def fits(model: str) -> bool:
        used = Counter(ticket.target.card.name for ticket in running)
        return not (whole and used.total() >= whole) and not (parallel and used[model] >= parallel)

    def serve() -> None:
        for entry in sorted(queue, key=lambda entry: not entry[1]):  # Stable.
            if fits(entry[0].target.card.name):
                queue.remove(entry)
                running.append(entry[0])

    for action, which, flag in steps:
        if action == "enter":
            model = str(which)
            asked = target(model, parallel, whole)
            begins = sum(not goes_on for _, goes_on in queue)
            refuse = not flag and not fits(model) and begins >= max_waiting
            assert admission.full(asked) == (not fits(model) and begins >= max_waiting)
            if refuse:
                with pytest.raises(BackchannelError):
                    admission.enter(asked, goes_on=flag)
            else:
                ticket = admission.enter(asked, goes_on=flag)
                tickets.append(ticket)
                queue.append((ticket, flag))
        elif tickets and isinstance(which, int):
            ticket = tickets[which % len(tickets)]  # Also one that has left already.
            ticket.leave()
            if flag:
                ticket.leave()
            running = [one for one in running if one is not ticket]
            queue = [entry for entry in queue if entry[0] is not ticket]
        serve()
        assert admission.running("e") == len(running)
        assert admission.waiting("e") == len(queue)
        assert all(ticket.admitted for ticket in running)
        assert not any(ticket.admitted for ticket, _ in queue)
    for ticket in tickets:
        ticket.leave()
    assert (admission.running("e"), admission.waiting("e")) == (0, 0)
