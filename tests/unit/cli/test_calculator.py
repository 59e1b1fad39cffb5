"""Arithmetic that can't be talked into anything else."""

from __future__ import annotations

import contextlib
import json
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backchannel.cli.calculator import MAX_EXACT, CalculationError, evaluate


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("12 * 7", 84),
        ("12*7 =", 84),
        ("(3 + 4) * -2", -14),
        ("0.1 + 0.2", 0.3),
        ("1/3", 0.333333333333),
        ("6 × 7", 42),
        ("84 ÷ 2", 42),
        ("50 \u2212 8", 42),
        ("2 ^ 10", 1024),
        ("2 ** -1", 0.5),
        ("1,000,000 / 4", 250000),
        ("1e3 + .5", 1000.5),
        ("--1", 1),
        ("(-1) ** 1000", 1),
        ("10 ** 20", 1e20),
        ("7 / 7", 1),
    ],
)
def test_what_it_can(expression: str, value: float) -> None:
    found = evaluate(expression)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("", "not an arithmetic expression"),
        ("two", "not an arithmetic expression"),
        ("1 +", "not an arithmetic expression"),
        ("(1", "not an arithmetic expression"),
        ("__import__('os').system('true')", "not an arithmetic expression"),
        ("e", "only numbers"),
        ("1 // 2", "only numbers"),
        ("2(3)", "only numbers"),
        ("1 / 0", "division by zero"),
        ("0 ** -1", "division by zero"),
        ("2 ** 0.5", "whole exponents"),
        ("9 ** 9 ** 9", "too large"),
        ("10 ** 1000000", "too large"),
        ("9" * 400 + "*" + "9" * 99, "too large|longer"),
        ("1e999", "too large"),
        ("10 ** 400", "too large"),
        ("1+" * 250 + "1", "longer than"),
        ("(" * 240 + "1" + ")" * 240, "not an arithmetic expression"),
    ],
)
def test_what_it_can_not(expression: str, why: str) -> None:
    with pytest.raises(CalculationError, match=why):
        evaluate(expression)


NUMBERS = st.integers(0, 10**6).map(str) | st.decimals(0, 10**6, places=3, allow_nan=False).map(str)
EXPRESSIONS = st.recursive(
    NUMBERS,
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(
        lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"
    ),
    max_leaves=8,
)


@given(EXPRESSIONS)
def test_it_computes_as_exact_fractions_do(expression: str) -> None:
    exact = re.sub(r"[0-9.]+", r'Fraction("\g<0>")', expression)
    try:
        expected = eval(exact, {"Fraction": Fraction})
    except ZeroDivisionError:
        with pytest.raises(CalculationError, match="division by zero"):
            evaluate(expression)
        return
    found = evaluate(expression)
    if isinstance(found, int):
        assert found == expected
    else:
        assert found == pytest.approx(float(expected), rel=1e-11)
        assert expected.denominator != 1 or abs(expected) > MAX_EXACT
    json.loads(json.dumps(found, allow_nan=False))


@given(st.text("0123456789.eE+-*/() ^,=", max_size=60) | st.text(max_size=60))
def test_whatever_is_said_it_answers_with_a_number_or_a_reason(expression: str) -> None:
    with contextlib.suppress(CalculationError):
        assert isinstance(evaluate(expression), (int, float))
