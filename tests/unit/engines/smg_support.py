"""What the tests of `smg` share: an engine before a peer, and prompts that are scripts."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence

from backchannel.engines.protocol import Generation, Prompt
from backchannel.engines.smg.engine import SmgEngine
from backchannel.engines.smg.factory import create
from backchannel.v1 import session_pb2
from tests.support.smg_peer import SmgPeer
from tests.unit.engines.support import ESSAY, user


@contextlib.asynccontextmanager
async def opened(peer: SmgPeer, **settings: object) -> AsyncIterator[SmgEngine]:
    """The engine `vllm` in front of a peer, which serves as long."""
    async with peer.serve(), create("vllm", {"target": peer.target, **settings}) as engine:
        yield engine


def script(**what: object) -> session_pb2.Message:
    """A message that tells the peer's model what to do."""
    return user(json.dumps(what, ensure_ascii=False))


def ask(
    *messages: session_pb2.Message,
    tools: Sequence[session_pb2.ToolSpec] = (),
    sampling: session_pb2.Sampling | None = None,
    **more: object,
) -> Prompt:
    """A prompt to the peer's model."""
    return Prompt("small", "", messages, tools, sampling or session_pb2.Sampling(), **more)  # type: ignore[arg-type]


class SmgSubject:
    """`smg`, in front of a peer in this process, for the check suite."""

    model = "small"
    # What is on its way when the abort is, at a token a millisecond.
    most_wasted = 60
    settle_s = 0.0

    def __init__(self, engine: SmgEngine, peer: SmgPeer) -> None:
        self.engine = engine
        self._peer = peer

    def talk(self, max_tokens: int = 1000) -> Generation:
        sampling = session_pb2.Sampling(max_tokens=max_tokens)
        return self.engine.start(ask(script(count=max_tokens), sampling=sampling))

    def prefill(self) -> Generation:
        return self.engine.start(ask(script(wait=True)))

    def call(self) -> Generation:
        arguments = json.dumps({"text": "word " * 120})
        say = f'<tool_call>\n{{"name": "essay", "arguments": {arguments}}}\n</tool_call>\n'
        return self.engine.start(ask(script(say=say * 2), tools=[ESSAY]))

    def fail(self) -> Generation:
        return self.engine.start(ask(script(count=10, fail=5)))

    async def busy(self) -> int:
        return len(self._peer.running)
