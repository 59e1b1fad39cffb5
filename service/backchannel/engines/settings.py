"""What a server is told about its engines and aliases, and which of that makes no sense."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final, Self

from pydantic import ValidationError

from backchannel.errors import BackchannelError, Reason

ALWAYS: Final = "scripted"
"""The engine that every server has."""

_SHOWN: Final = 128
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What is said about one engine.

    Attributes:
        name: What the server calls it.
        adapter: What makes it.
        max_parallel: How many generations it may run at once; 0 for no limit but the models'.
        max_waiting: How many turns may wait for it; None for the server's usual number.
        options: What the adapter is told.
    """

    name: str
    adapter: str
    max_parallel: int
    max_waiting: int | None
    options: Mapping[str, object]

    @classmethod
    def of(cls, name: str, settings: Mapping[str, object]) -> Self:
        """Read settings as they stand in a configuration file or in the environment.

        Raises:
            BackchannelError: `FIELD_INVALID`, naming the setting.
        """
        if not _NAME.fullmatch(name):
            raise _invalid(
                f"{name!r} cannot be an engine's name: up to 64 letters, digits, dots, hyphens and"
                " underscores, such as vllm-2"
            )
        options = dict(settings)
        adapter = options.pop("adapter", name)
        if not isinstance(adapter, str) or (name == ALWAYS and adapter != name):
            raise _invalid(
                f"engine_options.{name}.adapter: {adapter!r} is no adapter for it"
                + ("; that engine is itself everywhere" if name == ALWAYS else "")
            )
        return cls(
            name,
            adapter,
            _count(name, "max_parallel", options.pop("max_parallel", 0)) or 0,
            _count(name, "max_waiting", options.pop("max_waiting", None)),
            options,
        )


def faults_of(
    error: ValidationError, settings: type, words: Mapping[str, str] | None = None
) -> str:
    """Tell what is wrong with an adapter's settings, each by its name.

    Args:
        error: What was found.
        settings: The dataclass that they were to become.
        words: What to say of a kind of fault where pydantic's words will not do.
    """
    told = []
    for fault in error.errors():
        place = ".".join(map(str, fault["loc"]))
        if fault["type"] not in ("extra_forbidden", "unexpected_keyword_argument"):
            told.append(f"{place}: {(words or {}).get(fault['type'], fault['msg'])}")
        elif len(fault["loc"]) > 1:
            told.append(f"{place}: there is no such setting")
        else:
            known = ", ".join(sorted(one.name for one in fields(settings) if one.init))
            told.append(f"{place}: there is no such setting; there are {known}")
    return "; ".join(told)


def checked_aliases(
    aliases: Mapping[str, Sequence[str]], engines: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """Refuse aliases that can never work.

    Raises:
        BackchannelError: `FIELD_INVALID`, naming the alias.
    """
    for alias, targets in aliases.items():
        where = f"model_aliases.{alias}"
        if not _NAME.fullmatch(alias):
            raise _invalid(
                f"{where}: an alias is up to 64 letters, digits, dots, hyphens and underscores;"
                " it has no slash"
            )
        if not targets:
            raise _invalid(f"{where}: name at least one model, as engine/name")
        if len(set(targets)) < len(targets):
            raise _invalid(f"{where}: one of its models is named twice")
        for target in targets:
            engine, _, name = target.partition("/")
            if not engine or not name:
                raise _invalid(f"{where}: {target!r} is no model; write engine/name")
            if engine not in engines:
                raise _invalid(
                    f"{where}: {target} is a model of the engine {engine}, which is not opened;"
                    f" there are: {', '.join(engines)}"
                )
    return {alias: tuple(targets) for alias, targets in aliases.items()}


def _count(engine: str, setting: str, value: object) -> int | None:
    """A whole number, which the environment gives as text."""
    if value is None:
        return None
    text = str(value)
    if not re.fullmatch("[0-9]{1,9}", text):
        raise _invalid(
            f"engine_options.{engine}.{setting}: must be a whole number, 0 or more"
            f" (found {text[:_SHOWN]!r})"
        )
    return int(text)


def _invalid(message: str) -> BackchannelError:
    return BackchannelError(Reason.FIELD_INVALID, message)
