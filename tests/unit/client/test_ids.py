"""Ids that clients choose can be given to a command as they are."""

import secrets

import pytest

from backchannel.client.outbox import new_id


def test_no_id_looks_like_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    made = iter(["-gIglCMRxAeyKDcilGN8ca_cgt1WmOvq", "--zTq0pPvA34ruvLktDj__rSsutGiJ35", "kept"])
    monkeypatch.setattr(secrets, "token_urlsafe", lambda _: next(made))
    assert new_id() == "kept"
