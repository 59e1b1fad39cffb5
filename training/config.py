"""The model's shape."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama-shaped decoder; every width is a multiple of 32, as Q8_0 needs."""

    vocab: int = 1024
    dim: int = 192
    layers: int = 6
    heads: int = 6
    hidden: int = 448
    context: int = 2048
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter's name and size."""
        sizes: dict[str, tuple[int, ...]] = {"embed.weight": (self.vocab, self.dim)}
        for n in range(self.layers):
            p = f"layers.{n}."
            sizes[p + "attn_norm.weight"] = (self.dim,)
            for part in ("q", "k", "v", "o"):
                sizes[p + part + ".weight"] = (self.dim, self.dim)
            sizes[p + "ffn_norm.weight"] = (self.dim,)
            sizes[p + "gate.weight"] = (self.hidden, self.dim)
            sizes[p + "up.weight"] = (self.hidden, self.dim)
            sizes[p + "down.weight"] = (self.dim, self.hidden)
        sizes["norm.weight"] = (self.dim,)
        sizes["head.weight"] = (self.vocab, self.dim)
        return sizes
