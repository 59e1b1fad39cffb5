"""What servers of the OpenAI API have beyond it, each in its own way.

Sources: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html,
https://docs.sglang.ai/basic_usage/openai_api_completions.html,
https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md,
https://docs.ollama.com/api/openai-compatibility.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from backchannel.engines.protocol import Capability


class DialectName(StrEnum):
    """Whose ways an upstream has; the values of the setting `dialect`."""

    AUTO = "auto"
    """Found out by who is said to own its models."""
    GENERIC = "generic"
    """Anything else: what OpenAI documents, and no more."""
    OPENAI = "openai"
    VLLM = "vllm"
    SGLANG = "sglang"
    LLAMA = "llama"
    """llama.cpp's llama-server."""
    OLLAMA = "ollama"


@dataclass(frozen=True, slots=True)
class Dialect:
    """How to speak to one kind of server.

    Attributes:
        name: Which.
        owners: What `owned_by` says in its list of models.
        capabilities: What its models can do, as far as it goes by the server.
        max_tokens: The name of the field that bounds an answer.
        continuous_usage: Whether every chunk can be had with the count so far, by
            `stream_options.continuous_usage_stats`.
        standing: Fields of every request.
        continuing: Fields of a request that ends with a partial answer.
        grammar: Where a grammar goes, as a path.
        lacks: Sampling fields that it has not.
        most_stops: How many stop strings it takes; 0 for any number.
        seeds: Seeds are below this.
    """

    name: DialectName
    owners: frozenset[str]
    capabilities: frozenset[Capability]
    max_tokens: str = "max_tokens"
    continuous_usage: bool = False
    standing: Mapping[str, Any] = field(default_factory=dict)
    continuing: Mapping[str, Any] = field(default_factory=dict)
    grammar: tuple[str, ...] = ()
    lacks: frozenset[str] = frozenset()
    most_stops: int = 0
    seeds: int = 2**63


_C = Capability
_COMMON: Final = frozenset({_C.TOOLS, _C.JSON_SCHEMA, _C.LOGPROBS, _C.SEED, _C.REASONING})
_OPEN: Final = _COMMON | {_C.CONTINUE_PARTIAL, _C.GRAMMAR}
_BEYOND_OPENAI: Final = frozenset({"top_k", "min_p"})

DIALECTS: Final[Mapping[DialectName, Dialect]] = {
    dialect.name: dialect
    for dialect in (
        Dialect(DialectName.GENERIC, frozenset(), _COMMON),
        Dialect(
            DialectName.OPENAI,
            frozenset({"openai", "openai-internal", "system"}),
            # Its models think, but do not say what.
            _COMMON - {_C.REASONING},
            # `max_tokens` is refused by those of its models that reason.
            max_tokens="max_completion_tokens",
            lacks=_BEYOND_OPENAI,
            most_stops=4,
        ),
        Dialect(
            DialectName.VLLM,
            frozenset({"vllm"}),
            _OPEN,
            continuous_usage=True,
            continuing={"continue_final_message": True, "add_generation_prompt": False},
            grammar=("structured_outputs", "grammar"),
        ),
        Dialect(
            DialectName.SGLANG,
            frozenset({"sglang"}),
            # It takes a seed and heeds it only where it was started to be deterministic.
            _OPEN - {_C.SEED},
            continuous_usage=True,
            continuing={"continue_final_message": True},
            grammar=("ebnf",),
        ),
        Dialect(
            DialectName.LLAMA,
            frozenset({"llamacpp"}),
            _OPEN,
            # The count so far with every chunk; and signs of life from the prefill, by which it
            # also notices sooner that nobody listens any more.
            standing={"timings_per_token": True, "return_progress": True},
            # It goes on from a trailing message of the assistant without being told.
            grammar=("grammar",),
            seeds=2**32 - 1,  # This one it reads as "any".
        ),
        Dialect(
            DialectName.OLLAMA,
            frozenset({"library"}),
            _COMMON,
            lacks=_BEYOND_OPENAI,
        ),
    )
}


def dialect_of(owners: list[str], host: str) -> Dialect:
    """Whose ways a server has that says these things.

    Args:
        owners: `owned_by` of each of its models.
        host: Of its address.
    """
    if host == "api.openai.com":
        return DIALECTS[DialectName.OPENAI]
    for dialect in DIALECTS.values():
        # A gateway lists models of many owners under one roof: it is none of them.
        if owners and all(owner in dialect.owners for owner in owners):
            # Others say `openai` of themselves, for want of anything better.
            if dialect.name is DialectName.OPENAI:
                break
            return dialect
    return DIALECTS[DialectName.GENERIC]
