"""What a GGUF file says of itself, read before llama.cpp loads it.

llama.cpp tells of a file that it cannot use on standard error only, and gives one without a chat
template another model's template without a word.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backchannel.errors import BackchannelError, Reason

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_WIDTHS: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by its type; the types missing here have no fixed width."""
_STRING: Final = 8
_LIST: Final = 9
_TEMPLATE: Final = "tokenizer.chat_template"
_KIND: Final = "general.type"
_ARCHITECTURE: Final = "general.architecture"
_PROJECTOR: Final = "clip"


@dataclass(frozen=True, slots=True)
class LlamaFile:
    """A GGUF file.

    Attributes:
        path: Where it is.
        chat_template: Empty if it has none.
    """

    path: Path
    chat_template: str

    @classmethod
    def read(cls, path: Path) -> LlamaFile:
        """Read its head.

        Raises:
            BackchannelError: `ENGINE_UNAVAILABLE`, saying what the file is instead of a model and
                what to do.
        """
        try:
            with path.open("rb") as file:
                if file.read(4) != _MAGIC:
                    raise _unusable(
                        f"{path} is not a GGUF file; llama.cpp's models have names that end in "
                        ".gguf, others are converted with its convert_hf_to_gguf.py"
                    )
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    said = _said(content)
        except IsADirectoryError as error:
            raise _unusable(f"{path} is a folder; name the .gguf file in it") from error
        except OSError as error:
            raise _unusable(
                f"the model file {path} cannot be read ({error.strerror}); check the path"
            ) from error
        except _NewerError as error:
            raise _unusable(
                f"{path} is a GGUF file of version {error}; this server reads versions 2 and 3"
            ) from error
        except (struct.error, IndexError, UnicodeDecodeError, KeyError) as error:
            raise _unusable(
                f"the head of {path} is damaged, or the file is cut short; download it again"
            ) from error
        kind = said.get(_KIND, "model")
        if kind != "model" or said.get(_ARCHITECTURE) == _PROJECTOR:
            raise _unusable(
                f"{path} is no model by itself but a part of one ({kind}); name the file of the "
                "model that it belongs to"
            )
        return cls(path, said.get(_TEMPLATE, ""))


class _NewerError(Exception):
    """A version of the format that is not known."""


def _unusable(why: str) -> BackchannelError:
    return BackchannelError(Reason.ENGINE_UNAVAILABLE, why)


def _said(content: mmap.mmap) -> dict[str, str]:
    """The texts among the metadata."""
    version, _, pairs = struct.unpack_from("<IQQ", content, 4)
    if version not in _VERSIONS:
        raise _NewerError(version)
    at = 24
    said: dict[str, str] = {}
    for _ in range(pairs):
        key, at = _text(content, at)
        (kind,) = struct.unpack_from("<I", content, at)
        at += 4
        if kind == _STRING:
            said[key], at = _text(content, at)
        else:
            at = _behind(content, at, kind)
    return said


def _text(content: mmap.mmap, at: int) -> tuple[str, int]:
    (size,) = struct.unpack_from("<Q", content, at)
    begin = at + 8
    if begin + size > len(content):
        raise IndexError(size)
    return content[begin : begin + size].decode(), begin + size


def _behind(content: mmap.mmap, at: int, kind: int) -> int:
    """Where a value that does not matter here ends."""
    if kind != _LIST:
        return at + _WIDTHS[kind]
    of, count = struct.unpack_from("<IQ", content, at)
    at += 12
    if of in _WIDTHS:
        return at + int(count) * _WIDTHS[of]
    if of != _STRING:
        raise KeyError(of)  # A list of lists, which nobody writes.
    for _ in range(count):
        (size,) = struct.unpack_from("<Q", content, at)
        at += 8 + size
    return at
