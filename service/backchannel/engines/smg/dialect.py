"""What differs between the gRPC protocols of inference servers: here vLLM's.

The other protocols of `smg-grpc-proto` have the same methods with other messages: a dialect for
SGLang would be a second class with these methods, and a name in the settings.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import grpc

# They have no `py.typed`.
from smg_grpc_proto.generated import (  # type: ignore[import-untyped]
    common_pb2,
    vllm_engine_pb2,
    vllm_engine_pb2_grpc,
)

from backchannel.observer import OUTGOING
from backchannel.v1 import session_pb2

_SEEDS: Final = 2**31
"""A seed is an `int32`."""

_DEFAULTS: Final = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""What a model may say of its sampling where nobody else does."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server says of itself and its model.

    Attributes:
        model: What it calls it.
        context_tokens: Prompt and answer together; 0 if it does not say.
        stop_ids: The tokens that end an answer.
        sampling: The model's own defaults.
        parallel: How many answers it makes at once; 0 if it does not say.
        thinks_first: Whether a constraint holds only after the reasoning.
    """

    model: str
    context_tokens: int
    stop_ids: frozenset[int]
    sampling: Mapping[str, float]
    parallel: int
    thinks_first: bool


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt in tokens.

    Attributes:
        request_id: By which it can be aborted.
        input_ids: The prompt.
        sampling: As the session has it.
        max_tokens: Of the answer; None for no limit.
        stop_ids: The tokens that end it.
        response_format: None for free text.
    """

    request_id: str
    input_ids: Sequence[int]
    sampling: session_pb2.Sampling
    max_tokens: int | None
    stop_ids: Collection[int]
    response_format: session_pb2.ResponseFormat | None


class TokenLogprobs(NamedTuple):
    """A token with its log-probability, and the likeliest others."""

    token_id: int
    logprob: float
    top: Sequence[tuple[int, float]]


class Step(NamedTuple):
    """One message of an answer.

    Attributes:
        token_ids: The tokens that are new in it.
        prompt_tokens: The prompt's length; 0 if it does not say.
        cached_tokens: How much of that was in the cache.
        logprobs: Of the new tokens, if asked for.
        finish: Why the answer is over: `stop`, `length`, `abort`, `error`; empty while it is not.
    """

    token_ids: Sequence[int]
    prompt_tokens: int
    cached_tokens: int
    logprobs: Sequence[TokenLogprobs]
    finish: str


class Dialect(Protocol):
    """One protocol, on one channel. What fails is raised as gRPC raises it."""

    async def facts(self, timeout_s: float) -> Facts:
        """Ask what it is."""
        ...

    async def tokenizer(self, timeout_s: float, most_bytes: int) -> tuple[bytes, str]:
        """Fetch the tokenizer's archive and what is said to be its SHA-256; ends if too large."""
        ...

    async def healthy(self, timeout_s: float) -> bool:
        """Ask whether it can work."""
        ...

    async def queued(self, timeout_s: float) -> int:
        """Ask how many requests wait in it."""
        ...

    def generate(self, question: Question) -> grpc.aio.UnaryStreamCall[Any, Any]:
        """Ask for an answer."""
        ...

    def read(self, message: Any) -> Step:
        """Read a message of the answer."""
        ...

    async def abort(self, request_id: str, timeout_s: float) -> None:
        """Have it stop with an answer."""
        ...


class VllmDialect:
    """vLLM's, as `vllm serve --grpc` speaks it.

    Args:
        channel: To the server.
        metadata: Sent with each call.
        defaults: Set by `facts`: the model's own sampling.
    """

    def __init__(self, channel: grpc.aio.Channel, metadata: Sequence[tuple[str, str]]) -> None:
        self._stub = vllm_engine_pb2_grpc.VllmEngineStub(channel)
        self._metadata = tuple(metadata)
        self._defaults: Mapping[str, float] = {}

    async def facts(self, timeout_s: float) -> Facts:
        """`GetModelInfo` and `GetServerInfo`."""
        model = await self._stub.GetModelInfo(
            vllm_engine_pb2.GetModelInfoRequest(), timeout=timeout_s, metadata=self._metadata
        )
        server = await self._stub.GetServerInfo(
            vllm_engine_pb2.GetServerInfoRequest(), timeout=timeout_s, metadata=self._metadata
        )
        self._defaults = _defaults(model.default_sampling_params_json)
        return Facts(
            model=model.served_model_name or model.model_path,
            context_tokens=model.max_context_length,
            stop_ids=frozenset(token_id for token_id in model.eos_token_ids if token_id >= 0),
            sampling=self._defaults,
            parallel=server.max_num_seqs,
            thinks_first=server.constrained_decoding_start == "after_reasoning",
        )

    async def tokenizer(self, timeout_s: float, most_bytes: int) -> tuple[bytes, str]:
        """`GetTokenizer`, in pieces."""
        call = self._stub.GetTokenizer(
            common_pb2.GetTokenizerRequest(), timeout=timeout_s, metadata=self._metadata
        )
        data = bytearray()
        sha256 = ""
        async for piece in _messages(call):
            data += piece.data
            sha256 = piece.sha256 or sha256
            if len(data) > most_bytes:
                call.cancel()
                break
        return bytes(data), sha256

    async def healthy(self, timeout_s: float) -> bool:
        """`HealthCheck`."""
        response = await self._stub.HealthCheck(
            vllm_engine_pb2.HealthCheckRequest(), timeout=timeout_s, metadata=self._metadata
        )
        return bool(response.healthy)

    async def queued(self, timeout_s: float) -> int:
        """`GetLoads`."""
        response = await self._stub.GetLoads(
            vllm_engine_pb2.GetLoadsRequest(), timeout=timeout_s, metadata=self._metadata
        )
        return sum(load.num_waiting_reqs for load in response.loads)

    def generate(self, question: Question) -> grpc.aio.UnaryStreamCall[Any, Any]:
        """`Generate`."""
        request = vllm_engine_pb2.GenerateRequest(
            request_id=question.request_id,
            tokenized=vllm_engine_pb2.TokenizedInput(input_ids=question.input_ids),
            sampling_params=self._sampling(question),
            stream=True,
        )
        call: grpc.aio.UnaryStreamCall[Any, Any] = self._stub.Generate(
            request, metadata=(*self._metadata, *OUTGOING.get().items())
        )
        return call

    def read(self, message: Any) -> Step:
        """A chunk has the new tokens; the last message repeats those of the last chunk."""
        part = message.complete if message.HasField("complete") else message.chunk
        done = message.HasField("complete")
        return Step(
            () if done else part.token_ids,
            part.prompt_tokens,
            part.cached_tokens,
            () if done else _logprobs(part.output_logprobs),
            (part.finish_reason or "stop") if done else "",
        )

    async def abort(self, request_id: str, timeout_s: float) -> None:
        """`Abort`: the only thing that stops it; it does not mind a stream that is dropped."""
        await self._stub.Abort(
            vllm_engine_pb2.AbortRequest(request_ids=[request_id]),
            timeout=timeout_s,
            metadata=self._metadata,
        )

    def _sampling(self, question: Question) -> Any:
        """All fields are set: what is left out is 0, which has a meaning of its own in some."""
        asked, defaults = question.sampling, self._defaults

        def value(name: str, usual: float) -> float:
            # The names are fields of `Sampling` or settings of a model's.
            if name in asked.DESCRIPTOR.fields_by_name and asked.HasField(name):  # type: ignore[arg-type]
                return float(getattr(asked, name))
            return defaults.get(name, usual)

        params = vllm_engine_pb2.SamplingParams(
            temperature=value("temperature", 1.0),
            top_p=value("top_p", 1.0),
            top_k=max(0, int(value("top_k", 0))),
            min_p=value("min_p", 0.0),
            frequency_penalty=asked.frequency_penalty,
            presence_penalty=asked.presence_penalty,
            repetition_penalty=value("repetition_penalty", 1.0),
            max_tokens=question.max_tokens,
            stop_token_ids=sorted(question.stop_ids),
            skip_special_tokens=True,
            n=1,
        )
        if asked.HasField("seed"):
            params.seed = asked.seed % _SEEDS
        if asked.HasField("logprobs"):
            params.logprobs = asked.logprobs
        form = question.response_format
        if form is not None and form.HasField("json_schema"):
            params.json_schema = form.json_schema
        elif form is not None and form.HasField("grammar"):
            params.grammar = form.grammar
        return params


async def _messages(call: grpc.aio.UnaryStreamCall[Any, Any]) -> AsyncIterator[Any]:
    while (message := await call.read()) is not grpc.aio.EOF:
        yield message


def _defaults(text: str) -> dict[str, float]:
    """The model's sampling, of which only what is known here counts."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    return {
        name: float(found[name])
        for name in _DEFAULTS
        if isinstance(found.get(name), int | float) and not isinstance(found[name], bool)
    }


def _logprobs(found: Any) -> list[TokenLogprobs]:
    tops = list(found.top_logprobs)
    return [
        TokenLogprobs(
            token_id,
            logprob,
            sorted(
                zip(tops[at].token_ids, tops[at].values, strict=False),
                key=lambda entry: -entry[1],
            )
            if at < len(tops)
            else (),
        )
        for at, (token_id, logprob) in enumerate(
            zip(found.token_ids, found.token_logprobs, strict=False)
        )
    ]
