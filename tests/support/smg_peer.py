"""A server that speaks vLLM's gRPC, with a real tokenizer and a model that does what it is told.

The last user message is the script, a JSON object on a line; the model does what it says:

* `say`: text to generate, then the token that ends an answer. A prompt that already has the
  beginning of it is gone on from.
* `count`: so many tokens of ` word`, before `say`.
* `tokens`: token ids, in place of both.
* `wait`: compute on the prompt until aborted.
* `stall`, `cut`, `cancel`, `fail`, `abort`, `error`: after so many tokens, say nothing more until
  aborted; end without an end; cancel the call; fail with the status in `status`; end as aborted or
  failed.
* `deaf`: do not heed an abort.
* `then`: the script for the time when the results of tools are there.

As with vLLM, a call that is dropped is computed on: nothing but `Abort` ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import zipfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from smg_grpc_proto.generated import (  # type: ignore[import-untyped]
    common_pb2,
    vllm_engine_pb2,
    vllm_engine_pb2_grpc,
)
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\\n</tools>\\nAnswer with <tool_call>{"name": ..., "arguments": ...}</tool_call>' }}
    {{- '<|im_end|>\\n' }}
{%- elif messages and messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' + message.content }}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content }}
        {{- '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking %}{{- '<think>\\n' }}{%- endif %}
{%- endif %}
"""
_LINES = [
    "A language model answers a word at a time, and a word is a token or two.",
    '{"name": "calculator", "arguments": {"expression": "1 + 1"}} word word word',
    "Grüße, 世界! Привет, नमस्ते, 👩‍👩‍👧‍👦 and <think> what </think> there is.",
]
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TAGS = ("<tool_call>", "</tool_call>", "<think>", "</think>")


def small_tokenizer() -> Tokenizer:
    """A byte-level tokenizer like Qwen's, of a few hundred tokens: most of them are bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_LINES, trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in _TAGS])
    return tokenizer


def tokenizer_files(tokenizer: Tokenizer, template: str = TEMPLATE) -> dict[str, str]:
    """What a model's folder has of it."""
    return {
        "tokenizer.json": tokenizer.to_str(),
        "tokenizer_config.json": json.dumps({"eos_token": "<|im_end|>", "chat_template": template}),
        "config.json": json.dumps({"eos_token_id": tokenizer.token_to_id("<|endoftext|>")}),
    }


def archive(files: dict[str, str]) -> bytes:
    """A zip of files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return buffer.getvalue()


@dataclass
class SmgPeer(vllm_engine_pb2_grpc.VllmEngineServicer):  # type: ignore[misc]
    """One server; `serve` starts it.

    Attributes:
        key: The bearer token it wants; empty for none.
        step_s: How long a token takes.
        context_tokens: The model's context.
        healthy: What it says of itself.
        waiting: How many requests it says to be waiting.
        bundle: The tokenizer's archive; None for a server that has none.
        sha256: What it says of its hash; None for the truth.
        slow: Whether a request takes longer to be begun with than the first abort.
        details: What it says of a failure.
    running: The requests that it works on.
        dropped: Those of them that nobody listens to any more.
    asked: All requests, as they came.
        aborted: The ids of all aborts.
    """

    key: str = ""
    step_s: float = 0.001
    context_tokens: int = 4096
    healthy: bool = True
    waiting: int = 0
    sampling_defaults: str = ""
    tokenizer: Tokenizer = field(default_factory=small_tokenizer)
    bundle: bytes | None = b""
    sha256: str | None = None
    thinks_first: bool = False
    slow: bool = False
    details: str = "it broke"
    running: dict[str, asyncio.Event] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)
    asked: list[Any] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    seen: list[list[int]] = field(default_factory=list)
    port: int = 0

    def __post_init__(self) -> None:
        if self.bundle == b"":
            self.bundle = archive(tokenizer_files(self.tokenizer))
        self._end: int = self.tokenizer.token_to_id("<|im_end|>") or 0

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def serve(self, port: int = 0) -> AsyncIterator[SmgPeer]:
        """Serve until the end of the block."""
        server = grpc.aio.server()
        vllm_engine_pb2_grpc.add_VllmEngineServicer_to_server(self, server)
        self.port = server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        try:
            yield self
        finally:
            for event in self.running.values():
                event.set()
            await server.stop(None)

    # --- the calls

    async def HealthCheck(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._let_in(context)
        return vllm_engine_pb2.HealthCheckResponse(healthy=self.healthy)

    async def GetModelInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._let_in(context)
        return vllm_engine_pb2.GetModelInfoResponse(
            model_path="/models/small",
            served_model_name="small",
            is_generation=True,
            max_context_length=self.context_tokens,
            eos_token_ids=[self.tokenizer.token_to_id("<|endoftext|>")],
            default_sampling_params_json=self.sampling_defaults,
        )

    async def GetServerInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._let_in(context)
        return vllm_engine_pb2.GetServerInfoResponse(
            server_type="vllm-grpc",
            max_num_seqs=64,
            constrained_decoding_start="after_reasoning" if self.thinks_first else "first_token",
        )

    async def GetLoads(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._let_in(context)
        load = vllm_engine_pb2.SchedulerLoad(
            num_running_reqs=len(self.running), num_waiting_reqs=self.waiting
        )
        return vllm_engine_pb2.GetLoadsResponse(dp_rank_count=1, loads=[load])

    async def GetTokenizer(  # noqa: N802
        self, request: Any, context: Any
    ) -> AsyncIterator[Any]:
        await self._let_in(context)
        if self.bundle is None:
            await context.abort(grpc.StatusCode.INTERNAL, "No tokenizer files found in small")
            return
        size = 64 * 1024
        for at in range(0, len(self.bundle), size):
            last = at + size >= len(self.bundle)
            sha256 = hashlib.sha256(self.bundle).hexdigest() if self.sha256 is None else self.sha256
            yield common_pb2.GetTokenizerChunk(
                data=self.bundle[at : at + size], sha256=sha256 if last else ""
            )

    async def Abort(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._let_in(context)
        for request_id in request.request_ids:
            self.aborted.append(request_id)
            # One that is not there is none of its business.
            if request_id in self.running:
                self.running[request_id].set()
            if request_id in self.dropped:
                self.dropped.discard(request_id)
                del self.running[request_id]
        return vllm_engine_pb2.AbortResponse()

    async def Generate(  # noqa: N802
        self, request: Any, context: Any
    ) -> AsyncIterator[Any]:
        await self._let_in(context)
        self.asked.append(request)
        while self.slow and not self.aborted:  # noqa: ASYNC110 - a peer may
            await asyncio.sleep(0.001)
        prompt = list(request.tokenized.input_ids)
        script, begun = self._script(prompt)
        tokens = self._tokens(script, begun)
        aborted = self.running[request.request_id] = asyncio.Event()
        try:
            async for response in self._answer(request, context, script, tokens, aborted):
                yield response
        except (asyncio.CancelledError, GeneratorExit):
            # Dropped: it is computed on, to its end.
            if not aborted.is_set():
                return
            raise
        finally:
            if context.cancelled() and not aborted.is_set():
                self.dropped.add(request.request_id)
            else:
                del self.running[request.request_id]

    # --- the model

    async def _answer(
        self,
        request: Any,
        context: Any,
        script: dict[str, Any],
        tokens: Sequence[int],
        aborted: asyncio.Event,
    ) -> AsyncIterator[Any]:
        params = request.sampling_params
        prompt = list(request.tokenized.input_ids)
        cached = max((_common(prompt, known) for known in self.seen), default=0)
        most = params.max_tokens if params.HasField("max_tokens") else len(tokens)
        done: list[int] = []
        finish = "length"
        if script.get("wait"):
            await aborted.wait()
        for token in tokens[:most]:
            for way in ("stall", "cut", "cancel", "fail", "abort", "error"):
                if script.get(way) == len(done):
                    if way == "stall":
                        await aborted.wait()
                    elif way == "cut":
                        return
                    elif way == "cancel":
                        await context.abort(grpc.StatusCode.CANCELLED, "cancelled")
                    elif way == "fail":
                        status = grpc.StatusCode[script.get("status", "INTERNAL")]
                        await context.abort(status, self.details)
                    else:
                        yield self._complete(done, prompt, cached, way)
                        return
            if aborted.is_set() and not script.get("deaf"):
                finish = "abort"
                break
            await asyncio.sleep(self.step_s)
            done.append(token)
            yield self._chunk(token, prompt, cached, params)
            if token in params.stop_token_ids:
                finish = "stop"
                break
        self.seen.append(prompt + done)
        yield self._complete(done, prompt, cached, finish)

    def _chunk(self, token: int, prompt: list[int], cached: int, params: Any) -> Any:
        logprobs = None
        if params.HasField("logprobs"):
            other = (token + 1) % 300
            logprobs = vllm_engine_pb2.OutputLogProbs(token_logprobs=[-0.5], token_ids=[token])
            if params.logprobs:
                logprobs.top_logprobs.append(
                    vllm_engine_pb2.TopLogProbs(values=[-2.0, -0.5], token_ids=[other, token])
                )
        return vllm_engine_pb2.GenerateResponse(
            chunk=vllm_engine_pb2.GenerateStreamChunk(
                token_ids=[token],
                prompt_tokens=len(prompt),
                completion_tokens=1,
                cached_tokens=cached,
                output_logprobs=logprobs,
            )
        )

    def _complete(self, done: list[int], prompt: list[int], cached: int, finish: str) -> Any:
        return vllm_engine_pb2.GenerateResponse(
            complete=vllm_engine_pb2.GenerateComplete(
                output_ids=done[-1:],  # As vLLM: the last chunk's once more.
                finish_reason=finish,
                prompt_tokens=len(prompt),
                completion_tokens=len(done[-1:]),
                cached_tokens=cached,
            )
        )

    def _script(self, prompt: list[int]) -> tuple[dict[str, Any], str]:
        """What is to be done, and what of the answer is there already."""
        text = self.tokenizer.decode(prompt, skip_special_tokens=False)
        before, _, begun = text.rpartition("<|im_start|>assistant\n")
        users = [part.partition("<|im_end|>")[0] for part in before.split("<|im_start|>user\n")[1:]]
        answered = False
        while users and users[-1].startswith("<tool_response>"):
            users.pop()
            answered = True
        script: dict[str, Any] = {"say": "What?"}
        # Messages that follow each other come as one, a line each.
        if users and (last := users[-1].split("\n")[-1]).startswith("{"):
            script = json.loads(last)
        if answered:
            script = script.get("then", {"say": "Done."})
        return script, begun.removeprefix("<think>\n").removeprefix("\n</think>\n\n")

    def _tokens(self, script: dict[str, Any], begun: str) -> list[int]:
        if "tokens" in script:
            return [*script["tokens"], self._end]
        word = self.tokenizer.encode(" word").ids[-1]
        say = script.get("say", "")
        say = say.removeprefix(begun) if begun and say.startswith(begun) else say
        said = self.tokenizer.encode(say).ids
        return [*[word] * script.get("count", 0), *said, self._end]

    async def _let_in(self, context: Any) -> None:
        if not self.key:
            return
        if dict(context.invocation_metadata()).get("authorization") != f"Bearer {self.key}":
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong key")


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """The length of what two sequences begin with, in whole blocks of 16."""
    same = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        same += 1
    return same // 16 * 16
