"""Any server that speaks the OpenAI API: vLLM, SGLang, llama-server, Ollama, OpenAI and others.

The official SDK is an extra of the package; what needs it is imported when an engine is made.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from backchannel.engines.openai.config import OpenAIConfig
from backchannel.errors import BackchannelError, Reason

if TYPE_CHECKING:
    from backchannel.engines.openai.engine import OpenAIEngine


def create(name: str, options: Mapping[str, object]) -> OpenAIEngine:
    """Make the engine from its settings, which are those of `OpenAIConfig`.

    Raises:
        BackchannelError: `FIELD_INVALID` for bad settings; `ENGINE_UNAVAILABLE` where the SDK is
            not installed, or the key is missing.
    """
    config = OpenAIConfig.of(name, options)
    try:
        importlib.import_module("openai")
    except ImportError as error:
        raise BackchannelError(
            Reason.ENGINE_UNAVAILABLE,
            f"the engine {name} needs the package openai, which is not installed here ({error}); "
            "pip install 'backchannel[openai]'",
        ) from error
    from backchannel.engines.openai.engine import OpenAIEngine

    return OpenAIEngine(name, config)
