"""The data that the house model learns from, and the file that is shipped."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRAINING = ROOT / "training"
SHIPPED = ROOT / "service" / "backchannel" / "engines" / "models" / "house.gguf"


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a module of the training folder, and forgets them all afterwards."""
    monkeypatch.syspath_prepend(str(TRAINING))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        module_file = getattr(sys.modules[name], "__file__", None) or ""
        if module_file.startswith(str(TRAINING)):
            del sys.modules[name]


def test_a_conversation_is_a_function_of_its_seed(training: Any) -> None:
    dialogue = training("dialogue")
    first = dialogue.conversation("1/7").messages
    assert first == dialogue.conversation("1/7").messages
    assert first != dialogue.conversation("1/8").messages


def test_every_call_has_one_result_and_the_roles_alternate(training: Any) -> None:
    dialogue = training("dialogue")
    calls = 0
    for n in range(400):
        open_calls = 0
        before = ""
        for message in dialogue.conversation(f"test/{n}").messages:
            role = message["role"]
            if role == "tool":
                open_calls -= 1
                assert open_calls >= 0
            else:
                assert open_calls == 0
                assert role != before
            open_calls += len(message.get("tool_calls", ()))
            calls += len(message.get("tool_calls", ()))
            before = role
        assert open_calls == 0
    assert calls > 100


def test_unseen_wordings_are_not_trained_on(training: Any) -> None:
    dialogue, knowledge = training("dialogue"), training("knowledge")
    unseen = {
        wording.lower().rstrip("?.!") for topic in knowledge.TOPICS for wording in topic.unseen
    }
    said = [
        message["content"].lower().rstrip("?.!")
        for n in range(1500)
        for message in dialogue.conversation(f"1/{n}").messages
        if message["role"] == "user"
    ]
    assert len(said) > 3000
    assert not unseen & set(said)


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("12*7", Fraction(84)),
        ("2+3*4", Fraction(14)),
        ("(2+3)*4", Fraction(20)),
        ("7-2-1", Fraction(4)),
        ("-4+1.5", Fraction(-5, 2)),
        ("8/4/2", Fraction(1)),
        ("1/0", None),
    ],
)
def test_the_sums_are_right(training: Any, expression: str, result: Fraction | None) -> None:
    assert training("sums").value(expression) == result


def test_a_question_holds_the_numbers_of_its_expression(training: Any) -> None:
    sums = training("sums")
    rng = Random(4)
    seen = 0
    for _ in range(300):
        prompt, expression = sums.question(rng, unseen=True)
        digits = "".join(c for c in prompt if c.isdigit())
        assert digits == "".join(c for c in expression if c.isdigit())
        seen += 1
    assert seen == 300


def test_the_shipped_model_is_a_small_gguf() -> None:
    assert SHIPPED.stat().st_size <= 6_000_000
    assert SHIPPED.read_bytes()[:4] == b"GGUF"
