"""How the service is to run: one frozen object, filled from four places.

Flags win over environment variables (`BACKCHANNEL_` and the field's name in capitals), these over
the TOML file, and that over the defaults.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import os
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Self

from platformdirs import user_state_path
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from backchannel import origin
from backchannel.host.config import HostConfig
from backchannel.listen import Address
from backchannel.logging import LogFormat, LogLevel
from backchannel.telemetry.config import TelemetryConfig

ENV_PREFIX: Final = "BACKCHANNEL_"
NESTED: Final = "__"
# Not settings of the service: what the commands read, and what Kubernetes gives every pod beside a
# Service called backchannel (BACKCHANNEL_SERVICE_HOST, BACKCHANNEL_PORT_50051_TCP, …).
_OTHER_VARIABLES: Final = re.compile("SERVER|CONFIG|(SERVICE|PORT)(_.*)?")
GGUF: Final = ".gguf"
# Settings that hold settings.
_GROUPS: Final = ("sessions", "telemetry")


class ConfigError(Exception):
    """The configuration is wrong; each line of the message names a field and a remedy."""


def default_log() -> str:
    """A SQLite file in the user's state folder, which is where programs keep what must survive.

    Source: https://specifications.freedesktop.org/basedir-spec/ (`XDG_STATE_HOME`).
    """
    return f"sqlite:///{user_state_path('backchannel', appauthor=False) / 'sessions.db'}"


class ServeConfig(BaseSettings):
    """What `backchannel serve` needs to know. Durations in seconds, sizes in bytes.

    Attributes:
        listen: `host:port`, `[ipv6]:port` or `unix:/path`. Port 0 takes a free one.
        anonymous: Whether strangers may reach it: only then may `listen` be off loopback.
        engine: Names of the engines to open; `scripted` is always there. Empty: those that
            `engine_options` tells of, and what else this machine can run.
        engine_options: Settings of each engine by its name: `adapter` (what makes it; by default
            the one of its own name), `max_parallel`, `max_waiting`, and what the adapter documents.
        model_aliases: Other names for models, each with the models that are asked, in their order.
        model: The default model as `engine/name`, an alias, or the path of a GGUF file. Empty: the
            first engine's first.
        log: Where sessions are kept: `sqlite:///path` or `memory`.
        drain_grace_s: How long a stop may take in all: running answers get most of it to end.
        log_level: How much the service says about itself.
        log_format: How it says it.
        reuse_port: Whether several processes may share the port (`SO_REUSEPORT`).
        keepalive_time_s: How long a connection may be silent before the server asks whether the
            client is still there.
        keepalive_timeout_s: How long it waits for the answer before it gives the connection up.
        open_timeout_s: How long a `Converse` may stay without its first frame: until then no limit
            of a session bounds it.
        max_streams_per_connection: Calls at a time on one connection; more wait in the client.
        max_calls: Calls at a time in all; more are refused with RESOURCE_EXHAUSTED.
        edge: Whether Envoy is started for browsers. None: if it is there.
        edge_listen: Where it listens, as `host:port`. Port 0 takes a free one.
        edge_hosts: The names that it answers to, without a port; `*` for any. Empty: those of this
            machine while it listens on loopback, else any.
        edge_origins: Pages of other origins that may use it, as `https://chat.example`.
        edge_overlays: Overlays of its configuration (`tls`, `http3`, `tracing`), or paths of
            more.
        edge_tls_certificate: A PEM file with a certificate and its chain, for the overlay `tls`.
        edge_tls_key: A PEM file with the certificate's key.
        sessions: Limits and times of sessions.
        telemetry: Where traces and metrics go.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=NESTED,
        frozen=True,
        extra="forbid",
        validate_default=True,
    )

    listen: str = "127.0.0.1:50051"
    anonymous: bool = False
    engine: Annotated[tuple[str, ...], NoDecode] = ()
    engine_options: Mapping[str, Mapping[str, object]] = {}
    model_aliases: Mapping[str, tuple[str, ...]] = {}
    model: str = ""
    log: str = Field(default_factory=default_log)
    drain_grace_s: float = Field(default=10.0, ge=0, le=3600)
    log_level: LogLevel = LogLevel.INFO
    log_format: LogFormat = LogFormat.AUTO
    reuse_port: bool = False
    keepalive_time_s: float = Field(default=20.0, ge=1, le=3600)
    keepalive_timeout_s: float = Field(default=5.0, ge=0.1, le=600)
    open_timeout_s: float = Field(default=30.0, gt=0, le=3600)
    max_streams_per_connection: int = Field(default=4096, ge=1)
    max_calls: int = Field(default=16384, ge=1)
    edge: bool | None = None
    edge_listen: str = "127.0.0.1:8080"
    edge_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    edge_origins: Annotated[tuple[str, ...], NoDecode] = ()
    edge_overlays: Annotated[tuple[str, ...], NoDecode] = ()
    edge_tls_certificate: str = ""
    edge_tls_key: str = ""
    sessions: HostConfig = HostConfig()
    telemetry: TelemetryConfig = TelemetryConfig()

    @property
    def model_file(self) -> Path | None:
        """The GGUF file that `model` names, if it names one."""
        engines = {*self.engine, *self.engine_options}
        return Path(self.model).expanduser() if _is_file(self.model, engines) else None

    @property
    def address(self) -> Address:
        """`listen`, understood."""
        return Address.parse(self.listen)

    @property
    def edge_address(self) -> Address:
        """`edge_listen`, understood."""
        return Address.parse(self.edge_listen)

    @classmethod
    def load(cls, flags: Mapping[str, object], toml: Path | None = None) -> Self:
        """Read all four places.

        Args:
            flags: What was given on the command line, by field name.
            toml: The file; None for none.

        Raises:
            ConfigError: Something in one of them is wrong.
        """
        if toml is not None:
            _check_readable(toml)

        class FromFile(cls):  # type: ignore[misc,valid-type]  # the way pydantic takes a file name
            model_config = SettingsConfigDict(toml_file=toml)

        try:
            loaded = FromFile(**flags)
        except ValidationError as error:
            raise ConfigError(_explain(error, flags, toml)) from None
        return cls.model_construct(**dict(loaded))

    @classmethod
    def unknown_variables(cls, environment: Mapping[str, str]) -> list[tuple[str, str | None]]:
        """Variables that look like settings and are none, each with the one that may be meant.

        They are no errors: an environment is shared, and others may use the prefix.
        """
        unknown = []
        for name in sorted(environment):
            if not name.startswith(ENV_PREFIX):
                continue
            rest = name.removeprefix(ENV_PREFIX)
            if rest.partition(NESTED)[0].lower() in cls.model_fields:
                continue
            if not _OTHER_VARIABLES.fullmatch(rest):
                meant = _meant(rest.lower())
                unknown.append((name, _variable(meant) if meant else None))
        return unknown

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The order: what stands first wins."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @field_validator("engine", "edge_hosts", "edge_origins", "edge_overlays", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """An environment variable holds a list as `a,b`."""
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value

    @field_validator("engine_options", mode="before")
    @classmethod
    def _read_lists(cls, value: object) -> object:
        """An environment variable holds an engine's list or table as JSON."""
        if not isinstance(value, Mapping):
            return value
        return {
            name: {key: _from_json(given) for key, given in options.items()}
            if isinstance(options, Mapping)
            else options
            for name, options in value.items()
        }

    @field_validator("model_aliases", mode="before")
    @classmethod
    def _split_each(cls, value: object) -> object:
        """One target needs no list, and an environment variable holds several as `a,b`."""
        if not isinstance(value, Mapping):
            return value
        return {alias: cls._split(targets) for alias, targets in value.items()}

    @field_validator("listen")
    @classmethod
    def _check_listen(cls, value: str) -> str:
        Address.parse(value)
        return value

    @field_validator("edge_listen")
    @classmethod
    def _check_edge_listen(cls, value: str) -> str:
        if Address.parse(value).port is None:
            raise ValueError("browsers cannot reach a Unix socket; write host:port")
        return value

    @field_validator("edge_origins")
    @classmethod
    def _check_edge_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            origin.check(text)
        return value

    @field_validator("model")
    @classmethod
    def _check_model(cls, value: str, info: ValidationInfo) -> str:
        aliases = info.data.get("model_aliases", {})
        engines = {*info.data.get("engine", ()), *info.data.get("engine_options", ())}
        if _is_file(value, engines):
            if not Path(value).expanduser().is_file():
                raise ValueError("there is no such file; name a GGUF file that exists")
        elif value and value not in aliases and not all(value.partition("/")):
            raise ValueError(
                "write engine/name, such as scripted/echo, an alias of model_aliases (there are"
                f" {', '.join(aliases) or 'none'}), or the path of a GGUF file"
            )
        return value

    @field_validator("log")
    @classmethod
    def _check_log(cls, value: str) -> str:
        scheme, separator, rest = value.partition("://")
        if value != "memory" and not (separator and scheme and rest):
            raise ValueError("write memory, or sqlite:///absolute/path/of/a/file")
        return value

    @model_validator(mode="after")
    def _check_exposure(self) -> Self:
        """Session ids are the only secret there is, so strangers come in by choice alone."""
        exposed = {"listen": self.address}
        if self.edge is not False:
            exposed["edge_listen"] = self.edge_address
        for field, address in exposed.items():
            if not self.anonymous and not address.is_local:
                raise ValueError(
                    f"{field}: {address} can be reached from other machines, and anybody who"
                    " reaches it may use it; listen on 127.0.0.1, or say --anonymous if that is"
                    " meant"
                )
        return self


def _check_readable(toml: Path) -> None:
    """Refuse a file that pydantic would pass over in silence, or fail on without its name."""
    try:
        tomllib.loads(toml.read_text())
    except OSError as error:
        raise ConfigError(
            f"--config: cannot read {toml}: {error.strerror}; name a TOML file that exists"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config: {toml} is not TOML: {error}") from None


def _explain(error: ValidationError, flags: Mapping[str, object], toml: Path | None) -> str:
    """One line for each fault: where the value came from, what is wrong, what was found."""
    lines = []
    for fault in error.errors():
        message = fault["msg"].removeprefix("Value error, ")
        place = tuple(str(step) for step in fault["loc"])
        if not place:
            lines.append(message)
            continue
        if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            siblings = sorted(_siblings(place))
            meant = _meant(place[0]) if len(place) == 1 else ()
            known = (
                f"there is {'.'.join(meant)}"
                if len(meant) > 1
                else f"there are {', '.join(siblings)}"
            )
            lines.append(
                f"{_container(place, toml)}: no setting is called {'.'.join(place)}; {known}"
            )
            continue
        message = message[:1].lower() + message[1:]
        lines.append(f"{_origin(place, flags, toml)}: {message} (found {_shown(fault['input'])})")
    return "\n".join(lines)


def _meant(name: str) -> tuple[str, ...]:
    """Where the setting stands that this name comes closest to; empty if none does.

    Some options of the command line are settings of a group: what is known by an option's name
    is looked for there, too.
    """
    groups = {
        field.name: (group, field.name)
        for group in _GROUPS
        for field in dataclasses.fields(ServeConfig.model_fields[group].default)
    }
    places = groups | {field: (field,) for field in ServeConfig.model_fields}
    near = difflib.get_close_matches(name, places, n=1)
    return places[near[0]] if near else ()


def _siblings(place: tuple[str, ...]) -> Iterable[str]:
    """What there is where a setting was looked for."""
    if len(place) == 1:
        return ServeConfig.model_fields
    owner = ServeConfig.model_fields[place[0]].default
    for step in place[1:-1]:
        owner = getattr(owner, step)
    return [field.name for field in dataclasses.fields(owner)]


def _variable(place: tuple[str, ...]) -> str:
    return ENV_PREFIX + NESTED.join(place).upper()


def _container(place: tuple[str, ...], toml: Path | None) -> str:
    """Where somebody wrote a setting that there is not."""
    variable = _variable(place)
    return variable if variable in os.environ else str(toml or "configuration")


def _origin(place: tuple[str, ...], flags: Mapping[str, object], toml: Path | None) -> str:
    """Where a value came from, the way the person wrote it."""
    field = place[0]
    given = flags.get(field)
    if isinstance(given, Mapping):
        options = [name for name in given if place[1:2] in ((), (name,))]
        return ", ".join("--" + name.replace("_", "-") for name in options)
    if field in flags:
        return "--" + field.removesuffix("_s").replace("_", "-")
    for variable in (_variable(place), _variable(place[:1])):
        if variable in os.environ:
            return variable
    name = ".".join(place)
    return f"{name} in {toml}" if toml else name


def _is_file(model: str, engines: Collection[str]) -> bool:
    """Whether it is a path and not a model, which upstreams may call after its file."""
    return model.endswith(GGUF) and model.partition("/")[0] not in engines


def _from_json(value: object) -> object:
    """What a text says if it is JSON's list or table; else the text."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        with contextlib.suppress(ValueError):
            return json.loads(value)
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
