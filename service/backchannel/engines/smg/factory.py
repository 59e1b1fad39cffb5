"""vLLM over its own gRPC (`vllm serve --grpc`): the adapter `smg`, as the registry finds it.

What it needs is the extra `smg`: `smg-grpc-proto`, `tokenizers` and `jinja2`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from backchannel.engines.smg.config import SmgConfig
from backchannel.errors import BackchannelError, Reason

if TYPE_CHECKING:
    from backchannel.engines.smg.engine import SmgEngine

_PACKAGES: Final = ("smg_grpc_proto", "tokenizers", "jinja2")


def create(name: str, options: Mapping[str, object]) -> SmgEngine:
    """Make the engine from its settings, which are those of `SmgConfig`.

    Raises:
        BackchannelError: `FIELD_INVALID` for bad settings; `ENGINE_UNAVAILABLE` where a package is
            not installed, or the key is missing.
    """
    config = SmgConfig.of(name, options)
    for package in _PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise BackchannelError(
                Reason.ENGINE_UNAVAILABLE,
                f"the engine {name} needs the package {package}, which is not installed here "
                f"({error}); pip install 'backchannel[smg]'",
            ) from error
    from backchannel.engines.smg.engine import SmgEngine

    return SmgEngine(name, config)
