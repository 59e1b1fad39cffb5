"""What every engine refuses in the same words: models, capabilities, options it does not have."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from backchannel.engines.protocol import Capability, ModelCard, Prompt
from backchannel.errors import BackchannelError, Reason

_SHOWN: Final = 64
"""How much of a stranger's word is quoted back."""
_LISTED: Final = 20
"""How many names an error lists."""


def find_card(engine: str, cards: Sequence[ModelCard], name: str) -> ModelCard:
    """The card of a model.

    Raises:
        BackchannelError: `MODEL_NOT_FOUND`, listing what there is.
    """
    for card in cards:
        if card.name == name:
            return card
    there_are = listed(f"{engine}/{card.name}" for card in cards)
    raise BackchannelError(
        Reason.MODEL_NOT_FOUND,
        f"there is no model {engine}/{name[:_SHOWN]}; there are: {there_are}",
        field="model",
    )


def listed(names: Iterable[str]) -> str:
    """Names for an error: the first few, for all of a large upstream's would not fit a header."""
    all_names = list(names)
    more = len(all_names) - _LISTED
    shown = ", ".join(name[: 2 * _SHOWN] for name in all_names[:_LISTED])
    return f"{shown} and {more} more (ListModels shows all)" if more > 0 else shown or "none"


def check_capabilities(engine: str, card: ModelCard, prompt: Prompt) -> None:
    """Refuse what a model cannot do, judged by its card.

    Declared tools are not refused, for a model that never calls one does nothing wrong; see
    `check_tools`.

    Raises:
        BackchannelError: `CAPABILITY_MISSING`, naming field and remedy.
    """

    def require(capability: Capability, field: str) -> None:
        if capability not in card.capabilities:
            raise BackchannelError(
                Reason.CAPABILITY_MISSING,
                f"{engine}/{card.name} has not the capability {capability.value}; leave the field "
                "out, or take a model that ListModels shows with it",
                field=field,
                metadata={"capability": capability.value},
            )

    if prompt.sampling.HasField("logprobs"):
        require(Capability.LOGPROBS, "sampling.logprobs")
    if prompt.response_format is not None:
        if prompt.response_format.HasField("json_schema"):
            require(Capability.JSON_SCHEMA, "response_format.json_schema")
        if prompt.response_format.HasField("grammar"):
            require(Capability.GRAMMAR, "response_format.grammar")
    if prompt.continue_text:
        require(Capability.CONTINUE_PARTIAL, "continue_text")


def check_tools(engine: str, card: ModelCard, prompt: Prompt, *, or_else: str = "") -> None:
    """Refuse declared tools for a model that could not even be told of them.

    Args:
        engine: The engine's name.
        card: The model's.
        prompt: What declares them.
        or_else: What whoever runs the server can do about it, if anything.

    Raises:
        BackchannelError: `CAPABILITY_MISSING`, naming the remedy.
    """
    if prompt.tools and Capability.TOOLS not in card.capabilities:
        raise BackchannelError(
            Reason.CAPABILITY_MISSING,
            f"{engine}/{card.name} knows no tools; leave them out, or take a model that ListModels "
            f"shows with the capability tools{f', or {or_else}' if or_else else ''}",
            field="tools",
            metadata={"capability": Capability.TOOLS.value},
        )


def check_known_options(engine: str, options: Iterable[str], known: Sequence[str]) -> None:
    """Refuse an engine option that the engine does not know.

    Raises:
        BackchannelError: `FIELD_INVALID`, naming the option and those there are.
    """
    for key in options:
        if key not in known:
            there_are = f"it knows {', '.join(known)}" if known else "it has none"
            raise BackchannelError(
                Reason.FIELD_INVALID,
                f"the engine {engine} has no such option; {there_are}",
                field=option_field(key),
            )


def number_option(
    options: Mapping[str, str], key: str, *, low: float, high: float, unit: str
) -> float | None:
    """An option that is a number from `low` to `high`; None if it is not given.

    Raises:
        BackchannelError: `FIELD_INVALID`, naming the option and the range.
    """
    text = options.get(key)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    # Written so that NaN fails.
    if not low <= value <= high:
        raise BackchannelError(
            Reason.FIELD_INVALID,
            f"must be a number of {unit} from {low:g} to {high:g}",
            field=option_field(key),
        )
    return value


def option_field(key: str) -> str:
    """How an engine option is called in an error."""
    return f'engine_options["{key[:_SHOWN]}"]'
