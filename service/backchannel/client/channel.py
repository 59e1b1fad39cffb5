"""The connection under everything."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import grpc

from backchannel.client.config import ClientConfig


def open_channel(
    target: str,
    config: ClientConfig,
    credentials: grpc.ChannelCredentials | None,
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
) -> grpc.aio.Channel:
    """A channel that notices a dead peer and comes back quickly.

    Args:
        target: `host:port`, or any other target that gRPC understands.
        config: Sizes and times.
        credentials: None: a plain connection.
        interceptors: Around its calls.
    """
    # Both time-outs: with the first alone a frozen peer is found only after a minute.
    options: list[tuple[str, int]] = [
        ("grpc.keepalive_time_ms", round(config.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", round(config.keepalive_timeout_s * 1000)),
        ("grpc.http2.ping_timeout_ms", round(config.keepalive_timeout_s * 1000)),
        # The waits between attempts are ours; the channel's own must not add to them.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        # Two clients in one process that share a broken connection would also share its fate.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if is_loopback(target):
        # A proxy for the way out of this machine has nothing to do with a server on it.
        options.append(("grpc.enable_http_proxy", 0))
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=options, interceptors=interceptors)
    return grpc.aio.secure_channel(target, credentials, options=options, interceptors=interceptors)


def is_loopback(target: str) -> bool:
    """Whether a `host:port` is on this machine for certain."""
    host = target.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
