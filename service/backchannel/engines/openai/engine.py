"""The engine in front of one upstream: its models, and what can be asked of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from backchannel.engines.checks import check_capabilities, find_card
from backchannel.engines.openai.config import OpenAIConfig
from backchannel.engines.openai.generation import OpenAIGeneration
from backchannel.engines.openai.request import check
from backchannel.engines.openai.upstream import Upstream
from backchannel.engines.protocol import Capability, ModelCard, Prompt
from backchannel.errors import BackchannelError, Reason


class OpenAIEngine:
    """An engine whose adapter is `openai`; see `Engine`.

    Args:
        name: Its own.
        config: Where the upstream is.
    """

    def __init__(self, name: str, config: OpenAIConfig) -> None:
        self._name = name
        self._config = config
        self._upstream = Upstream(name, config)
        self._live: set[OpenAIGeneration] = set()
        self._keeping_up: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """As configured."""
        return self._name

    def models(self) -> Sequence[ModelCard]:
        """What the settings name, or else what the upstream lists."""
        return self._upstream.models

    def check(self, prompt: Prompt) -> None:
        """Refuse unknown models, unknown options, and what this kind of server has not.

        Raises:
            BackchannelError: As told by `Engine.check`.
        """
        if not self.models():
            raise BackchannelError(
                Reason.ENGINE_UNAVAILABLE,
                f"the server behind the engine {self._name} has not told its models yet; send the "
                "message again when it is up",
            )
        card = find_card(self._name, self.models(), prompt.model)
        check(self._name, prompt, self._upstream.dialect)
        check_capabilities(self._name, card, prompt)
        if prompt.tools and Capability.TOOLS not in card.capabilities:
            raise BackchannelError(
                Reason.CAPABILITY_MISSING,
                f"{self._name}/{card.name} knows no tools; leave them out, or take a model that "
                "ListModels shows with the capability tools",
                field="tools",
                metadata={"capability": Capability.TOOLS.value},
            )

    def start(self, prompt: Prompt) -> OpenAIGeneration:
        """Begin an answer."""
        self.check(prompt)
        generation = OpenAIGeneration(prompt, self._upstream, self._config, self._live.discard)
        self._live.add(generation)
        return generation

    async def __aenter__(self) -> Self:
        """Ask the upstream for its models. One that is down may come up later.

        Raises:
            BackchannelError: `ENGINE_UNAVAILABLE`: the upstream answers, and can never serve with
                these settings.
        """
        failed: Reason | None = None
        try:
            await self._upstream.learn()
        except BackchannelError as error:
            failed = error.reason
            wrong = error.reason in (Reason.UPSTREAM_UNAUTHORIZED, Reason.UPSTREAM_NOT_AN_API)
            # Some have no list; then the models that are named have to do.
            if wrong and not (self._config.models and error.reason is Reason.UPSTREAM_NOT_AN_API):
                await self._upstream.close()
                raise BackchannelError(
                    Reason.ENGINE_UNAVAILABLE, f"{error.message} ({self._config.base_url})"
                ) from None
            self._upstream.report(error)
        self._keeping_up = asyncio.create_task(
            self._upstream.keep_up(failed), name=f"models of {self._name}"
        )
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Stop all answers and close all connections."""
        for generation in list(self._live):
            generation.stop()
        if self._keeping_up is not None:
            self._keeping_up.cancel()
            await asyncio.wait([self._keeping_up])
        await self._upstream.close()
        if self._keeping_up is not None and not self._keeping_up.cancelled():
            self._keeping_up.result()  # It never ends by itself: this is our bug.
