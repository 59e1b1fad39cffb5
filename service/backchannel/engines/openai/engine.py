"""The engine in front of one upstream: its models, and what can be asked of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from backchannel.engines.checks import check_capabilities, check_tools, find_card
from backchannel.engines.openai.answer import OpenAIAnswer
from backchannel.engines.openai.config import OpenAIConfig
from backchannel.engines.openai.request import check
from backchannel.engines.openai.upstream import Upstream
from backchannel.engines.protocol import ModelCard, Prompt
from backchannel.engines.relay import Relay, Relays
from backchannel.engines.upkeep import upkeep
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
        self._relays = Relays()
        self._exits = AsyncExitStack()

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
        check_tools(self._name, card, prompt)

    def start(self, prompt: Prompt) -> Relay:
        """Begin an answer."""
        self.check(prompt)
        answer = OpenAIAnswer(prompt, self._upstream, self._config)
        return self._relays.begin(answer, f"ask {prompt.model}")

    async def __aenter__(self) -> Self:
        """Ask the upstream for its models. One that is down may come up later.

        Raises:
            BackchannelError: `ENGINE_UNAVAILABLE`: the upstream answers, and can never serve with
                these settings.
        """
        async with AsyncExitStack() as exits:
            exits.push_async_callback(self._upstream.close)
            failed = await self._learn()
            await exits.enter_async_context(
                upkeep(self._upstream.keep_up(failed), f"models of {self._name}")
            )
            exits.push_async_callback(self._relays.aclose)
            self._exits = exits.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Stop all answers and close all connections."""
        await self._exits.aclose()

    async def _learn(self) -> Reason | None:
        """Ask for the models once; why they could not be told, if that may change."""
        try:
            await self._upstream.learn()
        except BackchannelError as error:
            wrong = error.reason in (Reason.UPSTREAM_UNAUTHORIZED, Reason.UPSTREAM_NOT_AN_API)
            # Some have no list; then the models that are named have to do.
            if wrong and not (self._config.models and error.reason is Reason.UPSTREAM_NOT_AN_API):
                raise BackchannelError(
                    Reason.ENGINE_UNAVAILABLE, f"{error.message} ({self._config.base_url})"
                ) from None
            self._upstream.report(error)
            return error.reason
        return None
