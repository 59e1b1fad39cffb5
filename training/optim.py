"""Muon for the matrices of the layers, AdamW for the embedding and the norms.

Muon (Jordan and others, 2024) makes each momentum update nearly orthogonal by a few Newton-Schulz
steps. Matrices of one shape are stacked, which keeps its cost near a tenth of a training step.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from model import House

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonal(stack: Tensor, steps: int = 5) -> Tensor:
    """The nearest orthogonal matrices, roughly, to a stack of them."""
    a, b, c = _COEFFICIENTS
    tall = stack.shape[-2] > stack.shape[-1]
    x = stack.mT if tall else stack
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Optimizer:
    """Both rules behind one `step`; `scale` multiplies every learning rate."""

    def __init__(self, model: House, *, muon_lr: float, adam_lr: float) -> None:
        self.muon_lr = muon_lr
        self.adam_lr = adam_lr
        groups: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
        rest = []
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and name.startswith("layers.") and muon_lr > 0:
                groups[parameter.shape].append(parameter)
            else:
                rest.append(parameter)
        self.groups = list(groups.values())
        self.momentum = [torch.zeros(len(g), *g[0].shape) for g in self.groups]
        self.adam = torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0)

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """Apply the gradients and clear them."""
        for group in self.adam.param_groups:
            group["lr"] = self.adam_lr * scale
        self.adam.step()
        for parameters, momentum in zip(self.groups, self.momentum, strict=True):
            gradient = torch.stack([p.grad for p in parameters if p.grad is not None])
            momentum.lerp_(gradient, 0.05)
            update = orthogonal(gradient.lerp(momentum, 0.95))
            rows, columns = parameters[0].shape
            rate = self.muon_lr * scale * max(1.0, rows / columns) ** 0.5
            for parameter, delta in zip(parameters, update, strict=True):
                parameter.mul_(1 - 0.02 * self.muon_lr * scale)
                parameter.sub_(delta, alpha=rate)
                parameter.grad = None
        self.adam.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {"adam": self.adam.state_dict(), "momentum": self.momentum}

    def load(self, state: dict[str, Any]) -> None:
        """Take up where `state` was saved."""
        self.adam.load_state_dict(state["adam"])
        self.momentum = state["momentum"]
