"""What the SDK makes of a status, and of its settings."""

from __future__ import annotations

import grpc
import pytest

from backchannel.client import ClientConfig, CursorTrimmedError, SessionGoneError
from backchannel.client.channel import is_loopback
from backchannel.client.errors import call_error, plain_error, status_error
from backchannel.errors import TABLE, BackchannelError, Reason

# What may be tried again as it is; everything else would only fail again.
TRANSIENT = {
    Reason.QUEUE_FULL,
    Reason.READERS_FULL,
    Reason.SESSIONS_FULL,
    Reason.ENGINE_BUSY,
    Reason.DRAINING,
    Reason.LOG_UNAVAILABLE,
    Reason.OWNER_ELSEWHERE,
    Reason.ENGINE_UNAVAILABLE,
    Reason.READER_LAGS,
    Reason.UPSTREAM_UNREACHABLE,
    Reason.UPSTREAM_RATE_LIMITED,
    Reason.UPSTREAM_FAILED,
    Reason.UPSTREAM_BROKE_OFF,
}


@pytest.mark.parametrize("reason", Reason)
def test_only_what_may_pass_is_tried_again(reason: Reason) -> None:
    error = status_error(BackchannelError(reason, "why").to_status())
    assert error.transient == (reason in TRANSIENT)
    assert error.reason == reason
    assert error.retry_after_s == TABLE[reason].retry_after_s


@pytest.mark.parametrize(
    ("code", "transient"),
    [
        (grpc.StatusCode.UNAVAILABLE, True),
        (grpc.StatusCode.INTERNAL, True),
        (grpc.StatusCode.UNKNOWN, True),
        (grpc.StatusCode.UNIMPLEMENTED, False),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, False),
        (grpc.StatusCode.PERMISSION_DENIED, False),
    ],
)
def test_a_broken_connection_is_tried_again_and_a_wrong_server_is_not(
    code: grpc.StatusCode, transient: bool
) -> None:
    assert plain_error(code, "").transient == transient


def test_the_class_says_what_to_do() -> None:
    gone = BackchannelError(Reason.SESSION_NOT_FOUND, "no such session").to_status()
    assert isinstance(status_error(gone), SessionGoneError)
    trimmed = BackchannelError(Reason.CURSOR_TRIMMED, "gone", metadata={"earliest_seq": "9"})
    error = status_error(trimmed.to_status())
    assert isinstance(error, CursorTrimmedError)
    assert error.earliest_seq == 9


def test_details_that_cannot_be_read_leave_the_code() -> None:
    metadata = grpc.aio.Metadata(("grpc-status-details-bin", b"\xff\xff"))
    failed = grpc.aio.AioRpcError(
        grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), metadata, details="nothing here"
    )
    error = call_error(failed)
    assert (error.code, str(error), error.reason) == (5, "nothing here", "")


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ClientConfig\.silence_timeout_s is 0"):
        ClientConfig(silence_timeout_s=0)
    assert ClientConfig(give_up_after_s=None).give_up_after_s is None


@pytest.mark.parametrize(
    ("target", "here"),
    [
        ("127.0.0.1:50051", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("127.example.com:1", False),
        ("10.0.0.1:1", False),
    ],
)
def test_what_is_on_this_machine(target: str, here: bool) -> None:
    assert is_loopback(target) == here
