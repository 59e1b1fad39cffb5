"""The log: JSON for programs, and nobody's words in it."""

from __future__ import annotations

import asyncio
import io
import json
import logging as standard
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider

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
    standard.getLogger("library").warning("disk %d is full", 1)
    [line] = stream.getvalue().splitlines()
    assert json.loads(line)["event"] == "disk 1 is full"


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


# --- libraries -------------------------------------------------------------------------------


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("template", "arguments", "told"),
    [
        ("retrying %s in %.1fs", (SECRET, 2.5), "retrying … in 2.5s"),
        ("%(url)s answered %(code)d", ({"url": SECRET, "code": 404},), "… answered 404"),
        ("failed: %s", (ValueError(SECRET),), "failed: ValueError"),
        ("failed: %r", ([SECRET],), "failed: '…'"),
        ("100 %, yes", (SECRET,), "100 %, yes"),
        (f"what happened: {SECRET}", (), "…"),
    ],
)
def test_what_a_library_was_given_stays_out(
    template: str, arguments: tuple[object, ...], told: str
) -> None:
    stream = io.StringIO()
    logging.configure(stream=stream)
    standard.getLogger("library.part").warning(template, *arguments)
    (line,) = lines(stream)
    assert line["event"] == told
    assert line["where"].startswith("test_logging:")
    assert SECRET not in stream.getvalue()


def test_what_stands_in_a_librarys_code_stays() -> None:
    stream = io.StringIO()
    logging.configure(stream=stream)
    standard.getLogger("library").warning("the disk is full")
    assert lines(stream)[0]["event"] == "the disk is full"


def test_what_a_library_tells_of_its_work_stays_out_at_any_level() -> None:
    stream = io.StringIO()
    logging.configure(logging.LogLevel.DEBUG, stream=stream)
    standard.getLogger("httpcore.http11").debug("send_request_headers")
    standard.getLogger("httpx").info("HTTP Request: POST")
    standard.getLogger("backchannel.part").debug("moved %s", "wal")
    structlog.get_logger("an.engine").debug("looked")
    assert [line["event"] for line in lines(stream)] == ["moved wal", "looked"]


def test_a_task_that_nobody_awaited_says_only_that(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stream = io.StringIO()
    logging.configure(stream=stream)

    async def forget() -> None:
        async def fail() -> None:
            raise ValueError(SECRET)

        task = asyncio.ensure_future(fail())
        await asyncio.wait([task])
        del task

    asyncio.run(forget())
    (line,) = lines(stream)
    assert line["event"] == "Task exception was never retrieved"
    assert "builtins.ValueError" in line["exception"]
    assert SECRET not in stream.getvalue() + "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("http://ann:pw@host:80/v1 is down", "http://…@host:80/v1 is down"),
        ("https://host/v1?key=abc&b=c, again", "https://host/v1?… again"),
        ("sqlite:////var/log.db", "sqlite:////var/log.db"),
        ('see "https://token@host/x#part"', 'see "https://…@host/x?…"'),
        ("redis://:pw@host/0", "redis://…@host/0"),
    ],
)
def test_addresses_leave_their_credentials_out(said: str, told: str) -> None:
    stream = io.StringIO()
    logging.configure(stream=stream)
    structlog.get_logger("here").info("asked", address=said)
    assert lines(stream)[0]["address"] == told


@pytest.fixture
def hooks() -> Iterator[None]:
    before = sys.excepthook, threading.excepthook, sys.unraisablehook
    yield
    sys.excepthook, threading.excepthook, sys.unraisablehook = before


@pytest.mark.usefixtures("hooks")
def test_what_nobody_catches_is_logged_without_its_words(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stream = io.StringIO()
    logging.configure(stream=stream)
    logging.catch_what_escapes()

    def fail() -> None:
        raise ValueError(SECRET)

    class Careless:
        def __del__(self) -> None:
            raise ValueError(SECRET)

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    Careless()
    try:
        fail()
    except ValueError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    told = lines(stream)
    assert [line["where"] for line in told] == ["thread", "nowhere", "program"]
    assert all("ValueError" in line["exception"] for line in told)
    assert SECRET not in stream.getvalue() + "".join(capsys.readouterr())


# --- levels and traces -----------------------------------------------------------------------


def test_the_level_changes_while_it_runs() -> None:
    stream = io.StringIO()
    logging.configure(logging.LogLevel.WARNING, stream=stream)
    log = structlog.get_logger("backchannel.part")
    log.debug("before")
    logging.change_level(logging.LogLevel.DEBUG)
    logging.change_level(logging.LogLevel.DEBUG)
    log.debug("while")
    logging.change_level(logging.LogLevel.ERROR)
    log.warning("after")
    told = [(line["event"], line.get("to")) for line in lines(stream)]
    assert told == [
        ("log_level_changed", "debug"),
        ("while", None),
        ("log_level_changed", "error"),
    ]


def test_lines_bear_the_ids_of_their_trace() -> None:
    stream = io.StringIO()
    logging.configure(stream=stream)
    log = structlog.get_logger("here")
    with TracerProvider().get_tracer("test").start_as_current_span("work") as span:
        log.info("inside")
        standard.getLogger("library").warning("inside, too")
        log.info("told", trace_id="another", span_id="yet another")
    log.info("outside")
    inside, library, told, outside = lines(stream)
    context = span.get_span_context()
    ids = {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
    assert inside.items() >= ids.items()
    assert library.items() >= ids.items()
    assert told["trace_id"] == "another"
    assert "trace_id" not in outside


def test_nothing_of_opentelemetry_is_loaded_for_a_line() -> None:
    program = (
        "import sys, structlog; from backchannel import logging; logging.configure()\n"
        "structlog.get_logger('here').info('said')\n"
        "assert not any(name.startswith('opentelemetry') for name in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
