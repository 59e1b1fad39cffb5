"""One server of the OpenAI API: the connection to it, and what it has.

The official SDK does the transport, the key and the pool of connections. Its models of requests and
answers are left out of the way of a token: walking through a conversation of 200 messages costs
it 24 ms on the event loop, and a chunk that it reads costs twice of what it costs here (measured:
250 µs and 130 µs, most of the latter in the transport).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import openai
import structlog

from backchannel.engines.openai.config import OpenAIConfig
from backchannel.engines.openai.dialect import DIALECTS, Dialect, DialectName, dialect_of
from backchannel.engines.openai.errors import Blame, UpstreamError, UpstreamResponse
from backchannel.engines.protocol import Capability, ModelCard
from backchannel.errors import BackchannelError, Reason
from backchannel.observer import OUTGOING

_LIST_S: Final = 5.0
"""The most time that a list of models may take."""
_LIST_BYTES: Final = 4 * 2**20
_ERROR_BYTES: Final = 64 * 2**10
_AGAIN_S: Final = 2.0
"""How soon an upstream is asked for its models again that could not tell them."""
_MOST_MODELS: Final = 1000
_LONGEST_NAME: Final = 256

_logger = structlog.get_logger(__name__)


class Upstream:
    """A server and what is known of it.

    Args:
        name: The engine's.
        config: Where the server is, and how it is asked.
    """

    def __init__(self, name: str, config: OpenAIConfig) -> None:
        self._name = name
        self._config = config
        self._key = config.key(name)
        key_source = "api_key_env" if config.api_key_env else "api_key_file"
        self.blame = Blame(name, key_source if self._key else "")
        self._dialect: Dialect | None = DIALECTS.get(config.dialect)
        self._listed = False
        self._cards = self._cards_of({}, self.dialect, frozenset(), 0)
        # Below these, older ones tell what is asked, and every request is a line.
        logging.getLogger("openai").setLevel(logging.INFO)
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        headers: dict[str, Any] = {
            # What unpacks without end is not to be had by asking for it.
            "Accept-Encoding": "identity",
            # From the environment, they would go to whatever server this is.
            "OpenAI-Organization": openai.Omit(),
            "OpenAI-Project": openai.Omit(),
        }
        self._http = openai.DefaultAsyncHttpxClient(
            # A redirect would take the conversation to a server that nobody has named.
            follow_redirects=False,
            event_hooks={"response": [_only_success]},
        )
        self._client = openai.AsyncOpenAI(
            api_key=self._key or "none",
            base_url=config.base_url,
            max_retries=0,
            # All but the connection has limits of its own.
            timeout=openai.Timeout(None, connect=config.connect_timeout_s),
            default_headers=headers,
            http_client=self._http,
        )

    @property
    def dialect(self) -> Dialect:
        """Whose ways it has; the generic ones until that is known."""
        return self._dialect or DIALECTS[DialectName.GENERIC]

    @property
    def models(self) -> Sequence[ModelCard]:
        """What it has, as far as is known."""
        return self._cards

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def learn(self) -> None:
        """Ask for its models, and for what else it tells.

        Raises:
            BackchannelError: It cannot be asked, or has no such list.
        """
        told = await self._get(f"{self._config.base_url.rstrip('/')}/models")
        try:
            entries = _entries(told)
        except (AttributeError, KeyError, TypeError):
            raise self.blame.unreadable("a list of models that is none") from None
        dialect = DIALECTS.get(self._config.dialect)
        if dialect is None:
            owners = [str(entry.get("owned_by", "")) for entry in entries.values()]
            dialect = dialect_of(owners, urlsplit(self._config.base_url).hostname or "")
        lacks, parallel = frozenset[Capability](), 0
        if dialect.name is DialectName.LLAMA:
            lacks, parallel = await self._ask_llama()
        if self._dialect is not dialect or not self._listed:
            _logger.info(
                "upstream_known",
                engine=self._name,
                base_url=self._config.base_url,
                dialect=dialect.name,
                models=len(entries),
            )
        self._dialect = dialect
        self._cards = self._cards_of(entries, dialect, lacks, parallel)
        self._listed = True

    async def keep_up(self, failed: Reason | None = None) -> None:
        """Ask for its models again and again, until cancelled.

        Args:
            failed: Why it could not tell them the first time.
        """
        while True:
            # One that answers, but has no list, need not be pestered.
            settled = self._listed or failed is Reason.UPSTREAM_NOT_AN_API
            await asyncio.sleep(self._config.refresh_s if settled else _AGAIN_S)
            try:
                await self.learn()
                failed = None
            except BackchannelError as error:
                if error.reason is not failed:  # Once, not every few seconds.
                    self.report(error)
                failed = error.reason

    def report(self, error: BackchannelError) -> None:
        """Tell whoever runs the server."""
        _logger.warning(
            "upstream_failed",
            engine=self._name,
            base_url=self._config.base_url,
            reason=error.reason,
            detail=error.detail if isinstance(error, UpstreamError) else "",
            # A refusal is in the upstream's own words, which are for whoever has asked.
            message="" if error.reason is Reason.UPSTREAM_REFUSED else error.message,
        )

    @asynccontextmanager
    async def chat(self, body: Mapping[str, Any]) -> AsyncIterator[AsyncIterator[bytes]]:
        """Send a chat completion's request; the answer's bytes as they come.

        Leaving the context closes the connection, unless the answer was taken to its end.

        Raises:
            UpstreamError: No stream of events begins.
            UpstreamResponse: The server answers with an error.
        """
        # As a whole: given as arguments it would be walked through, message by message.
        create = self._client.chat.completions.with_streaming_response.create(
            model="",
            messages=[],
            stream=True,
            extra_body=body,
            extra_headers={
                **OUTGOING.get(),
                **({} if self._key else {"Authorization": openai.Omit()}),
            },
        )
        try:
            response = await create.__aenter__()
        except openai.APIConnectionError as error:
            raise self.blame.of_exception(error) from None
        try:
            await self._check_type(response.http_response)
            yield response.http_response.aiter_raw()
        finally:
            await create.__aexit__(None, None, None)

    async def _check_type(self, response: Any) -> None:
        headers = response.headers
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise self.blame.unreadable("compressed bytes, which were not asked for")
        if kind == "text/html":
            raise self.blame.not_an_api("a web page")
        if kind == "application/json":  # Most likely an error; some give those no status.
            raise UpstreamResponse(200, dict(headers), await _beginning(response))
        if kind != "text/event-stream":
            word = kind[:64] if kind.isascii() and kind.isprintable() else ""
            raise self.blame.not_an_api(word or "something without a type")

    async def _ask_llama(self) -> tuple[frozenset[Capability], int]:
        """What llama-server's model cannot do, and how many answers it makes at once."""
        try:
            told = await self._get(f"{self._config.root}/props")
            can = told["chat_template_caps"]
            tools = bool(can["supports_tools"] and can["supports_tool_calls"])
            parallel = min(max(int(told["total_slots"]), 0), 4096)
        # A server that hides this serves all the same.
        except (BackchannelError, KeyError, TypeError, ValueError):
            return frozenset(), 0
        return frozenset() if tools else frozenset({Capability.TOOLS}), parallel

    def _cards_of(
        self,
        entries: Mapping[str, Mapping[str, Any]],
        dialect: Dialect,
        lacks: frozenset[Capability],
        parallel: int,
    ) -> list[ModelCard]:
        config = self._config
        capabilities = dialect.capabilities - lacks
        if config.capabilities is not None:
            capabilities = config.capabilities
        return [
            ModelCard(
                name,
                f"{name}, at an OpenAI-compatible server ({dialect.name}).",
                config.max_context_tokens or _context(entries.get(name, {})),
                capabilities,
                parallel,
            )
            for name in (config.models or entries)
        ]

    async def _get(self, url: str) -> Any:
        """A small JSON document of the server's.

        Raises:
            BackchannelError: Any failure.
        """
        headers = {"Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        # Short of the whole: a connection that is taken away while it is made is not closed.
        connect_s = min(self._config.connect_timeout_s, _LIST_S / 2)
        body = b""
        try:
            async with (
                asyncio.timeout(_LIST_S),
                self._http.stream("GET", url, headers=headers, timeout=connect_s) as response,
            ):
                async for piece in response.aiter_raw():
                    body += piece
                    if len(body) > _LIST_BYTES:
                        raise self.blame.unreadable("a list of models that has no end")
        except UpstreamResponse as error:
            raise self.blame.of_response(error, None) from None
        except TimeoutError:
            raise self.blame.stalled("did not tell its models in time") from None
        except BackchannelError:
            raise
        # What the transport raises; its types differ with the SDK's version.
        except Exception as error:  # noqa: BLE001
            raise self.blame.of_exception(error) from None
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            if body.lstrip()[:1] == b"<":
                raise self.blame.not_an_api("a web page") from None
            raise self.blame.unreadable("a list of models that is not JSON") from None


async def _only_success(response: Any) -> None:
    """Let only an answer through. The SDK would read all of an error, however long.

    Raises:
        UpstreamResponse: The status is not 200.
    """
    if response.status_code == 200:
        return
    body = b""
    if response.headers.get("content-encoding", "identity").lower() == "identity":
        body = await _beginning(response)
    raise UpstreamResponse(response.status_code, dict(response.headers), body)


async def _beginning(response: Any) -> bytes:
    """As much of a body as an error may have."""
    body = b""
    async for piece in response.aiter_raw():
        body += piece
        if len(body) >= _ERROR_BYTES:
            break
    return body[:_ERROR_BYTES]


def _entries(told: Any) -> dict[str, Mapping[str, Any]]:
    """The models of a list, by their names, as far as they can be named."""
    entries = {
        entry["id"]: entry
        for entry in told["data"]
        if isinstance(entry["id"], str)
        and 0 < len(entry["id"]) <= _LONGEST_NAME
        and entry["id"].isprintable()
    }
    return dict(list(entries.items())[:_MOST_MODELS])


def _context(entry: Mapping[str, Any]) -> int:
    """The context that a server tells of a model: vLLM's and SGLang's way, llama-server's."""
    meta = entry.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    for value in (entry.get("max_model_len"), meta.get("n_ctx"), meta.get("n_ctx_train")):
        if isinstance(value, int) and 0 < value < 2**31:
            return value
    return 0
