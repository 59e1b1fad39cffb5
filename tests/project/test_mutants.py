"""The list of planted bugs fits the code, so that the full run finds each where it says."""

from __future__ import annotations

from scripts import mutants


def test_each_planted_bug_has_its_place() -> None:
    # Raises for one whose place is not there, or not there alone.
    listed = mutants.mutants()
    assert len({mutant.breaks for mutant in listed}) == len(listed) >= 30


def test_each_planted_bug_names_tests_that_there_are() -> None:
    named = {test.partition("::")[0] for mutant in mutants.mutants() for test in mutant.tests}
    assert [test for test in named if not (mutants.ROOT / test).exists()] == []
