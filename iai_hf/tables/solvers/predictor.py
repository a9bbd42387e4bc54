"""Predictor: f_gamma(x, theta) = phi(x) theta, with fixed features (parametric) or learned ones (explicit)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn

from iai_hf import posterior
from iai_hf.hyperparameters import saved_as

FIXED_SEED = 20251011  # of the fixed random features: part of the predictor's form


class Predictor(nn.Module):
    """Linear in theta `[tasks, features, outputs]`, so that losses are convex in it.

    Args:
        classification: outputs are logits under the cross-entropy; otherwise values under half the squared error.
        width: number of fixed random ReLU features; 0 for the inputs themselves. A constant is added to both.
        learned_inputs: size of the inputs where features are learned besides (explicit regime); they start at zero.
    """

    def __init__(self, classification: bool, width: int = 0, learned_inputs: int = 0) -> None:
        super().__init__()
        self.classification, self.width = classification, width
        saved_as(self, {"learned": "residual"})
        self.learned: nn.Sequential | None = None
        if learned_inputs:
            size = self.size(learned_inputs)
            self.learned = nn.Sequential(
                nn.Linear(learned_inputs, 64, dtype=torch.float32), nn.GELU(), nn.Linear(64, size, dtype=torch.float32)
            )
            nn.init.zeros_(self.learned[2].weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.learned[2].bias)  # type: ignore[arg-type]

    def size(self, inputs: int) -> int:
        """Number of features."""
        return 1 + (self.width or inputs)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """phi: `[..., inputs]` to `[..., features]`, each of order one."""
        if self.width:
            weight, bias = _random_map(x.shape[-1], self.width, x.device)
            found = (x @ weight + bias).relu() * 2**0.5
        else:
            found = x
        found = torch.cat([torch.ones_like(found[..., :1]), found], -1)
        return found if self.learned is None else found + self.learned(x)

    def residual(self, outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """What outputs leave unexplained: minus the derivative of each example's loss in them, `[..., outputs]`."""
        return posterior.residual(outputs, y) if self.classification else y - outputs

    def curvature(self, outputs: torch.Tensor) -> torch.Tensor:
        """Of each example's loss in its outputs `[..., outputs]`, mean over those that differ, `[..., 1]`."""
        return posterior.shared_curvature(outputs) if self.classification else torch.ones_like(outputs[..., :1])

    def laplace_update(
        self, features: torch.Tensor, outputs: torch.Tensor, y: torch.Tensor, precision: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `iai_hf.posterior.laplace_update`, under the predictor's loss."""
        return posterior.laplace_update(features, outputs, y, precision, classification=self.classification)

    def gradient(self, features: torch.Tensor, theta: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Of the mean loss over examples `[tasks, n, ...]`, in theta."""
        return -features.mT @ self.residual(features @ theta, y) / features.shape[-2]

    def loss(self, outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Mean over examples: `[tasks, n, outputs]` to `[tasks]`; nats, or half the squared error a target."""
        if self.classification:
            return -(outputs.log_softmax(-1) * y).sum(-1).mean(-1)
        return 0.5 * (outputs - y).square().mean((-1, -2))


@lru_cache(maxsize=8)
def _random_map(inputs: int, width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(FIXED_SEED)
    weight = torch.randn(inputs, width, generator=generator, dtype=torch.float32) / inputs**0.5
    return weight.to(device), torch.randn(width, generator=generator, dtype=torch.float32).to(device)
