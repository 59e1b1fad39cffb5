"""What can go wrong for a client, by what the caller can do about it.

`StatusError` is the server saying no: the request is wrong or does not fit the state, and asking
again changes nothing. `DisconnectedError` is nobody answering. Everything in between (a cut, a
server that restarts, a busy one) the SDK rides out by itself and never raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2
from google.rpc.status_pb2 import Status

from backchannel.errors import Reason, error_info, retry_after_s

if TYPE_CHECKING:
    from backchannel.client.answer import Reply

_DETAILS_KEY: Final = "grpc-status-details-bin"
# What a connection that breaks looks like: nobody who speaks the protocol said it.
_CUT_CODES: Final = frozenset(
    {
        code_pb2.UNAVAILABLE,
        code_pb2.UNKNOWN,
        code_pb2.INTERNAL,
        code_pb2.CANCELLED,
        code_pb2.ABORTED,
        code_pb2.DEADLINE_EXCEEDED,
    }
)
_GONE_REASONS: Final = frozenset(
    {Reason.SESSION_NOT_FOUND, Reason.SESSION_CLOSED, Reason.SESSION_ID_RETIRED}
)


class ClientError(Exception):
    """Anything that the SDK raises on its own account."""


class DisconnectedError(ClientError):
    """The server can't be reached, or was lost for longer than the configuration allows.

    Nothing that was committed is lost: resume the session with the same cursor.
    """


class ClosedError(ClientError):
    """The conversation was used after its `async with` block, or after it ended."""


class MessageWithdrawnError(ClientError):
    """The message was taken back before its turn started, so there is no answer."""


class TurnFailedError(ClientError):
    """The turn ended FINISH_REASON_ERROR or FINISH_REASON_OWNER_LOST.

    Attributes:
        reply: What was said until then; not a complete answer.
    """

    def __init__(self, message: str, reply: Reply) -> None:
        super().__init__(message)
        self.reply = reply


class ToolFailedError(Exception):
    """Raise it in a tool to tell the model, in your words, that the tool failed.

    Args:
        message: For the model and for people. At most 8 KiB; what is longer is cut.
        code: For programs; free. At most 128 bytes.
    """

    def __init__(self, message: str, *, code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class StatusError(ClientError):
    """The server refused: as the status of a call, or in the receipt of a frame.

    Attributes:
        code: The gRPC status code (a `google.rpc.Code` number).
        reason: `ErrorInfo.reason`, e.g. ``MODEL_NOT_FOUND``; empty if no Backchannel said it.
        message: What is wrong and what to do about it.
        field: The request field at fault, as a dotted path; empty if it is none.
        metadata: Further facts, e.g. ``{"earliest_seq": "17"}``.
        retry_after_s: How long the server asks to wait before trying again; None if it does not.
    """

    def __init__(self, status: Status) -> None:
        super().__init__(status.message or code_pb2.Code.Name(code_pb2.Code.ValueType(status.code)))
        info = error_info(status)
        self.code: int = status.code
        self.reason = info.reason if info is not None else ""
        self.message = status.message
        self.field = _field(status)
        self.metadata: Mapping[str, str] = dict(info.metadata) if info is not None else {}
        self.retry_after_s = retry_after_s(status)

    @property
    def transient(self) -> bool:
        """Whether the same thing may work later without anybody changing it."""
        if not self.reason:
            return self.code in _CUT_CODES
        if self.code == code_pb2.RESOURCE_EXHAUSTED:
            return self.retry_after_s is not None
        return self.code == code_pb2.UNAVAILABLE


class SessionGoneError(StatusError):
    """The session does not exist (any more): deleted, expired, or never there."""


class CursorTrimmedError(StatusError):
    """The events after the cursor are no longer kept.

    Resume from `earliest_seq - 1`, or with ``snapshot=True`` for the whole session as it stands.
    """

    @property
    def earliest_seq(self) -> int:
        """The oldest event that can still be read. 0 if the server did not say."""
        return int(self.metadata.get("earliest_seq", "0"))


def status_error(status: Status) -> StatusError:
    """The exception for a status, of the class that says what to do."""
    error = StatusError(status)
    if error.reason in _GONE_REASONS:
        return SessionGoneError(status)
    if error.reason == Reason.CURSOR_TRIMMED:
        return CursorTrimmedError(status)
    return error


def call_error(error: grpc.aio.AioRpcError) -> StatusError:
    """The exception for a call that failed."""
    for key, value in error.trailing_metadata():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_error(Status.FromString(value))
            except DecodeError:
                break
    return plain_error(error.code(), error.details() or "")


def plain_error(code: grpc.StatusCode, message: str) -> StatusError:
    """The exception for a status that comes without details."""
    number: int = code.value[0]
    return StatusError(Status(code=number, message=message))


def _field(status: Status) -> str:
    for detail in status.details:
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad) and bad.field_violations:
            return bad.field_violations[0].field
    return ""
