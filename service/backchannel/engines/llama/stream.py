"""What llama.cpp's server says while it answers, read into chunks.

Tokens are counted by the server itself: a chunk carries the number of all tokens so far, and a
chunk of ours is given those that no earlier one had. So tokens whose text is held back (half a
character, what may become a stop string, the frame around a tool call) ride on the next chunk, and
those behind the last text on a last, empty one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from backchannel.engines.protocol import (
    REASONING,
    TEXT,
    Chunk,
    EngineUsage,
    StopCause,
    TextChunk,
    ToolCallEnd,
    ToolCallFragment,
    ToolCallStart,
)
from backchannel.engines.reasoning import Piece, ReasoningSplitter
from backchannel.errors import BackchannelError, Reason
from backchannel.v1 import event_pb2

_CAUSES: Final = {
    "stop": StopCause.STOP,
    "length": StopCause.LENGTH,
    "tool_calls": StopCause.TOOL_CALLS,
}
_OF_GRAMMAR: Final = re.compile(r"JSON schema|\bgrammar\b|initialize samplers")
"""In an error about a grammar, or about a schema that none could be made of."""
_SHOWN: Final = 500
"""How much of the server's words about an error is passed on."""


class LlamaStream:
    """Reads the server's messages of one completion.

    Args:
        top_logprobs: How many alternatives a token were asked for.
        splitter: Tells reasoning from answer where the server does not.
        field: What is at fault if the server takes no grammar made of the request.
    """

    def __init__(
        self,
        top_logprobs: int = 0,
        splitter: ReasoningSplitter | None = None,
        field: str = "",
    ) -> None:
        self._top_logprobs = top_logprobs
        self._splitter = splitter
        self._field = field
        self._waiting: list[event_pb2.TokenLogprob] = []  # Those of text that is held back.
        self._counted = 0  # Tokens that chunks of ours have.
        self._call: int | None = None  # The index of the call that is being written.
        self._calls = 0
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._total: int | None = None
        self.computed = 0
        self.cause: StopCause | None = None

    @property
    def prompt_tokens(self) -> int:
        """The prompt's length; 0 until the server has said it."""
        return self._prompt_tokens

    @property
    def complete(self) -> bool:
        """Whether the server has said that and how it ended."""
        return self.cause is not None and self._total is not None

    def usage(self, output_tokens: int | None = None, *, exact: bool = True) -> EngineUsage:
        """The server's count; `output_tokens` for a completion that it did not end itself."""
        return EngineUsage(
            prompt_tokens=self._prompt_tokens,
            cached_prompt_tokens=self._cached_tokens,
            output_tokens=self._total if self._total is not None else output_tokens,
            exact=exact or self._total is not None,
        )

    def feed(self, message: bytes) -> Iterator[Chunk]:
        """Read one message.

        Raises:
            BackchannelError: `PROMPT_TOO_LONG` with both lengths, `ENGINE_UNAVAILABLE` or
                `ENGINE_FAILED`, or `FIELD_INVALID` for a format that cannot be kept to, if that
                is what the message says.
        """
        body = json.loads(message)
        if "error" in body:
            raise server_error(body["error"], self._field)
        progress = body.get("prompt_progress")
        if progress is not None:
            self._prompt_tokens = progress["total"]
            self._cached_tokens = progress["cache"]
        self.computed = max(self.computed, body.get("timings", {}).get("predicted_n", 0))
        for choice in body["choices"]:
            yield from self._delta(choice["delta"], choice.get("logprobs"))
            if choice["finish_reason"] is not None:
                self.cause = _CAUSES.get(choice["finish_reason"], StopCause.STOP)
        usage = body.get("usage")
        if usage is not None:
            self._prompt_tokens = usage["prompt_tokens"]
            self._cached_tokens = usage["prompt_tokens_details"]["cached_tokens"]
            self._total = self.computed = usage["completion_tokens"]
            yield from self._end()

    def _delta(self, delta: dict[str, Any], logprobs: dict[str, Any] | None) -> Iterator[Chunk]:
        if text := delta.get("reasoning_content"):
            yield TextChunk(text, self._take(), REASONING, self._logprobs(logprobs))
        if text := delta.get("content"):
            if self._splitter is None:
                yield TextChunk(text, self._take(), TEXT, self._logprobs(logprobs))
            else:
                self._waiting.extend(self._logprobs(logprobs))
                yield from self._split(self._splitter.feed(text))
        for call in delta.get("tool_calls", ()):
            if self._splitter is not None:
                yield from self._split(self._splitter.end())
            index = call["index"]
            function = call["function"]
            if index >= self._calls:
                if self._call is not None:
                    yield ToolCallEnd(self._call)
                self._call = index
                self._calls = index + 1
                yield ToolCallStart(index, function["name"])
            if fragment := function.get("arguments"):
                yield ToolCallFragment(index, fragment, self._take())

    def _end(self) -> Iterator[Chunk]:
        """Give out what was not counted yet, and close the last call if it is whole."""
        if self._splitter is not None:
            yield from self._split(self._splitter.end())
        rest = self._take()
        if rest and self._call is not None:
            yield ToolCallFragment(self._call, "", rest)
        elif rest:
            yield TextChunk("", rest)
        if self._call is not None and self.cause is not StopCause.LENGTH:
            yield ToolCallEnd(self._call)
            self._call = None

    def _split(self, pieces: Sequence[Piece]) -> Iterator[Chunk]:
        for piece in pieces:
            logprobs, self._waiting = self._waiting, []
            yield TextChunk(piece.text, self._take(), piece.channel, logprobs)

    def _take(self) -> int:
        """The tokens that no chunk had yet."""
        new, self._counted = self.computed - self._counted, self.computed
        return new

    def _logprobs(self, logprobs: dict[str, Any] | None) -> Sequence[event_pb2.TokenLogprob]:
        if not logprobs:
            return ()
        return [
            event_pb2.TokenLogprob(
                token=entry["token"],
                logprob=entry["logprob"],
                top=[
                    event_pb2.TokenLogprob(token=top["token"], logprob=top["logprob"])
                    for top in entry["top_logprobs"][: self._top_logprobs]
                ],
            )
            for entry in logprobs["content"]
        ]


def tokens_so_far(message: bytes) -> int | None:
    """How many tokens the server had computed when it wrote this; None if it does not say."""
    tokens: int | None = json.loads(message).get("timings", {}).get("predicted_n")
    return tokens


def server_error(error: dict[str, Any], field: str = "") -> BackchannelError:
    """What the server says of an error, as one of ours.

    Args:
        error: In its words.
        field: What is at fault if it is about a grammar; the server makes them of schemas too.
    """
    message = str(error.get("message", ""))[:_SHOWN]
    if error.get("type") == "exceed_context_size_error":
        prompt_tokens, context = error.get("n_prompt_tokens", 0), error.get("n_ctx", 0)
        return BackchannelError(
            Reason.PROMPT_TOO_LONG,
            f"the conversation has {prompt_tokens} tokens, and the model's context holds "
            f"{context}, the answer included; begin a new session, or say less",
            metadata={"prompt_tokens": str(prompt_tokens), "max_context_tokens": str(context)},
        )
    if field and _OF_GRAMMAR.search(message):
        return BackchannelError(
            Reason.FIELD_INVALID,
            f"llama.cpp cannot keep an answer to it: {message}. A rule or $ref that begins with "
            "itself is the usual cause",
            field=field,
        )
    if error.get("type") == "unavailable_error":
        return BackchannelError(Reason.ENGINE_UNAVAILABLE, f"llama.cpp is not ready: {message}")
    return BackchannelError(Reason.ENGINE_FAILED, f"llama.cpp failed: {message}")


def refusal(error: ValueError, field: str = "") -> BackchannelError:
    """What the server says of a request that it did not even begin with; `field` as above."""
    # It tells of a context that is too small either way; only the words are the same.
    numbers = re.search(r"request \((\d+) tokens\) exceeds .* size \((\d+) tokens\)", str(error))
    if numbers is not None:
        return server_error(
            {
                "type": "exceed_context_size_error",
                "n_prompt_tokens": int(numbers[1]),
                "n_ctx": int(numbers[2]),
            }
        )
    return server_error({"message": f"refused the request: {error}"}, field)
