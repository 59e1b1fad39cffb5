"""The log: JSON for programs, and nobody's words in it."""

from __future__ import annotations

import io
import json
import logging as standard

import pytest
import structlog

from backchannel import logging
from backchannel.errors import BackchannelError, Reason

SECRET = "what the person said"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_json_unless_somebody_watches() -> None:
    stream = io.StringIO()
    logging.configure(stream=stream)
    structlog.get_logger("here").info("happened", count=3)
    line = json.loads(stream.getvalue())
    assert (line["event"], line["count"], line["level"], line["logger"]) == (
        "happened",
        3,
        "info",
        "here",
    )
    assert line["timestamp"].endswith("Z")


def test_pretty_on_a_terminal() -> None:
    stream = Terminal()
    logging.configure(stream=stream)
    structlog.get_logger("here").info("happened", count=3)
    assert "happened" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


def test_levels_and_libraries() -> None:
    stream = io.StringIO()
    logging.configure(logging.LogLevel.WARNING, logging.LogFormat.JSON, stream)
    structlog.get_logger("here").info("not shown")
    standard.getLogger("library").info("not shown")
    standard.getLogger("library").warning("disk %s is full", "one")
    [line] = stream.getvalue().splitlines()
    assert json.loads(line)["event"] == "disk one is full"


@pytest.mark.parametrize("log_format", list(logging.LogFormat))
def test_exceptions_without_their_words(log_format: logging.LogFormat) -> None:
    stream = io.StringIO()
    logging.configure(log_format=log_format, stream=stream)

    def inner(prompt: str) -> None:
        raise ValueError(prompt)

    try:
        try:
            inner(SECRET)
        except ValueError as error:
            raise ExceptionGroup(SECRET, [KeyError(SECRET)]) from error
    except ExceptionGroup:
        structlog.get_logger("here").exception("failed")
        standard.getLogger("library").exception("failed")
    text = stream.getvalue()
    assert SECRET not in text
    assert text.count("builtins.ValueError") == 2
    assert text.count("builtins.KeyError") == 2
    assert "in inner" in text


def test_our_own_errors_keep_theirs() -> None:
    error = BackchannelError(Reason.LOG_UNAVAILABLE, "the disk is full; make room")
    assert "LOG_UNAVAILABLE: the disk is full; make room" in logging.described(error)


def test_a_log_that_cannot_be_written_says_nothing_elsewhere(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stream = io.StringIO()
    logging.configure(stream=stream)
    stream.close()
    try:
        raise ValueError(SECRET)
    except ValueError:
        structlog.get_logger("backchannel.test").error("broke")
    assert SECRET not in "".join(capsys.readouterr())
