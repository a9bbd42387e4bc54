"""Prior: what tasks have in common: theta = start + metric w, where every w is of order one.

A learned start is theta[0] (as in MAML, Finn et al. 2017, arXiv 1703.03400), a learned metric preconditions all steps
(Park and Oliva 2019, arXiv 1902.03356); solvers work on w. Both begin as the empirical Bayes estimate from some tasks,
and are trained on from there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from iai_hf.tables.solvers.predictor import Predictor
from iai_hf.tables.solvers.solver import Batch

PIECE = 128  # examples that are read at once to estimate the prior
FLOOR = 1e-3  # of the share of the identity in a covariance


class Estimate(NamedTuple):
    """Beside the prior: mean curvature of each w, `[features]`, and variance of the targets' noise."""

    curvatures: torch.Tensor
    noise: float


class Prior(nn.Module):
    """theta = (mean + root move) + root factor w; zero and identity at first.

    Args:
        features, outputs: sizes of theta to learn for; 0 for a prior with nothing to learn, which fits any size.
    """

    mean: torch.Tensor
    root: torch.Tensor

    def __init__(self, features: int = 0, outputs: int = 0) -> None:
        super().__init__()
        self.learned = bool(features)
        if self.learned:
            self.register_buffer("mean", torch.zeros(features, outputs, dtype=torch.float32))
            self.register_buffer("root", torch.eye(features, dtype=torch.float32))
            self.move = nn.Parameter(torch.zeros(features, outputs, dtype=torch.float32))
            self.factor = nn.Parameter(torch.eye(features, dtype=torch.float32))

    def whiten(self, features: torch.Tensor) -> torch.Tensor:
        """What w is multiplied with: `[..., features]` to the same shape."""
        return features @ (self.root @ self.factor) if self.learned else features

    def offset(self, features: torch.Tensor, outputs: int) -> torch.Tensor:
        """Answers of the start, `[..., outputs]`."""
        if not self.learned:
            return features.new_zeros(*features.shape[:-1], outputs)
        return features @ (self.mean + self.root @ self.move)

    @torch.no_grad()
    def estimate(self, predictor: Predictor, stream: Batch, queries: Batch) -> Estimate | None:
        """Set the start to the mean theta of whole tasks, the metric to a root of its covariance.

        Of all roots the one in which the curvatures of w are independent. None, and no change, where there is nothing
        to learn, or where no task's answers differ from zero.
        """
        if not self.learned or not stream.y.any():
            return None
        size, outputs = self.mean.shape
        theta = stream.x.new_zeros(stream.x.shape[0], size, outputs)
        precision = torch.eye(size, device=theta.device, dtype=torch.float32).expand(theta.shape[0], -1, -1)
        for x, y in zip(stream.x.split(PIECE, 1), stream.y.split(PIECE, 1), strict=True):
            features = predictor.features(x)
            change, curvature = predictor.laplace_update(features, features @ theta, y, precision)
            theta, precision = theta + change, precision + curvature
        start = theta.mean(0)
        apart = (theta - start).mT.flatten(0, 1)
        root = torch.linalg.cholesky(shrunk(apart.mT @ apart / len(apart), len(apart)))
        asked = predictor.features(queries.x)
        weighted = predictor.curvature(asked @ theta) * asked
        moments = (weighted.mT @ asked).mean(0) / asked.shape[1]
        curvatures, turn = torch.linalg.eigh(root.mT @ moments @ root)
        self.mean.copy_(start)
        self.root.copy_(root @ turn)
        noise = predictor.residual(asked @ theta, queries.y).square().mean()
        return Estimate(curvatures.clamp(min=1e-6), float(noise))


def shrunk(covariance: torch.Tensor, samples: int) -> torch.Tensor:
    """An estimate nearer to a multiple of the identity, the more so the fewer samples.

    OAS (Chen et al. 2010, arXiv 0907.4698).
    """
    size = len(covariance)
    total, squares = covariance.trace(), covariance.square().sum()
    apart = (squares - total**2 / size).clamp(min=1e-12)
    share = (((1 - 2 / size) * squares + total**2) / ((samples + 1 - 2 / size) * apart)).clamp(FLOOR, 1.0)
    return (1 - share) * covariance + share * total / size * torch.eye(
        size, device=covariance.device, dtype=torch.float32
    )
