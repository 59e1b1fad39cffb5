"""A llama.cpp server in a process of its own: a real server of the OpenAI API to talk to.

    python -m tests.support.llama_peer PORT [MODEL.gguf]

serves until its standard input ends, so that it cannot outlive whoever started it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backchannel.engines.llama.config import HOUSE_FILE

ROOT = Path(__file__).parents[2]
KEY = "peer-key-0123456789"
MODEL = "house"
PARALLEL = 2
START_S = 30.0


@dataclass(frozen=True)
class LlamaPeer:
    """Where it is; only `/health` goes without the key."""

    port: int
    process: subprocess.Popen[bytes]
    key: str = KEY

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        return f"{self.root}/v1"

    def get(self, path: str) -> Any:
        """A JSON document of the server's."""
        request = urllib.request.Request(
            self.root + path, headers={"Authorization": f"Bearer {self.key}"}
        )
        with contextlib.closing(urllib.request.urlopen(request, timeout=START_S)) as response:
            return json.loads(response.read())

    def busy(self) -> int:
        """How many answers it works on, by its own count."""
        return sum(slot["is_processing"] for slot in self.get("/slots"))

    def kill(self) -> None:
        """As if the power had gone."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def llama_peer(model: Path = HOUSE_FILE, *, port: int = 0) -> Iterator[LlamaPeer]:
    """Start one, and stop it at the end."""
    port = port or free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.llama_peer", str(port), str(model)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'service'}{os.pathsep}{ROOT}"},
    )
    peer = LlamaPeer(port, process)
    try:
        until = time.monotonic() + START_S
        while True:
            assert process.poll() is None, "the peer died at its start"
            assert time.monotonic() < until, "the peer does not start"
            with contextlib.suppress(OSError, ValueError):
                peer.busy()  # Answered by the thread that computes.
                break
            time.sleep(0.05)
        yield peer
    finally:
        process.kill()
        process.communicate()


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve(port: int, model: str) -> None:
    """Load the model and serve until standard input ends."""
    import xllamacpp  # type: ignore[import-untyped]  # it has no stubs

    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.model_alias = {MODEL}
    parameters.n_parallel = PARALLEL
    parameters.kv_unified = True
    parameters.kv_unified_per_slot = 2048
    parameters.n_ctx = 2048 * PARALLEL
    parameters.n_batch = parameters.n_ubatch = 256
    parameters.cache_ram_mib = 0
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.warmup = parameters.fit_params = parameters.ui = False
    parameters.verbosity = 0
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = port
    parameters.api_keys = [KEY]
    parameters.n_threads_http = 4
    parameters.endpoint_slots = True
    server = xllamacpp.Server(parameters)
    sys.stdin.buffer.read()
    del server


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else str(HOUSE_FILE))
