"""What the tests of the adapter `openai` share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from backchannel.engines.openai.engine import OpenAIEngine
from backchannel.engines.openai.factory import create
from backchannel.engines.protocol import Prompt
from backchannel.errors import BackchannelError
from tests.support.hostile_upstream import Answer, HostileUpstream
from tests.unit.engines.support import collect, user

SECRET = "the purple elephant dances"
KEY = "sk-verysecret-0123456789"
PROMPT = Prompt("m", "", [user(SECRET)])
QUICK = {"retries": 0, "connect_timeout_s": 5.0}


@asynccontextmanager
async def opened(upstream: HostileUpstream, **settings: object) -> AsyncIterator[OpenAIEngine]:
    """An engine called `up` in front of it; one that does not repeat requests unless told to."""
    options = {"base_url": upstream.base_url, **QUICK, **settings}
    async with create("up", options) as engine:
        yield engine


async def failure(
    upstream: HostileUpstream, answer: Answer, **settings: object
) -> BackchannelError:
    """How a turn ends that gets this answer."""
    upstream.will(answer)
    async with opened(upstream, **settings) as engine:
        with pytest.raises(BackchannelError) as caught:
            await collect(engine.start(PROMPT))
        await upstream.until(lambda: upstream.running == 0)
    error = caught.value
    for secret in (SECRET, "elephant", KEY, KEY[:9], "127.0.0.1"):
        assert secret not in error.message
    assert "the engine up" in error.message
    return error
