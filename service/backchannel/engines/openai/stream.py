"""What an upstream says while it answers, read into chunks.

Tokens are the upstream's own where it tells how many there were so far (`usage` or `timings` in
every chunk). Where it does not, a piece of text is taken for one token, or for as many as it has
log-probabilities, until the usage at the end tells the truth; what was not counted by then rides
on a last, empty chunk.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

from backchannel.engines.openai.text import Halves, whole
from backchannel.engines.openai.tool_calls import ToolCalls
from backchannel.engines.protocol import (
    REASONING,
    TEXT,
    Chunk,
    EngineUsage,
    StopCause,
    TextChunk,
    ToolCallFragment,
    ToolCallStart,
)
from backchannel.v1 import event_pb2

_CAUSES: Final = {
    "length": StopCause.LENGTH,
    "content_filter": StopCause.CONTENT_FILTER,
}
_GAVE_UP: Final = frozenset({"abort", "error"})
"""What vLLM and SGLang say when they drop an answer."""

_DONE: Final = b"[DONE]"
_MOST: Final = 2**31 - 1


class UnreadableAnswerError(Exception):
    """An event is not what the API says; the message tells what is wrong, and quotes nothing."""


class AbandonedAnswerError(Exception):
    """The upstream says that it gave up.

    Args:
        error: What it says of the reason; None if nothing.
    """

    def __init__(self, error: object = None) -> None:
        super().__init__("the upstream gave the answer up")
        self.error = error


class OpenAIStream:
    """Reads the events of one chat completion.

    Args:
        top_logprobs: How many alternatives a token were asked for; None for no log-probabilities.
    """

    def __init__(self, top_logprobs: int | None = None) -> None:
        self._top_logprobs = top_logprobs
        self._calls = ToolCalls()
        self._halves = {TEXT: Halves(), REASONING: Halves()}
        self._counted = 0  # Tokens that chunks of ours have.
        self._computed = 0
        self._told = False  # Whether the upstream counts as it goes.
        self._total = 0  # By its last usage.
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._final = False  # Whether a usage came with or after the end.
        self._finish_reason: str | None = None
        self._over = False  # Whether it has said so: [DONE].
        self.begun = False

    @property
    def ended(self) -> bool:
        """Whether the upstream has said how the answer ended, or that it is over."""
        return self._finish_reason is not None or (self._over and self.begun)

    @property
    def over(self) -> bool:
        """Whether nothing more is to come."""
        return self._over

    @property
    def cause(self) -> StopCause:
        """How the answer ended."""
        cause = _CAUSES.get(self._finish_reason or "", StopCause.STOP)
        return StopCause.TOOL_CALLS if cause is StopCause.STOP and self._calls.any else cause

    def usage(self) -> EngineUsage:
        """What the answer has cost as far as is known: exactly, once its end has a usage."""
        return EngineUsage(
            prompt_tokens=self._prompt_tokens,
            cached_prompt_tokens=self._cached_tokens,
            output_tokens=max(self._total if self._final else self._computed, self._counted),
            exact=self._final and self._total >= self._counted,
        )

    def feed(self, data: bytes) -> list[Chunk]:
        """Read the data of one event.

        Raises:
            UnreadableAnswerError: It is not what the API says.
            AbandonedAnswerError: It tells of an error.
        """
        if data.startswith(_DONE):
            self._over = True
            return []
        if self._over:
            return []
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            raise UnreadableAnswerError("an event is not JSON") from None
        try:
            return list(self._read(body))
        except AbandonedAnswerError:
            raise
        # Whatever is missing or of the wrong type.
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise UnreadableAnswerError(
                f"an event is not a chunk of a chat completion ({type(error).__name__})"
            ) from None

    def finish(self) -> list[Chunk]:
        """The answer is whole: what was held back, tokens without text, the ends of calls.

        Raises:
            UnreadableAnswerError: A tool call was left without a name.
        """
        chunks: list[Chunk] = [
            TextChunk(rest, 0, channel)
            for channel, halves in self._halves.items()
            if (rest := halves.rest())
        ]
        silent = self._take()
        call = self._calls.open_call
        if silent and call is not None:
            chunks.append(ToolCallFragment(call, "", silent))
        elif silent:
            chunks.append(TextChunk("", silent))
        try:
            chunks += self._calls.finish(cut=self.cause is not StopCause.TOOL_CALLS)
        except ValueError as error:
            raise UnreadableAnswerError(str(error)) from None
        return chunks

    def _read(self, body: dict[str, Any]) -> Iterator[Chunk]:
        if error := body.get("error"):
            raise AbandonedAnswerError(error)
        self._count(body)
        for choice in body.get("choices") or ():
            # Only one answer was asked for, and after its end there is nothing to add.
            if choice.get("index", 0) != 0 or self._finish_reason is not None:
                continue
            yield from self._delta(choice.get("delta") or {}, choice.get("logprobs"))
            reason = choice.get("finish_reason")
            if reason in _GAVE_UP:
                raise AbandonedAnswerError
            if reason:
                self._finish_reason = str(reason)
                self._final = bool(body.get("usage"))

    def _count(self, body: dict[str, Any]) -> None:
        """Read the count so far, in each of the ways that there are."""
        if progress := body.get("prompt_progress"):
            self._prompt_tokens = _number(progress["total"])
            self._cached_tokens = _number(progress["cache"])
        if timings := body.get("timings"):
            self._told = True
            self._computed = max(self._computed, _number(timings["predicted_n"]))
        if usage := body.get("usage"):
            self._prompt_tokens = _number(usage.get("prompt_tokens") or 0)
            details = usage.get("prompt_tokens_details") or {}
            self._cached_tokens = min(
                _number(details.get("cached_tokens") or 0), self._prompt_tokens
            )
            self._total = _number(usage.get("completion_tokens") or 0)
            self._final = self._finish_reason is not None
            # Some send zeros until the end.
            self._told = self._told or self._total > 0
            self._computed = max(self._computed, self._total)

    def _delta(self, delta: dict[str, Any], logprobs: dict[str, Any] | None) -> Iterator[Chunk]:
        for key, channel in (("reasoning_content", REASONING), ("reasoning", REASONING)):
            if text := delta.get(key):
                yield from self._text(text, channel, logprobs)
                break
        for key in ("content", "refusal"):
            if text := delta.get(key):
                yield from self._text(text, TEXT, logprobs)
        for entry in delta.get("tool_calls") or ():
            for chunk in self._calls.feed(entry):
                self.begun = True
                if isinstance(chunk, ToolCallFragment):
                    chunk = ToolCallFragment(chunk.index, chunk.text, self._take(1))
                elif isinstance(chunk, ToolCallStart) and not self._told:
                    self._computed += 1  # It rides on the first fragment.
                yield chunk

    def _text(
        self, text: str, channel: event_pb2.Channel.ValueType, logprobs: dict[str, Any] | None
    ) -> Iterator[Chunk]:
        if not isinstance(text, str):
            raise TypeError
        self.begun = True
        entries = (logprobs or {}).get("content") or ()
        count = self._take(len(entries) or 1)
        text = self._halves[channel].feed(text)
        yield TextChunk(text, count, channel, self._logprobs(entries))

    def _take(self, guess: int = 0) -> int:
        """The tokens that no chunk had yet; about so many where the upstream does not tell."""
        if not self._told:
            self._computed += guess
        known = self._total if self._final else self._computed
        new = max(known - self._counted, 0)
        self._counted += new
        return new

    def _logprobs(self, entries: Sequence[dict[str, Any]]) -> Sequence[event_pb2.TokenLogprob]:
        most = self._top_logprobs
        if most is None:
            return ()
        return [
            event_pb2.TokenLogprob(
                token=whole(entry["token"]),
                logprob=entry["logprob"],
                top=[
                    event_pb2.TokenLogprob(token=whole(top["token"]), logprob=top["logprob"])
                    for top in (entry.get("top_logprobs") or ())[:most]
                ],
            )
            for entry in entries
        ]


def _number(value: object) -> int:
    """A count, as long as it can be one."""
    if not isinstance(value, int) or not 0 <= value <= _MOST:
        raise ValueError("no count")
    return value
