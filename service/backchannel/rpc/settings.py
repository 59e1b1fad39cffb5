"""From the service's configuration to what gRPC and the engines are told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from backchannel.config import ServeConfig
from backchannel.engines.registry import DEFAULT_ENGINES, EngineRegistry
from backchannel.engines.settings import ALWAYS
from backchannel.rpc.wire import MAX_TRANSPORT_BYTES

_MIN_CLIENT_PING_MS: Final = 500


def server_options(config: ServeConfig) -> list[tuple[str, int]]:
    """Channel arguments of the server.

    Source: https://grpc.github.io/grpc/core/group__grpc__arg__keys.html
    """
    time_ms = round(config.keepalive_time_s * 1000)
    timeout_ms = round(config.keepalive_timeout_s * 1000)
    return [
        ("grpc.so_reuseport", int(config.reuse_port)),
        ("grpc.max_receive_message_length", MAX_TRANSPORT_BYTES),
        # A single event may be as large as what was taken in; there is nothing larger.
        ("grpc.max_send_message_length", MAX_TRANSPORT_BYTES),
        ("grpc.max_concurrent_streams", config.max_streams_per_connection),
        # A frozen peer is noticed only if both time-outs are set: the second governs the ping that
        # the first asks for, and is a minute by default.
        ("grpc.keepalive_time_ms", time_ms),
        ("grpc.keepalive_timeout_ms", timeout_ms),
        ("grpc.http2.ping_timeout_ms", timeout_ms),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # Clients ask too whether we are there. By default a server that is asked more often than
        # every 5 minutes answers ENHANCE_YOUR_CALM and hangs up.
        ("grpc.http2.min_ping_interval_without_data_ms", _MIN_CLIENT_PING_MS),
    ]


def engines(config: ServeConfig) -> EngineRegistry:
    """The engines to open, the aliases, and the default model.

    What somebody asked for by name, or said anything about, has to open; what is only tried because
    nothing was said does not.

    Raises:
        BackchannelError: `FIELD_INVALID`, naming a setting that makes no sense.
    """
    said = config.engine_options
    # Whoever tells of an engine means its models before ours; the one that is always there is last.
    usual = (*(name for name in said if name != ALWAYS), *DEFAULT_ENGINES, ALWAYS)
    names = dict.fromkeys(config.engine or usual)
    settings = {name: config.engine_options.get(name, {}) for name in names}
    tried = set() if config.engine else DEFAULT_ENGINES.keys() - config.engine_options.keys()
    default_model = config.model
    if config.model_file is not None:
        tried -= {"llama"}
        path = config.model_file.absolute()
        name = _model_name(path)
        configured = settings.get("llama", {})
        models = configured.get("models", ())
        others = models if isinstance(models, (list, tuple)) else ()
        settings["llama"] = {**configured, "models": [{"name": name, "path": str(path)}, *others]}
        default_model = f"llama/{name}"
    return EngineRegistry(
        settings, aliases=config.model_aliases, default_model=default_model, optional=tried
    )


def _model_name(path: Path) -> str:
    """What a GGUF file is called behind `llama/`: its name, in characters that names may have."""
    return re.sub("[^A-Za-z0-9._:-]+", "-", path.stem).strip("-._:")[:64] or "model"
