"""A small fuzzer: inputs bent at random, from a corpus that keeps what led somewhere new.

Two ways to bend: as bytes, which finds what decoders do not expect, and as the message that they
are, field by field, which gets past the decoders. What an execution did is told as a signature (an
error's reason and field, the kinds of events); an input with a new one joins the pool that further
inputs are bent from. Everything follows from the seed, so the same seed finds the same again.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

CORPUS = Path(__file__).parent / "corpus"
POOL = 2_000
BLOCK = 64
LONGEST = 4_096

_INTS = (0, 1, 2, 3, 5, 16, 127, 128, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**62)
_INTS64 = (*_INTS, 2**63 - 1, 2**63, 2**64 - 1)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e308, 5e-324, float("inf"), float("-inf"), float("nan"))
_BITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_PIECES = (
    b"",
    b"\0",
    b"\xff" * 10,
    b"\x80" * 9 + b"\x01",
    b"\xed\xa0\x80",
    b"{",
    b"}",
    b'"',
    b"[[",
)
_DEEP = 6


def corpus(name: str) -> list[bytes]:
    """The kept inputs of a target: a line of hexadecimal each, with `#` before what is said."""
    lines = (CORPUS / f"{name}.hex").read_text("utf-8").splitlines()
    return [bytes.fromhex(line.partition("#")[0]) for line in lines if line.partition("#")[0]]


class Bender:
    """Makes inputs from inputs.

    Args:
        rng: What it all follows from.
        words: Texts that mean something to what is tested, such as ids.
        kind: The message that inputs are; None if they are none.
        numbers: Those that mean something to it.
    """

    def __init__(
        self,
        rng: random.Random,
        words: Sequence[str] = (),
        kind: type[Message] | None = None,
        numbers: Sequence[int] = (),
    ) -> None:
        self.rng = rng
        self.numbers = [*numbers, *_INTS64]
        self.words = [*words, "", "x", "x" * 129, "\U0001f600\u0301", "\0", "-1", "1e999", "null"]
        self.kind = kind

    def bend(self, data: bytes, other: bytes) -> bytes:
        """Another input, made from one and a piece of another."""
        rng = self.rng
        for _ in range(1 + int(rng.expovariate(0.7))):
            if self.kind is not None and rng.random() < 0.6:
                data = self._field(data)
            else:
                data = self._bytes(data, other)
        return data[:LONGEST]

    def _bytes(self, data: bytes, other: bytes) -> bytes:
        rng = self.rng
        at = rng.randint(0, len(data))
        to = min(len(data), at + 1 + int(rng.expovariate(0.2)))
        match rng.randrange(9):
            case 0:
                return data[:at] + data[to:]
            case 1:
                return data[:at]
            case 2:
                return data[:to] + data[at:]
            case 3:
                return data[:at] + rng.randbytes(rng.randint(1, 8)) + data[to:]
            case 4:
                start = rng.randint(0, len(other))
                return data[:at] + other[start : start + rng.randint(1, 32)] + data[at:]
            case 5:
                return data[:at] + rng.choice(_PIECES) + data[at:]
            case 6:
                return data[:at] + rng.choice(self.words).encode() + data[to:]
            case 7 if at < len(data):
                return data[:at] + bytes((data[at] ^ 1 << rng.randrange(8),)) + data[at + 1 :]
            case _ if at < len(data):
                return data[:at] + bytes((rng.randrange(256),)) + data[at + 1 :]
        return data

    def _field(self, data: bytes) -> bytes:
        assert self.kind is not None
        message = self.kind()
        try:
            message.ParseFromString(data)
        except DecodeError:
            return data
        self.change(message)
        return message.SerializeToString()

    def change(self, message: Message, depth: int = 0) -> None:
        """Set, add, clear or change one field, here or further in."""
        rng = self.rng
        held = [
            one
            for one, _ in message.ListFields()
            if one.message_type is not None and not one.message_type.GetOptions().map_entry
        ]
        if held and depth < _DEEP and rng.random() < 0.7:
            inner = getattr(message, rng.choice(held).name)
            if not isinstance(inner, Message):
                inner = rng.choice(inner)
            self.change(inner, depth + 1)
            return
        fields = cast(Sequence[FieldDescriptor], message.DESCRIPTOR.fields)
        if not fields:
            return
        one = rng.choice(fields)
        if rng.random() < 0.15:
            message.ClearField(one.name)
        elif one.message_type is not None:
            if one.message_type.GetOptions().map_entry:
                return
            value = getattr(message, one.name)
            if one.is_repeated:
                added = value.add()
                if len(value) > 1 and rng.random() < 0.5:
                    added.CopyFrom(rng.choice(value[:-1]))
                    return
                value = added
            else:
                value.SetInParent()
            if depth < _DEEP:
                self.change(value, depth + 1)
        elif one.is_repeated:
            getattr(message, one.name).append(self._scalar(one))
        else:
            setattr(message, one.name, self._scalar(one))

    def _scalar(self, one: FieldDescriptor) -> object:
        rng = self.rng
        if one.enum_type is not None:
            return rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 77, -1))
        kind = one.cpp_type
        if kind in _BITS:
            low, high = _BITS[kind]
            value = rng.choice((rng.randint(0, 80), rng.choice(self.numbers)))
            value = value if low == 0 or rng.random() < 0.7 else -value
            return max(low, min(high, value))
        if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
            return rng.choice(_FLOATS)
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            return rng.random() < 0.5
        if one.type == FieldDescriptor.TYPE_BYTES:
            return rng.randbytes(rng.choice((0, 1, 32)))
        return rng.choice(self.words)


@dataclass
class Report:
    """What came out.

    Attributes:
        executions: How many inputs were run.
        seconds: How long that took.
        signatures: How often each came out.
    """

    executions: int = 0
    seconds: float = 0
    signatures: Counter[object] = field(default_factory=Counter)

    def __str__(self) -> str:
        speed = self.executions / max(self.seconds, 1e-9)
        return (
            f"{self.executions} executions, {speed:.0f} a second, "
            f"{len(self.signatures)} different outcomes"
        )


class FoundError(AssertionError):
    """An input did what no input may do."""


def fuzz(
    execute: Callable[[bytes], object],
    bend: Callable[[bytes, bytes], bytes],
    seeds: Sequence[bytes],
    executions: int,
    rng: random.Random,
    again: Callable[[], None] = lambda: None,
) -> Report:
    """Run inputs: each seed as it is, and then what can be bent from them.

    Args:
        execute: Runs an input, returns its signature, raises what must not be.
        bend: Makes an input from one and a piece of another.
        seeds: To begin with.
        executions: How many.
        rng: Chooses.
        again: Called before each block of inputs, to begin afresh.

    Raises:
        FoundError: Names the input, and those before it in its block.
    """
    report = Report()
    pool = list(seeds)
    block: list[bytes] = []
    began = time.perf_counter()
    for number in range(executions):
        if number % BLOCK == 0:
            block = []
            again()
        known = number < len(seeds)
        data = seeds[number] if known else bend(rng.choice(pool), rng.choice(pool))
        block.append(data)
        try:
            signature = execute(data)
        except Exception as error:
            raise FoundError(
                f"input {number}, {data.hex()}, led to {error!r}; "
                f"before it came {[one.hex() for one in block[:-1]]}"
            ) from error
        if signature not in report.signatures and not known:
            if len(pool) < POOL:
                pool.append(data)
            else:
                pool[rng.randrange(len(seeds), POOL)] = data
        report.signatures[signature] += 1
    again()
    report.executions, report.seconds = executions, time.perf_counter() - began
    return report
