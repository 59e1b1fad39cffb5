"""Where an upstream that speaks the OpenAI API is, and how it is asked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from backchannel.engines.openai.dialect import DialectName
from backchannel.engines.protocol import Capability
from backchannel.engines.settings import faults_of
from backchannel.errors import BackchannelError, Reason

_KEY_BYTES: Final = 16 * 1024
"""More than any key has; a key file that is longer is something else."""

_OURS: Final = frozenset({"model", "messages", "stream", "stream_options", "n", "tools"})
"""What a request says in any case, so that `extra_body` may not."""

_MISSING: Final = {
    "missing": 'is missing: where the upstream is, as in base_url = "http://127.0.0.1:8000/v1"'
}

Seconds = Annotated[float, Field(gt=0.0, le=86_400.0)]


@dataclass(frozen=True, slots=True)
class OpenAIConfig:
    """The settings of an engine whose adapter is `openai`.

    Attributes:
        base_url: Up to and with the version: `http://127.0.0.1:8000/v1`.
        api_key_env: The environment variable that holds the key.
        api_key_file: The file that holds it, and nothing else. Neither: no key is sent.
        dialect: Whose ways the upstream has; `auto` finds out.
        models: Which models to show, the default first; empty for all that the upstream lists.
            They can be named also while the upstream is down.
        capabilities: What its models can do; None for what is known of the dialect.
        max_context_tokens: Prompt and answer together; 0 for what the upstream says.
        connect_timeout_s: For a connection.
        first_token_timeout_s: From the request to the first token.
        token_timeout_s: From one token to the next.
        retries: How often a request is repeated that failed before its first token.
        retry_wait_s: Before the first repetition, about; doubled for each further one.
        retry_after_limit_s: An upstream that asks for a longer pause is not asked again.
        refresh_s: How often its models are asked for.
        extra_body: Merged into each request, for what only this upstream knows.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    base_url: str
    api_key_env: str = ""
    api_key_file: str = ""
    dialect: DialectName = DialectName.AUTO
    models: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=256)], ...], Field(max_length=1000)
    ] = ()
    capabilities: frozenset[Capability] | None = None
    max_context_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    connect_timeout_s: Seconds = 10.0
    first_token_timeout_s: Seconds = 300.0
    token_timeout_s: Seconds = 60.0
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    retry_wait_s: Seconds = 0.5
    retry_after_limit_s: Annotated[float, Field(ge=0.0, le=3600.0)] = 20.0
    refresh_s: Seconds = 60.0
    extra_body: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, options: Mapping[str, object]) -> OpenAIConfig:
        """Read settings as they stand in a configuration file.

        Args:
            name: The engine's.
            options: The settings.

        Raises:
            BackchannelError: `FIELD_INVALID`, naming each setting that is wrong.
        """
        try:
            config: OpenAIConfig = TypeAdapter(cls).validate_python(dict(options))
        except ValidationError as error:
            raise _invalid(name, faults_of(error, cls, _MISSING)) from error
        wrong = config.wrong()
        if wrong:
            raise _invalid(name, wrong)
        return config

    def wrong(self) -> str:
        """What is wrong with the settings together; empty for nothing."""
        try:
            url = urlsplit(self.base_url)
            port_ok = url.port != 0
        except ValueError:
            return "base_url: is not a URL"
        if url.scheme not in ("http", "https") or not url.hostname or not port_ok:
            return "base_url: must begin with http:// or https:// and a host"
        if url.username or url.password or url.query or url.fragment:
            # A key in a URL would end up in logs.
            return "base_url: no user, query or fragment; the key comes by api_key_env or _file"
        if self.api_key_env and self.api_key_file:
            return "api_key_env and api_key_file exclude each other"
        ours = sorted(_OURS & self.extra_body.keys())
        if ours:
            return f"extra_body.{ours[0]}: is Backchannel's to say"
        if len(set(self.models)) < len(self.models):
            return "models: one is named twice"
        return ""

    @property
    def root(self) -> str:
        """The server's address, without the version."""
        return self.base_url.rstrip("/").removesuffix("/v1")

    def key(self, name: str) -> str:
        """Read the key; empty where none is configured.

        Raises:
            BackchannelError: `ENGINE_UNAVAILABLE`, naming the variable or the file.
        """
        if self.api_key_env:
            key = os.environ.get(self.api_key_env, "").strip()
            source = f"the environment variable {self.api_key_env}"
        elif self.api_key_file:
            key = self._key_of_file(name)
            source = f"the file {self.api_key_file}"
        else:
            return ""
        if not key:
            raise _unavailable(
                name, f"{source} is to hold its key and holds none; set it, and restart"
            )
        if not key.isascii() or not key.isprintable():
            raise _unavailable(name, f"{source} holds no key: a key is one line of ASCII")
        return key

    def _key_of_file(self, name: str) -> str:
        try:
            with Path(self.api_key_file).expanduser().open("rb") as file:
                return file.read(_KEY_BYTES).decode("latin-1").strip()
        except OSError as error:
            raise _unavailable(
                name, f"its key cannot be read from {self.api_key_file} ({error.strerror})"
            ) from error


def _invalid(name: str, what: str) -> BackchannelError:
    return BackchannelError(Reason.FIELD_INVALID, f"settings of the engine {name}: {what}")


def _unavailable(name: str, what: str) -> BackchannelError:
    return BackchannelError(Reason.ENGINE_UNAVAILABLE, f"the engine {name}: {what}")
