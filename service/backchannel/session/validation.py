"""What a client may send: one table from message and field to the checks it must pass.

A check names the remedy; the walk over the table names the field, as a dotted path from the frame
or configuration (`sampling.temperature`, `tools[2].name`). Checks run only on fields that are set,
so absent always means "the default". The same limits stand in the comments of the proto files.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import jsonschema
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from backchannel.errors import BackchannelError, Reason
from backchannel.v1 import event_pb2, frame_pb2, session_pb2

# What a check finds wrong: a reason and a sentence with the remedy. None if all is well.
Finding = tuple[Reason, str] | None
Check = Callable[[Any], Finding]

KIB: Final = 1024
MIB: Final = 1024 * KIB
HOUR_NS: Final = 3600 * 1_000_000_000
DAY_NS: Final = 24 * HOUR_NS
JSON_NESTING: Final = 128


def duration_ns(value: Duration) -> int:
    """A Duration as nanoseconds, whatever nonsense it holds."""
    return value.seconds * 1_000_000_000 + value.nanos


def _required(value: Any) -> Finding:
    return None if value else (Reason.FIELD_REQUIRED, "must not be empty")


def _within(low: float, high: float) -> Check:
    def check(value: float) -> Finding:
        # Written so that NaN fails too.
        if low <= value <= high:
            return None
        return Reason.FIELD_OUT_OF_RANGE, f"must be between {low:.12g} and {high:.12g}"

    return check


def _above(low: float, high: float) -> Check:
    def check(value: float) -> Finding:
        if low < value <= high:
            return None
        return Reason.FIELD_OUT_OF_RANGE, f"must be more than {low:g} and at most {high:g}"

    return check


def _duration(high_ns: int, *, zero: bool = False) -> Check:
    low_text = "0 or more" if zero else "more than 0"

    def check(value: Duration) -> Finding:
        ns = duration_ns(value)
        if (0 if zero else 1) <= ns <= high_ns and abs(value.nanos) < 1_000_000_000:
            return None
        return Reason.FIELD_OUT_OF_RANGE, f"must be {low_text} and at most {high_ns // 10**9} s"

    return check


def _bytes_at_most(limit: int) -> Check:
    def check(value: str) -> Finding:
        if len(value) <= limit and len(value.encode()) <= limit:
            return None
        return Reason.FIELD_TOO_LONG, f"must be at most {limit} bytes of UTF-8"

    return check


def _chars_at_most(limit: int) -> Check:
    def check(value: str) -> Finding:
        if len(value) <= limit:
            return None
        return Reason.FIELD_TOO_LONG, f"must be at most {limit} characters"

    return check


def _items_at_most(limit: int) -> Check:
    def check(value: Any) -> Finding:
        if len(value) <= limit:
            return None
        return Reason.FIELD_TOO_LONG, f"must have at most {limit} entries, not {len(value)}"

    return check


def _matches(pattern: str, meaning: str) -> Check:
    compiled = re.compile(pattern)

    def check(value: str) -> Finding:
        return None if compiled.fullmatch(value) else (Reason.FIELD_INVALID, f"must be {meaning}")

    return check


def _each(*checks: Check) -> Check:
    def check(values: Iterable[Any]) -> Finding:
        return next((found for value in values for one in checks if (found := one(value))), None)

    return check


def _keys(*checks: Check) -> Check:
    return _each(*checks)


def _values(*checks: Check) -> Check:
    def check(mapping: Mapping[str, str]) -> Finding:
        return _each(*checks)(mapping.values())

    return check


def _unique_names(tools: Iterable[session_pb2.ToolSpec]) -> Finding:
    seen: set[str] = set()
    for tool in tools:
        if tool.name in seen:
            return Reason.FIELD_DUPLICATE, f"must have unique names; {tool.name!r} stands twice"
        seen.add(tool.name)
    return None


def _json(value: str) -> Finding:
    try:
        parsed = json.loads(value, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        return Reason.FIELD_INVALID, f"must be one JSON value: {_said(error)}"
    if _nesting(parsed) > JSON_NESTING:
        return Reason.FIELD_INVALID, f"must not be nested more than {JSON_NESTING} levels deep"
    return None


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:32]} is too large a number")
    return number


def _nesting(value: object) -> int:
    """How deep lists and objects are nested. Whoever reads the value later recurses so deep."""
    depth, level = 0, [value]
    while True:
        inner: list[object] = []
        for one in level:
            if isinstance(one, dict):
                inner.append(one.values())
            elif isinstance(one, list):
                inner.append(one)
        if not inner:
            return depth
        depth += 1
        level = [leaf for group in inner for leaf in group]  # type: ignore[attr-defined]


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else "nested too deeply"


def _schema(*, of_object: bool) -> Check:
    def check(value: str) -> Finding:
        try:
            schema = json.loads(value, parse_constant=_no_constant)
            jsonschema.Draft202012Validator.check_schema(schema)
        except jsonschema.SchemaError as error:
            where = "/".join(map(str, error.path)) or "its top"
            return Reason.FIELD_INVALID, f"must be a JSON schema (2020-12); wrong at {where}"
        except (ValueError, RecursionError) as error:
            return Reason.FIELD_INVALID, f"must be a JSON schema: {_said(error)}"
        if not isinstance(schema, dict):
            return Reason.FIELD_INVALID, "must be a JSON schema that is an object"
        if of_object and schema.get("type", "object") != "object":
            return Reason.FIELD_INVALID, 'must be a JSON schema of type "object"'
        return None

    return check


def _some_text(parts: Iterable[session_pb2.Part]) -> Finding:
    if any(part.text for part in parts):
        return None
    return Reason.FIELD_REQUIRED, "must have at least one part with text"


def _some_format(value: session_pb2.ResponseFormat) -> Finding:
    if value.WhichOneof("format") is None:
        return Reason.FIELD_REQUIRED, "must have json_schema or grammar; for free text leave it out"
    return None


def _known(enum: Mapping[int, Any]) -> Check:
    # 0 is UNSPECIFIED: it may be sent, and is nothing to recommend.
    names = ", ".join(value.name for number, value in sorted(enum.items()) if number)

    def check(value: int) -> Finding:
        if value in enum:
            return None
        return Reason.FIELD_INVALID, f"must be one of {names}"

    return check


def _whole_history(messages: Sequence[session_pb2.Message]) -> Finding:
    """Every engine takes it: roles are set, and each call has its one result right after it."""
    if sum(message.ByteSize() for message in messages) > 2 * MIB:
        return Reason.FIELD_TOO_LONG, "must be at most 2 MiB in all"
    owed: list[str] = []
    for place, message in enumerate(messages):
        if message.role == session_pb2.ROLE_TOOL:
            if message.call_id not in owed:
                return _wrong(place, "is the result of no call that waits for one")
            owed.remove(message.call_id)
            if not message.parts:
                return _wrong(place, "must have a part with the result")
            continue
        if owed:
            return _wrong(place, f"comes before the result of the call {owed[0][:64]!r}")
        if message.role not in (session_pb2.ROLE_USER, session_pb2.ROLE_ASSISTANT):
            return _wrong(place, "must have a role: ROLE_USER, ROLE_ASSISTANT or ROLE_TOOL")
        if message.tool_calls and message.role == session_pb2.ROLE_USER:
            return _wrong(place, "is the user's, who makes no tool calls")
        if not message.tool_calls and not any(part.text for part in message.parts):
            return _wrong(place, "must have text or tool calls")
        for call in message.tool_calls:
            if not call.call_id or not call.name or call.call_id in owed:
                return _wrong(place, "has a tool call without a call_id of its own and a name")
            if not _is_object(call.arguments_json):
                return _wrong(place, "has a tool call whose arguments_json is not one JSON object")
            owed.append(call.call_id)
    if owed:
        return Reason.FIELD_INVALID, f"ends before the result of the call {owed[0][:64]!r}"
    return None


def _wrong(place: int, what: str) -> Finding:
    return Reason.FIELD_INVALID, f"message {place} {what}"


def _is_object(text: str) -> bool:
    if _json(text) is not None:
        return False
    return isinstance(json.loads(text), dict)


_TOOL_NAME: Final = _matches("[A-Za-z0-9_-]{1,64}", "1 to 64 characters of A-Za-z0-9_-")
_SESSION_ID: Final = _matches("[A-Za-z0-9_-]{16,64}", "16 to 64 characters of A-Za-z0-9_-")
_CALL_ID: Final = (_required, _bytes_at_most(128))
_TURN_ID: Final = _bytes_at_most(128)
_DAY: Final = _duration(DAY_NS)

TABLE: Final[Mapping[str, Mapping[str, tuple[Check, ...]]]] = {
    "SessionConfig": {
        "session_id": (_SESSION_ID,),
        "model": (_bytes_at_most(256),),
        "system": (_bytes_at_most(MIB),),
        "tools": (_items_at_most(128), _unique_names),
        "labels": (
            _items_at_most(64),
            _keys(_matches("[a-z0-9_.-]{1,63}", "keyed by 1 to 63 characters of a-z0-9_.-")),
            _values(_bytes_at_most(256)),
        ),
        "engine_options": (
            _items_at_most(64),
            _keys(_required, _bytes_at_most(63)),
            _values(_bytes_at_most(4 * KIB)),
        ),
        "history": (_items_at_most(10_000), _whole_history),
        "response_format": (_some_format,),
        "context_policy": (_known(session_pb2.ContextPolicy.DESCRIPTOR.values_by_number),),
    },
    "Limits": {
        "max_unacked_chars": (_within(1, 2**31 - 1),),
        "max_turn_duration": (_DAY,),
        "max_tool_rounds": (_within(0, 64),),
        "max_queued_messages": (_within(1, 256),),
        "max_steer_tokens": (_within(1, 10_000),),
        "max_steer_delay": (_duration(10 * 60 * 1_000_000_000),),
    },
    "DisconnectPolicy": {
        "action": (_known(session_pb2.DisconnectPolicy.Action.DESCRIPTOR.values_by_number),),
        "grace": (_duration(HOUR_NS, zero=True),),
    },
    "Sampling": {
        "max_tokens": (_within(1, 2**31 - 1),),
        "temperature": (_within(0, 2),),
        "top_p": (_above(0, 1),),
        "top_k": (_within(1, 10_000),),
        "stop": (_items_at_most(16), _each(_required, _chars_at_most(256))),
        "logprobs": (_within(0, 20),),
        "min_p": (_within(0, 1),),
        "presence_penalty": (_within(-2, 2),),
        "frequency_penalty": (_within(-2, 2),),
    },
    "ToolSpec": {
        "name": (_TOOL_NAME,),
        "description": (_bytes_at_most(8 * KIB),),
        "parameters_json_schema": (_bytes_at_most(64 * KIB), _schema(of_object=True)),
        "idle_timeout": (_DAY,),
        "timeout": (_DAY,),
        "on_interrupt": (_known(session_pb2.ToolDisposition.DESCRIPTOR.values_by_number),),
        "side_effect": (_known(session_pb2.SideEffect.DESCRIPTOR.values_by_number),),
    },
    "UserMessage": {
        "parts": (_items_at_most(256), _some_text),
        "delivery": (_known(session_pb2.Delivery.DESCRIPTOR.values_by_number),),
        "expected_turn_id": (_TURN_ID,),
        "response_format": (_some_format,),
    },
    "ResponseFormat": {
        # Set and empty is a mistake, which `_required` alone would not see: it is a oneof.
        "json_schema": (_required, _bytes_at_most(64 * KIB), _schema(of_object=False)),
        "grammar": (_required, _bytes_at_most(64 * KIB)),
    },
    "ToolResult": {
        "call_id": _CALL_ID,
        "json": (_bytes_at_most(MIB), _json),
        "scheduling": (_known(session_pb2.Scheduling.DESCRIPTOR.values_by_number),),
    },
    "Content": {"parts": (_items_at_most(256),)},
    "ToolError": {"message": (_bytes_at_most(8 * KIB),), "code": (_bytes_at_most(128),)},
    "ToolProgress": {
        "call_id": _CALL_ID,
        "fraction": (_within(0, 1),),
        "note": (_bytes_at_most(KIB),),
    },
    "Interrupt": {
        "turn_id": (_TURN_ID,),
        "target_frame_id": (_bytes_at_most(128),),
        "tools": (_known(session_pb2.ToolDisposition.DESCRIPTOR.values_by_number),),
        "keep": (_known(event_pb2.Keep.DESCRIPTOR.values_by_number),),
    },
    "ClientFrame": {"frame_id": (_bytes_at_most(128),)},
}

# Fields that must be set, and what to do about it.
REQUIRED: Final[Mapping[str, tuple[str, ...]]] = {
    "ToolSpec": ("name",),
    "UserMessage": ("parts",),
    "ToolResult": ("call_id",),
    "ToolProgress": ("call_id",),
}


def _refuse(path: str, found: tuple[Reason, str]) -> BackchannelError:
    return BackchannelError(found[0], found[1], field=path)


def _walk(message: Message, path: str) -> None:
    name = message.DESCRIPTOR.name
    rules = TABLE.get(name, {})
    for required in REQUIRED.get(name, ()):
        value = getattr(message, required)
        if not value:
            raise _refuse(_join(path, required), (Reason.FIELD_REQUIRED, "must be set"))
    for field, value in message.ListFields():
        here = _join(path, field.name)
        for check in rules.get(field.name, ()):
            found = check(value)
            if found is not None:
                raise _refuse(here, found)
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        if field.message_type.file.package != message.DESCRIPTOR.file.package:
            continue
        if _repeated(field):
            for place, one in enumerate(value):
                _walk(one, f"{here}[{place}]")
        else:
            _walk(value, here)


def _repeated(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def check_config(config: session_pb2.SessionConfig) -> None:
    """Judge a configuration as a client sent it.

    Raises:
        BackchannelError: Names the first field at fault and the remedy.
    """
    _walk(config, "config")


def check_frame(frame: frame_pb2.ClientFrame) -> None:
    """Judge a frame in itself; whether it fits the state is for the session to say.

    Raises:
        BackchannelError: Names the first field at fault and the remedy.
    """
    kind = frame.WhichOneof("frame")
    if kind is None:
        raise BackchannelError(
            Reason.FIELD_REQUIRED, "set one of the kinds of frame, e.g. message", field="frame"
        )
    _walk(frame, "")
    if kind == "message" and frame.message.ByteSize() > MIB:
        raise _refuse("message.parts", (Reason.FIELD_TOO_LONG, "must be at most 1 MiB in all"))
    if kind == "tool_result":
        result = frame.tool_result
        if result.WhichOneof("outcome") is None:
            raise _refuse(
                "tool_result.outcome", (Reason.FIELD_REQUIRED, "set json, content or error")
            )
        if result.content.ByteSize() > MIB:
            raise _refuse("tool_result.content", (Reason.FIELD_TOO_LONG, "must be at most 1 MiB"))
    if kind == "interrupt" and bool(frame.interrupt.turn_id) == bool(
        frame.interrupt.target_frame_id
    ):
        raise _refuse(
            "interrupt.turn_id",
            (Reason.FIELD_REQUIRED, "name what to stop: either turn_id or target_frame_id"),
        )
