"""The engines that a server has: opens those that are configured and finds models by full name.

What makes engines is an adapter, a factory under a name: `factory(name, options) -> Engine`. Third
parties declare theirs as an entry point of the group `backchannel.engines`; the built-in ones are
listed here in the same form. A server may have several engines of one adapter, each under a name of
its own, and aliases for models, each with a list of targets.

An engine that was asked for and cannot be opened stops the start. One that was only tried becomes a
`Problem`, which says why, and the server does without it: `scripted` always opens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import TracebackType
from typing import Final, Self

from backchannel.engines.checks import listed
from backchannel.engines.protocol import Engine, ModelCard, Prompt
from backchannel.engines.routing import Route, Target, alias_card, nobody
from backchannel.engines.settings import ALWAYS, EngineSettings, checked_aliases
from backchannel.errors import BackchannelError, Reason

GROUP: Final = "backchannel.engines"
"""The entry point group of engines."""

Factory = Callable[[str, Mapping[str, object]], Engine]
"""Makes an engine from the name it is to have and its settings."""

BUILT_IN: Final = (
    EntryPoint("llama", "backchannel.engines.llama:create", GROUP),
    EntryPoint("openai", "backchannel.engines.openai:create", GROUP),
    EntryPoint("scripted", "backchannel.engines.scripted:create", GROUP),
    EntryPoint("smg", "backchannel.engines.smg:create", GROUP),
)
DEFAULT_ENGINES: Final[Mapping[str, Mapping[str, object]]] = {"llama": {}}
"""What is tried where nothing else is configured."""

_SHOWN: Final = 128
"""How much of a stranger's word is quoted back."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that was configured and is not there.

    Attributes:
        subject: What: the name of an engine, or a model.
        message: For whoever runs the server; may name files.
    """

    subject: str
    message: str


class EngineRegistry:
    """All engines of a server; opens and closes them as an async context manager.

    Args:
        engines: Which engines to open, by name, each with its settings; the first one's first
            model is the server's default. `scripted` need not be named.
        aliases: The targets of each alias as `engine/name`, the first choice first.
        default_model: `engine/name` or an alias; empty for the first engine's first model.
        optional: Engines without which the server does. Any other has to open.
        plugins: Where to look for adapters beside the built-in ones; None for what is installed.

    Raises:
        BackchannelError: `FIELD_INVALID` if settings make no sense, naming them.
    """

    def __init__(
        self,
        engines: Mapping[str, Mapping[str, object]] = DEFAULT_ENGINES,
        *,
        aliases: Mapping[str, Sequence[str]] | None = None,
        default_model: str = "",
        optional: Collection[str] = (),
        plugins: Iterable[EntryPoint] | None = None,
    ) -> None:
        opened = {**engines, ALWAYS: engines.get(ALWAYS, {})}
        self._settings = {name: EngineSettings.of(name, opened[name]) for name in opened}
        self._aliases = checked_aliases(aliases or {}, self._settings)
        self._wanted_default = default_model
        self._optional = frozenset(optional)
        found = entry_points(group=GROUP) if plugins is None else plugins
        self._known = {entry.name: entry for entry in (*found, *BUILT_IN)}
        self._engines: dict[str, Engine] = {}
        self._problems: list[Problem] = []
        self._exits = AsyncExitStack()

    @property
    def settings(self) -> Mapping[str, EngineSettings]:
        """What was said about each engine, by its name."""
        return self._settings

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What was configured and was not there at the start."""
        return tuple(self._problems)

    @property
    def default_model(self) -> str:
        """The model of a session that names none; empty while the engine that has it lists none."""
        if self._wanted_default:
            return self._wanted_default
        name = next(iter(self._engines))  # There is always one.
        first = self._cards(name)[:1]
        return f"{name}/{first[0].name}" if first else ""

    def models(self) -> list[tuple[str, ModelCard]]:
        """All that can be named now: the aliases, then the models as `engine/name`."""
        models = [
            (f"{name}/{card.name}", card) for name in self._engines for card in self._cards(name)
        ]
        cards = dict(models)
        aliases = [
            (alias, alias_card(alias, targets, cards)) for alias, targets in self._aliases.items()
        ]
        return aliases + models

    def resolve(self, model: str) -> Target:
        """Find a model of an engine by its full name.

        Raises:
            BackchannelError: `MODEL_NOT_FOUND`, listing what there is; `ENGINE_UNAVAILABLE` while
                its engine knows of no model at all, as an upstream that is down.
        """
        engine_name, _, name = model.partition("/")
        cards = self._cards(engine_name)
        for card in cards:
            if card.name == name:
                settings = self._settings[engine_name]
                return Target(
                    self._engines[engine_name],
                    card,
                    model,
                    settings.max_parallel,
                    settings.max_waiting,
                )
        if engine_name in self._engines and not cards:
            raise BackchannelError(
                Reason.ENGINE_UNAVAILABLE,
                f"the engine {engine_name} has no model now; try again later",
                metadata={"model": model[:_SHOWN]},
            )
        if engine_name in self._settings and engine_name not in self._engines:
            why = f"the engine {engine_name} could not be started here (the server said why)"
        else:
            why = f"there is no model {model[:_SHOWN]!r}"
        there_are = listed(known for known, _ in self.models())
        raise BackchannelError(
            Reason.MODEL_NOT_FOUND, f"{why}; there are: {there_are}", field="model"
        )

    def route(self, model: str) -> Route:
        """Where questions to a model or an alias go; empty means the default.

        Raises:
            BackchannelError: As `resolve`; of an alias, if none of its targets is there now.
        """
        name = model or self.default_model
        if not name:
            raise BackchannelError(
                Reason.ENGINE_UNAVAILABLE,
                f"the engine {next(iter(self._engines))}, whose first model is the default, has no"
                " model now; try again later, or name a model",
                field="model",
            )
        wanted = self._aliases.get(name)
        if wanted is None:
            return Route(name, (self.resolve(name),))
        targets: list[Target] = []
        absent: list[tuple[str, BackchannelError]] = []
        for target in wanted:
            try:
                targets.append(self.resolve(target))
            except BackchannelError as error:
                # What else there is, is of no use to whoever asked for the alias.
                why = BackchannelError(
                    Reason.ENGINE_UNAVAILABLE,
                    "it is not there now",
                    retry_after_s=error.retry_after_s,
                )
                absent.append((target, why))
        if not targets:
            raise nobody(name, absent)
        return Route(name, tuple(targets), tuple(absent))

    def check(self, model: str, prompt: Prompt) -> str:
        """Judge a question by the model it is for, or by its alias: one target has to be able.

        Args:
            model: `engine/name`, an alias, or empty for the default.
            prompt: The question; its own `model` is disregarded.

        Returns:
            The name that a session is to keep.

        Raises:
            BackchannelError: As `route` and `Engine.check`.
        """
        route = self.route(model)
        route.check(prompt)
        return route.name

    async def __aenter__(self) -> Self:
        """Open the engines.

        Raises:
            BackchannelError: `ENGINE_UNAVAILABLE` if an engine that was asked for is not installed
                or cannot be opened, a line for each; `MODEL_NOT_FOUND` if the default model that
                was asked for is not there.
        """
        for settings in self._settings.values():
            if settings.adapter not in self._known:
                there_are = ", ".join(sorted(self._known))
                raise BackchannelError(
                    Reason.ENGINE_UNAVAILABLE,
                    f"no adapter named {settings.adapter!r} is installed for the engine"
                    f" {settings.name}; there are: {there_are}. Name one as"
                    f" engine_options.{settings.name}.adapter",
                )
        async with AsyncExitStack() as exits:
            for settings in self._settings.values():
                try:
                    engine = self._make(settings)
                    opened = await exits.enter_async_context(engine)
                    opened.models()  # One that cannot even say what it has is of no use.
                    self._engines[settings.name] = opened
                except BackchannelError as error:
                    self._problems.append(Problem(settings.name, str(error)))
                # A third party's code may raise anything; it is told like any other problem.
                except Exception as error:  # noqa: BLE001
                    self._problems.append(
                        Problem(settings.name, _blame(self._known[settings.adapter], error))
                    )
                    _log.debug("engine %s could not be opened", settings.name, exc_info=True)
            self._check_opened()
            self._check_default()
            self._look_at_aliases()
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

    def _make(self, settings: EngineSettings) -> Engine:
        factory: Factory = self._known[settings.adapter].load()
        engine = factory(settings.name, settings.options)
        if engine.name != settings.name:
            raise TypeError(f"its factory made an engine that calls itself {engine.name!r}")
        return engine

    def _cards(self, engine: str) -> Sequence[ModelCard]:
        """What an engine has now; nothing if it is not there."""
        if engine not in self._engines:
            return ()
        try:
            return self._engines[engine].models()
        except Exception as error:  # noqa: BLE001 - one that broke takes none of the others along
            _log.error("engine %s cannot list its models: %s", engine, type(error).__name__)
            return ()

    def _check_opened(self) -> None:
        """Refuse to start without an engine that was asked for."""
        missing = [found for found in self._problems if found.subject not in self._optional]
        if missing:
            raise BackchannelError(
                Reason.ENGINE_UNAVAILABLE,
                "\n".join(
                    f"the engine {found.subject} cannot be started: {found.message}"
                    for found in missing
                ),
            )

    def _check_default(self) -> None:
        """Refuse a wished-for default that is not there, with the reason if one is known.

        An engine that is there and has no model yet is waited for.
        """
        if not self._wanted_default or self._wanted_default in self._aliases:
            return
        try:
            self.resolve(self._wanted_default)
        except BackchannelError as error:
            if error.reason is Reason.ENGINE_UNAVAILABLE:
                self._problems.append(Problem(self._wanted_default, str(error)))
                return
            engine_name = self._wanted_default.partition("/")[0]
            why = [found.message for found in self._problems if found.subject == engine_name]
            raise BackchannelError(
                error.reason, "; ".join([f"the default model: {error}", *why])
            ) from error

    def _look_at_aliases(self) -> None:
        """Tell of targets that are not there; they may come."""
        for alias, targets in self._aliases.items():
            for target in targets:
                try:
                    self.resolve(target)
                except BackchannelError as error:
                    self._problems.append(Problem(f"{target}, of the alias {alias},", str(error)))


def _blame(entry: EntryPoint, error: Exception) -> str:
    """What to tell about an engine that broke its promises."""
    origin = f" of {entry.dist.name} {entry.dist.version}" if entry.dist is not None else ""
    return f"its adapter ({entry.value}{origin}) failed: {type(error).__name__}: {error}"
