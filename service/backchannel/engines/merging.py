"""What piled up while nobody took it leaves an engine in as few pieces as can be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from backchannel.engines.protocol import Chunk, TextChunk, ToolCallFragment


def merged(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """The same with neighbours of one kind joined: what piled up leaves as one."""
    held: TextChunk | ToolCallFragment | None = None
    for chunk in chunks:
        if (
            isinstance(chunk, TextChunk)
            and isinstance(held, TextChunk)
            and chunk.channel == held.channel
        ):
            held = TextChunk(
                held.text + chunk.text,
                held.token_count + chunk.token_count,
                held.channel,
                (*held.logprobs, *chunk.logprobs),
            )
        elif (
            isinstance(chunk, ToolCallFragment)
            and isinstance(held, ToolCallFragment)
            and chunk.index == held.index
        ):
            held = ToolCallFragment(
                held.index, held.text + chunk.text, held.token_count + chunk.token_count
            )
        else:
            if held is not None:
                yield held
                held = None
            if isinstance(chunk, TextChunk | ToolCallFragment):
                held = chunk
            else:
                yield chunk
    if held is not None:
        yield held
