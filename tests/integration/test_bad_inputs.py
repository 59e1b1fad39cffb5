"""Everything that can be wrong with what a client sends, at every door that takes it.

Each row says which status and which `ErrorInfo.reason` it gets. Afterwards the server is healthy,
and a session that ran all the while has noticed nothing.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2
from google.rpc.status_pb2 import Status

from backchannel import errors
from backchannel.v1 import conversation_service_pb2 as pb
from backchannel.v1 import frame_pb2, probe_service_pb2, session_pb2
from tests.support.server import healthy
from tests.support.stream import (
    Client,
    Refused,
    Stream,
    check_log,
    create,
    interrupt,
    resume,
    say,
)

MIB = 1024 * 1024
NAN, INFINITY = float("nan"), float("inf")
UNREADABLE = b"\xff\xff\xff\xff"
TURN_MISMATCH = ("FAILED_PRECONDITION", "TURN_MISMATCH")
REQUIRED = ("INVALID_ARGUMENT", "FIELD_REQUIRED")
INVALID = ("INVALID_ARGUMENT", "FIELD_INVALID")
TOO_LONG = ("INVALID_ARGUMENT", "FIELD_TOO_LONG")
OUT_OF_RANGE = ("INVALID_ARGUMENT", "FIELD_OUT_OF_RANGE")
BEYOND_END = ("OUT_OF_RANGE", "POSITION_BEYOND_END")
MISSING = ("FAILED_PRECONDITION", "CAPABILITY_MISSING")
LATER = ("UNIMPLEMENTED", "NOT_IMPLEMENTED")
NO_SESSION = ("NOT_FOUND", "SESSION_NOT_FOUND")
NO_MODEL = ("NOT_FOUND", "MODEL_NOT_FOUND")
NO_CALL = ("NOT_FOUND", "TOOL_CALL_NOT_FOUND")

Verdict = tuple[str, str]
ids = (f"bad-inputs-{number:08d}" for number in itertools.count())


def seconds(value: int, nanos: int = 0) -> Duration:
    return Duration(seconds=value, nanos=nanos)


def tool(name: str = "look", **more: Any) -> session_pb2.ToolSpec:
    return session_pb2.ToolSpec(name=name, **more)


# --- configurations, for CreateSession and for Converse --------------------------------------


def limits(**some: Any) -> dict[str, Any]:
    return {"limits": session_pb2.Limits(**some)}


def sampling(**some: Any) -> dict[str, Any]:
    return {"sampling": session_pb2.Sampling(**some)}


def policy(**some: Any) -> dict[str, Any]:
    return {"on_disconnect": session_pb2.DisconnectPolicy(**some)}


CONFIGS: dict[str, tuple[dict[str, Any], Verdict, str]] = {
    "unknown model": ({"model": "scripted/nothing"}, NO_MODEL, "model"),
    "unknown engine": ({"model": "nothing/echo"}, NO_MODEL, "model"),
    "model without an engine": ({"model": "echo"}, NO_MODEL, "model"),
    "huge model name": ({"model": "x" * 1000}, TOO_LONG, "model"),
    "short session id": ({"session_id": "short"}, INVALID, "session_id"),
    "empty session id": ({"session_id": ""}, INVALID, "session_id"),
    "long session id": ({"session_id": "x" * 65}, INVALID, "session_id"),
    "session id with a slash": ({"session_id": "../../../etc/passwd"}, INVALID, "session_id"),
    "huge system prompt": ({"system": "x" * (MIB + 1)}, TOO_LONG, "system"),
    "duplicate tool names": (
        {"tools": [tool("a"), tool("a")]},
        ("INVALID_ARGUMENT", "FIELD_DUPLICATE"),
        "tools",
    ),
    "tool without a name": ({"tools": [tool("")]}, REQUIRED, "tools[0].name"),
    "tool name with a space": ({"tools": [tool("a b")]}, INVALID, "tools[0].name"),
    "too many tools": ({"tools": [tool(f"t{n}") for n in range(129)]}, TOO_LONG, "tools"),
    "tool schema that is not JSON": (
        {"tools": [tool(parameters_json_schema="{")]},
        INVALID,
        "tools[0].parameters_json_schema",
    ),
    "tool schema that is no schema": (
        {"tools": [tool("a"), tool(parameters_json_schema='{"type": 7}')]},
        INVALID,
        "tools[1].parameters_json_schema",
    ),
    "tool schema of another type": (
        {"tools": [tool(parameters_json_schema='{"type": "array"}')]},
        INVALID,
        "tools[0].parameters_json_schema",
    ),
    "tool schema nested without end": (
        {"tools": [tool(parameters_json_schema='{"not":' * 5_000 + "{}" + "}" * 5_000)]},
        INVALID,
        "tools[0].parameters_json_schema",
    ),
    "huge tool schema": (
        {"tools": [tool(parameters_json_schema='{"title":"' + "x" * 65536 + '"}')]},
        TOO_LONG,
        "tools[0].parameters_json_schema",
    ),
    "huge tool description": (
        {"tools": [tool(description="x" * 8193)]},
        TOO_LONG,
        "tools[0].description",
    ),
    "tool time-out of zero": (
        {"tools": [tool(timeout=seconds(0))]},
        OUT_OF_RANGE,
        "tools[0].timeout",
    ),
    "tool idle time-out below zero": (
        {"tools": [tool(idle_timeout=seconds(-1))]},
        OUT_OF_RANGE,
        "tools[0].idle_timeout",
    ),
    "unknown side effect": ({"tools": [tool(side_effect=99)]}, INVALID, "tools[0].side_effect"),
    "scripted/tool without a tool": ({"model": "scripted/tool"}, REQUIRED, "tools"),
    "turn duration of zero": (
        limits(max_turn_duration=seconds(0)),
        OUT_OF_RANGE,
        "limits.max_turn_duration",
    ),
    "turn duration of 300,000 years": (
        limits(max_turn_duration=seconds(10**13)),
        OUT_OF_RANGE,
        "limits.max_turn_duration",
    ),
    "turn duration with too many nanos": (
        limits(max_turn_duration=seconds(1, 2**31 - 1)),
        OUT_OF_RANGE,
        "limits.max_turn_duration",
    ),
    "too many tool rounds": (limits(max_tool_rounds=65), OUT_OF_RANGE, "limits.max_tool_rounds"),
    "no room in the queue": (
        limits(max_queued_messages=0),
        OUT_OF_RANGE,
        "limits.max_queued_messages",
    ),
    "no credit at all": (limits(max_unacked_chars=0), OUT_OF_RANGE, "limits.max_unacked_chars"),
    "steer without tokens": (limits(max_steer_tokens=0), OUT_OF_RANGE, "limits.max_steer_tokens"),
    "steer after an hour": (
        limits(max_steer_delay=seconds(3600)),
        OUT_OF_RANGE,
        "limits.max_steer_delay",
    ),
    "grace below zero": (policy(grace=seconds(-1)), OUT_OF_RANGE, "on_disconnect.grace"),
    "grace of a day": (policy(grace=seconds(86400)), OUT_OF_RANGE, "on_disconnect.grace"),
    "unknown policy": (policy(action=42), INVALID, "on_disconnect.action"),
    "temperature NaN": (sampling(temperature=NAN), OUT_OF_RANGE, "sampling.temperature"),
    "temperature infinite": (sampling(temperature=INFINITY), OUT_OF_RANGE, "sampling.temperature"),
    "temperature below zero": (sampling(temperature=-0.1), OUT_OF_RANGE, "sampling.temperature"),
    "top_p of zero": (sampling(top_p=0.0), OUT_OF_RANGE, "sampling.top_p"),
    "top_p NaN": (sampling(top_p=NAN), OUT_OF_RANGE, "sampling.top_p"),
    "top_k of zero": (sampling(top_k=0), OUT_OF_RANGE, "sampling.top_k"),
    "max_tokens of zero": (sampling(max_tokens=0), OUT_OF_RANGE, "sampling.max_tokens"),
    "too many stop strings": (sampling(stop=["x"] * 17), TOO_LONG, "sampling.stop"),
    "empty stop string": (sampling(stop=[""]), REQUIRED, "sampling.stop"),
    "too many logprobs": (sampling(logprobs=21), OUT_OF_RANGE, "sampling.logprobs"),
    "label key in capitals": ({"labels": {"KEY": "v"}}, INVALID, "labels"),
    "huge label value": ({"labels": {"key": "v" * 257}}, TOO_LONG, "labels"),
    "too many labels": ({"labels": {f"k{n}": "v" for n in range(65)}}, TOO_LONG, "labels"),
    "unknown engine option": ({"engine_options": {"speed": "9"}}, INVALID, "engine_options"),
    "engine option that is no number": (
        {"engine_options": {"rate": "fast"}},
        INVALID,
        "engine_options",
    ),
    "engine option NaN": ({"engine_options": {"rate": "nan"}}, INVALID, "engine_options"),
    "history": (
        {"history": [session_pb2.Message(role=session_pb2.ROLE_USER)]},
        INVALID,
        "history",
    ),
    "response format": (
        {"response_format": session_pb2.ResponseFormat(grammar="root ::= x")},
        MISSING,
        "response_format",
    ),
    "response format of nothing": (
        {"response_format": session_pb2.ResponseFormat()},
        REQUIRED,
        "response_format",
    ),
    "response format that is no schema": (
        {"response_format": session_pb2.ResponseFormat(json_schema='{"type": "strong"}')},
        INVALID,
        "response_format.json_schema",
    ),
    "context policy": ({"context_policy": 77}, INVALID, "context_policy"),
}

# --- frames, for Send and for Converse -------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """A session in which one turn has ended, with the frame id `used`."""

    session_id: str
    turn_id: str
    last_seq: int


def result(**some: Any) -> frame_pb2.ClientFrame:
    return frame_pb2.ClientFrame(tool_result=session_pb2.ToolResult(**some))


def progress(**some: Any) -> frame_pb2.ClientFrame:
    return frame_pb2.ClientFrame(tool_progress=frame_pb2.ToolProgress(**some))


def message(**some: Any) -> frame_pb2.ClientFrame:
    return frame_pb2.ClientFrame(message=session_pb2.UserMessage(**some))


def ack(**some: Any) -> frame_pb2.ClientFrame:
    return frame_pb2.ClientFrame(ack=frame_pb2.Ack(**some))


TEXT = [session_pb2.Part(text="hello")]
SOME_SAMPLING = session_pb2.Sampling(temperature=NAN)

FRAMES: dict[str, tuple[Callable[[Facts], frame_pb2.ClientFrame], Verdict]] = {
    "no frame in the frame": (lambda _: frame_pb2.ClientFrame(), REQUIRED),
    "huge frame id": (lambda _: say("x", "i" * 129), TOO_LONG),
    "huge frame id in few characters": (lambda _: say("x", "ü" * 65), TOO_LONG),
    "reused frame id": (
        lambda _: say("something else", "used"),
        ("ALREADY_EXISTS", "FRAME_ID_REUSED"),
    ),
    "message without parts": (lambda _: message(), REQUIRED),
    "empty message": (lambda _: say(""), REQUIRED),
    "message of empty parts": (lambda _: message(parts=[session_pb2.Part()] * 3), REQUIRED),
    "message above 1 MiB": (lambda _: say("x" * (MIB + 1)), TOO_LONG),
    "message of too many parts": (lambda _: message(parts=TEXT * 300), TOO_LONG),
    "unknown delivery": (lambda _: say("x", delivery=77), INVALID),
    "another turn expected": (lambda _: say("x", expected_turn_id="nothing"), TURN_MISMATCH),
    "huge expected turn": (lambda _: say("x", expected_turn_id="t" * 129), TOO_LONG),
    "sampling of a turn NaN": (lambda _: say("x", sampling=SOME_SAMPLING), OUT_OF_RANGE),
    "format of a turn": (
        lambda _: say("x", response_format=session_pb2.ResponseFormat(json_schema="{}")),
        MISSING,
    ),
    "displayed beyond the end": (
        lambda f: say("x", delivery=session_pb2.DELIVERY_INTERRUPT, displayed_seq=f.last_seq + 100),
        BEYOND_END,
    ),
    "result without a call": (lambda _: result(json="1"), REQUIRED),
    "result for an unknown call": (lambda _: result(call_id="nothing", json="1"), NO_CALL),
    "result without an outcome": (lambda _: result(call_id="nothing"), REQUIRED),
    "result that is not JSON": (lambda _: result(call_id="nothing", json="{"), INVALID),
    "result of NaN": (lambda _: result(call_id="nothing", json="NaN"), INVALID),
    "result nested without end": (
        lambda _: result(call_id="nothing", json="[" * 100_000),
        INVALID,
    ),
    "huge result": (lambda _: result(call_id="x", json=f'"{"x" * MIB}"'), TOO_LONG),
    "partial result": (lambda _: result(call_id="nothing", json="1", partial=True), NO_CALL),
    "unknown scheduling": (
        lambda _: result(call_id="nothing", json="1", scheduling=77),
        INVALID,
    ),
    "huge error message": (
        lambda _: result(call_id="x", error=session_pb2.ToolError(message="x" * 8193)),
        TOO_LONG,
    ),
    "progress of an unknown call": (lambda _: progress(call_id="nothing"), NO_CALL),
    "progress above 1": (lambda _: progress(call_id="x", fraction=1.5), OUT_OF_RANGE),
    "progress NaN": (lambda _: progress(call_id="x", fraction=NAN), OUT_OF_RANGE),
    "huge note": (lambda _: progress(call_id="x", note="x" * 1025), TOO_LONG),
    "stop without a target": (lambda _: interrupt(), REQUIRED),
    "stop with two targets": (
        lambda f: interrupt(f.turn_id, target_frame_id="used"),
        REQUIRED,
    ),
    "unknown tool disposition": (lambda f: interrupt(f.turn_id, tools=77), INVALID),
    "stop beyond the end": (
        lambda f: interrupt(f.turn_id, displayed_seq=f.last_seq + 1),
        BEYOND_END,
    ),
    "stop beyond the text": (lambda f: interrupt(f.turn_id, displayed_offset=10_000), BEYOND_END),
    "unknown keep": (lambda f: interrupt(f.turn_id, keep=9), INVALID),
    "acknowledged beyond the end": (lambda f: ack(displayed_seq=f.last_seq + 1), BEYOND_END),
    "acknowledged what no number is": (lambda _: ack(displayed_seq=2**64 - 1), BEYOND_END),
}

NOT_FOR_SEND = ("FAILED_PRECONDITION", "FRAME_NOT_FOR_SEND")

ONLY_SEND: dict[str, tuple[Callable[[Facts], frame_pb2.ClientFrame], Verdict]] = {
    "Open": (lambda _: create(), NOT_FOR_SEND),
    "Close": (lambda _: frame_pb2.ClientFrame(close=frame_pb2.Close()), NOT_FOR_SEND),
}

# --- streams, for Converse -------------------------------------------------------------------

ECHO: dict[str, Any] = {"model": "scripted/echo"}
OPEN_REQUIRED = ("FAILED_PRECONDITION", "OPEN_REQUIRED")
OPEN_REPEATED = ("FAILED_PRECONDITION", "OPEN_REPEATED")
UNREADABLE_MESSAGE = ("INVALID_ARGUMENT", "UNREADABLE_MESSAGE")
TOO_LARGE = ("RESOURCE_EXHAUSTED", "FRAME_TOO_LARGE")
CURSOR = ("OUT_OF_RANGE", "CURSOR_BEYOND_END")

STREAMS: dict[str, tuple[Callable[[Facts], list[frame_pb2.ClientFrame | bytes]], Verdict]] = {
    "a message first": (lambda _: [say("x")], OPEN_REQUIRED),
    "a Close first": (lambda _: [frame_pb2.ClientFrame(close=frame_pb2.Close())], OPEN_REQUIRED),
    "an empty frame first": (lambda _: [b""], OPEN_REQUIRED),
    "nothing at all": (lambda _: [], OPEN_REQUIRED),
    "an empty Open": (lambda _: [frame_pb2.ClientFrame(open=frame_pb2.Open())], REQUIRED),
    "unreadable bytes first": (lambda _: [UNREADABLE], UNREADABLE_MESSAGE),
    "unreadable bytes later": (lambda _: [create(**ECHO), UNREADABLE], UNREADABLE_MESSAGE),
    "text that is not UTF-8": (
        lambda _: [create(**ECHO), b"\x0a\x02\xff\xfe"],
        UNREADABLE_MESSAGE,
    ),
    "half a message": (
        lambda _: [create(**ECHO), say("hello").SerializeToString()[:-2]],
        UNREADABLE_MESSAGE,
    ),
    "a second Open": (lambda _: [create(**ECHO), create(**ECHO)], OPEN_REPEATED),
    "a second Open that resumes": (
        lambda f: [create(**ECHO), resume(f.session_id)],
        OPEN_REPEATED,
    ),
    "oversized first": (lambda _: [say("x" * (4 * MIB))], TOO_LARGE),
    "oversized later": (lambda _: [create(**ECHO), say("x" * (4 * MIB))], TOO_LARGE),
    "oversized beyond measure": (
        lambda _: [create(**ECHO), say("x" * (9 * MIB))],
        ("RESOURCE_EXHAUSTED", ""),
    ),
    "Open with a huge frame id": (lambda _: [create("i" * 129, **ECHO)], TOO_LONG),
    "resume without a session": (lambda _: [resume("")], REQUIRED),
    "resume of an unknown session": (lambda _: [resume("nobody-knows-this-one")], NO_SESSION),
    "resume beyond the end": (lambda f: [resume(f.session_id, f.last_seq + 1)], CURSOR),
    "resume beyond all numbers": (lambda f: [resume(f.session_id, 2**64 - 1)], CURSOR),
    "the same id with another configuration": (
        lambda f: [create(session_id=f.session_id, model="scripted/count")],
        ("ALREADY_EXISTS", "SESSION_EXISTS"),
    ),
}

# --- the other calls -------------------------------------------------------------------------

PROBE = "/backchannel.v1.ProbeService/Probe"
Probe = probe_service_pb2.ProbeRequest

CALLS: dict[str, tuple[str, Callable[[Facts], Message | bytes], Verdict]] = {
    "Send: unreadable bytes": ("Send", lambda _: UNREADABLE, UNREADABLE_MESSAGE),
    "Send: oversized": (
        "Send",
        lambda f: pb.SendRequest(session_id=f.session_id, frame=say("x" * (4 * MIB))),
        TOO_LARGE,
    ),
    "Send: no session": ("Send", lambda _: pb.SendRequest(frame=say("x")), REQUIRED),
    "Send: unknown session": (
        "Send",
        lambda _: pb.SendRequest(session_id="nobody-knows-this-one", frame=say("x")),
        NO_SESSION,
    ),
    "Attach: unreadable bytes": ("Attach", lambda _: UNREADABLE, UNREADABLE_MESSAGE),
    "Attach: no session": ("Attach", lambda _: pb.AttachRequest(), REQUIRED),
    "Attach: unknown session": (
        "Attach",
        lambda _: pb.AttachRequest(session_id="nobody-knows-this-one"),
        NO_SESSION,
    ),
    "Attach: a session id of a megabyte": (
        "Attach",
        lambda _: pb.AttachRequest(session_id="x" * MIB),
        NO_SESSION,
    ),
    "Attach: beyond the end": (
        "Attach",
        lambda f: pb.AttachRequest(session_id=f.session_id, after_seq=f.last_seq + 1),
        CURSOR,
    ),
    "CreateSession: unreadable bytes": ("CreateSession", lambda _: UNREADABLE, UNREADABLE_MESSAGE),
    "CreateSession: fork": (
        "CreateSession",
        lambda f: pb.CreateSessionRequest(fork=pb.Fork(session_id=f.session_id, at_seq=10**6)),
        CURSOR,
    ),
    "CreateSession: another configuration": (
        "CreateSession",
        lambda f: pb.CreateSessionRequest(
            config=session_pb2.SessionConfig(session_id=f.session_id, model="scripted/count")
        ),
        ("ALREADY_EXISTS", "SESSION_EXISTS"),
    ),
    "GetSession: no session": ("GetSession", lambda _: b"", REQUIRED),
    "GetSession: unknown session": (
        "GetSession",
        lambda _: pb.GetSessionRequest(session_id="nobody-knows-this-one"),
        NO_SESSION,
    ),
    "DeleteSession: no session": ("DeleteSession", lambda _: b"", REQUIRED),
    "DeleteSession: unknown session": (
        "DeleteSession",
        lambda _: pb.DeleteSessionRequest(session_id="nobody-knows-this-one"),
        NO_SESSION,
    ),
    "ListSessions: huge page": (
        "ListSessions",
        lambda _: pb.ListSessionsRequest(page_size=201),
        OUT_OF_RANGE,
    ),
    "ListSessions: made-up token": (
        "ListSessions",
        lambda _: pb.ListSessionsRequest(page_token="made up"),
        INVALID,
    ),
    "ListSessions: filter": (
        "ListSessions",
        lambda _: pb.ListSessionsRequest(filter='labels.a = "b" AND model = "c"'),
        INVALID,
    ),
    "Probe: too many": (PROBE, lambda _: Probe(count=10_001), OUT_OF_RANGE),
    "Probe: too much": (PROBE, lambda _: Probe(padding_bytes=65_537), OUT_OF_RANGE),
    "Probe: too slow": (PROBE, lambda _: Probe(interval=seconds(61)), OUT_OF_RANGE),
    "Probe: back in time": (PROBE, lambda _: Probe(interval=seconds(-1)), OUT_OF_RANGE),
    "a method there is not": ("Nothing", lambda _: b"", LATER),
}


# --- the test --------------------------------------------------------------------------------


def verdict(status: Status) -> Verdict:
    return code_pb2.Code.Name(status.code), errors.reason_of(status)


def field_of(status: Status) -> str:
    bad = error_details_pb2.BadRequest()
    for detail in status.details:
        if detail.Unpack(bad):
            return bad.field_violations[0].field
    return ""


def numbered(frame: frame_pb2.ClientFrame) -> frame_pb2.ClientFrame:
    """With an id, since a frame without one gets no receipt on Converse."""
    frame.frame_id = frame.frame_id or "judged"
    return frame


async def prepared(client: Client) -> Facts:
    session_id = next(ids)
    async with client.converse(create(session_id=session_id, **ECHO), say("hi", "used")) as stream:
        finished = await stream.event("turn_finished")
        return Facts(session_id, finished.turn_finished.turn_id, finished.seq)


async def ends(stream: Stream, expected: Verdict) -> Status:
    ending = await stream.end()
    assert (ending.code.name, ending.reason) == expected, ending
    return ending.status


def check_details(status: Status, expected: Verdict) -> None:
    """What the contract promises beside code and reason."""
    kinds = {detail.type_url.rpartition(".")[2] for detail in status.details}
    if expected[0] == "INVALID_ARGUMENT" and expected != UNREADABLE_MESSAGE:
        assert "BadRequest" in kinds
        assert field_of(status)
    assert status.message


def checks(client: Client, facts: Facts) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every row at every door that takes it."""

    async def config_at_create(config: dict[str, Any], expected: Verdict, field: str) -> None:
        with Refused() as refused:
            await client.create(**config)
        assert refused.ending is not None, "it was taken"
        assert (refused.ending.code.name, refused.ending.reason) == expected, refused.ending
        assert field in field_of(refused.ending.status)
        check_details(refused.ending.status, expected)

    async def config_at_converse(config: dict[str, Any], expected: Verdict, field: str) -> None:
        async with client.converse(create("open", **config)) as stream:
            status = await ends(stream, expected)
            assert field in field_of(status)
            assert not stream.frames

    async def frame_at_send(
        make: Callable[[Facts], frame_pb2.ClientFrame], expected: Verdict
    ) -> None:
        receipt = await client.send(facts.session_id, numbered(make(facts)))
        assert receipt.status == frame_pb2.RECEIPT_STATUS_REJECTED
        assert verdict(receipt.error) == expected, receipt
        check_details(receipt.error, expected)

    async def frame_at_converse(
        make: Callable[[Facts], frame_pb2.ClientFrame], expected: Verdict
    ) -> None:
        frame = numbered(make(facts))
        ping = frame_pb2.ClientFrame(frame_id="ping", ping=frame_pb2.Ping())
        opening = resume(facts.session_id, facts.last_seq)
        async with client.converse(opening, frame, ping) as stream:
            # No id comes back longer than ids may be.
            receipt = await stream.receipt(frame.frame_id[:128])
            assert receipt.status == frame_pb2.RECEIPT_STATUS_REJECTED
            assert verdict(receipt.error) == expected, receipt
            # The stream goes on.
            await stream.receipt("ping")
            assert not stream.events

    async def stream_at_converse(
        make: Callable[[Facts], list[frame_pb2.ClientFrame | bytes]], expected: Verdict
    ) -> None:
        async with client.converse(*make(facts)) as stream:
            if not make(facts):
                await stream.half_close()
            status = await ends(stream, expected)
            if expected[1]:
                check_details(status, expected)

    async def call(
        method: str, make: Callable[[Facts], Message | bytes], expected: Verdict
    ) -> None:
        with Refused() as refused:
            await client.raw(method, make(facts))
        assert refused.ending is not None, "it was taken"
        assert (refused.ending.code.name, refused.ending.reason) == expected, refused.ending
        check_details(refused.ending.status, expected)

    for name, (config, expected, field) in CONFIGS.items():
        yield f"CreateSession: {name}", partial(config_at_create, config, expected, field)
        yield f"Converse, Open: {name}", partial(config_at_converse, config, expected, field)
    for name, (make, expected) in FRAMES.items():
        yield f"Send: {name}", partial(frame_at_send, make, expected)
        yield f"Converse: {name}", partial(frame_at_converse, make, expected)
    for name, (make, expected) in ONLY_SEND.items():
        yield f"Send: {name}", partial(frame_at_send, make, expected)
    for name, (frames, expected) in STREAMS.items():
        yield f"Converse: {name}", partial(stream_at_converse, frames, expected)
    for name, (method, request, expected) in CALLS.items():
        yield name, partial(call, method, request, expected)


async def test_bad_inputs(client: Client, subtests: pytest.Subtests) -> None:
    assert len(CONFIGS) + len(FRAMES) + len(ONLY_SEND) + len(STREAMS) + len(CALLS) >= 60
    bystander = create(
        session_id="the-one-who-noticed-nothing",
        model="scripted/count",
        engine_options={"rate": "100"},
        sampling=session_pb2.Sampling(max_tokens=1_000_000),
    )
    async with client.converse(bystander, say("go")) as other:
        started = await other.event("turn_started")
        await other.event("output_delta")
        facts = await prepared(client)
        for name, check in checks(client, facts):
            with subtests.test(name):
                await check()
        session = await client.get(facts.session_id)
        assert session.last_seq == facts.last_seq, "something wrong was written to the log"

        await other.send(interrupt(started.turn_started.turn_id, "enough"))
        await other.event("turn_finished")
        check_log(other.events)
        deltas = [
            event.time.ToNanoseconds() for event in other.events if event.HasField("output_delta")
        ]
        pauses = [after - before for before, after in itertools.pairwise(deltas)]
        assert len(deltas) > 20
        assert max(pauses) < 1_000_000_000, "it was kept waiting"
    assert await healthy(client)
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "uplink"]


async def test_a_queue_that_is_full(client: Client) -> None:
    opening = create(model="scripted/stall", **limits(max_queued_messages=1))
    frames = [say("runs", "1"), say("waits", "2"), say("one too many", "3")]
    async with client.converse(opening, *frames) as stream:
        refused = await stream.receipt("3")
        assert refused.status == frame_pb2.RECEIPT_STATUS_REJECTED
        assert verdict(refused.error) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
        assert errors.retry_after_s(refused.error) is not None


async def test_a_deleted_session_takes_nothing(client: Client) -> None:
    facts = await prepared(client)
    await client.delete(facts.session_id)
    for call in (
        lambda: client.send(facts.session_id, say("x")),
        lambda: client.get(facts.session_id),
        lambda: client.delete(facts.session_id),
    ):
        with Refused() as refused:
            await call()
        assert refused.ending is not None
        assert (refused.ending.code.name, refused.ending.reason) == NO_SESSION
    with Refused() as refused:
        await client.create(session_id=facts.session_id, **ECHO)
    assert refused.ending is not None
    assert refused.ending.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.ending.reason == "SESSION_ID_RETIRED"
