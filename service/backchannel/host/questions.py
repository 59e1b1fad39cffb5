"""What engines are asked for, judged before anything is in the log.

A session or a message that its model cannot serve is refused at once, with the field at fault,
rather than ending a turn later.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from backchannel.engines.protocol import Capability, Prompt
from backchannel.engines.registry import EngineRegistry
from backchannel.errors import BackchannelError
from backchannel.session.configuration import merged_sampling
from backchannel.v1 import session_pb2


def check_session(engines: EngineRegistry, config: session_pb2.SessionConfig) -> str:
    """Judge a configuration by its model; returns the model's full name.

    Raises:
        BackchannelError: `MODEL_NOT_FOUND`, `CAPABILITY_MISSING`, `FIELD_INVALID`; the field is one
            of `config`.
    """
    with _within("config"):
        return _check(engines, config, config.sampling, _format_of(config))


def check_message(
    engines: EngineRegistry, config: session_pb2.SessionConfig, message: session_pb2.UserMessage
) -> None:
    """Judge what a message asks for in its own turn alone.

    Raises:
        BackchannelError: As `check_session`; the field is one of `message`.
    """
    wanted = _format_of(message)
    if wanted is None and not message.HasField("sampling"):
        return
    sampling = merged_sampling(config.sampling, message.sampling)
    with _within("message"):
        _check(engines, config, sampling, wanted or _format_of(config))


def can_continue(engines: EngineRegistry, model: str) -> bool:
    """Whether a model goes on from a partial answer; not if it is not there any more."""
    try:
        targets = engines.route(model).targets
    except BackchannelError:
        return False
    return any(Capability.CONTINUE_PARTIAL in target.card.capabilities for target in targets)


@contextmanager
def _within(place: str) -> Iterator[None]:
    """Errors name their field from here on."""
    try:
        yield
    except BackchannelError as error:
        if error.field:
            error.field = f"{place}.{error.field}"
        raise


def _format_of(
    message: session_pb2.SessionConfig | session_pb2.UserMessage,
) -> session_pb2.ResponseFormat | None:
    return message.response_format if message.HasField("response_format") else None


def _check(
    engines: EngineRegistry,
    config: session_pb2.SessionConfig,
    sampling: session_pb2.Sampling,
    response_format: session_pb2.ResponseFormat | None,
) -> str:
    return engines.check(
        config.model,
        Prompt(
            model="",
            system=config.system,
            messages=(),
            tools=config.tools,
            sampling=sampling,
            options=dict(config.engine_options),
            response_format=response_format,
        ),
    )
