"""A prompt as the tokens that a server takes, and how its answer is to be read."""

from __future__ import annotations

from typing import Final

from backchannel.engines.checks import check_known_options, option_field
from backchannel.engines.protocol import Prompt
from backchannel.engines.reasoning import ReasoningSplitter
from backchannel.engines.smg.dialect import Question
from backchannel.engines.smg.stream import Reading
from backchannel.engines.smg.template import RefusedConversationError
from backchannel.engines.smg.upstream import LoadedModel
from backchannel.engines.tool_calls import ToolCallParser
from backchannel.errors import BackchannelError, Reason

_THINKING: Final = "enable_thinking"
OPTIONS: Final = (_THINKING,)
"""The `engine_options` that a session may have."""


def check(engine: str, prompt: Prompt) -> None:
    """Refuse options that there are not.

    Raises:
        BackchannelError: `FIELD_INVALID`, naming the option and what it may be.
    """
    check_known_options(engine, prompt.options, OPTIONS)
    if prompt.options.get(_THINKING, "true") not in ("true", "false"):
        raise BackchannelError(
            Reason.FIELD_INVALID, "must be true or false", field=option_field(_THINKING)
        )


def request(prompt: Prompt, model: LoadedModel, request_id: str) -> tuple[Question, Reading]:
    """Make tokens of the conversation. A long one takes a while: not for the event loop.

    Args:
        prompt: What is asked, and checked.
        model: Whom.
        request_id: What the server is to call it.

    Raises:
        BackchannelError: `PROMPT_TOO_LONG`, with both numbers; `UPSTREAM_REFUSED` where the model's
            template does not take the conversation.
    """
    try:
        text, begun = _text(prompt, model)
    except RefusedConversationError as error:
        raise BackchannelError(
            Reason.UPSTREAM_REFUSED,
            f"the chat template of {prompt.model[:64]} does not take this conversation: {error}",
        ) from None
    input_ids = model.tokenizer.encode(text)
    context = model.facts.context_tokens
    room = context - len(input_ids) if context else None
    if room is not None and room < 1:
        raise BackchannelError(
            Reason.PROMPT_TOO_LONG,
            f"the conversation has {len(input_ids)} tokens, and the model's context holds "
            f"{context}, the answer included; begin a new session, or say less",
            metadata={
                "prompt_tokens": str(len(input_ids)),
                "max_context_tokens": str(context),
            },
        )
    sampling = prompt.sampling
    limits = [room, sampling.max_tokens if sampling.HasField("max_tokens") else None]
    question = Question(
        request_id,
        input_ids,
        sampling,
        min((limit for limit in limits if limit is not None), default=None),
        model.stop_ids,
        prompt.response_format,
    )
    # A constrained answer is what it is: what looks like a call in it is none.
    free = prompt.response_format is None
    reading = Reading(
        input_ids,
        list(sampling.stop),
        ToolCallParser(prompt.tools) if prompt.tools and free else None,
        ReasoningSplitter(model.thinks, begun=begun) if model.thinks else None,
        sampling.logprobs if sampling.HasField("logprobs") else None,
    )
    return question, reading


def _text(prompt: Prompt, model: LoadedModel) -> tuple[str, bool]:
    """The conversation as text, and whether it ends within reasoning."""
    options = {}
    if _THINKING in prompt.options:
        options[_THINKING] = prompt.options[_THINKING] == "true"
    text = model.template.render(prompt, options)
    begun = model.thinks is not None and text.rstrip().endswith(model.thinks[0])
    constrained = prompt.response_format is not None and not model.facts.thinks_first
    if begun and model.thinks is not None and (prompt.continue_text or constrained):
        # The answer is begun with, or has to begin at once: the reasoning is over.
        text = f"{text.rstrip()}\n\n{model.thinks[1]}\n\n"
        begun = False
    return text + prompt.continue_text, begun
