"""Page tokens: a place in a listing, opaque to the client."""

from __future__ import annotations

import base64
import binascii

from backchannel.errors import BackchannelError, Reason


def to_token(update_time_ns: int, session_id: str) -> str:
    """The token of the page after this place."""
    return base64.urlsafe_b64encode(f"{update_time_ns}.{session_id}".encode()).decode()


def from_token(token: str) -> tuple[int, str] | None:
    """The place that a token names; None for the beginning.

    Raises:
        BackchannelError: `FIELD_INVALID`.
    """
    if not token:
        return None
    try:
        place = base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
        update_time, _, session_id = place.partition(".")
        return int(update_time), session_id
    except (binascii.Error, ValueError):
        raise BackchannelError(
            Reason.FIELD_INVALID,
            "take it from next_page_token of the page before, unchanged",
            field="page_token",
        ) from None
