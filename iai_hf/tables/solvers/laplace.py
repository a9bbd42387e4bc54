"""Online Laplace: each chunk's most probable theta under the Gaussian that all earlier chunks left behind.

For the squared error this is recursive least squares, hence exact: ridge regression on all that was read. For the
cross-entropy it is the online Laplace approximation (Spiegelhalter and Lauritzen 1990), with one curvature for all
classes; the steps within a chunk are preconditioned by a bound of the curvature (Boehning 1992), so none overshoots.
"""

from __future__ import annotations

import torch

from iai_hf.tables.solvers.predictor import Predictor

BOUND = 0.5  # of the curvature of the cross-entropy, over all classes
INNER_STEPS = 8  # accelerated ones, within a chunk


def absorb(
    predictor: Predictor,
    features: torch.Tensor,
    outputs: torch.Tensor,
    y: torch.Tensor,
    precision: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The change of theta that a chunk asks for, and the curvature that it adds.

    Args:
        features, outputs, y: of the chunk, `[tasks, n, ...]`; outputs are those of the present theta.
        precision: `[tasks, features, features]`, of theta, positive definite.

    Returns:
        Change `[tasks, features, outputs]` and curvature `[tasks, features, features]`.
    """
    if not predictor.classification:
        curvature = features.mT @ features
        return solve(precision + curvature, features.mT @ (y - outputs)), curvature
    factor = torch.linalg.cholesky(precision + BOUND * features.mT @ features)
    change = ahead = torch.zeros_like(features.mT @ y)
    momentum = 1.0
    for _ in range(INNER_STEPS):  # Nesterov's method in the norm of the bound
        unexplained = -predictor.residuals(outputs + features @ ahead, y)
        after = ahead + torch.cholesky_solve(features.mT @ unexplained - precision @ ahead, factor)
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = after + (momentum - 1) / following * (after - change)
        change, momentum = after, following
    weighted = curvature_weights(predictor, outputs + features @ change) * features
    return change, weighted.mT @ features


def curvature_weights(predictor: Predictor, outputs: torch.Tensor) -> torch.Tensor:
    """Curvature of each example's loss in its outputs `[..., outputs]`, mean over those that differ, `[..., 1]`."""
    if not predictor.classification:
        return torch.ones_like(outputs[..., :1])
    probabilities = outputs.softmax(-1)
    return (probabilities * (1 - probabilities)).sum(-1, keepdim=True) / max(outputs.shape[-1] - 1, 1)


def solve(matrix: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`matrix^-1 right` of positive definite matrices."""
    return torch.cholesky_solve(right, torch.linalg.cholesky(matrix))
