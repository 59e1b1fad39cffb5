"""Arithmetic, and nothing else: no names, no calls, no numbers that never end."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Final

MAX_CHARS: Final = 500
# Of a numerator or denominator: some 600 decimal digits, far beyond what anybody asks for.
MAX_BITS: Final = 2048
MAX_EXPONENT: Final = 1000
# What is shown of a result that is no whole number.
SIGNIFICANT_DIGITS: Final = 12
# Larger whole numbers are not exact in JSON for everybody who reads it.
MAX_EXACT: Final = 2**53

_BINARY: Final[Mapping[type[ast.operator], Callable[[Fraction, Fraction], Fraction]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_ALPHABET: Final = re.compile(r"[0-9.eE+*/() -]*")
_THOUSANDS: Final = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_SPELLINGS: Final = str.maketrans({"×": "*", "·": "*", "÷": "/", "\u2212": "-", "–": "-"})


class CalculationError(ValueError):
    """The expression can't be evaluated; the message says why, for the model and for people."""


def evaluate(expression: str) -> int | float:
    """The value of an expression of numbers, ``+ - * /``, ``**`` or ``^``, and parentheses.

    Decimals are exact: 0.1 + 0.2 is 0.3.

    Raises:
        CalculationError: It is not one, or its value is out of bounds.
    """
    if len(expression) > MAX_CHARS:
        raise CalculationError(f"the expression is longer than {MAX_CHARS} characters")
    text = _THOUSANDS.sub("", expression.translate(_SPELLINGS)).replace("^", "**").strip()
    text = text.removesuffix("=").strip()
    try:
        # What is no number and no operator never reaches the parser.
        tree = ast.parse(text if _ALPHABET.fullmatch(text) else "", mode="eval")
        value = _value(tree.body)
    except (SyntaxError, RecursionError, MemoryError):
        raise CalculationError("that is not an arithmetic expression") from None
    except ZeroDivisionError:
        raise CalculationError("division by zero") from None
    if value.denominator == 1 and abs(value) <= MAX_EXACT:
        return int(value)
    try:
        return float(f"{float(value):.{SIGNIFICANT_DIGITS}g}")
    except OverflowError:
        raise CalculationError("the result is too large") from None


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        if isinstance(node.value, float) and not math.isfinite(node.value):
            raise CalculationError("a number is too large")
        return _bounded(Fraction(repr(node.value)))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd):
        return _value(node.operand)
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow):
            return _power(left, right)
        apply = _BINARY.get(type(node.op))
        if apply is not None:
            return _bounded(apply(left, right))
    raise CalculationError("only numbers, + - * / ** and parentheses are understood")


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise CalculationError("only whole exponents are understood")
    if abs(exponent) > MAX_EXPONENT:
        raise CalculationError(f"exponents beyond {MAX_EXPONENT} are too large")
    power = int(exponent)
    # Before it is computed, since afterwards is too late.
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if bits * abs(power) > MAX_BITS and abs(base) != 1:
        raise CalculationError("the result is too large")
    return _bounded(Fraction(base**power))


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise CalculationError("the result is too large")
    return value
