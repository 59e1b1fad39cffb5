"""Where a question may go: to one model, or to the targets of an alias, one after the other.

An alias is a name without a slash for a list of models. Its targets are tried in order: one that
cannot do what is asked is passed over, and one that fails before its first chunk is followed by the
next. What is wrong with the question itself is not tried anywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from backchannel.engines.protocol import Engine, ModelCard, Prompt
from backchannel.errors import BackchannelError, Reason

CANNOT: Final = frozenset(
    {Reason.MODEL_NOT_FOUND, Reason.CAPABILITY_MISSING, Reason.PROMPT_TOO_LONG}
)
"""One model cannot do it; another may."""

DOWN: Final = frozenset(
    {
        Reason.ENGINE_BUSY,
        Reason.ENGINE_UNAVAILABLE,
        Reason.ENGINE_FAILED,
        Reason.UPSTREAM_UNREACHABLE,
        Reason.UPSTREAM_UNAUTHORIZED,
        Reason.UPSTREAM_RATE_LIMITED,
        Reason.UPSTREAM_FAILED,
        Reason.UPSTREAM_BROKE_OFF,
        Reason.UPSTREAM_NOT_AN_API,
        Reason.UPSTREAM_UNREADABLE,
        Reason.UPSTREAM_STALLED,
    }
)
"""An engine could not serve what another may serve. `UPSTREAM_REFUSED` is none of them: there the
question itself was found wrong."""


class Target(NamedTuple):
    """A model as it can be asked now.

    Attributes:
        engine: Whom to ask.
        card: The model.
        name: Its full name, `engine/name`.
        max_parallel: How many generations the whole engine may run at once; 0 for no limit. The
            model's own limit is `card.parallel`.
        max_waiting: How many turns may wait for the engine; None for the server's usual number.
    """

    engine: Engine
    card: ModelCard
    name: str
    max_parallel: int = 0
    max_waiting: int | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """Where questions to a model go.

    Attributes:
        name: What a session calls it: `engine/name`, or an alias.
        targets: Whom to ask, in this order; never empty.
        absent: Targets of the alias that are not there now, each with the reason.
    """

    name: str
    targets: tuple[Target, ...]
    absent: tuple[tuple[str, BackchannelError], ...] = ()

    def check(self, prompt: Prompt) -> None:
        """Refuse what no target can do; the prompt's model is disregarded.

        Raises:
            BackchannelError: As `Engine.check`; of several targets, each with its reason.
        """
        refusals = list(self.absent)
        for target in self.targets:
            try:
                target.engine.check(replace(prompt, model=target.card.name))
            except BackchannelError as error:
                refusals.append((target.name, error))
            else:
                return
        raise nobody(self.name, refusals)


def moves_on(error: BackchannelError) -> bool:
    """Whether another target may do better, the first chunk not having come."""
    return error.reason in CANNOT or error.reason in DOWN


def nobody(name: str, failures: Sequence[tuple[str, BackchannelError]]) -> BackchannelError:
    """The one error for a route whose targets have all failed, told by name and in their order.

    Its reason is the last one's that was down rather than unable: that is what may change.
    """
    if len(failures) == 1:
        return failures[0][1]
    down = [error for _, error in failures if error.reason in DOWN]
    cause = down[-1] if down else failures[-1][1]
    told = "; ".join(f"{target}: {error.message}" for target, error in failures)
    return BackchannelError(
        cause.reason,
        f"none of the models behind {name} can serve this: {told}",
        field=cause.field,
        metadata={**cause.metadata, "model": name},
        retry_after_s=cause.retry_after_s,
    )


def alias_card(alias: str, targets: Sequence[str], there: Mapping[str, ModelCard]) -> ModelCard:
    """How an alias is listed: with what at least one of its targets can do.

    Args:
        alias: Its name.
        targets: Their full names.
        there: The models that are there now, by full name.
    """
    told = [name if name in there else f"{name} (not there now)" for name in targets]
    cards = [there[name] for name in targets if name in there]
    sizes = [card.max_context_tokens for card in cards]
    return ModelCard(
        alias,
        f"Asks {', then '.join(told)}.",
        max_context_tokens=0 if 0 in sizes else max(sizes, default=0),
        capabilities=frozenset().union(*(card.capabilities for card in cards)),
    )
