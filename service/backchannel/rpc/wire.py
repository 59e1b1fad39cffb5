"""Bytes from strangers become messages here, or an error that says what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from google.protobuf.message import DecodeError

from backchannel.errors import BackchannelError, Reason
from backchannel.v1 import frame_pb2

MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
"""The largest message the contract allows."""

MAX_TRANSPORT_BYTES: Final = 2 * MAX_MESSAGE_BYTES
"""What gRPC itself takes.

More than the contract allows, so that a message which is too large gets an error with details;
from here on gRPC refuses it, with the same status but without them.
"""

T = TypeVar("T")


def parsing(parse: Callable[[bytes], T]) -> Callable[[bytes], T]:
    """Let a parser tell its errors the way all errors are told.

    Returns:
        A function from bytes to the message, raising `BackchannelError` `FRAME_TOO_LARGE` or
        `UNREADABLE_MESSAGE`.
    """

    def parse_or_refuse(raw: bytes) -> T:
        if len(raw) > MAX_MESSAGE_BYTES:
            raise BackchannelError(
                Reason.FRAME_TOO_LARGE,
                f"the message has {len(raw)} bytes; send at most {MAX_MESSAGE_BYTES}",
                metadata={"max_bytes": str(MAX_MESSAGE_BYTES)},
            )
        try:
            return parse(raw)
        except DecodeError:
            # The parser's own message may quote the bytes.
            raise BackchannelError(
                Reason.UNREADABLE_MESSAGE,
                "the bytes are not the message this call takes; compare the client's proto files"
                " with the server's (reflection tells)",
            ) from None

    return parse_or_refuse


client_frame: Final = parsing(frame_pb2.ClientFrame.FromString)
"""A `ClientFrame` from its bytes."""
