"""The tokens of one answer, read into chunks: text, reasoning, tool calls, up to a stop string.

Tokens are counted here: a server says of each message how many it has, not how many there were.
A token whose text is held back, or that has none, is counted with the next chunk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from backchannel.engines.protocol import (
    REASONING,
    TEXT,
    Chunk,
    EngineUsage,
    StopCause,
    TextChunk,
    ToolCallEnd,
    ToolCallFragment,
)
from backchannel.engines.reasoning import ReasoningSplitter
from backchannel.engines.smg.dialect import Step, TokenLogprobs
from backchannel.engines.smg.tokenizer import Detokenizer, ModelTokenizer
from backchannel.engines.stop_strings import StopStrings
from backchannel.engines.tool_calls import ToolCallParser
from backchannel.v1 import event_pb2

_CAUSES = {"length": StopCause.LENGTH}


@dataclass(frozen=True, slots=True)
class Reading:
    """How an answer is to be read.

    Attributes:
        prompt_ids: What it follows.
        stops: Strings that end it.
        tool_calls: Finds its tool calls; None where there can be none.
        reasoning: Finds its reasoning; None where there is none.
        top_logprobs: How many alternatives a token were asked for; None for no log-probabilities.
    """

    prompt_ids: Sequence[int]
    stops: Sequence[str] = ()
    tool_calls: ToolCallParser | None = None
    reasoning: ReasoningSplitter | None = None
    top_logprobs: int | None = None


class SmgStream:
    """Reads the messages of one answer.

    Args:
        tokenizer: The model's.
        reading: How.
    """

    def __init__(self, tokenizer: ModelTokenizer, reading: Reading) -> None:
        self._tokenizer = tokenizer
        self._reading = reading
        self._detokenizer = Detokenizer(tokenizer, reading.prompt_ids)
        self._stops = StopStrings(reading.stops) if reading.stops else None
        self._uncounted = 0
        self._logprobs: list[TokenLogprobs] = []
        self._prompt_tokens = len(reading.prompt_ids)
        self._cached_tokens = 0
        self._computed = 0
        self._cut = False
        self._call: int | None = None  # That is being written.
        self._calls = 0  # That are whole.
        self.finish = ""

    @property
    def computed(self) -> int:
        """All tokens that came."""
        return self._computed

    @property
    def cut(self) -> bool:
        """Whether a stop string has come: the answer ends there, whatever the server says."""
        return self._cut

    @property
    def cause(self) -> StopCause:
        """How it ended."""
        if self._cut:
            return StopCause.STOP
        cause = _CAUSES.get(self.finish, StopCause.STOP)
        return StopCause.TOOL_CALLS if cause is StopCause.STOP and self._calls else cause

    def usage(self, *, exact: bool = True) -> EngineUsage:
        """What it has cost."""
        return EngineUsage(
            prompt_tokens=self._prompt_tokens,
            cached_prompt_tokens=min(self._cached_tokens, self._prompt_tokens),
            output_tokens=self._computed,
            exact=exact,
        )

    def count(self, step: Step) -> None:
        """Take a message's counts alone: nobody reads it any more."""
        self._computed += len(step.token_ids)
        self._cached_tokens = max(self._cached_tokens, step.cached_tokens)
        self.finish = step.finish or self.finish

    def feed(self, step: Step) -> list[Chunk]:
        """Read a message."""
        self.count(step)
        if self._cut:
            return []
        self._uncounted += len(step.token_ids)
        if self._reading.top_logprobs is not None:
            self._logprobs += step.logprobs
        chunks: list[Chunk] = []
        for token_id in step.token_ids:
            text = self._detokenizer.feed(token_id)
            if text:
                chunks += self._read(text)
            if self.cut:
                break
        if step.finish and not self.cut:
            chunks += self._end()
        return chunks

    # --- one stage after the other

    def _read(self, text: str) -> Iterator[Chunk]:
        if self._reading.reasoning is None:
            yield from self._answer(text)
            return
        for piece in self._reading.reasoning.feed(text):
            if piece.channel == REASONING:
                yield self._text(piece.text, REASONING)
            else:
                yield from self._answer(piece.text)
            if self._cut:
                return

    def _answer(self, text: str) -> Iterator[Chunk]:
        parser = self._reading.tool_calls
        if parser is None:
            yield from self._said(text)
        else:
            yield from self._called(parser.feed(text, self._take()))

    def _called(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """What the parser of tool calls says; what it has counted stays counted."""
        for chunk in chunks:
            if isinstance(chunk, TextChunk):
                self._uncounted += chunk.token_count
                if not self._cut:
                    yield from self._said(chunk.text)
                continue
            if self._cut:
                continue
            if self._stops is not None and (rest := self._stops.rest()):
                yield self._text(rest, TEXT)
            if isinstance(chunk, ToolCallFragment):
                self._uncounted += chunk.token_count
                self._call = chunk.index
                yield ToolCallFragment(chunk.index, chunk.text, self._take())
            else:
                self._call = None
                self._calls += isinstance(chunk, ToolCallEnd)
                yield chunk

    def _said(self, text: str) -> Iterator[Chunk]:
        """Text of the answer, of which a stop string may be part."""
        if self._stops is not None:
            text, self._cut = self._stops.feed(text)
        if text or self._cut:
            yield self._text(text, TEXT)

    def _end(self) -> Iterator[Chunk]:
        rest = self._detokenizer.rest()
        if rest:
            yield from self._read(rest)
        if self._reading.reasoning is not None and not self._cut:
            for piece in self._reading.reasoning.end():
                if piece.channel == REASONING:
                    yield self._text(piece.text, REASONING)
                else:
                    yield from self._answer(piece.text)
        if self._reading.tool_calls is not None and not self._cut:
            yield from self._called(self._reading.tool_calls.finish())
        if self._stops is not None and not self._cut and (rest := self._stops.rest()):
            yield self._text(rest, TEXT)
        if self._uncounted or self._logprobs:
            if self._call is None:
                yield self._text("", TEXT)
            else:
                yield ToolCallFragment(self._call, "", self._take())

    def _text(self, text: str, channel: event_pb2.Channel.ValueType) -> TextChunk:
        logprobs, self._logprobs = self._logprobs, []
        return TextChunk(text, self._take(), channel, [self._logprob(entry) for entry in logprobs])

    def _take(self) -> int:
        count, self._uncounted = self._uncounted, 0
        return count

    def _logprob(self, entry: TokenLogprobs) -> event_pb2.TokenLogprob:
        return event_pb2.TokenLogprob(
            token=self._tokenizer.decode([entry.token_id]),
            logprob=entry.logprob,
            top=[
                event_pb2.TokenLogprob(token=self._tokenizer.decode([token_id]), logprob=logprob)
                for token_id, logprob in entry.top[: self._reading.top_logprobs]
            ],
        )
