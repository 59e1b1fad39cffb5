"""What the tests of engines share: prompts, a clock that is turned by hand, whole runs."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from backchannel.engines.protocol import (
    Chunk,
    Finished,
    Generation,
    TextChunk,
    ToolCallEnd,
    ToolCallFragment,
    ToolCallStart,
)
from backchannel.v1 import session_pb2


class Handle:
    """What `call_at` gives."""

    def __init__(self, callback: Callable[[], object]) -> None:
        self._callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self._callback = None

    def run(self) -> None:
        if self._callback is not None:
            self._callback()


class ManualTimer:
    """Tells the time it was set to."""

    def __init__(self) -> None:
        self._now_s = 1000.0
        self._ids = itertools.count()
        self._due: list[tuple[float, int, Handle]] = []

    def time(self) -> float:
        return self._now_s

    def call_at(self, when: float, callback: Callable[[], object], /) -> Handle:
        handle = Handle(callback)
        heapq.heappush(self._due, (when, next(self._ids), handle))
        return handle

    def advance(self, seconds: float) -> None:
        self._now_s += seconds
        while self._due and self._due[0][0] <= self._now_s:
            heapq.heappop(self._due)[2].run()

    def to_next(self) -> None:
        """To the time of the next call, wherever that is."""
        self.advance(max(0.0, self._due[0][0] - self._now_s))


@dataclass
class Run:
    """All that a generation gave."""

    chunks: list[Chunk] = field(default_factory=list)
    finished: Finished | None = None

    def add(self, item: Chunk | Finished) -> None:
        assert self.finished is None, "something came after Finished"
        if isinstance(item, Finished):
            self.finished = item
        else:
            self.chunks.append(item)

    @property
    def end(self) -> Finished:
        assert self.finished is not None, "it ended without Finished"
        return self.finished

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks if isinstance(chunk, TextChunk))

    @property
    def tokens(self) -> int:
        return sum(
            chunk.token_count
            for chunk in self.chunks
            if isinstance(chunk, TextChunk | ToolCallFragment)
        )

    @property
    def calls(self) -> list[tuple[str, str]]:
        """Name and arguments of each call; asserts that the pieces come in order."""
        names: list[str] = []
        arguments: list[str] = []
        ended: set[int] = set()
        for chunk in self.chunks:
            if isinstance(chunk, ToolCallStart):
                assert chunk.index == len(names)
                names.append(chunk.name)
                arguments.append("")
            elif isinstance(chunk, ToolCallFragment):
                assert chunk.index not in ended
                arguments[chunk.index] += chunk.text
            elif isinstance(chunk, ToolCallEnd):
                assert chunk.index not in ended
                ended.add(chunk.index)
        return list(zip(names, arguments, strict=True))


async def collect(generation: Generation) -> Run:
    """Iterate to the end."""
    run = Run()
    try:
        async for item in generation:
            run.add(item)
    finally:
        await generation.aclose()
    return run


def user(text: str) -> session_pb2.Message:
    return session_pb2.Message(role=session_pb2.ROLE_USER, parts=[session_pb2.Part(text=text)])


def assistant(text: str = "", calls: Sequence[session_pb2.ToolCall] = ()) -> session_pb2.Message:
    parts = [session_pb2.Part(text=text)] if text else []
    return session_pb2.Message(role=session_pb2.ROLE_ASSISTANT, parts=parts, tool_calls=calls)


def call(call_id: str, name: str, arguments_json: str = "{}") -> session_pb2.ToolCall:
    return session_pb2.ToolCall(call_id=call_id, name=name, arguments_json=arguments_json)


def result(call_id: str, json: str) -> session_pb2.Message:
    return session_pb2.Message(
        role=session_pb2.ROLE_TOOL, call_id=call_id, parts=[session_pb2.Part(text=json)]
    )


CALCULATOR = session_pb2.ToolSpec(
    name="calculator",
    description="Works out a sum.",
    parameters_json_schema=(
        '{"type":"object","properties":{"expression":{"type":"string","maxLength":12}},'
        '"required":["expression"]}'
    ),
)
CLOCK = session_pb2.ToolSpec(name="clock", description="Tells the time.")
ESSAY = session_pb2.ToolSpec(
    name="essay",
    description="Takes a long text.",
    parameters_json_schema=(
        '{"type":"object","properties":{"text":{"type":"string","minLength":600,"maxLength":620}},'
        '"required":["text"]}'
    ),
)
