"""Every error a client can see, by blame: one table from reason to gRPC status to HTTP code.

An error is raised as a `BackchannelError` with a `Reason`; the doors turn it into a
`google.rpc.Status` (in a receipt, or as the status of a call) with

* an `ErrorInfo` of domain ``backchannel`` always,
* a `BadRequest` naming the field when the fault is in the request,
* a `RetryInfo` when trying again later may help.

Source: https://google.aip.dev/193 and google/rpc/error_details.proto.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2
from google.rpc.status_pb2 import Status

DOMAIN: Final = "backchannel"


@dataclass(frozen=True, slots=True)
class Code:
    """What a reason is on the wire.

    Attributes:
        grpc: A `google.rpc.Code` number, which is also the gRPC status code.
        http: The HTTP status that a JSON client gets.
        retry_after_s: How long to wait before trying again; None where that is no use.
    """

    grpc: int
    http: int
    retry_after_s: float | None = None


class Reason(StrEnum):
    """Why a request was refused or a turn failed. The name is `ErrorInfo.reason`."""

    # The client's request is wrong in itself.
    FIELD_REQUIRED = "FIELD_REQUIRED"
    FIELD_INVALID = "FIELD_INVALID"
    FIELD_TOO_LONG = "FIELD_TOO_LONG"
    FIELD_OUT_OF_RANGE = "FIELD_OUT_OF_RANGE"
    FIELD_DUPLICATE = "FIELD_DUPLICATE"
    UNREADABLE_MESSAGE = "UNREADABLE_MESSAGE"
    PROMPT_TOO_LONG = "PROMPT_TOO_LONG"
    FRAME_TOO_LARGE = "FRAME_TOO_LARGE"
    # The request does not fit the state.
    SESSION_NOT_FOUND = "SESSION_NOT_FOUND"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    TOOL_CALL_NOT_FOUND = "TOOL_CALL_NOT_FOUND"
    ASSET_NOT_FOUND = "ASSET_NOT_FOUND"
    SESSION_EXISTS = "SESSION_EXISTS"
    FRAME_ID_REUSED = "FRAME_ID_REUSED"
    SESSION_CLOSED = "SESSION_CLOSED"
    SESSION_ID_RETIRED = "SESSION_ID_RETIRED"
    OPEN_REQUIRED = "OPEN_REQUIRED"
    OPEN_REPEATED = "OPEN_REPEATED"
    FRAME_NOT_FOR_SEND = "FRAME_NOT_FOR_SEND"
    TURN_MISMATCH = "TURN_MISMATCH"
    CAPABILITY_MISSING = "CAPABILITY_MISSING"
    CURSOR_TRIMMED = "CURSOR_TRIMMED"
    CURSOR_BEYOND_END = "CURSOR_BEYOND_END"
    POSITION_BEYOND_END = "POSITION_BEYOND_END"
    NOT_IMPLEMENTED = "NOT_IMPLEMENTED"
    # Who asks.
    UNAUTHENTICATED = "UNAUTHENTICATED"
    LIST_NOT_PERMITTED = "LIST_NOT_PERMITTED"
    # Too much.
    QUEUE_FULL = "QUEUE_FULL"
    READERS_FULL = "READERS_FULL"
    READER_LAGS = "READER_LAGS"
    SESSIONS_FULL = "SESSIONS_FULL"
    SESSION_FULL = "SESSION_FULL"
    LATE_RESULTS_FULL = "LATE_RESULTS_FULL"
    ENGINE_BUSY = "ENGINE_BUSY"
    # The service, for now.
    DRAINING = "DRAINING"
    LOG_UNAVAILABLE = "LOG_UNAVAILABLE"
    OWNER_ELSEWHERE = "OWNER_ELSEWHERE"
    ENGINE_UNAVAILABLE = "ENGINE_UNAVAILABLE"
    # The server behind an engine, each kind of failure by itself.
    UPSTREAM_UNREACHABLE = "UPSTREAM_UNREACHABLE"
    UPSTREAM_UNAUTHORIZED = "UPSTREAM_UNAUTHORIZED"
    UPSTREAM_RATE_LIMITED = "UPSTREAM_RATE_LIMITED"
    UPSTREAM_FAILED = "UPSTREAM_FAILED"
    UPSTREAM_BROKE_OFF = "UPSTREAM_BROKE_OFF"
    UPSTREAM_NOT_AN_API = "UPSTREAM_NOT_AN_API"
    UPSTREAM_UNREADABLE = "UPSTREAM_UNREADABLE"
    UPSTREAM_STALLED = "UPSTREAM_STALLED"
    UPSTREAM_REFUSED = "UPSTREAM_REFUSED"
    # The service, for good.
    LOG_CORRUPT = "LOG_CORRUPT"
    ENGINE_FAILED = "ENGINE_FAILED"
    OWNER_LOST = "OWNER_LOST"
    INTERNAL = "INTERNAL"


_INVALID = Code(code_pb2.INVALID_ARGUMENT, 400)
_PRECONDITION = Code(code_pb2.FAILED_PRECONDITION, 400)
_NOT_FOUND = Code(code_pb2.NOT_FOUND, 404)
_EXISTS = Code(code_pb2.ALREADY_EXISTS, 409)
_RANGE = Code(code_pb2.OUT_OF_RANGE, 400)
_UNIMPLEMENTED = Code(code_pb2.UNIMPLEMENTED, 501)

TABLE: Final[Mapping[Reason, Code]] = {
    # The client's request is wrong in itself.
    Reason.FIELD_REQUIRED: _INVALID,
    Reason.FIELD_INVALID: _INVALID,
    Reason.FIELD_TOO_LONG: _INVALID,
    Reason.FIELD_OUT_OF_RANGE: _INVALID,
    Reason.FIELD_DUPLICATE: _INVALID,
    Reason.UNREADABLE_MESSAGE: _INVALID,
    Reason.PROMPT_TOO_LONG: _INVALID,
    Reason.FRAME_TOO_LARGE: Code(code_pb2.RESOURCE_EXHAUSTED, 413),
    # The request does not fit the state.
    Reason.SESSION_NOT_FOUND: _NOT_FOUND,
    Reason.MODEL_NOT_FOUND: _NOT_FOUND,
    Reason.TOOL_CALL_NOT_FOUND: _NOT_FOUND,
    Reason.ASSET_NOT_FOUND: _NOT_FOUND,
    Reason.SESSION_EXISTS: _EXISTS,
    Reason.FRAME_ID_REUSED: _EXISTS,
    Reason.SESSION_CLOSED: _PRECONDITION,
    Reason.SESSION_ID_RETIRED: _PRECONDITION,
    Reason.OPEN_REQUIRED: _PRECONDITION,
    Reason.OPEN_REPEATED: _PRECONDITION,
    Reason.FRAME_NOT_FOR_SEND: _PRECONDITION,
    Reason.TURN_MISMATCH: _PRECONDITION,
    Reason.CAPABILITY_MISSING: _PRECONDITION,
    Reason.CURSOR_TRIMMED: _RANGE,
    Reason.CURSOR_BEYOND_END: _RANGE,
    Reason.POSITION_BEYOND_END: _RANGE,
    Reason.NOT_IMPLEMENTED: _UNIMPLEMENTED,
    # Who asks.
    Reason.UNAUTHENTICATED: Code(code_pb2.UNAUTHENTICATED, 401),
    Reason.LIST_NOT_PERMITTED: Code(code_pb2.PERMISSION_DENIED, 403),
    # Too much.
    Reason.QUEUE_FULL: Code(code_pb2.RESOURCE_EXHAUSTED, 429, 1.0),
    Reason.READERS_FULL: Code(code_pb2.RESOURCE_EXHAUSTED, 429, 5.0),
    Reason.READER_LAGS: Code(code_pb2.RESOURCE_EXHAUSTED, 429, 1.0),
    Reason.SESSIONS_FULL: Code(code_pb2.RESOURCE_EXHAUSTED, 429, 10.0),
    Reason.SESSION_FULL: Code(code_pb2.RESOURCE_EXHAUSTED, 429),
    Reason.LATE_RESULTS_FULL: Code(code_pb2.RESOURCE_EXHAUSTED, 429),
    Reason.ENGINE_BUSY: Code(code_pb2.RESOURCE_EXHAUSTED, 429, 1.0),
    # The service, for now.
    Reason.DRAINING: Code(code_pb2.UNAVAILABLE, 503, 1.0),
    Reason.LOG_UNAVAILABLE: Code(code_pb2.UNAVAILABLE, 503, 2.0),
    Reason.OWNER_ELSEWHERE: Code(code_pb2.UNAVAILABLE, 503, 1.0),
    Reason.ENGINE_UNAVAILABLE: Code(code_pb2.UNAVAILABLE, 503, 2.0),
    # The server behind an engine. What its operator has to mend is none of the client's fault.
    Reason.UPSTREAM_UNREACHABLE: Code(code_pb2.UNAVAILABLE, 503, 2.0),
    Reason.UPSTREAM_UNAUTHORIZED: Code(code_pb2.INTERNAL, 500),
    Reason.UPSTREAM_RATE_LIMITED: Code(code_pb2.RESOURCE_EXHAUSTED, 429, 5.0),
    Reason.UPSTREAM_FAILED: Code(code_pb2.UNAVAILABLE, 503, 2.0),
    Reason.UPSTREAM_BROKE_OFF: Code(code_pb2.UNAVAILABLE, 503, 1.0),
    Reason.UPSTREAM_NOT_AN_API: Code(code_pb2.INTERNAL, 500),
    Reason.UPSTREAM_UNREADABLE: Code(code_pb2.INTERNAL, 500),
    Reason.UPSTREAM_STALLED: Code(code_pb2.DEADLINE_EXCEEDED, 504),
    Reason.UPSTREAM_REFUSED: _PRECONDITION,
    # The service, for good.
    Reason.LOG_CORRUPT: Code(code_pb2.DATA_LOSS, 500),
    Reason.ENGINE_FAILED: Code(code_pb2.INTERNAL, 500),
    Reason.OWNER_LOST: Code(code_pb2.ABORTED, 409),
    Reason.INTERNAL: Code(code_pb2.INTERNAL, 500),
}


class BackchannelError(Exception):
    """An error with a place in the table above.

    Args:
        reason: Which row.
        message: What is wrong and what to do about it, for people. Never quotes prompts or answers.
        field: The request field at fault, as a dotted path from the request message or frame.
        metadata: Further facts for programs, e.g. ``{"earliest_seq": "17"}``.
        retry_after_s: Overrides the table's delay.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        field: str = "",
        metadata: dict[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.metadata = metadata or {}
        self.retry_after_s = TABLE[reason].retry_after_s if retry_after_s is None else retry_after_s

    @property
    def grpc_code(self) -> int:
        """The gRPC status code."""
        return TABLE[self.reason].grpc

    @property
    def http_code(self) -> int:
        """The HTTP status code for JSON clients."""
        return TABLE[self.reason].http

    def to_status(self) -> Status:
        """The whole error as it crosses the wire."""
        details: list[Any] = []
        info = error_details_pb2.ErrorInfo(
            reason=self.reason.name, domain=DOMAIN, metadata=self.metadata
        )
        details.append(_pack(info))
        if self.field:
            violation = error_details_pb2.BadRequest.FieldViolation(
                field=self.field, description=self.message, reason=self.reason.name
            )
            details.append(_pack(error_details_pb2.BadRequest(field_violations=[violation])))
        if self.retry_after_s is not None:
            delay = Duration()
            delay.FromNanoseconds(round(self.retry_after_s * 1e9))
            details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
        message = f"{self.field}: {self.message}" if self.field else self.message
        return Status(code=self.grpc_code, message=message, details=details)


def _pack(
    detail: error_details_pb2.ErrorInfo
    | error_details_pb2.BadRequest
    | error_details_pb2.RetryInfo,
) -> Any:
    packed = Any()
    packed.Pack(detail)
    return packed


def reason_of(status: Status) -> str:
    """`ErrorInfo.reason` of a status, or an empty string if it has none of ours."""
    info = error_info(status)
    return info.reason if info is not None else ""


def error_info(status: Status) -> error_details_pb2.ErrorInfo | None:
    """The `ErrorInfo` of a status, if it has one of ours."""
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            return info
    return None


def retry_after_s(status: Status) -> float | None:
    """Seconds to wait before trying again, if the status says so."""
    for detail in status.details:
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(retry):
            return retry.retry_delay.ToNanoseconds() / 1e9
    return None
