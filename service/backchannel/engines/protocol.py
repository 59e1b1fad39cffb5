"""What an engine is: it takes a prompt and yields tokens until it is done or told to stop.

Rules for an adapter:

* `Engine.start` returns at once; the prompt is worked on while the generation is iterated.
* A `Generation` yields chunks and, last and exactly once, a `Finished`. It raises
  `BackchannelError` instead when the engine fails.
* `Generation.stop` reaches the engine itself within milliseconds (never only the socket), from any
  phase: waiting, prefill, first token, mid-stream. It does not block. Afterwards the iteration ends
  soon with `Finished(STOPPED)` whose usage counts everything that was computed, yielded or not.
* Every output token is counted once: in the `token_count` of a chunk, or in `Usage.output_tokens`
  of the `Finished` as the engine's own total for this generation.
* Closing a generation (`aclose`) without iterating to its end stops the engine too.
* An adapter never logs prompts or answers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Final, NamedTuple, Protocol, Self

from backchannel.v1 import event_pb2, session_pb2

TEXT: Final = event_pb2.CHANNEL_TEXT
REASONING: Final = event_pb2.CHANNEL_REASONING


class Capability(StrEnum):
    """What a model can do; the values stand in `Model.capabilities`."""

    TOOLS = "tools"
    CONTINUE_PARTIAL = "continue_partial"
    JSON_SCHEMA = "json_schema"
    GRAMMAR = "grammar"
    LOGPROBS = "logprobs"
    SEED = "seed"
    REASONING = "reasoning"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model as it is listed.

    Attributes:
        name: Without the engine's name: `house`, not `llama/house`.
        description: One or two sentences for people, limits included.
        max_context_tokens: Prompt and answer together; 0 for no such limit.
        capabilities: What can be asked of it.
        parallel: How many generations may run at once; the caller admits no more. 0 for no limit.
    """

    name: str
    description: str
    max_context_tokens: int = 0
    capabilities: frozenset[Capability] = frozenset()
    parallel: int = 0


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question to an engine.

    Attributes:
        model: Without the engine's name.
        system: The system prompt; empty for none.
        messages: The conversation, oldest first; neighbours of one role may occur. A tool message's
            text is compact JSON. Every tool call in it has exactly one tool message.
        tools: What the model may call.
        sampling: With `max_tokens` already reduced by what the turn has used.
        options: Engine-specific settings (`SessionConfig.engine_options`).
        response_format: None for free text.
        continue_text: A partial answer to go on from, for engines with `CONTINUE_PARTIAL`.
    """

    model: str
    system: str
    messages: Sequence[session_pb2.Message]
    tools: Sequence[session_pb2.ToolSpec] = ()
    sampling: session_pb2.Sampling = field(default_factory=session_pb2.Sampling)
    options: Mapping[str, str] = field(default_factory=dict)
    response_format: session_pb2.ResponseFormat | None = None
    continue_text: str = ""


class TextChunk(NamedTuple):
    """Tokens of text. A tuple, which is made several times as fast as a dataclass.

    `text` may be empty when the tokens have none yet; `token_count` is 0 for the rest of a token
    that was counted with its beginning.
    """

    text: str
    token_count: int
    channel: event_pb2.Channel.ValueType = TEXT
    logprobs: Sequence[event_pb2.TokenLogprob] = ()


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """The model begins a tool call. `index` tells the calls of one generation apart, from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallFragment:
    """The next piece of a call's arguments; all pieces together are one JSON object."""

    index: int
    text: str
    token_count: int


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    """The call's arguments are complete."""

    index: int


Chunk = TextChunk | ToolCallStart | ToolCallFragment | ToolCallEnd


class StopCause(StrEnum):
    """Why a generation ended."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class EngineUsage:
    """The engine's own count of one generation.

    Attributes:
        prompt_tokens: Length of the prompt.
        cached_prompt_tokens: How much of it was in the engine's cache.
        output_tokens: All tokens computed, whether they were yielded or not. None if the engine
            does not tell.
        exact: Whether the counts are the engine's own; False marks an estimate.
    """

    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    output_tokens: int | None = None
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Finished:
    """The last item of every generation that did not fail."""

    cause: StopCause
    usage: EngineUsage


class Generation(Protocol):
    """One answer in the making. Iterate it in one task; `stop` may be called from another."""

    def __aiter__(self) -> AsyncIterator[Chunk | Finished]:
        """Yield chunks, then one `Finished`; raise `BackchannelError` if the engine fails."""
        ...

    def stop(self) -> None:
        """Tell the engine to stop computing, now. Idempotent, does not block."""
        ...

    async def aclose(self) -> None:
        """Free everything; stops the engine if it still computes. Idempotent."""
        ...


class Engine(Protocol):
    """Where tokens come from. Opened by `async with`."""

    @property
    def name(self) -> str:
        """The part before the slash in `engine/name`."""
        ...

    def models(self) -> Sequence[ModelCard]:
        """The models that can be named now, the engine's default first."""
        ...

    def check(self, prompt: Prompt) -> None:
        """Refuse what this engine cannot do, before anything starts.

        Called with an empty conversation when a session is created, to judge `tools`, `sampling`,
        `options` and `response_format`.

        Raises:
            BackchannelError: `MODEL_NOT_FOUND`, `CAPABILITY_MISSING`, `FIELD_INVALID`, naming the
                field and the remedy.
        """
        ...

    def start(self, prompt: Prompt) -> Generation:
        """Begin a generation.

        Raises:
            BackchannelError: As `check`, and `ENGINE_UNAVAILABLE`.
        """
        ...

    async def __aenter__(self) -> Self:
        """Load models, open connections.

        Raises:
            BackchannelError: `ENGINE_UNAVAILABLE`, saying what to do about it.
        """
        ...

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Stop all generations and free everything."""
        ...
