from __future__ import annotations

import asyncio

import pytest

from backchannel.errors import BackchannelError, Reason
from backchannel.host.admission import Admission


async def test_first_come_first_served() -> None:
    admission = Admission(max_waiting=8)
    holders = [admission.enter("m", 2) for _ in range(2)]
    order: list[int] = []

    async def wait(number: int) -> None:
        ticket = admission.enter("m", 2)
        assert await ticket.wait()
        order.append(number)
        ticket.leave()

    tasks = [asyncio.create_task(wait(number)) for number in range(5)]
    await asyncio.sleep(0)
    assert (admission.running("m"), admission.waiting("m"), order) == (2, 5, [])
    for holder in holders:
        holder.leave()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4]
    assert (admission.running("m"), admission.waiting("m")) == (0, 0)


async def test_one_that_leaves_the_queue_takes_no_place() -> None:
    admission = Admission(max_waiting=8)
    holder, quitter, patient = (admission.enter("m", 1) for _ in range(3))
    quitter.leave()
    assert not await quitter.wait()
    holder.leave()
    assert await patient.wait()
    assert admission.running("m") == 1
    quitter.leave()
    holder.leave()
    assert admission.running("m") == 1


async def test_the_queue_is_bounded_and_models_do_not_share_it() -> None:
    admission = Admission(max_waiting=1)
    admission.enter("m", 1)
    admission.enter("m", 1)
    with pytest.raises(BackchannelError) as refused:
        admission.enter("m", 1)
    assert refused.value.reason is Reason.ENGINE_BUSY
    assert refused.value.retry_after_s
    assert await admission.enter("other", 1).wait()


async def test_no_limit() -> None:
    admission = Admission(max_waiting=0)
    tickets = [admission.enter("m", 0) for _ in range(100)]
    assert admission.running("m") == 100
    for ticket in tickets:
        ticket.leave()
    assert admission.running("m") == 0
