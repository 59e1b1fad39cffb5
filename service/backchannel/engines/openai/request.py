"""A prompt as a chat completion of the OpenAI API, in the dialect of the server that it goes to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from backchannel.engines.chat import messages, tools
from backchannel.engines.checks import check_known_options, option_field
from backchannel.engines.openai.dialect import Dialect
from backchannel.engines.protocol import Prompt
from backchannel.errors import BackchannelError, Reason
from backchannel.v1 import session_pb2

_EFFORT: Final = "reasoning_effort"
OPTIONS: Final = (_EFFORT,)
"""The `engine_options` that a session may have."""

_EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_AS_THEY_ARE: Final = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
)


def request(prompt: Prompt, dialect: Dialect, extra: Mapping[str, Any]) -> dict[str, Any]:
    """The request's fields.

    Args:
        prompt: What is asked, and checked.
        dialect: How the server wants it.
        extra: Merged into it.
    """
    options: dict[str, Any] = {"include_usage": True}
    if dialect.continuous_usage:
        options["continuous_usage_stats"] = True
    body: dict[str, Any] = {
        "model": prompt.model,
        "messages": messages(prompt),
        "stream": True,
        "stream_options": options,
        **dialect.standing,
    }
    if prompt.tools:
        body["tools"] = tools(prompt)
        body["parallel_tool_calls"] = True
    if prompt.continue_text:
        body |= dialect.continuing
    if _EFFORT in prompt.options:
        body[_EFFORT] = prompt.options[_EFFORT]
    body |= _sampling(prompt.sampling, dialect)
    body |= _format(prompt.response_format, dialect)
    return body | dict(extra)


def check(engine: str, prompt: Prompt, dialect: Dialect) -> None:
    """Refuse what this kind of server has not.

    Raises:
        BackchannelError: `FIELD_INVALID` or `CAPABILITY_MISSING`, naming field and remedy.
    """
    check_known_options(engine, prompt.options, OPTIONS)
    if prompt.options.get(_EFFORT, "none") not in _EFFORTS:
        raise BackchannelError(
            Reason.FIELD_INVALID,
            f"must be one of {', '.join(_EFFORTS)}",
            field=option_field(_EFFORT),
        )
    for name in sorted(dialect.lacks):
        if prompt.sampling.HasField(name):  # type: ignore[arg-type]  # the stubs list the names
            raise BackchannelError(
                Reason.CAPABILITY_MISSING,
                f"the server behind the engine {engine} has no such setting; leave it out",
                field=f"sampling.{name}",
            )
    if dialect.most_stops and len(prompt.sampling.stop) > dialect.most_stops:
        raise BackchannelError(
            Reason.FIELD_INVALID,
            f"the server behind the engine {engine} takes at most {dialect.most_stops}",
            field="sampling.stop",
        )
    form = prompt.response_format
    if form is not None and form.HasField("json_schema"):
        try:
            good = isinstance(json.loads(form.json_schema), dict)
        except (ValueError, RecursionError):
            good = False
        if not good:
            raise BackchannelError(
                Reason.FIELD_INVALID,
                "must be a JSON schema, which is a JSON object",
                field="response_format.json_schema",
            )
    # `capabilities` may be set to more than is known of the server.
    if form is not None and form.HasField("grammar") and not dialect.grammar:
        raise BackchannelError(
            Reason.CAPABILITY_MISSING,
            f"servers of the dialect {dialect.name} are not known to take grammars; use a schema,"
            f" or have the engine {engine} set to the dialect that its server speaks",
            field="response_format.grammar",
        )


def _sampling(sampling: session_pb2.Sampling, dialect: Dialect) -> dict[str, Any]:
    body: dict[str, Any] = {
        name: getattr(sampling, name) for name in _AS_THEY_ARE if sampling.HasField(name)
    }
    if sampling.HasField("max_tokens"):
        body[dialect.max_tokens] = sampling.max_tokens
    if sampling.HasField("seed"):
        body["seed"] = sampling.seed % dialect.seeds
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.HasField("logprobs"):
        body["logprobs"] = True
        body["top_logprobs"] = max(1, sampling.logprobs)  # With 0 some give none at all.
    return body


def _format(form: session_pb2.ResponseFormat | None, dialect: Dialect) -> dict[str, Any]:
    if form is None:
        return {}
    if form.HasField("json_schema"):
        schema = {"name": "answer", "schema": json.loads(form.json_schema), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    body: Any = form.grammar
    for key in reversed(dialect.grammar):
        body = {key: body}
    return dict(body)
