"""The configuration in force: what the client sent with the defaults filled in, and digests.

Defaults are those of the proto comments; a client that reads `SessionOpened` sees what holds.
"""

from __future__ import annotations

import hashlib
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from backchannel.session.validation import duration_ns
from backchannel.v1 import frame_pb2, session_pb2

SECOND_NS: Final = 1_000_000_000
MAX_TURN_DURATION_S: Final = 600
MAX_TOOL_ROUNDS: Final = 8
MAX_QUEUED_MESSAGES: Final = 16
MAX_STEER_TOKENS: Final = 64
MAX_STEER_DELAY_S: Final = 5
GRACE_S: Final = 30
IDLE_TIMEOUT_S: Final = 60
TIMEOUT_S: Final = 300
SESSION_IDLE_S: Final = 7 * 24 * 3600


def effective_config(
    config: session_pb2.SessionConfig, *, model: str, session_id: str
) -> session_pb2.SessionConfig:
    """A copy with every default filled in.

    Args:
        config: As the client sent it, and valid.
        model: `engine/name`, resolved.
        session_id: The session's id, whoever chose it.
    """
    full = session_pb2.SessionConfig()
    full.CopyFrom(config)
    full.model = model
    full.session_id = session_id
    limits = full.limits
    if not limits.HasField("max_turn_duration"):
        limits.max_turn_duration.CopyFrom(Duration(seconds=MAX_TURN_DURATION_S))
    if not limits.HasField("max_tool_rounds"):
        limits.max_tool_rounds = MAX_TOOL_ROUNDS
    if not limits.HasField("max_queued_messages"):
        limits.max_queued_messages = MAX_QUEUED_MESSAGES
    if not limits.HasField("max_steer_tokens"):
        limits.max_steer_tokens = MAX_STEER_TOKENS
    if not limits.HasField("max_steer_delay"):
        limits.max_steer_delay.CopyFrom(Duration(seconds=MAX_STEER_DELAY_S))
    if full.context_policy == session_pb2.CONTEXT_POLICY_UNSPECIFIED:
        full.context_policy = session_pb2.CONTEXT_POLICY_REFUSE
    policy = full.on_disconnect
    if policy.action == session_pb2.DisconnectPolicy.ACTION_UNSPECIFIED:
        policy.action = session_pb2.DisconnectPolicy.ACTION_CANCEL_AFTER_GRACE
    if (
        policy.action == session_pb2.DisconnectPolicy.ACTION_CANCEL_AFTER_GRACE
        and not policy.HasField("grace")
    ):
        policy.grace.CopyFrom(Duration(seconds=GRACE_S))
    for tool in full.tools:
        if not tool.HasField("blocking"):
            tool.blocking = True
        if not tool.HasField("idle_timeout"):
            tool.idle_timeout.CopyFrom(Duration(seconds=IDLE_TIMEOUT_S))
        if not tool.HasField("timeout"):
            tool.timeout.CopyFrom(Duration(seconds=TIMEOUT_S))
        if tool.side_effect == session_pb2.SIDE_EFFECT_UNSPECIFIED:
            tool.side_effect = session_pb2.SIDE_EFFECT_NONE
        if tool.on_interrupt == session_pb2.TOOL_DISPOSITION_UNSPECIFIED:
            tool.on_interrupt = session_pb2.TOOL_DISPOSITION_CANCEL
    return full


def merged_sampling(
    base: session_pb2.Sampling, override: session_pb2.Sampling
) -> session_pb2.Sampling:
    """`base` with every field that `override` sets replaced."""
    merged = session_pb2.Sampling()
    merged.CopyFrom(base)
    if override.stop:
        # Merging would lay the lists end to end.
        del merged.stop[:]
    merged.MergeFrom(override)
    return merged


def config_digest(config: session_pb2.SessionConfig, fork: Message | None = None) -> bytes:
    """SHA-256 of a configuration as the client sent it, and of the fork it asked for, if it did."""
    digest = hashlib.sha256(config.SerializeToString(deterministic=True))
    if fork is not None:
        digest.update(fork.SerializeToString(deterministic=True))
    return digest.digest()


def frame_digest(frame: frame_pb2.ClientFrame) -> bytes:
    """SHA-256 of a frame's content: everything but its `frame_id`."""
    content = frame_pb2.ClientFrame()
    content.CopyFrom(frame)
    content.ClearField("frame_id")
    return hashlib.sha256(content.SerializeToString(deterministic=True)).digest()


def grace_ns(config: session_pb2.SessionConfig) -> int:
    """How long a turn may run unread, in nanoseconds."""
    return duration_ns(config.on_disconnect.grace)
