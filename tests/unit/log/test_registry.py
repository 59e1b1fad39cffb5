"""From URLs to logs."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from backchannel.errors import BackchannelError, Reason
from backchannel.log import registry
from backchannel.log.memory import MemoryLog
from backchannel.log.registry import known_logs, open_log
from backchannel.log.sqlite import SqliteLog


def test_memory() -> None:
    assert isinstance(open_log("memory"), MemoryLog)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///var/lib/log.db", "/var/lib/log.db"),
        ("sqlite:////var/lib/log.db", "/var/lib/log.db"),
        ("sqlite:///var/with%20space/a%3Fb%25.db", "/var/with space/a?b%.db"),
        ("sqlite:///~/log.db", "/srv/somebody/log.db"),
        ("sqlite://~/log.db", "/srv/somebody/log.db"),
    ],
)
def test_sqlite(url: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/srv/somebody")
    log = open_log(url)
    assert isinstance(log, SqliteLog)
    assert log.address == path


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("", "there are: memory, sqlite:///absolute/path"),
        ("redis://localhost", "there are: memory, sqlite:///absolute/path"),
        ("/var/lib/log.db", "there are: memory"),
        ("memory://here", "write `memory` alone"),
        ("sqlite:", "name a file"),
        ("sqlite:///", "name a file"),
        ("sqlite:///:memory:", "write `memory`"),
        ("sqlite:///var/lib/", "not a folder"),
        ("sqlite:///a%00b", "not a folder"),
        ("sqlite://log.db", "write sqlite:///"),
        ("sqlite:log.db", "write sqlite:///"),
        ("sqlite:/var/log.db", "write sqlite:///var/log.db"),
        ("sqlite:///a.db?mode=ro", "takes no options"),
        ("sqlite:///~nobody-at-all/log.db", "write the whole path"),
    ],
)
def test_a_wrong_url_is_told_what_would_be_right(url: str, remedy: str) -> None:
    with pytest.raises(BackchannelError) as caught:
        open_log(url)
    assert caught.value.reason is Reason.FIELD_INVALID
    assert caught.value.field == "log"
    assert remedy in caught.value.message


def test_a_relative_path_is_told_what_it_would_be_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BackchannelError, match=f"sqlite://{tmp_path}/data/log.db"):
        open_log("sqlite://data/log.db")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three installed logs: one that works, one that is broken, one that claims a built-in name."""
    here = sys.modules[__name__].__name__
    found = EntryPoints(
        EntryPoint(name, value, registry.GROUP)
        for name, value in [
            ("paper", f"{here}:open_paper"),
            ("torn", f"{here}:no_such_thing"),
            ("memory", f"{here}:open_paper"),
        ]
    )

    def entry_points(**parameters: Any) -> EntryPoints:
        return found.select(**parameters)

    monkeypatch.setattr(registry, "entry_points", entry_points)


class PaperLog(MemoryLog):
    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url


def open_paper(url: str) -> PaperLog:
    if url == "paper:wet":
        raise BackchannelError(Reason.FIELD_INVALID, "dry it", field="log")
    return PaperLog(url)


@pytest.mark.usefixtures("installed")
def test_an_installed_log_is_opened_by_its_scheme() -> None:
    log = open_log("paper://shelf/3")
    assert isinstance(log, PaperLog)
    assert log.url == "paper://shelf/3"
    assert known_logs() == ["memory", "sqlite:///absolute/path", "paper:…", "torn:…"]
    with pytest.raises(BackchannelError, match="dry it"):
        open_log("paper:wet")


@pytest.mark.usefixtures("installed")
def test_an_installed_log_that_does_not_load_is_told() -> None:
    with pytest.raises(BackchannelError, match="no_such_thing") as caught:
        open_log("torn:x")
    assert caught.value.reason is Reason.FIELD_INVALID


@pytest.mark.usefixtures("installed")
def test_a_built_in_name_stays_what_it_is() -> None:
    assert type(open_log("memory")) is MemoryLog
