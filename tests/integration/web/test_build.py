"""The page that is checked in is the one that gateway/web builds to, and it is small."""

from __future__ import annotations

import pytest

from scripts import web

pytestmark = [pytest.mark.needs("node", "web"), pytest.mark.timeout(240)]


def test_the_clients_stubs_are_those_of_the_contract(capsys):
    assert web.check_stubs(), capsys.readouterr().out


def test_the_types_hold_and_the_client_builds_as_a_package(capfd):
    assert web.check_types(), capfd.readouterr().out


def test_the_unit_tests_of_client_and_page_pass(capfd):
    assert web.check_units(), capfd.readouterr().out


def test_the_page_checked_in_is_the_one_that_is_built(capfd):
    assert web.check_page(), capfd.readouterr().out
