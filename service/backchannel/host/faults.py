"""Errors of the host that are not the request's, and what may be logged of a bug."""

from __future__ import annotations

import traceback

from backchannel.errors import BackchannelError, Reason


def draining_error() -> BackchannelError:
    """What is said while the host is leaving."""
    return BackchannelError(
        Reason.DRAINING, "this server is leaving; connect again and resume with your cursor"
    )


def moved_error() -> BackchannelError:
    """What is said by a session that has left memory since it was asked for."""
    return BackchannelError(Reason.OWNER_ELSEWHERE, "the session was put away; ask for it again")


def broken_error() -> BackchannelError:
    """What is said when our own code has failed."""
    return BackchannelError(Reason.INTERNAL, "the server met a bug of its own; it is in its log")


def where(error: BaseException) -> dict[str, str]:
    """What may be logged of a bug: its message may quote what users said."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return {"kind": type(error).__name__, "where": place}
