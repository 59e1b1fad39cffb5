"""A GGUF file in memory with llama.cpp's server around it; every call is typed, and blocks.

llama.cpp's server cannot be kept from listening, so it gets a unix socket in a directory that only
this user can enter, and a key that only this object has. That socket is used for two questions:
what the model can do, and what became of a completion that was stopped.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

# It ships neither stubs nor a py.typed; this module is the only one that imports it.
import xllamacpp  # type: ignore[import-untyped]

from backchannel.engines.llama.config import LlamaModel
from backchannel.engines.llama.file import LlamaFile
from backchannel.errors import BackchannelError, Reason

_BATCH: Final = 256
"""Prompt tokens a step: a prefill can be stopped between two steps, and others wait for one."""

_CONFIRM_S: Final = 1.5
"""How long to ask for the confirmation of a stop; one step of a model takes far less."""

_BEGIN_S: Final = 60.0
"""How long a loaded model may take to be ready for work."""

_ASK_AGAIN_S: Final = 0.001

_ANY_TEMPLATE: Final = "{{ messages[0].content }}"

_REASONING_SIGNS: Final = (
    "reasoning_content",
    "</think>",
    "</seed:think>",
    "[/THINK]",
    "<|END_THINKING|>",
    "<|channel|>analysis",
)
"""By which a template shows that its model reasons; llama.cpp knows what to make of it."""

_CPU: Final = xllamacpp.ggml_backend_dev_type.GGML_BACKEND_DEVICE_TYPE_CPU


@dataclass(frozen=True, slots=True)
class Facts:
    """What the server says of the model it has.

    Attributes:
        context_tokens: Of one conversation.
        parameters: How many the model has.
        tools: Whether its chat template knows tools.
        reasoning: Whether its chat template knows reasoning, which llama.cpp then tells apart.
        gpu: Whether a GPU was there that could take layers.
    """

    context_tokens: int
    parameters: int
    tools: bool
    reasoning: bool
    gpu: bool


class LlamaServer:
    """One loaded model. Every method blocks; `complete` for as long as the answer takes.

    Args:
        model: What to load.

    Raises:
        BackchannelError: `ENGINE_UNAVAILABLE`, naming the file and what to do.
    """

    def __init__(self, model: LlamaModel) -> None:
        file = LlamaFile.read(model.file)
        template = model.template()
        if not template and not file.chat_template:
            raise BackchannelError(
                Reason.ENGINE_UNAVAILABLE,
                f"{model.file} has no chat template, so it is probably not made for conversations; "
                "take a model that is (its name often says instruct or chat), or say by "
                "chat_template how a conversation is written for it",
            )
        self._directory = Path(tempfile.mkdtemp(prefix="backchannel-"))
        self._socket = str(self._directory / "llama.sock")
        self._key = secrets.token_urlsafe(32)
        try:
            self._begin(model, template)
            self.facts = self._ask_facts()
        except Exception as error:
            why = self._blame(model, error)
            shutil.rmtree(self._directory, ignore_errors=True)
            raise BackchannelError(Reason.ENGINE_UNAVAILABLE, why) from error

    def _begin(self, model: LlamaModel, template: str) -> None:
        self._server = xllamacpp.Server(self._parameters(model, template))
        # Answered by the thread that computes. Were it told to end before it has begun, it would
        # never hear of it, and freeing the model would wait for it for ever, with the
        # interpreter's lock in its hand.
        self._get("/slots", timeout_s=_BEGIN_S)

    def _blame(self, model: LlamaModel, error: Exception) -> str:
        """Why it could not be loaded: with a template that always works, would it do?"""
        Path(self._socket).unlink(missing_ok=True)  # Left behind by what failed.
        try:
            self._begin(model, _ANY_TEMPLATE)
        except Exception:  # noqa: BLE001 - whatever it is, it is not the template
            return (
                f"llama.cpp could not load {model.file} ({error}); is the file whole, of an "
                "architecture that this version knows, and is there memory for it? A smaller "
                "n_ctx or n_parallel takes less"
            )
        del self._server
        whose = "the chat_template of its settings" if model.chat_template else "its chat template"
        return (
            f"llama.cpp could load {model.file}, but not {whose}; set chat_template to one that "
            "is whole"
        )

    def complete(self, request: bytes, receive: Callable[[bytes], bool]) -> None:
        """Answer, passing each message of the server to `receive` until that returns True.

        Raises:
            ValueError: The server does not take the request.
        """
        self._server.handle_chat_completions(request, receive)

    def sequence_tokens(self, tag: int) -> int | None:
        """The length of what the stopped completion with this tag has left behind.

        Waits until its slot has let go of it. The slot then still holds the sequence that it
        worked on: the prompt, as far as it got, and every token computed but the last, which was
        never fed back. None if the slot works on something else by now.
        """
        give_up = time.monotonic() + _CONFIRM_S
        while time.monotonic() < give_up:
            slot = next((slot for slot in self._slots() if _tag(slot) == tag), None)
            if slot is None:
                return None
            if not slot["is_processing"]:
                return int(slot["n_prompt_tokens"])
            time.sleep(_ASK_AGAIN_S)
        return None

    def busy_slots(self) -> int:
        """How many completions the server works on, by its own account."""
        return sum(bool(slot["is_processing"]) for slot in self._slots())

    def close(self) -> None:
        """Free the model; nothing may be running."""
        del self._server
        shutil.rmtree(self._directory, ignore_errors=True)

    def _parameters(self, model: LlamaModel, template: str) -> Any:
        parameters = xllamacpp.CommonParams()
        if template:
            parameters.chat_template = template
        parameters.model.path = str(model.file)
        parameters.n_parallel = model.n_parallel
        # One store for all conversations, with room for each of them at its longest.
        parameters.kv_unified = True
        parameters.kv_unified_per_slot = model.n_ctx
        parameters.n_ctx = model.n_ctx * model.n_parallel
        parameters.n_batch = parameters.n_ubatch = _BATCH
        parameters.cache_ram_mib = model.cache_ram_mib
        parameters.cache_idle_slots = False
        parameters.cpuparams.n_threads = model.n_threads
        parameters.cpuparams_batch.n_threads = model.n_threads
        parameters.n_gpu_layers = model.n_gpu_layers
        parameters.warmup = False
        parameters.fit_params = False
        parameters.ui = False
        parameters.verbosity = 0
        parameters.hostnames = [self._socket]
        parameters.api_keys = [self._key]
        parameters.n_threads_http = 2
        parameters.endpoint_slots = True
        parameters.endpoint_metrics = True
        return parameters

    def _ask_facts(self) -> Facts:
        properties = self._get("/props")
        meta = self._get("/v1/models")["data"][0]["meta"]
        can = properties["chat_template_caps"]
        return Facts(
            context_tokens=properties["default_generation_settings"]["n_ctx"],
            parameters=meta["n_params"],
            tools=bool(can["supports_tools"] and can["supports_tool_calls"]),
            reasoning=any(sign in properties["chat_template"] for sign in _REASONING_SIGNS),
            gpu=any(device["type"] != _CPU for device in xllamacpp.get_device_info()),
        )

    def _slots(self) -> list[dict[str, Any]]:
        slots: list[dict[str, Any]] = self._get("/slots")
        return slots

    def _get(self, path: str, timeout_s: float = _CONFIRM_S) -> Any:
        with contextlib.closing(_UnixConnection(self._socket, timeout_s)) as connection:
            connection.request("GET", path, headers={"Authorization": f"Bearer {self._key}"})
            response = connection.getresponse()
            body = response.read()
            if response.status != http.client.OK:
                raise ConnectionError(f"llama.cpp answers {response.status} to {path}")
            return json.loads(body)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _tag(slot: dict[str, Any]) -> object:
    return slot.get("params", {}).get("n_discard")
