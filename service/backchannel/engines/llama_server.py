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

from backchannel.engines.llama_config import LlamaModel
from backchannel.errors import BackchannelError, Reason

_BATCH: Final = 256
"""Prompt tokens a step: a prefill can be stopped between two steps, and others wait for one."""

_CONFIRM_S: Final = 1.5
"""How long to ask for the confirmation of a stop; one step of a model takes far less."""

_BEGIN_S: Final = 60.0
"""How long a loaded model may take to be ready for work."""

_ASK_AGAIN_S: Final = 0.001


@dataclass(frozen=True, slots=True)
class Facts:
    """What the server says of the model it has.

    Attributes:
        context_tokens: Of one conversation.
        parameters: How many the model has.
        tools: Whether its chat template knows tools.
    """

    context_tokens: int
    parameters: int
    tools: bool


class LlamaServer:
    """One loaded model. Every method blocks; `complete` for as long as the answer takes.

    Args:
        model: What to load.

    Raises:
        BackchannelError: `ENGINE_UNAVAILABLE`, naming the file and what to do.
    """

    def __init__(self, model: LlamaModel) -> None:
        path = model.file
        _check_file(path)
        self._directory = Path(tempfile.mkdtemp(prefix="backchannel-"))
        self._socket = str(self._directory / "llama.sock")
        self._key = secrets.token_urlsafe(32)
        try:
            self._server = xllamacpp.Server(self._parameters(model))
            self.facts = self._ask_facts()
            # Answered by the thread that computes. Were it told to end before it has begun, it
            # would never hear of it, and freeing the model would wait for it for ever, with the
            # interpreter's lock in its hand.
            self._get("/slots", timeout_s=_BEGIN_S)
        except Exception as error:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise BackchannelError(
                Reason.ENGINE_UNAVAILABLE,
                f"llama.cpp could not load {path} ({error}); is it a chat model, whole, and is "
                "there memory for it? A smaller n_ctx or n_parallel takes less",
            ) from error

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

    def _parameters(self, model: LlamaModel) -> Any:
        parameters = xllamacpp.CommonParams()
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


def _check_file(path: Path) -> None:
    """Refuse what is no GGUF file; llama.cpp itself would say it on standard error only."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise BackchannelError(
            Reason.ENGINE_UNAVAILABLE,
            f"the model file {path} cannot be read ({error.strerror}); check the path",
        ) from error
    if magic != b"GGUF":
        raise BackchannelError(
            Reason.ENGINE_UNAVAILABLE,
            f"{path} is not a GGUF file; llama.cpp's models have names that end in .gguf, others "
            "are converted with its convert_hf_to_gguf.py",
        )
