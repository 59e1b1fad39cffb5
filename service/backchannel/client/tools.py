"""Tools: Python functions that a model may call.

`@tool` turns a function into a `Tool`: its name, its docstring and its type hints become the
ToolSpec that the model is shown, and the arguments of a call are checked against those hints before
the function sees them.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import re
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, cast, get_type_hints, overload

import pydantic
from google.protobuf.duration_pb2 import Duration
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import CoreSchema, PydanticSerializationError, to_json

from backchannel.client.errors import ToolFailedError
from backchannel.v1.session_pb2 import (
    Content,
    Part,
    Scheduling,
    SideEffect,
    ToolDisposition,
    ToolError,
    ToolResult,
    ToolSpec,
)

_MAX_ERROR_BYTES: Final = 8 * 1024
_MAX_CODE_BYTES: Final = 128
_SECTION: Final = re.compile(
    r"^(Args|Arguments|Returns|Raises|Yields|Examples?|Attributes|Notes?):"
)


class Reporter(Protocol):
    """Where progress goes."""

    def __call__(self, fraction: float | None, note: str) -> None:
        """Send it."""


@dataclass(frozen=True, slots=True)
class ToolContext:
    """The call that a tool is run for. A parameter annotated with it is filled in, not declared.

    Attributes:
        call_id: Unique within the session; the same if the call is run again after a crash.
        name: The tool.
        cancelled: Set when the call was cancelled or timed out. An async tool gets a
            `CancelledError` too; a sync one runs in a thread, which nobody can stop, and should
            look here now and then.
    """

    call_id: str
    name: str
    _report: Reporter
    cancelled: threading.Event = field(default_factory=threading.Event)

    def progress(self, fraction: float | None = None, note: str = "") -> None:
        """Say that the tool is alive, which moves the call's idle deadline. Never waits.

        Args:
            fraction: 0 to 1; None if the tool can't tell.
            note: For people. At most 1 KiB.
        """
        self._report(fraction, note)


class Deliver(Protocol):
    """Where parts of a result go."""

    async def __call__(self, part: ToolResult, /) -> None:
        """Send it; returns when it is in the log."""


@dataclass(frozen=True, slots=True)
class Scheduled:
    """What a tool returns to choose, for this one result, when the model is told.

    Only for calls that their turn does not wait for: of tools with ``blocking=False``, and those
    that a stop let finish.

    Attributes:
        value: The result itself.
        scheduling: SCHEDULING_WHEN_IDLE, _INTERRUPT or _SILENT.
    """

    value: object
    scheduling: Scheduling.ValueType


class Tool:
    """A function with what a model must know to call it. Made by `@tool`; still callable.

    Attributes:
        spec: What the server is told.
        scheduling: When the model is told a result that its turn did not wait for, unless the
            result is a `Scheduled`.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        spec: ToolSpec,
        parameters: _Parameters,
        scheduling: Scheduling.ValueType,
    ) -> None:
        self.spec = spec
        self.scheduling = scheduling
        self._function = function
        self._parameters = parameters
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself."""
        return self._function(*args, **kwargs)

    async def run(
        self, arguments_json: str, context: ToolContext, deliver: Deliver | None = None
    ) -> ToolResult:
        """Check the arguments, run the function, and turn what comes of it into a result.

        Never raises for what the arguments or the function do wrong: that is a result too.

        Args:
            arguments_json: As the model wrote them.
            context: The call.
            deliver: Where the parts go that a generator yields before its last. What it raises is
                raised. None: a generator's parts are gone.
        """
        try:
            arguments = self._parameters.read(arguments_json)
        except pydantic.ValidationError as error:
            return self._failed(_faults(error), "INVALID_ARGUMENTS", context)
        if self._parameters.context is not None:
            arguments[self._parameters.context] = context
        parts = _Parts(context.call_id, self.scheduling, deliver)
        try:
            if inspect.isasyncgenfunction(self._function):
                return await parts.collect(self._function(**arguments))
            if inspect.isgeneratorfunction(self._function):
                return await parts.collect(_threaded(self._function(**arguments)))
            if inspect.iscoroutinefunction(self._function):
                value = await cast("Awaitable[object]", self._function(**arguments))
            else:
                value = await asyncio.to_thread(self._function, **arguments)
            return parts.result(value)
        except ToolFailedError as failure:
            return self._failed(failure.message, failure.code, context)
        except PydanticSerializationError:
            said = f"{context.name} returned what is not JSON"
            return self._failed(said, "INVALID_RESULT", context)
        except _UndeliveredError as undelivered:
            raise undelivered.error from None
        except Exception as error:  # noqa: BLE001 (whatever a tool raises, the model must be told)
            return self._failed(f"{type(error).__name__}: {error}", "EXCEPTION", context)

    def _failed(self, message: str, code: str, context: ToolContext) -> ToolResult:
        error = ToolError(
            message=_cut(message or f"{context.name} failed", _MAX_ERROR_BYTES),
            code=_cut(code, _MAX_CODE_BYTES),
        )
        return ToolResult(call_id=context.call_id, error=error, scheduling=self.scheduling)


class _UndeliveredError(Exception):
    """A part could not be sent, which is not the tool's doing."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class _Parts:
    """What a tool returns or yields, as results.

    The server wants to be told with the last part that it is the last. Text is laid end to end, so
    it can be sent at once, with an empty part to end it; anything else becomes an item of a list
    and is held until it is known whether more comes.
    """

    def __init__(
        self, call_id: str, scheduling: Scheduling.ValueType, deliver: Deliver | None
    ) -> None:
        self._call_id = call_id
        self._scheduling = scheduling
        self._deliver = deliver

    def result(self, value: object) -> ToolResult:
        """One value. Raises pydantic's PydanticSerializationError."""
        if isinstance(value, Scheduled):
            self._scheduling = value.scheduling
            value = value.value
        result = ToolResult(call_id=self._call_id, scheduling=self._scheduling)
        if isinstance(value, Content):
            result.content.CopyFrom(value)
        else:
            result.json = to_json(value, inf_nan_mode="null").decode()
        return result

    async def collect(self, values: AsyncGenerator[object, None]) -> ToolResult:
        """All values that are yielded: the last part, with those before it delivered."""
        held: ToolResult | None = None
        texts = True
        async with aclosing(values):
            async for value in values:
                text = Content(parts=[Part(text=value)]) if isinstance(value, str) else value
                part = self.result(text)
                texts = texts and part.HasField("content")
                if texts:
                    await self._send(part)
                else:
                    if held is not None:
                        await self._send(held)
                    held = part
        if held is not None:
            return held
        last = ToolResult(call_id=self._call_id, scheduling=self._scheduling)
        last.content.SetInParent()
        return last

    async def _send(self, part: ToolResult) -> None:
        if self._deliver is None:
            return
        sent = ToolResult()
        sent.CopyFrom(part)
        sent.partial = True
        try:
            await self._deliver(sent)
        except Exception as error:
            raise _UndeliveredError(error) from error


async def _threaded(values: Generator[object, None, None]) -> AsyncGenerator[object, None]:
    """A generator's values, each made in a thread."""
    end = object()
    while (value := await asyncio.to_thread(next, values, end)) is not end:
        yield value


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...


@overload
def tool(
    *,
    name: str = ...,
    description: str = ...,
    idle_timeout_s: float | None = ...,
    timeout_s: float | None = ...,
    blocking: bool = ...,
    scheduling: Scheduling.ValueType = ...,
    side_effect: SideEffect.ValueType = ...,
    on_interrupt: ToolDisposition.ValueType = ...,
) -> Callable[[Callable[..., Any]], Tool]: ...


def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str = "",
    description: str = "",
    idle_timeout_s: float | None = None,
    timeout_s: float | None = None,
    blocking: bool = True,
    scheduling: Scheduling.ValueType = Scheduling.SCHEDULING_UNSPECIFIED,
    side_effect: SideEffect.ValueType = SideEffect.SIDE_EFFECT_UNSPECIFIED,
    on_interrupt: ToolDisposition.ValueType = ToolDisposition.TOOL_DISPOSITION_UNSPECIFIED,
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a function a tool: ``@tool`` or ``@tool(timeout_s=10)``.

    An async function runs on the event loop, any other in a thread. What it returns is sent as
    JSON, what it raises as a `ToolError`. A generator sends its result in parts: text at once, laid
    end to end; other values as the items of a list, each when the next has come.

    Args:
        function: The function. Every parameter can be given by name; its hints are what pydantic
            understands; a Google-style ``Args:`` section describes them.
        name: As the model knows it. Default: the function's name.
        description: For the model. Default: the docstring up to its first section.
        idle_timeout_s: Longest silence; `ToolContext.progress` starts it anew. Default: 60.
        timeout_s: Longest run in all. Default: 300.
        blocking: Whether the answer waits for the result. If not, the model is told that the call
            runs, goes on, and is told the result later.
        scheduling: When it is told a result that its answer did not wait for. Default: when it is
            idle, by an answer that starts by itself; after a stop that let the call finish, with
            the next answer that something else starts.
        side_effect: What running it may change in the world.
        on_interrupt: What becomes of a running call when its turn is stopped.

    Raises:
        TypeError: The function has parameters that can't be given by name.
    """

    def make(function: Callable[..., Any]) -> Tool:
        summary, notes = _read_docstring(inspect.getdoc(function) or "")
        parameters = _Parameters(function, notes)
        spec = ToolSpec(
            name=name or function.__name__,
            description=description or summary,
            parameters_json_schema=parameters.schema,
            idle_timeout=_duration(idle_timeout_s),
            timeout=_duration(timeout_s),
            # Absent means that it does: a session is the same whether one says so or not.
            blocking=None if blocking else False,
            side_effect=side_effect,
            on_interrupt=on_interrupt,
        )
        return Tool(function, spec, parameters, scheduling)

    return make if function is None else make(function)


class _PlainSchema(GenerateJsonSchema):
    """JSON schema without the titles, which repeat the names and cost prompt tokens."""

    def field_title_should_be_set(self, schema: object) -> bool:
        return False

    def generate(self, schema: CoreSchema, mode: JsonSchemaMode = "validation") -> JsonSchemaValue:
        made = super().generate(schema, mode)
        made.pop("title", None)
        return made


class _Parameters:
    """What a function can be given by a model."""

    def __init__(self, function: Callable[..., Any], notes: Mapping[str, str]) -> None:
        self.context: str | None = None
        hints = get_type_hints(function, include_extras=True)
        fields: dict[str, Any] = {}
        by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind not in by_name:
                raise TypeError(
                    f"{function.__name__}: the parameter {parameter} can't be given by name, "
                    "which is the only way a model gives arguments"
                )
            hint = hints.get(parameter.name, Any)
            if hint is ToolContext:
                self.context = parameter.name
                continue
            missing = parameter.default is inspect.Parameter.empty
            fields[parameter.name] = (
                hint,
                pydantic.Field(
                    default=... if missing else parameter.default,
                    description=notes.get(parameter.name),
                ),
            )
        # A misspelt optional argument must not pass for an absent one.
        config = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=False)
        self._model = pydantic.create_model(function.__name__, __config__=config, **fields)
        schema = self._model.model_json_schema(schema_generator=_PlainSchema)
        self.schema = to_json(schema).decode()

    def read(self, arguments_json: str) -> dict[str, Any]:
        """The arguments as Python values. Raises pydantic's ValidationError."""
        read = self._model.model_validate_json(arguments_json or "{}")
        # Not model_dump: a parameter that is a model itself is wanted as one. Absent ones keep
        # the function's own default.
        return {name: getattr(read, name) for name in read.model_fields_set}


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """The text before the first section, and what ``Args:`` says of each parameter."""
    summary: list[str] = []
    notes: dict[str, str] = {}
    section = name = ""
    for line in text.splitlines():
        found = _SECTION.match(line)
        if found:
            section, name = found.group(1), ""
        elif not section:
            summary.append(line)
        elif section in ("Args", "Arguments") and line.strip():
            entry = re.match(r"^\s{1,4}(\w+)(?: \([^)]*\))?:\s*(.*)$", line)
            if entry:
                name = entry.group(1)
                notes[name] = entry.group(2)
            elif name:
                notes[name] = f"{notes[name]} {line.strip()}".strip()
    return "\n".join(summary).strip(), notes


def _faults(error: pydantic.ValidationError) -> str:
    """What is wrong with the arguments, so that the model can mend them."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    told = (
        f"{'.'.join(str(part) for part in fault['loc']) or 'arguments'}: {fault['msg']}"
        for fault in faults[:8]
    )
    return "; ".join(told)


def _cut(text: str, max_bytes: int) -> str:
    return text.encode(errors="replace")[:max_bytes].decode(errors="ignore")


def _duration(seconds: float | None) -> Duration | None:
    if seconds is None:
        return None
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration
