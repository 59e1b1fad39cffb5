"""Where a server that speaks its own gRPC is, and how it is asked."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from backchannel.engines.settings import faults_of
from backchannel.errors import BackchannelError, Reason

_KEY_BYTES: Final = 16 * 1024
_TARGET: Final = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})|unix:/.+")

Seconds = Annotated[float, Field(gt=0.0, le=86_400.0)]


@dataclass(frozen=True, slots=True)
class SmgConfig:
    """The settings of an engine whose adapter is `smg`.

    Attributes:
        target: The server's gRPC address: `127.0.0.1:50051`, `[::1]:50051` or `unix:/run/vllm`.
        dialect: Whose protocol it speaks.
        tls: Whether the connection is encrypted.
        ca_file: The authority of the server's certificate, if it is not a public one.
        api_key_env: The environment variable that holds a key, sent as a bearer token.
        api_key_file: The file that holds it, and nothing else. Neither: no key is sent.
        model: What the model is called here; empty for what the server says.
        tokenizer: A folder with `tokenizer.json` and what comes with it; empty to ask the server.
        chat_template: A file with a chat template in place of the tokenizer's own.
        template_options: Further variables for the template.
        tool_format: How the model writes tool calls; `auto` finds out from the template.
        reasoning: The tags around reasoning, or `off`; `auto` finds out from the template.
        most_queued: Where so many requests wait in the server, a turn is refused; 0 for any number.
        connect_timeout_s: For everything that is asked at the start.
        first_token_timeout_s: From the request to the first token.
        token_timeout_s: From one token to the next.
        abort_timeout_s: How long the server may take to confirm a stop.
        refresh_s: How often its health and load are asked for.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    target: str
    dialect: Literal["vllm"] = "vllm"
    tls: bool = False
    ca_file: str = ""
    api_key_env: str = ""
    api_key_file: str = ""
    model: Annotated[str, Field(max_length=256)] = ""
    tokenizer: str = ""
    chat_template: str = ""
    template_options: dict[str, Any] = field(default_factory=dict)
    tool_format: Literal["auto", "hermes", "off"] = "auto"
    reasoning: Literal["auto", "off"] | tuple[str, str] = "auto"
    most_queued: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    connect_timeout_s: Seconds = 10.0
    first_token_timeout_s: Seconds = 300.0
    token_timeout_s: Seconds = 60.0
    abort_timeout_s: Annotated[float, Field(gt=0.0, le=60.0)] = 1.5
    refresh_s: Seconds = 5.0

    @classmethod
    def of(cls, name: str, options: Mapping[str, object]) -> SmgConfig:
        """Read settings as they stand in a configuration file.

        Args:
            name: The engine's.
            options: The settings.

        Raises:
            BackchannelError: `FIELD_INVALID`, naming each setting that is wrong.
        """
        if "target" not in options:
            raise _invalid(
                name,
                'target is missing: the server\'s gRPC address, as in target = "127.0.0.1:50051"',
            )
        try:
            config: SmgConfig = TypeAdapter(cls).validate_python(dict(options))
        except ValidationError as error:
            raise _invalid(name, faults_of(error, cls)) from error
        wrong = config.wrong()
        if wrong:
            raise _invalid(name, wrong)
        return config

    def wrong(self) -> str:
        """What is wrong with the settings together; empty for nothing."""
        found = _TARGET.fullmatch(self.target)
        if not found or (found[2] and not 0 < int(found[2]) < 65_536):
            return (
                "target: must be host:port, without http:// (or unix:/path); vLLM's gRPC port, "
                "which is not its HTTP port"
            )
        if self.ca_file and not self.tls:
            return "ca_file: has a meaning only with tls = true"
        if self.api_key_env and self.api_key_file:
            return "api_key_env and api_key_file exclude each other"
        if isinstance(self.reasoning, tuple) and not all(self.reasoning):
            return "reasoning: both tags must have characters"
        return ""

    def key(self, name: str) -> str:
        """Read the key; empty where none is configured.

        Raises:
            BackchannelError: `ENGINE_UNAVAILABLE`, naming the variable or the file.
        """
        if self.api_key_env:
            key = os.environ.get(self.api_key_env, "").strip()
            source = f"the environment variable {self.api_key_env}"
        elif self.api_key_file:
            key = _read(name, self.api_key_file, _KEY_BYTES).decode("latin-1").strip()
            source = f"the file {self.api_key_file}"
        else:
            return ""
        if not key:
            raise unavailable(name, f"{source} is to hold its key and holds none")
        if not key.isascii() or not key.isprintable():
            raise unavailable(name, f"{source} holds no key: a key is one line of ASCII")
        return key

    def authority(self, name: str) -> bytes | None:
        """Read the certificate of the authority; None for the public ones.

        Raises:
            BackchannelError: `ENGINE_UNAVAILABLE`, naming the file.
        """
        return _read(name, self.ca_file, 2**20) if self.ca_file else None


def unavailable(name: str, what: str) -> BackchannelError:
    """The error of an engine that cannot work like this."""
    return BackchannelError(Reason.ENGINE_UNAVAILABLE, f"the engine {name}: {what}")


def _read(name: str, path: str, most_bytes: int) -> bytes:
    try:
        with Path(path).expanduser().open("rb") as file:
            return file.read(most_bytes)
    except OSError as error:
        raise unavailable(name, f"{path} cannot be read ({error.strerror})") from error


def _invalid(name: str, what: str) -> BackchannelError:
    return BackchannelError(Reason.FIELD_INVALID, f"settings of the engine {name}: {what}")
