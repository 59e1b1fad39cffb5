"""When to try again, and when to stop trying."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backchannel.client import ClientConfig
from backchannel.client.schedule import Backoff

CONFIG = ClientConfig(backoff_initial_s=1, backoff_max_s=8)


class Clock:
    def __init__(self) -> None:
        self.s = 0.0

    def now_s(self) -> float:
        return self.s

    async def sleep(self, delay_s: float) -> None:
        raise AssertionError("nothing sleeps here")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_each_wait_lies_between_half_its_longest_and_its_longest(draws: list[float]) -> None:
    left = iter(draws)
    backoff = Backoff(CONFIG, Clock(), lambda low, high: low + (high - low) * next(left))
    longest_s = 1.0
    for _ in draws:
        delay_s = backoff.next_s(None, None)
        assert delay_s is not None
        assert longest_s / 2 <= delay_s <= longest_s
        longest_s = min(longest_s * 2, 8)


def test_what_the_server_asks_for_comes_on_top() -> None:
    backoff = Backoff(CONFIG, Clock(), lambda low, high: low)
    assert backoff.next_s(None, 5.0) == 5.5


def test_patience_counts_from_the_first_failure_and_starts_anew_when_it_works() -> None:
    clock = Clock()
    backoff = Backoff(CONFIG, clock, lambda low, high: high)
    assert backoff.next_s(5, None) == 1
    clock.s = 1
    assert backoff.next_s(5, None) == 2
    clock.s = 3
    assert backoff.next_s(5, None) is None
    backoff.reset()
    assert backoff.next_s(5, None) == 1


def test_a_wait_longer_than_the_patience_is_not_begun() -> None:
    backoff = Backoff(CONFIG, Clock(), lambda low, high: high)
    assert backoff.next_s(5, 60.0) is None
