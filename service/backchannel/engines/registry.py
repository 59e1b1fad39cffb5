"""The engines that a server has: opens those that are configured and finds models by full name.

What makes engines is an adapter, a factory under a name: `factory(name, options) -> Engine`. Third
parties declare theirs as an entry point of the group `backchannel.engines`; the built-in ones are
listed here in the same form. A server may have several engines of one adapter, each under a name of
its own. An engine that cannot be opened becomes a `Problem`, which says why, and the server does
without it: `scripted` always opens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import TracebackType
from typing import Final, Self

from backchannel.engines.protocol import Engine, ModelCard
from backchannel.errors import BackchannelError, Reason

GROUP: Final = "backchannel.engines"
"""The entry point group of engines."""

Factory = Callable[[str, Mapping[str, object]], Engine]
"""Makes an engine from the name it is to have and its settings."""

ADAPTER: Final = "adapter"
"""The setting of an engine that names what makes it; without it, the engine's own name does."""

BUILT_IN: Final = (
    EntryPoint("llama", "backchannel.engines.llama:create", GROUP),
    EntryPoint("scripted", "backchannel.engines.scripted:create", GROUP),
)
ALWAYS: Final = "scripted"
"""The engine that every server has."""

DEFAULT_ENGINES: Final[Mapping[str, Mapping[str, object]]] = {"llama": {}}
"""What is opened where nothing else is configured."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a configured engine is not there.

    Attributes:
        engine: Its name.
        message: For whoever runs the server; may name files.
    """

    engine: str
    message: str


class EngineRegistry:
    """All engines of a server; opens and closes them as an async context manager.

    Args:
        engines: Which engines to open, by name, each with its settings; the first one's first
            model is the server's default. `scripted` need not be named.
        default_model: `engine/name`; empty for the first model there is.
        plugins: Where to look for engines beside the built-in ones; None for what is installed.
    """

    def __init__(
        self,
        engines: Mapping[str, Mapping[str, object]] = DEFAULT_ENGINES,
        *,
        default_model: str = "",
        plugins: Iterable[EntryPoint] | None = None,
    ) -> None:
        self._settings = {**engines, ALWAYS: engines.get(ALWAYS, {})}
        self._wanted_default = default_model
        found = entry_points(group=GROUP) if plugins is None else plugins
        self._known = {entry.name: entry for entry in (*found, *BUILT_IN)}
        self._engines: dict[str, Engine] = {}
        self._problems: list[Problem] = []
        self._exits = AsyncExitStack()

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The engines that were configured and could not be opened."""
        return tuple(self._problems)

    @property
    def default_model(self) -> str:
        """The model of a session that names none, as `engine/name`."""
        return self._wanted_default or self.models()[0][0]

    def models(self) -> list[tuple[str, ModelCard]]:
        """All models that can be named now, as `engine/name`."""
        return [
            (f"{name}/{card.name}", card)
            for name, engine in self._engines.items()
            for card in engine.models()
        ]

    def resolve(self, model: str) -> tuple[Engine, ModelCard, str]:
        """Find a model by its full name; empty means the default.

        Raises:
            BackchannelError: `MODEL_NOT_FOUND`, listing what there is.
        """
        full_name = model or self.default_model
        engine_name, _, name = full_name.partition("/")
        engine = self._engines.get(engine_name)
        if engine is not None:
            for card in engine.models():
                if card.name == name:
                    return engine, card, full_name
        if any(problem.engine == engine_name for problem in self._problems):
            why = f"the engine {engine_name} could not be started here (the server said why)"
        else:
            why = f"there is no model {full_name[:128]!r}"
        there_are = ", ".join(known for known, _ in self.models())
        raise BackchannelError(
            Reason.MODEL_NOT_FOUND, f"{why}; there are: {there_are}", field="model"
        )

    async def __aenter__(self) -> Self:
        """Open the engines.

        Raises:
            BackchannelError: `ENGINE_UNAVAILABLE` if an engine is named that is not installed;
                `MODEL_NOT_FOUND` if the default model that was asked for is not there.
        """
        for name, options in self._settings.items():
            if self._adapter(name, options) not in self._known:
                there_are = ", ".join(sorted(self._known))
                raise BackchannelError(
                    Reason.ENGINE_UNAVAILABLE,
                    f"no adapter named {self._adapter(name, options)!r} is installed for the engine"
                    f" {name}; there are: {there_are}",
                )
        async with AsyncExitStack() as exits:
            for name, options in self._settings.items():
                try:
                    engine = self._make(name, options)
                    opened = await exits.enter_async_context(engine)
                    opened.models()  # One that cannot even say what it has is of no use.
                    self._engines[name] = opened
                except BackchannelError as error:
                    self._problems.append(Problem(name, str(error)))
                # A third party's code may raise anything; the others serve all the same.
                except Exception as error:  # noqa: BLE001
                    self._problems.append(Problem(name, _blame(name, self._entry(name), error)))
                    _log.debug("engine %s could not be opened", name, exc_info=True)
            self._check_default()
            self._exits = exits.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Close the engines, in reverse order."""
        self._engines.clear()
        await self._exits.aclose()

    @staticmethod
    def _adapter(name: str, options: Mapping[str, object]) -> str:
        return str(options.get(ADAPTER, name))

    def _entry(self, name: str) -> EntryPoint:
        return self._known[self._adapter(name, self._settings[name])]

    def _make(self, name: str, options: Mapping[str, object]) -> Engine:
        factory: Factory = self._entry(name).load()
        engine = factory(name, {key: options[key] for key in options if key != ADAPTER})
        if engine.name != name:
            raise TypeError(f"its factory made an engine that calls itself {engine.name!r}")
        return engine

    def _check_default(self) -> None:
        """Refuse a wished-for default that is not there, with the reason if one is known."""
        if not self._wanted_default:
            return
        try:
            self.resolve(self._wanted_default)
        except BackchannelError as error:
            engine_name = self._wanted_default.partition("/")[0]
            why = [problem.message for problem in self._problems if problem.engine == engine_name]
            raise BackchannelError(
                error.reason, "; ".join([f"the default model: {error}", *why])
            ) from error


def _blame(name: str, entry: EntryPoint, error: Exception) -> str:
    """What to tell about an engine that broke its promises."""
    origin = f" of {entry.dist.name} {entry.dist.version}" if entry.dist is not None else ""
    return f"the engine {name} ({entry.value}{origin}) failed: {type(error).__name__}: {error}"
