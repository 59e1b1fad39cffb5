"""A server that speaks gRPC: the channel to it, what it has, and how it is.

What it has is asked for once it is there, and again after it was away: it may have come back with
another model. How it is, its health and its load, is asked for all the time, so that a turn that
would only wait is refused at once.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import grpc

from backchannel.engines.protocol import Capability, ModelCard
from backchannel.engines.reasoning import THINK
from backchannel.engines.smg.config import SmgConfig, unavailable
from backchannel.engines.smg.dialect import Dialect, Facts, VllmDialect
from backchannel.engines.smg.errors import Blame
from backchannel.engines.smg.files import MOST_ARCHIVE_BYTES, BadFilesError, TokenizerFiles
from backchannel.engines.smg.template import ChatTemplate
from backchannel.engines.smg.tokenizer import ModelTokenizer
from backchannel.engines.tool_call_grammars import CLOSE
from backchannel.engines.tool_calls import OPEN
from backchannel.errors import BackchannelError
from backchannel.observer import CHANNEL_INTERCEPTORS

_RETRY_S: Final = 1.0
"""How often a server that is away is looked for."""

_OPTIONS: Final = (
    # Engines on one server do not share a connection, or a failure of one.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.max_receive_message_length", 2**24),
)

_ALWAYS: Final = frozenset(
    {
        Capability.CONTINUE_PARTIAL,
        Capability.JSON_SCHEMA,
        Capability.GRAMMAR,
        Capability.LOGPROBS,
        Capability.SEED,
    }
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What the server has.

    Attributes:
        facts: What it says of it.
        tokenizer: Its tokenizer.
        template: Its chat template.
        stop_ids: The tokens that end an answer.
        calls_tools: Whether it can be told of tools, and its calls be read.
        thinks: The tags around its reasoning; None if it has none.
        sha256: Of the archive that tokenizer and template came in; empty for a folder.
    """

    facts: Facts
    tokenizer: ModelTokenizer
    template: ChatTemplate
    stop_ids: frozenset[int]
    calls_tools: bool
    thinks: tuple[str, str] | None
    sha256: str


class Upstream:
    """One server; opened by `open`.

    Args:
        name: The engine's.
        config: Where it is.

    Raises:
        BackchannelError: `ENGINE_UNAVAILABLE`: its key or its certificate cannot be read.
    """

    def __init__(self, name: str, config: SmgConfig) -> None:
        self._name = name
        self._config = config
        self._key = config.key(name)
        self._authority = config.authority(name)
        self.blame = Blame(
            name,
            ("api_key_env" if config.api_key_env else "api_key_file") if self._key else "",
        )
        self._channel: grpc.aio.Channel | None = None
        self._dialect: Dialect | None = None
        self._model: LoadedModel | None = None
        self._problem: BackchannelError | None = None

    @property
    def dialect(self) -> Dialect:
        """How it is spoken to."""
        assert self._dialect is not None, "not opened"  # noqa: S101
        return self._dialect

    @property
    def model(self) -> LoadedModel | None:
        """What it has; None while that is not known."""
        return self._model

    @property
    def problem(self) -> BackchannelError | None:
        """Why it cannot be asked now."""
        return self._problem

    def cards(self) -> list[ModelCard]:
        """What it has, to be listed; by the settings alone while it was never there."""
        model, wanted = self._model, self._config.model
        if model is None:
            if not wanted:
                return []
            return [
                ModelCard(wanted, "Its server is away.", 0, _ALWAYS | {Capability.TOOLS}),
            ]
        facts = model.facts
        capabilities = set(_ALWAYS)
        if model.calls_tools:
            capabilities.add(Capability.TOOLS)
        if model.thinks:
            capabilities.add(Capability.REASONING)
        name = wanted or Path(facts.model).name or "model"
        return [
            ModelCard(
                name,
                f"{facts.model[:128]}, served by {self._config.dialect}.",
                facts.context_tokens,
                frozenset(capabilities),
                facts.parallel,
            )
        ]

    def open(self) -> None:
        """Make the channel; connects when something is asked."""
        target, interceptors = self._config.target, CHANNEL_INTERCEPTORS.get()
        if self._config.tls:
            credentials = grpc.ssl_channel_credentials(self._authority)
            self._channel = grpc.aio.secure_channel(
                target, credentials, options=_OPTIONS, interceptors=interceptors
            )
        else:
            self._channel = grpc.aio.insecure_channel(
                target, options=_OPTIONS, interceptors=interceptors
            )
        metadata = [("authorization", f"Bearer {self._key}")] if self._key else []
        self._dialect = VllmDialect(self._channel, metadata)

    async def close(self) -> None:
        """End all that still runs on it."""
        if self._channel is not None:
            await self._channel.close(None)

    async def learn(self) -> None:
        """Ask what it has.

        Raises:
            BackchannelError: Why that is not known. `ENGINE_UNAVAILABLE` if it never will be.
        """
        try:
            await self._learn()
        except BackchannelError as error:
            self.report(error)
            raise
        self._problem = None

    async def keep_up(self) -> None:
        """Ask for its health and its load, for ever."""
        while True:
            refresh_s = self._config.refresh_s
            await asyncio.sleep(min(_RETRY_S, refresh_s) if self._away else refresh_s)
            try:
                await self.look()
            except BackchannelError as error:
                self.report(error)

    async def look(self) -> None:
        """Ask for its health and its load once.

        Raises:
            BackchannelError: Why it cannot be asked now.
        """
        timeout_s = self._config.connect_timeout_s
        if self._away or self._model is None:
            await self._learn()
        try:
            healthy = await self.dialect.healthy(timeout_s)
            queued = await self.dialect.queued(timeout_s) if self._config.most_queued else 0
        except grpc.aio.AioRpcError as error:
            raise self.blame.of(error) from None
        if not healthy:
            raise self.blame.sick()
        if queued and queued >= self._config.most_queued:
            raise self.blame.busy(queued)
        if self._problem is not None:
            _log.warning("engine %s: its server can be asked again", self._name)
        self._problem = None

    def report(self, error: BackchannelError) -> None:
        """Remember why it cannot be asked, and say so once."""
        if self._problem is None or self._problem.reason is not error.reason:
            _log.warning("engine %s: %s", self._name, error)
        self._problem = error

    @property
    def _away(self) -> bool:
        """Whether it could not be asked, and so may come back as another."""
        return self._problem is not None and self._problem.reason.name.startswith("UPSTREAM")

    async def _learn(self) -> None:
        config = self._config
        try:
            facts = await self.dialect.facts(config.connect_timeout_s)
            if config.tokenizer:
                files = await asyncio.to_thread(TokenizerFiles.of_folder, Path(config.tokenizer))
            else:
                files = await self._fetch()
            known = self._model
            if known is not None and files.sha256 and files.sha256 == known.sha256:
                # To read a large vocabulary holds up everything else, so not without need.
                stop_ids = facts.stop_ids | known.tokenizer.stop_ids
                self._model = replace(known, facts=facts, stop_ids=stop_ids)
            else:
                self._model = await asyncio.to_thread(_load, config, facts, files)
        except grpc.aio.AioRpcError as error:
            raise self.blame.of(error) from None
        except (BadFilesError, OSError, UnicodeDecodeError) as error:
            raise unavailable(self._name, str(error)) from None

    async def _fetch(self) -> TokenizerFiles:
        try:
            archive, sha256 = await self.dialect.tokenizer(
                self._config.connect_timeout_s, MOST_ARCHIVE_BYTES
            )
        except grpc.aio.AioRpcError as error:
            if error.code() not in (
                grpc.StatusCode.INTERNAL,
                grpc.StatusCode.FAILED_PRECONDITION,
                grpc.StatusCode.UNIMPLEMENTED,
            ):
                raise
            raise BadFilesError(
                "its server has no tokenizer to give, as when it was started with a model's "
                "name instead of a folder; name a folder with tokenizer.json by tokenizer"
            ) from None
        if len(archive) > MOST_ARCHIVE_BYTES:
            raise BadFilesError("its server sends a tokenizer that is too large")
        return await asyncio.to_thread(TokenizerFiles.of_archive, archive, sha256)


def _load(config: SmgConfig, facts: Facts, files: TokenizerFiles) -> LoadedModel:
    """Read the files; takes a second for a large vocabulary."""
    source = None
    if config.chat_template:
        source = Path(config.chat_template).expanduser().read_text(encoding="utf-8")
    template = ChatTemplate.of_files(files, config.template_options, source)
    thinks: tuple[str, str] | None = None
    if isinstance(config.reasoning, tuple):
        thinks = config.reasoning
    tokenizer = ModelTokenizer(files, (OPEN, CLOSE, *(thinks or THINK)))
    if config.reasoning == "auto" and (THINK[1] in template.source or tokenizer.has(THINK[1])):
        thinks = THINK
    writes_calls = config.tool_format == "hermes" or (
        config.tool_format == "auto" and OPEN in template.source
    )
    return LoadedModel(
        facts,
        tokenizer,
        template,
        facts.stop_ids | tokenizer.stop_ids,
        template.takes_tools and writes_calls,
        thinks,
        files.sha256,
    )
