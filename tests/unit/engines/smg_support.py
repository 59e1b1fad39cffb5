"""What the tests of `smg` share: an engine before a peer, and prompts that are scripts."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence

from backchannel.engines.protocol import Prompt
from backchannel.engines.smg import create
from backchannel.engines.smg_engine import SmgEngine
from backchannel.v1 import session_pb2
from tests.support.smg_peer import SmgPeer
from tests.unit.engines.support import user


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
