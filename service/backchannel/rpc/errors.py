"""How an error becomes the status of a call.

Source: https://grpc.io/docs/guides/error/ (the richer error model): the whole `google.rpc.Status`
travels in the trailing metadata `grpc-status-details-bin`.
"""

from __future__ import annotations

import secrets
from types import MappingProxyType
from typing import Any, Final, Never

import grpc
import structlog

from backchannel.errors import BackchannelError, Reason

DETAILS_KEY: Final = "grpc-status-details-bin"
# Envoy's transcoder has made the call of an HTTP request, and makes an HTTP answer of the status.
# It knows one HTTP code for each status, and our table sometimes another: then this tells it.
TRANSCODED_KEY: Final = "x-envoy-original-method"
HTTP_KEY: Final = "x-backchannel-http-status"

# A message travels percent-encoded in a header, and again within the details; clients refuse more
# than 8 KiB of headers by default.
MAX_MESSAGE_CHARS: Final = 512

_CODES: Final = MappingProxyType({code.value[0]: code for code in grpc.StatusCode})

_log = structlog.get_logger(__name__)


def internal(method: str, error: BaseException) -> BackchannelError:
    """Log a fault of ours, and what to tell the client about it.

    The log gets the traceback without the error's message, which may quote what people said; the
    client gets the number under which it is found there.

    Args:
        method: Full name of the RPC.
        error: What nobody expected.
    """
    incident = secrets.token_hex(8)
    _log.error("call_failed", method=method, incident=incident, exc_info=error)
    return BackchannelError(
        Reason.INTERNAL,
        f"the server failed; its log has the details under incident {incident}",
        metadata={"incident": incident},
    )


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: BackchannelError) -> Never:
    """End the call with the error's status and details."""
    if len(error.message) > MAX_MESSAGE_CHARS:
        error = BackchannelError(
            error.reason,
            error.message[: MAX_MESSAGE_CHARS - 1] + "…",
            field=error.field,
            metadata=error.metadata,
            retry_after_s=error.retry_after_s,
        )
    status = error.to_status()
    trailers: list[tuple[str, str | bytes]] = [(DETAILS_KEY, status.SerializeToString())]
    if any(key == TRANSCODED_KEY for key, _ in context.invocation_metadata() or ()):
        trailers.append((HTTP_KEY, str(error.http_code)))
    await context.abort(_CODES[status.code], status.message, tuple(trailers))
