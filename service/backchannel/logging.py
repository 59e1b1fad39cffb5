"""The service's own log: structured, to standard error. Never what people or models say.

Code says `structlog.get_logger(__name__).info("event_name", key=value)`. What libraries say by the
standard `logging` ends up in the same stream in the same shape, if it is a warning or worse; what
they were given stays out of it.

An exception is logged with its type and traceback, but without local variables and without its
message, since messages of libraries quote what they were given.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import traceback
import types
from collections.abc import Iterable
from enum import StrEnum
from typing import Final, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from backchannel.errors import BackchannelError

# Loggers of this name and below are ours, and so is what they are given.
_OURS: Final = "backchannel"
_HIDDEN: Final = "…"
# Marks a library's line that stands in its code as it is, with nothing put into it.
_LITERAL: Final = "is_literal"
_CREDENTIALS: Final = re.compile(r"(?P<scheme>[a-zA-Z][\w+.-]*://)[^\s/?#@\"']*@")
_QUERY: Final = re.compile(r"(?P<url>[a-zA-Z][\w+.-]*://[^\s?#\"']*)[?#][^\s\"']*")

_logger = structlog.get_logger(__name__)


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
        add_trace,
        describe_exception,
        hide_credentials,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(colors=stream.isatty())
        if pretty
        else structlog.processors.JSONRenderer(sort_keys=True, ensure_ascii=False)
    )
    handler = logging.StreamHandler(stream)
    handler.addFilter(_is_for_us)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[hide_arguments, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
            use_get_message=False,
            pass_foreign_args=True,
        )
    )
    # Where a line cannot be written, the standard library would print it with the exception that is
    # being handled, in whose message may stand what somebody said.
    logging.raiseExceptions = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def change_level(level: LogLevel) -> None:
    """Write more, or less, from now on."""
    root = logging.getLogger()
    if root.level != logging.getLevelName(level.upper()):
        root.setLevel(level.upper())
        # At any level: whoever reads the log must know what it leaves out.
        _logger.log(max(root.level, logging.INFO), "log_level_changed", to=level.value)


def catch_what_escapes() -> None:
    """Log what Python would print of exceptions that nobody has caught, messages and all.

    Only programs that serve call this.
    """

    def escaped(where: str, error: BaseException | None) -> None:
        if error is not None and not isinstance(error, KeyboardInterrupt):
            _logger.critical("exception_escaped", where=where, exc_info=error)

    def of_program(
        kind: type[BaseException], error: BaseException, trace: types.TracebackType | None
    ) -> None:
        escaped("program", error)

    def of_thread(args: threading.ExceptHookArgs) -> None:
        escaped("thread", args.exc_value)

    def of_nowhere(args: sys.UnraisableHookArgs) -> None:
        escaped("nowhere", args.exc_value)

    sys.excepthook, threading.excepthook, sys.unraisablehook = of_program, of_thread, of_nowhere


def add_trace(logger: WrappedLogger, method_name: str, event_dict: EventDict) -> EventDict:
    """Add the ids of the trace and span that this belongs to, as OpenTelemetry writes them.

    (https://opentelemetry.io/docs/specs/otel/compatibility/logging_trace_context/) Where nothing is
    traced, OpenTelemetry is not even loaded.
    """
    for name, value in trace_ids().items():
        event_dict.setdefault(name, value)
    return event_dict


def trace_ids() -> dict[str, str]:
    """`trace_id` and `span_id` of the present work, in hexadecimal; empty if it is not traced."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return {}
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


def hide_arguments(logger: WrappedLogger, method_name: str, event_dict: EventDict) -> EventDict:
    """Take a library's word for what happened, and leave out what it happened to.

    Libraries log what they were given, and some of it is what people say: a request, the repr of an
    object, the message of an exception. What stands in their code stays, and numbers. Of a line
    that they have put together themselves nobody can tell what is theirs; it says where it comes
    from.
    """
    arguments = event_dict.pop("positional_args", None)
    template = str(event_dict["event"])
    record: logging.LogRecord = event_dict["_record"]
    if record.name.partition(".")[0] == _OURS:
        event_dict["event"] = _filled(template, arguments)
        return event_dict
    if arguments:
        event_dict["event"] = _filled(template, _harmless(arguments))
    elif not getattr(record, _LITERAL, False):
        event_dict["event"] = _before_values(template) if record.name == "asyncio" else _HIDDEN
    event_dict["where"] = f"{record.module}:{record.lineno}"
    return event_dict


def hide_credentials(logger: WrappedLogger, method_name: str, event_dict: EventDict) -> EventDict:
    """Leave out what an address may carry beside the place: a name, a password, a key."""
    for name, value in event_dict.items():
        if isinstance(value, str) and "://" in value:
            without = _CREDENTIALS.sub(rf"\g<scheme>{_HIDDEN}@", value)
            event_dict[name] = _QUERY.sub(rf"\g<url>?{_HIDDEN}", without)
    return event_dict


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


def _is_for_us(record: logging.LogRecord) -> bool:
    """Whether a line is worth writing: all of ours, and of libraries what is wrong.

    What they say beside that is about their own work, and full of what they work with.
    """
    # By structlog ours speak, and engines of others.
    if isinstance(record.msg, dict) or record.name.partition(".")[0] == _OURS:
        return True
    if record.levelno < logging.WARNING:
        return False
    setattr(record, _LITERAL, not record.args and _is_literal(record))
    return True


def _is_literal(record: logging.LogRecord) -> bool:
    """Whether the line is a constant of the function that says it, which is still running."""
    for frame, _ in traceback.walk_stack(None):
        code = frame.f_code
        if (code.co_filename, code.co_name) == (record.pathname, record.funcName):
            return record.msg in code.co_consts
    return False


def _before_values(text: str) -> str:
    """What asyncio says, up to the first object: it adds all that it knows of a task."""
    return re.split(r"[\n(<\['\"]", text, maxsplit=1)[0].strip()


def _harmless(arguments: object) -> object:
    if isinstance(arguments, dict):
        return {name: _hidden(value) for name, value in arguments.items()}
    return tuple(map(_hidden, arguments)) if isinstance(arguments, Iterable) else ()


def _hidden(value: object) -> object:
    """Numbers stay, and what kind an exception is of."""
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, BaseException):
        return type(value).__name__
    return _HIDDEN


def _filled(template: str, arguments: object) -> str:
    if not arguments:
        return template
    try:
        return template % arguments
    except (TypeError, ValueError, KeyError):
        return template
