"""The engine in docs/engines.md works as it is printed there."""

from __future__ import annotations

import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest

from backchannel.engines.protocol import Prompt, StopCause
from backchannel.engines.registry import GROUP, EngineRegistry
from backchannel.v1 import session_pb2
from tests.unit.engines.support import collect, user

DOCS = Path(__file__).parents[3] / "docs" / "engines.md"


async def test_the_parrot_talks(monkeypatch: pytest.MonkeyPatch) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    module = ModuleType("parrot")
    exec(program, vars(module))
    monkeypatch.setitem(sys.modules, "parrot", module)
    plugins = [EntryPoint("parrot", "parrot:create", GROUP)]
    async with EngineRegistry({"parrot": {"word": "Hi"}}, plugins=plugins) as registry:
        assert registry.problems == ()
        engine, card = registry.route("").targets[0][:2]
        sampling = session_pb2.Sampling(max_tokens=3)
        prompt = Prompt(card.name, "", [user("Talk")], sampling=sampling)
        run = await collect(engine.start(prompt))
        assert (run.text, run.tokens, run.end.cause) == ("Hi Hi Hi", 3, StopCause.LENGTH)
        generation = engine.start(prompt)
        generation.stop()
        assert (await collect(generation)).end.cause is StopCause.STOPPED
