"""GGUF files for tests: made from nothing with random weights, or by changing another's metadata.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3, little-endian).
"""

from __future__ import annotations

import math
import random
import struct
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_MAGIC: Final = b"GGUF"
_ALIGNMENT: Final = 32
_WIDTHS: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value, by the number of its type."""
_UINT32: Final = 4
_INT32: Final = 5
_FLOAT32: Final = 6
_BOOL: Final = 7
_STRING: Final = 8
_LIST: Final = 9
_F32: Final = 0
"""The type of a tensor's numbers."""

Value = bool | int | float | str | Sequence[str] | Sequence[float] | Sequence[int]


@dataclass
class Gguf:
    """A file taken apart.

    Attributes:
        metadata: Each value as it stands in the file, with its type in front.
        tensors: The table of tensors, as it stands in the file.
        tensor_count: How many there are.
        data: Their contents.
    """

    metadata: dict[str, bytes] = field(default_factory=dict)
    tensors: bytes = b""
    tensor_count: int = 0
    data: bytes = b""

    @classmethod
    def read(cls, path: Path) -> Gguf:
        """Take a file apart."""
        raw = path.read_bytes()
        assert raw[:4] == _MAGIC
        _, tensor_count, pairs = struct.unpack_from("<IQQ", raw, 4)
        at = 24
        gguf = cls(tensor_count=tensor_count)
        for _ in range(pairs):
            key, at = _string(raw, at)
            (kind,) = struct.unpack_from("<I", raw, at)
            end = _skip(raw, at + 4, kind)
            gguf.metadata[key] = raw[at:end]
            at = end
        begin = at
        for _ in range(tensor_count):
            _, at = _string(raw, at)
            (dimensions,) = struct.unpack_from("<I", raw, at)
            at += 4 + 8 * dimensions + 4 + 8
        gguf.tensors = raw[begin:at]
        gguf.data = raw[_aligned(at) :]
        return gguf

    def set(self, **values: Value | None) -> Gguf:
        """Change metadata; `__` stands for a dot, None removes."""
        for name, value in values.items():
            key = name.replace("__", ".")
            if value is None:
                self.metadata.pop(key, None)
            else:
                self.metadata[key] = _encoded(value)
        return self

    def write(self, path: Path) -> Path:
        """Put it together."""
        head = _MAGIC + struct.pack("<IQQ", 3, self.tensor_count, len(self.metadata))
        head += b"".join(_text(key) + value for key, value in self.metadata.items())
        head += self.tensors
        path.write_bytes(head + bytes(_aligned(len(head)) - len(head)) + self.data)
        return path


def random_model(template: str | None, *, seed: int = 1) -> Gguf:
    """A tiny model of another architecture than the bundled one, with another tokeniser.

    Shaped like Qwen2, tokens by bytes as in SentencePiece. What it says is noise.
    """
    rng = random.Random(seed)
    dim, hidden, layers, heads, context = 32, 64, 2, 2, 512
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [2, 3, 3, *[6] * 256]  # unknown, control, control, bytes
    words = ["▁", *(chr(code) for code in range(97, 123)), "▁the", "th", "he"]
    tokens += words
    kinds += [1] * len(words)
    gguf = Gguf().set(
        general__architecture="qwen2",
        general__name="Noise",
        qwen2__context_length=context,
        qwen2__embedding_length=dim,
        qwen2__block_count=layers,
        qwen2__feed_forward_length=hidden,
        qwen2__attention__head_count=heads,
        qwen2__attention__head_count_kv=heads,
        qwen2__attention__layer_norm_rms_epsilon=1e-5,
        qwen2__rope__freq_base=10000.0,
        tokenizer__ggml__model="llama",
        tokenizer__ggml__tokens=tokens,
        tokenizer__ggml__scores=[float(-place) for place in range(len(tokens))],
        tokenizer__ggml__token_type=kinds,
        tokenizer__ggml__bos_token_id=1,
        tokenizer__ggml__eos_token_id=2,
        tokenizer__ggml__unknown_token_id=0,
        tokenizer__chat_template=template,
    )
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (dim, len(tokens)),
        "output.weight": (dim, len(tokens)),
        "output_norm.weight": (dim,),
    }
    for layer in range(layers):
        shapes |= {
            f"blk.{layer}.{name}": shape
            for name, shape in {
                "attn_norm.weight": (dim,),
                "ffn_norm.weight": (dim,),
                "attn_q.weight": (dim, dim),
                "attn_k.weight": (dim, dim),
                "attn_v.weight": (dim, dim),
                "attn_q.bias": (dim,),
                "attn_k.bias": (dim,),
                "attn_v.bias": (dim,),
                "attn_output.weight": (dim, dim),
                "ffn_gate.weight": (dim, hidden),
                "ffn_up.weight": (dim, hidden),
                "ffn_down.weight": (hidden, dim),
            }.items()
        }
    _fill(gguf, shapes, rng)
    return gguf


def _fill(gguf: Gguf, shapes: Mapping[str, tuple[int, ...]], rng: random.Random) -> None:
    """Give it tensors: ones for norms, else noise."""
    table, data = bytearray(), bytearray()
    for name, shape in shapes.items():
        size = math.prod(shape)
        norm = "norm" in name
        values = array("f", [1.0] * size if norm else (rng.gauss(0, 0.3) for _ in range(size)))
        table += _text(name) + struct.pack("<I", len(shape))
        table += struct.pack(f"<{len(shape)}QIQ", *shape, _F32, len(data))
        data += values.tobytes()
        data += bytes(_aligned(len(data)) - len(data))
    gguf.tensors, gguf.data, gguf.tensor_count = bytes(table), bytes(data), len(shapes)


def _aligned(at: int) -> int:
    return -(-at // _ALIGNMENT) * _ALIGNMENT


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _string(raw: bytes, at: int) -> tuple[str, int]:
    (size,) = struct.unpack_from("<Q", raw, at)
    return raw[at + 8 : at + 8 + size].decode(), at + 8 + size


def _skip(raw: bytes, at: int, kind: int) -> int:
    """Where a value ends."""
    if kind == _STRING:
        return _string(raw, at)[1]
    if kind == _LIST:
        of, count = struct.unpack_from("<IQ", raw, at)
        at += 12
        if of not in (_STRING, _LIST):
            return at + int(count) * _WIDTHS[of]
        for _ in range(count):
            at = _skip(raw, at, of)
        return at
    return at + _WIDTHS[kind]


def _encoded(value: Value) -> bytes:
    """A value with its type in front."""
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    head = struct.pack("<IIQ", _LIST, _kind_of(value), len(value))
    return head + b"".join(map(_item, value))


def _kind_of(items: Sequence[object]) -> int:
    first = items[0]
    return _STRING if isinstance(first, str) else _INT32 if isinstance(first, int) else _FLOAT32


def _item(item: str | float) -> bytes:
    if isinstance(item, str):
        return _text(item)
    return struct.pack("<i", item) if isinstance(item, int) else struct.pack("<f", item)
