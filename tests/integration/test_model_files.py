"""`backchannel serve --model x.gguf` with files that will not do: an error a person can act on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from backchannel.engines.llama.config import HOUSE_FILE
from tests.support.gguf import Gguf
from tests.support.server import START_S

pytest.importorskip("xllamacpp", reason="the embedded engine has no wheel here")


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "backchannel", "serve", "--listen", "127.0.0.1:0"]
    command += ["--log", "memory", "--no-edge", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=False)


def _other(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04")


def _cut(path: Path) -> None:
    path.write_bytes(HOUSE_FILE.read_bytes()[:1_000_000])


def _no_template(path: Path) -> None:
    Gguf.read(HOUSE_FILE).set(tokenizer__chat_template=None).write(path)


def _bad_template(path: Path) -> None:
    Gguf.read(HOUSE_FILE).set(tokenizer__chat_template="{% if %}").write(path)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_other, "is not a GGUF file"),
        (_cut, "is the file whole"),
        (_no_template, "has no chat template"),
        (_bad_template, "but not its chat template"),
    ],
)
def test_a_file_that_will_not_do(tmp_path: Path, make: Callable[[Path], None], says: str) -> None:
    make(path := tmp_path / "x.gguf")
    done = serve("--model", str(path))
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the engine llama cannot be started: ")
    assert str(path) in done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: None])
def test_no_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(path := tmp_path / "x.gguf")
    done = serve("--model", str(path))
    assert done.returncode == 2
    assert "--model: there is no such file" in done.stderr
