"""A line in the service's log for every turn that ends: what it cost and how long it took.

No word of it, and no id that lets anybody in: a session's id is a secret, so the line has the
beginning of its SHA-256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

import structlog
from google.protobuf.duration_pb2 import Duration

from backchannel.errors import error_info
from backchannel.observer import AfterCommit, SessionWatch
from backchannel.v1 import event_pb2, session_pb2

_logger = structlog.get_logger(__name__)

DIGEST_CHARS: Final = 12
_BAD: Final = frozenset({session_pb2.FINISH_REASON_ERROR, session_pb2.FINISH_REASON_OWNER_LOST})
_TOKENS: Final = (
    *("prompt_tokens", "cached_prompt_tokens", "generated_tokens", "delivered_tokens"),
    *("displayed_tokens", "kept_tokens", "wasted_tokens"),
)
_TIMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "queued": "queued_ms",
        "time_to_first_token": "first_token_ms",
        "time_per_output_token": "per_token_ms",
        "max_gap": "longest_gap_ms",
        "total": "total_ms",
    }
)


def session_digest(session_id: str) -> str:
    """What the log calls a session by.

    `printf %s SESSION_ID | sha256sum | cut -c1-12` tells it in a shell.
    """
    return hashlib.sha256(session_id.encode()).hexdigest()[:DIGEST_CHARS]


class TurnLog:
    """Writes the lines of one session's turns.

    Args:
        session_id: Whose.
        watch: Knows the turns' traces; None if nothing is traced.
    """

    def __init__(self, session_id: str, watch: SessionWatch | None) -> None:
        self._session_id = session_id
        self._watch = watch
        # Of the running turn; None where it began in another process, which has counted.
        self._tool_calls: int | None = None

    def decided(self, kind: str, event: event_pb2.Event) -> AfterCommit | None:
        """An event was decided; what is to be called when it is committed."""
        if kind == "turn_started":
            self._tool_calls = 0
        elif kind == "tool_call_ready" and self._tool_calls is not None:
            self._tool_calls += 1
        elif kind == "turn_finished":
            finished = event.turn_finished
            # Its span ends with the commit, and is nobody's to ask for then.
            trace = self._watch.trace(finished.turn_id) if self._watch is not None else {}
            calls, self._tool_calls = self._tool_calls, None
            return partial(self._write, finished, calls, trace)
        return None

    def _write(
        self,
        finished: event_pb2.TurnFinished,
        tool_calls: int | None,
        trace: dict[str, str],
        error: Exception | None,
    ) -> None:
        if error is not None:
            return  # It will end again.
        usage, timing = finished.usage, finished.timing
        facts: dict[str, object] = {name: getattr(usage, name) for name in _TOKENS}
        facts |= {
            _TIMES[field.name]: _milliseconds(value)
            for field, value in timing.ListFields()
            if field.name in _TIMES
        }
        if usage.estimated:
            facts["estimated"] = True
        if tool_calls is not None:
            facts["tool_calls"] = tool_calls
        if finished.HasField("error"):
            info = error_info(finished.error)
            facts["reason"] = info.reason if info is not None else ""
        name = session_pb2.FinishReason.Name(finished.finish_reason)
        tell = _logger.warning if finished.finish_reason in _BAD else _logger.info
        tell(
            "turn_finished",
            session=session_digest(self._session_id),
            turn_id=finished.turn_id,
            ending=name.removeprefix("FINISH_REASON_").lower(),
            model=finished.model,
            **facts,
            **trace,
        )


def _milliseconds(duration: Duration) -> float:
    return round(duration.ToNanoseconds() / 1e6, 3)
