"""A session that begins with another one's past, and shares nothing with it from then on."""

from __future__ import annotations

from typing import Final

from backchannel.errors import BackchannelError, Reason
from backchannel.session.state import SessionState
from backchannel.session.transcript import past
from backchannel.session.validation import MIB
from backchannel.v1 import session_pb2

MAX_PAST_BYTES: Final = 3 * MIB
"""It is part of one event, which must fit into what clients take as one message."""


def forked(sent: session_pb2.SessionConfig, parent: SessionState) -> session_pb2.SessionConfig:
    """The parent's configuration with every field that was sent replaced, and its past as history.

    Args:
        sent: What the client wants to be different; valid.
        parent: As it was at the fork.

    Raises:
        BackchannelError: `FIELD_INVALID` for a history beside the fork; `SESSION_FULL` if the past
            is too long.
    """
    if sent.history:
        raise BackchannelError(
            Reason.FIELD_INVALID,
            "a fork brings its own history; leave it out",
            field="config.history",
        )
    config = session_pb2.SessionConfig()
    config.CopyFrom(parent.config)
    config.ClearField("session_id")
    config.ClearField("history")
    for field, _ in sent.ListFields():
        config.ClearField(field.name)  # type: ignore[arg-type]  # it is a name of this message
    config.MergeFrom(sent)  # So a list or map is replaced, not added to.
    config.history.extend(past(parent))
    if config.ByteSize() > MAX_PAST_BYTES:
        raise BackchannelError(
            Reason.SESSION_FULL,
            f"the past of that session has more than {MAX_PAST_BYTES // MIB} MiB; "
            "fork at an earlier event",
            field="fork.at_seq",
        )
    return config
