"""The engine in front of one server: its model, and what can be asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from backchannel.engines.checks import check_capabilities, check_tools, find_card
from backchannel.engines.protocol import ModelCard, Prompt
from backchannel.engines.relay import Relay, Relays
from backchannel.engines.smg.answer import SmgAnswer
from backchannel.engines.smg.config import SmgConfig, unavailable
from backchannel.engines.smg.request import check
from backchannel.engines.smg.upstream import Upstream
from backchannel.engines.upkeep import upkeep
from backchannel.errors import BackchannelError, Reason


class SmgEngine:
    """An engine whose adapter is `smg`; see `Engine`.

    Args:
        name: Its own.
        config: Where its server is.

    Raises:
        BackchannelError: `ENGINE_UNAVAILABLE`: its key or its certificate cannot be read.
    """

    def __init__(self, name: str, config: SmgConfig) -> None:
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
        """The one that the server has."""
        return self._upstream.cards()

    def check(self, prompt: Prompt) -> None:
        """Refuse unknown models, unknown options, and what the model has not.

        Raises:
            BackchannelError: As told by `Engine.check`.
        """
        card = find_card(self._name, self.models(), prompt.model)
        check(self._name, prompt)
        check_capabilities(self._name, card, prompt)
        check_tools(
            self._name,
            card,
            prompt,
            or_else="name its tool_format and a chat_template that knows tools",
        )

    def start(self, prompt: Prompt) -> Relay:
        """Begin an answer.

        Raises:
            BackchannelError: As told by `Engine.start`; and why the server cannot be asked now.
        """
        self.check(prompt)
        model = self._upstream.model
        if (problem := self._upstream.problem) is not None:
            raise problem.with_traceback(None)  # It is raised again and again.
        if model is None:
            raise unavailable(self._name, "its server has not been there yet; try again later")
        answer = SmgAnswer(prompt, self._upstream, model, self._config)
        return self._relays.begin(answer, f"ask {prompt.model}")

    async def __aenter__(self) -> Self:
        """Ask the server what it has. One that is down may come up later.

        Raises:
            BackchannelError: `ENGINE_UNAVAILABLE`: the server answers, and can never serve with
                these settings.
        """
        async with AsyncExitStack() as exits:
            exits.push_async_callback(self._upstream.close)
            self._upstream.open()
            await self._learn()
            await exits.enter_async_context(
                upkeep(self._upstream.keep_up(), f"health of {self._name}")
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
        """Stop all answers, wait until the server has let go of them, and close the channel."""
        await self._exits.aclose()

    async def _learn(self) -> None:
        """Ask what it has once."""
        try:
            await self._upstream.learn()
        except BackchannelError as error:
            if error.reason in (
                Reason.ENGINE_UNAVAILABLE,
                Reason.UPSTREAM_UNAUTHORIZED,
                Reason.UPSTREAM_NOT_AN_API,
            ):
                raise BackchannelError(
                    Reason.ENGINE_UNAVAILABLE, f"{error.message} ({self._config.target})"
                ) from None
