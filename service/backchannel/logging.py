"""The service's own log: structured, to standard error. Never what people or models say.

Code says `structlog.get_logger(__name__).info("event_name", key=value)`; libraries that use the
standard `logging` end up in the same stream in the same shape.

An exception is logged with its type and traceback, but without local variables and without its
message, since messages of libraries quote what they were given.
"""

from __future__ import annotations

import logging
import sys
import traceback
from enum import StrEnum
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from backchannel.errors import BackchannelError


class LogFormat(StrEnum):
    """How lines look."""

    AUTO = "auto"
    """For people on a terminal, JSON anywhere else."""
    JSON = "json"
    PRETTY = "pretty"


class LogLevel(StrEnum):
    """Which lines are written: these and worse ones."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def configure(
    level: LogLevel = LogLevel.INFO,
    log_format: LogFormat = LogFormat.AUTO,
    stream: TextIO | None = None,
) -> None:
    """Set up logging for the whole process. Only programs call this, never library code.

    Args:
        level: What is written.
        log_format: How it is written.
        stream: Where to; standard error if None.
    """
    stream = stream or sys.stderr
    pretty = log_format is LogFormat.PRETTY or (log_format is LogFormat.AUTO and stream.isatty())
    # Each line passes these, whether it comes from structlog or from `logging`.
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        describe_exception,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(colors=stream.isatty())
        if pretty
        else structlog.processors.JSONRenderer(sort_keys=True)
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    # Where a line cannot be written, the standard library would print it with the exception that is
    # being handled, in whose message may stand what somebody said.
    logging.raiseExceptions = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def describe_exception(logger: WrappedLogger, method_name: str, event_dict: EventDict) -> EventDict:
    """Replace `exc_info` by `exception`: type and traceback, but nobody's words."""
    error = _exception(event_dict.pop("exc_info", None))
    if error is not None:
        event_dict["exception"] = described(error)
    return event_dict


def described(error: BaseException) -> str:
    """An exception and its causes as text; messages only of `BackchannelError`s.

    Those promise not to quote prompts or answers; other exceptions promise nothing.
    """
    parts: list[str] = []
    seen: set[int] = set()
    pending: BaseException | None = error
    while pending is not None and id(pending) not in seen:
        seen.add(id(pending))
        name = f"{type(pending).__module__}.{type(pending).__qualname__}"
        if isinstance(pending, BackchannelError):
            name += f": {pending.reason}: {pending.message}"
        parts.append("".join(traceback.format_tb(pending.__traceback__)) + name)
        if isinstance(pending, BaseExceptionGroup):
            parts.extend(described(inner) for inner in pending.exceptions)
        pending = pending.__cause__ or (
            None if pending.__suppress_context__ else pending.__context__
        )
    return "\nafter:\n".join(parts)


def _exception(value: object) -> BaseException | None:
    """The exception in what `exc_info=` may be: one, a triple, or True for the current one."""
    if isinstance(value, BaseException):
        return value
    if isinstance(value, tuple):
        return value[1] if len(value) == 3 and isinstance(value[1], BaseException) else None
    return sys.exc_info()[1] if value else None
