"""A transcript that has outgrown its model: which of the oldest turns the prompt can do without."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Final

from backchannel.session.state import SessionState, exchanges
from backchannel.session.transcript import messages, turn_messages
from backchannel.v1 import event_pb2, session_pb2

ANSWER_SHARE: Final = 4
"""A quarter of the context is left to the answer, or what `max_tokens` says if that is less."""


def trim_of(
    state: SessionState, *, prompt_tokens: int, max_context_tokens: int
) -> event_pb2.ContextTrimmed | None:
    """What to leave out so that the prompt fits; None if nothing can be.

    The system prompt stays, and the running turn, and turns with an open call.

    Args:
        state: With a running turn.
        prompt_tokens: How long the engine found the prompt; 0 if it did not say.
        max_context_tokens: How much it takes, the answer included; 0 if it did not say.
    """
    past = exchanges(state.config.history)[state.history_dropped :]
    sizes = [_size(exchange) for exchange in past]
    sizes += [_size(turn_messages(state.turns[at], state.calls)) for at in state.droppable()]
    if not sizes:
        return None
    whole = max(1, len(state.config.system) + _size(messages(state)))
    if prompt_tokens <= 0 or max_context_tokens <= 0:
        prompt_tokens, target = whole, whole // 2  # In characters, for want of anything better.
    else:
        reserve = max_context_tokens // ANSWER_SHARE
        if state.config.sampling.HasField("max_tokens"):
            reserve = min(reserve, state.config.sampling.max_tokens)
        target = max_context_tokens - reserve
    dropped = tokens = 0
    for size in sizes:
        dropped += 1
        tokens += size * prompt_tokens // whole
        if prompt_tokens - tokens <= target:
            break
    return event_pb2.ContextTrimmed(dropped_turns=dropped, dropped_tokens=tokens)


def _size(told: Iterable[session_pb2.Message]) -> int:
    """Characters that a model reads, roughly."""
    return sum(
        len(text)
        for message in told
        for text in chain(
            (part.text for part in message.parts),
            (call.name + call.arguments_json for call in message.tool_calls),
        )
    )
