"""How a checkpoint is written: lines of JSON, with protobuf messages as base64 of their bytes."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from backchannel.errors import BackchannelError, Reason

_M = TypeVar("_M", bound=Message)


def line(record: Any) -> bytes:
    """A record as a line."""
    # JSON has no line breaks in it but those that are asked for.
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()


def pack(message: Message | None) -> str | None:
    """A message as part of a record."""
    if message is None:
        return None
    return base64.b64encode(message.SerializeToString()).decode()


def unpack(kind: type[_M], text: str) -> _M:
    """The same back again."""
    message = kind()
    message.ParseFromString(base64.b64decode(text))
    return message


def damaged() -> BackchannelError:
    """`LOG_CORRUPT`."""
    return BackchannelError(Reason.LOG_CORRUPT, "a checkpoint of this session is damaged")


@contextmanager
def intact() -> Iterator[None]:
    """What is read here is found to be damaged if it is not what it should be."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        # What is no number, not there, of another kind, or too large; JSON and base64 among them.
        raise damaged() from error
    except (DecodeError, RecursionError) as error:
        raise damaged() from error
