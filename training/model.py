"""The network: a Llama-shaped decoder in plain PyTorch, float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import Shape


class RMSNorm(nn.Module):
    """Scale to unit root mean square."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Layer(nn.Module):
    """Attention with rotary positions, then a gated feed-forward."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.attn_norm = RMSNorm(shape.dim, shape.norm_eps)
        self.q = nn.Linear(shape.dim, shape.dim, bias=False)
        self.k = nn.Linear(shape.dim, shape.dim, bias=False)
        self.v = nn.Linear(shape.dim, shape.dim, bias=False)
        self.o = nn.Linear(shape.dim, shape.dim, bias=False)
        self.ffn_norm = RMSNorm(shape.dim, shape.norm_eps)
        self.gate = nn.Linear(shape.dim, shape.hidden, bias=False)
        self.up = nn.Linear(shape.dim, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, dim = x.shape
        normed = self.attn_norm(x)

        def heads(y: Tensor) -> Tensor:
            return y.view(batch, length, self.heads, -1).transpose(1, 2)

        q, k = rotate(heads(self.q(normed)), cos, sin), rotate(heads(self.k(normed)), cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, heads(self.v(normed)), is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).reshape(batch, length, dim))
        normed = self.ffn_norm(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on neighbouring pairs: the order in which GGUF keeps Llama's heads."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class House(nn.Module):
    """Tokens to hidden states, and those to scores."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.vocab, shape.dim)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.dim, shape.norm_eps)
        self.head = nn.Linear(shape.dim, shape.vocab, bias=False)
        for name, parameter in self.named_parameters():
            if name == "embed.weight":
                # As large as what the layers add: else they drown the tokens, and copying, which
                # most of this model's work is, is learned late.
                nn.init.normal_(parameter, std=1.0)
            elif name.endswith(("o.weight", "down.weight")):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                # With a smaller start (std 0.02) a model of this width learns far more slowly.
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        half = shape.dim // shape.heads // 2
        freqs = shape.rope_base ** (-torch.arange(half, dtype=torch.float32) / half)
        angles = torch.outer(torch.arange(shape.context, dtype=torch.float32), freqs)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Hidden states after the last norm, (batch, length, dim)."""
        length = tokens.shape[1]
        x = self.embed(tokens)
        cos, sin = self.cos[:length], self.sin[:length]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token."""
        return self.head(hidden)
