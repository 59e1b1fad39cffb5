"""The scripted engine: no model, deterministic, for tests, for load and for trying clients.

One token is one word with the white space before it (and, at the end of a text, after it). Without
a `rate` a token is produced when it is taken. With one, token k is produced `k / rate` seconds
after the prefill, whatever the reader does, but never more than one ahead of the reader: a token
whose time has come while nobody took it was produced all the same, and a stop counts it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import AsyncGeneratorType, TracebackType
from typing import Final, Protocol, Self, cast

from backchannel.engines.checks import (
    check_capabilities,
    check_known_options,
    find_card,
    number_option,
)
from backchannel.engines.protocol import (
    Capability,
    Chunk,
    EngineUsage,
    Finished,
    ModelCard,
    Prompt,
    StopCause,
    TextChunk,
    ToolCallEnd,
    ToolCallFragment,
    ToolCallStart,
)
from backchannel.engines.stop_strings import StopStrings
from backchannel.errors import BackchannelError, Reason
from backchannel.v1 import session_pb2

NAME: Final = "scripted"
DEFAULT_COUNT: Final = 100
"""How far `count` counts when `max_tokens` does not say."""

FEW: Final = 5
"""How far `fail` and `stall` count."""

MIN_RATE: Final = 0.001
MAX_RATE: Final = 1_000_000.0
MAX_PREFILL_MS: Final = 600_000.0

CATCH_UP_S: Final = 0.25
"""How much of the time that a reader was away is made up for: a hiccup of the machine leaves no
drift, a reader that was held back for long gets no burst."""

_WORD: Final = re.compile(r"\s*\S+(?:\s+\Z)?")


class _Timer(Protocol):
    """What is used of an event loop to tell the time; tests bring their own."""

    def time(self) -> float: ...
    def call_at(self, when: float, callback: Callable[[], object], /) -> _Handle: ...


class _Handle(Protocol):
    def cancel(self) -> None: ...


# --- scripts ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Argument:
    """One token of a tool call's arguments."""

    index: int
    text: str


class _Fail:
    """The engine fails."""


class _Stall:
    """Nothing more, for ever."""


_Step = str | _Argument | ToolCallStart | ToolCallEnd | _Fail | _Stall
"""A step of a script; a bare string is one token of text."""


def words(text: str) -> Iterator[str]:
    """A text cut into tokens; laid end to end they are the text, character for character."""
    if not text.strip():  # Not one word. (The pattern would need quadratic time to find that.)
        return iter([text] if text else [])
    return (match.group() for match in _WORD.finditer(text))


def _numbers(last: int) -> Iterator[str]:
    return itertools.chain(["1"], (f" {number}" for number in range(2, last + 1)))


def _echo(prompt: Prompt) -> Iterator[_Step]:
    return words(_last_user_text(prompt.messages))


def _count(prompt: Prompt) -> Iterator[_Step]:
    sampling = prompt.sampling
    return _numbers(sampling.max_tokens if sampling.HasField("max_tokens") else DEFAULT_COUNT)


def _fail(_: Prompt) -> Iterator[_Step]:
    return itertools.chain(_numbers(FEW), [_Fail()])


def _stall(_: Prompt) -> Iterator[_Step]:
    return itertools.chain(_numbers(FEW), [_Stall()])


def _tool(prompt: Prompt) -> Iterator[_Step]:
    return _call(prompt, prompt.tools[:1])


def _tools(prompt: Prompt) -> Iterator[_Step]:
    return _call(prompt, prompt.tools)


def _call(prompt: Prompt, tools: Sequence[session_pb2.ToolSpec]) -> Iterator[_Step]:
    results = _results_of_round(prompt.messages)
    if results:
        result = results[0] if len(results) == 1 else f"[{','.join(results)}]"
        yield from words(f"result: {result}")
        return
    text = _last_user_text(prompt.messages)
    arguments = json.dumps({"input": text}, ensure_ascii=False)
    for index, tool in enumerate(tools):
        yield ToolCallStart(index, tool.name)
        for word in words(arguments):
            yield _Argument(index, word)
        yield ToolCallEnd(index)


def _text(message: session_pb2.Message) -> str:
    return "".join(part.text for part in message.parts)


def _last_user_text(messages: Sequence[session_pb2.Message]) -> str:
    for message in reversed(messages):
        if message.role == session_pb2.ROLE_USER:
            return _text(message)
    return ""


def _results_of_round(messages: Sequence[session_pb2.Message]) -> list[str]:
    """The tool results since the last user message, in the order of their calls."""
    order: list[str] = []
    results: dict[str, str] = {}
    for message in messages:
        if message.role == session_pb2.ROLE_USER:
            order.clear()
            results.clear()
        elif message.role == session_pb2.ROLE_ASSISTANT:
            order.extend(call.call_id for call in message.tool_calls)
        elif message.role == session_pb2.ROLE_TOOL:
            results[message.call_id] = _text(message)
    place = {call_id: index for index, call_id in enumerate(order)}
    return [results[call_id] for call_id in sorted(results, key=lambda id_: place.get(id_, -1))]


def _prompt_tokens(prompt: Prompt) -> int:
    count = len(prompt.system.split())
    for message in prompt.messages:
        count += len(_text(message).split())
        count += sum(len(call.arguments_json.split()) for call in message.tool_calls)
    return count


_CAN: Final = frozenset({Capability.SEED})
_MODELS: Final[Mapping[str, tuple[ModelCard, Callable[[Prompt], Iterator[_Step]]]]] = {
    card.name: (card, script)
    for card, script in (
        (ModelCard("echo", "Says the last user message back, word by word.", 0, _CAN), _echo),
        (
            ModelCard("count", "Counts 1 2 3 … up to max_tokens (default 100).", 0, _CAN),
            _count,
        ),
        (
            ModelCard(
                "tool",
                "Calls the first declared tool with the user's text, then says its result.",
                0,
                _CAN | {Capability.TOOLS},
            ),
            _tool,
        ),
        (
            ModelCard(
                "tools",
                "Calls every declared tool in one round, then says their results.",
                0,
                _CAN | {Capability.TOOLS},
            ),
            _tools,
        ),
        (ModelCard("fail", "Counts to five, then fails.", 0, _CAN), _fail),
        (ModelCard("stall", "Counts to five, then says nothing for ever.", 0, _CAN), _stall),
    )
}


# --- the engine ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast tokens come.

    Attributes:
        interval_s: Between two tokens; 0 for as fast as they are taken.
        prefill_s: Before the first.
    """

    interval_s: float = 0.0
    prefill_s: float = 0.0

    @classmethod
    def of(cls, options: Mapping[str, str]) -> Pace:
        """The pace that `engine_options` ask for.

        Raises:
            BackchannelError: `FIELD_INVALID`, naming the option.
        """
        check_known_options(NAME, options, ["rate", "prefill_ms"])
        rate = number_option(options, "rate", low=MIN_RATE, high=MAX_RATE, unit="tokens a second")
        prefill_ms = number_option(
            options, "prefill_ms", low=0.0, high=MAX_PREFILL_MS, unit="milliseconds"
        )
        return cls(1.0 / rate if rate else 0.0, (prefill_ms or 0.0) / 1000.0)


class ScriptedGeneration:
    """One script being played; see `Generation`."""

    def __init__(
        self, prompt: Prompt, pace: Pace, timer: _Timer, ended: Callable[[ScriptedGeneration], None]
    ) -> None:
        self._prompt = prompt
        self._script = _MODELS[prompt.model][1](prompt)
        self._pace = pace
        self._timer = timer
        self._ended = ended
        # Asking for the loop costs a system call (Python 3.11), and a wait is every token's.
        self._loop = asyncio.get_running_loop()
        sampling = prompt.sampling
        self._limit = sampling.max_tokens if sampling.HasField("max_tokens") else None
        self._stop_strings = StopStrings(sampling.stop) if sampling.stop else None
        self._produced = 0
        self._due = 0.0  # When the next token is produced; tells nothing before the iteration.
        self._awaited = False  # The iteration waits for the very next token.
        self._begun = False
        self._over = False
        self._stopped = False
        self._waiter: asyncio.Future[None] | None = None
        # What an async generator is; the abstract type lacks `ag_running`.
        self._items = cast(AsyncGeneratorType[Chunk | Finished, None], self._play())

    def __aiter__(self) -> AsyncIterator[Chunk | Finished]:
        return self._items

    @property
    def playing(self) -> bool:
        """Whether it has begun and neither ended nor been stopped."""
        return self._begun and not self._over and not self._stopped

    def stop(self) -> None:
        """Produce nothing more; see `Generation.stop`."""
        if self._stopped or self._over:
            return
        self._stopped = True
        if self._begun and self._pace.interval_s and self._due <= self._timer.time():
            self._produced += self._has_next()
        self._wake()
        self._ended(self)

    async def aclose(self) -> None:
        """Stop, and free the iteration unless another task is just inside it."""
        self.stop()
        if not self._items.ag_running:
            await self._items.aclose()

    def _has_next(self) -> bool:
        """Whether the script has one more token; called once, when the script is given up."""
        if self._produced == self._limit:
            return False
        if self._awaited:
            return True
        steps = itertools.dropwhile(
            lambda step: isinstance(step, ToolCallStart | ToolCallEnd), self._script
        )
        return isinstance(next(steps, None), str | _Argument)

    async def _play(self) -> AsyncGenerator[Chunk | Finished, None]:
        try:
            if not self._stopped:
                self._begun = True
                self._due = self._timer.time() + self._pace.prefill_s
                if self._pace.prefill_s:
                    await self._wait(self._due)
            cause = StopCause.STOP
            asked_for_tools = False
            held = 0  # Tokens whose text may be the beginning of a stop string.
            for step in () if self._stopped else self._script:
                if isinstance(step, str):
                    if self._produced == self._limit:
                        cause = StopCause.LENGTH
                        break
                    if not await self._produce():
                        break
                    if self._stop_strings is None:
                        yield TextChunk(step, 1)
                    else:
                        text, ended = self._stop_strings.feed(step)
                        held += 1
                        if text or ended:
                            yield TextChunk(text, held)
                            held = 0
                        if ended:
                            self._script = iter(())
                            break
                elif isinstance(step, _Argument):
                    if self._produced == self._limit:
                        cause = StopCause.LENGTH
                        break
                    if not await self._produce():
                        break
                    yield ToolCallFragment(step.index, step.text, 1)
                elif isinstance(step, ToolCallStart | ToolCallEnd):
                    asked_for_tools = True
                    yield step
                elif isinstance(step, _Stall):
                    await self._wait(None)
                else:
                    raise BackchannelError(
                        Reason.ENGINE_FAILED, "scripted/fail has failed, as it was asked to"
                    )
                if self._stopped:
                    break
            rest = self._stop_strings.rest() if self._stop_strings is not None else ""
            if rest and not self._stopped:
                yield TextChunk(rest, held)
            if self._stopped:
                cause = StopCause.STOPPED
            elif asked_for_tools and cause is StopCause.STOP:
                cause = StopCause.TOOL_CALLS
            self._over = True
            yield Finished(
                cause,
                EngineUsage(
                    prompt_tokens=_prompt_tokens(self._prompt) if self._begun else 0,
                    output_tokens=self._produced,
                ),
            )
        finally:
            self._over = True
            self._ended(self)

    async def _produce(self) -> bool:
        """Make the next token, when its time has come; False if a stop came first."""
        interval_s = self._pace.interval_s
        now = self._timer.time() if interval_s else 0.0
        self._awaited = True
        if interval_s and self._due > now:
            await self._wait(self._due)
        else:
            self._due = max(self._due, now - CATCH_UP_S)
            # Everybody else's turn: a script has no other point at which it would ever wait.
            await asyncio.sleep(0)
        self._awaited = False
        if self._stopped:
            return False
        self._due += interval_s
        self._produced += 1
        return True

    async def _wait(self, until: float | None) -> None:
        """Wait for a time (None: for ever) or a stop, whichever comes first."""
        waiter = self._waiter = self._loop.create_future()
        handle = None if until is None else self._timer.call_at(until, self._wake)
        try:
            await waiter
        finally:
            self._waiter = None
            if handle is not None:
                handle.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class ScriptedEngine:
    """The engine `scripted`; see `Engine`.

    Args:
        timer: Tells the time and calls back, as an event loop does; None for the running loop.
        name: What the server calls it.
    """

    def __init__(self, timer: _Timer | None = None, name: str = NAME) -> None:
        self._timer = timer
        self._name = name
        self._live: set[ScriptedGeneration] = set()

    @property
    def name(self) -> str:
        """`scripted`, unless the server calls it otherwise."""
        return self._name

    @property
    def running(self) -> int:
        """How many scripts are being played: begun, and neither ended nor stopped."""
        return sum(generation.playing for generation in self._live)

    def models(self) -> Sequence[ModelCard]:
        """The six models, `echo` first."""
        return [card for card, _ in _MODELS.values()]

    def check(self, prompt: Prompt) -> None:
        """Refuse unknown models, bad options, and `tool` or `tools` without a tool.

        Raises:
            BackchannelError: As told by `Engine.check`.
        """
        card = find_card(self._name, self.models(), prompt.model)
        check_capabilities(self._name, card, prompt)
        Pace.of(prompt.options)
        if Capability.TOOLS in card.capabilities and not prompt.tools:
            raise BackchannelError(
                Reason.FIELD_REQUIRED,
                f"{self._name}/{card.name} calls what is declared here; declare at least one tool",
                field="tools",
            )

    def start(self, prompt: Prompt) -> ScriptedGeneration:
        """Begin to play a script."""
        self.check(prompt)
        timer = self._timer or asyncio.get_running_loop()
        generation = ScriptedGeneration(prompt, Pace.of(prompt.options), timer, self._live.discard)
        self._live.add(generation)
        return generation

    async def __aenter__(self) -> Self:
        """Nothing is needed."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Stop whatever still plays."""
        for generation in list(self._live):
            generation.stop()


def create(name: str, options: Mapping[str, object]) -> ScriptedEngine:
    """Make the engine of this name; it has no settings.

    Raises:
        BackchannelError: `FIELD_INVALID` for any setting.
    """
    check_known_options(name, options, [])
    return ScriptedEngine(name=name)
