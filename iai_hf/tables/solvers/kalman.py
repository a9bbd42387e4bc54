"""GradientFilter: steps down gradients, as long as a Kalman filter of theta would take them, weight by weight."""

from __future__ import annotations

import math

import torch
from torch import nn

from iai_hf.hyperparameters import Hyperparameter, saved_as

MAX_GRADIENT_RATIO = 2.0  # lengths of a gradient, relative to the expected one, that are believed


class GradientFilter(nn.Module):
    """gain = v / (d^c k v + noise / n): v the error's variance, k the curvature, d the features, c their correlation.

    A weight's gradient is its error times its curvature, but for noise, so a Kalman filter (Kalman 1960) estimates the
    error; in Vuckovic 2018 (arXiv 1810.12273) one estimates the gradient. The noise is that of the targets, and that of
    the other weights' errors, since a chunk's curvature is known only on average. The numbers are learned.

    Args:
        size: features, each with a curvature of its own; 0 for curvatures of one, which fit any size.
    """

    def __init__(self, size: int = 0) -> None:
        super().__init__()
        self.log_curvatures = nn.Parameter(torch.zeros(size, dtype=torch.float32)) if size else None
        self.noise = Hyperparameter(math.exp(-1.0))  # variance of the targets' noise, in units of the prior
        # 1 where features may be all alike, so that curvatures add up; 0: independent
        self.feature_correlation = Hyperparameter(1.0, exponent=True)
        saved_as(self, {"noise": "log_noise", "feature_correlation": "likeness"})

    def set(self, curvatures: torch.Tensor, noise: float) -> None:
        """Of independent features: the curvature of each, and the variance of the targets' noise."""
        if self.log_curvatures is not None:
            self.log_curvatures.data.copy_(curvatures.log())
        self.noise.set(noise)
        self.feature_correlation.set(0.0)

    def forward(self, variance: torch.Tensor, gradient: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The change of theta, and its variance then.

        Args:
            variance: `[tasks, features]`, of theta's error in units of the prior, one at first.
            gradient: `[tasks, features, outputs]`, of the mean loss over a chunk of `n` examples.
        """
        curvature = 1.0 if self.log_curvatures is None else self.log_curvatures.exp()
        noise = ((curvature * variance).sum(-1, keepdim=True) + self.noise()) / n
        together = variance.shape[-1] ** self.feature_correlation()
        gain = variance / (together * curvature * variance + noise)
        # A gradient far longer than expected, on tasks of another kind: the step is as long as it should have been.
        expected = (curvature * (curvature * variance + noise)).sum(-1) * gradient.shape[-1]
        ratio = (expected / gradient.square().sum((1, 2)).clamp(min=1e-12)).sqrt()
        change = -(MAX_GRADIENT_RATIO * ratio).clamp(max=1.0)[:, None, None] * gain[..., None] * gradient
        return change, (1 - gain * curvature).clamp(min=0.0) * variance
