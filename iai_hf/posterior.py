"""Gaussian posteriors of weights, chunk by chunk: the mathematics that heads and solvers share.

With features phi, logits phi theta and one-hot targets y, the log-likelihood of an example has in its logits

    residual = y - p,    p = softmax(logits),    curvature = diag(p) - p p^T <= 1/2  (Boehning 1992)

A chunk is met by the most probable theta under the Gaussian that all earlier chunks left behind (online Laplace:
Spiegelhalter and Lauritzen 1990; Ritter et al. 2018, arXiv 1805.07810):

    theta[i+1] = argmax log p(chunk | theta) - |theta - theta[i]|^2_P[i] / 2,    P[i+1] = P[i] + curvature there

For the squared error this is recursive least squares, hence exact: ridge regression on all that was read.
"""

from __future__ import annotations

import torch

BOUND = 0.5  # of the curvature of the cross-entropy, over all classes
INNER_STEPS = 8  # accelerated ones, within a chunk


def residual(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Derivative of the log-likelihood in the logits, `[..., C]`, of one-hot `y`."""
    return y - logits.softmax(-1)


def own_curvature(probabilities: torch.Tensor) -> torch.Tensor:
    """Diagonal of the curvature, p (1 - p): of each class in its own logit."""
    return probabilities * (1 - probabilities)


def shared_curvature(logits: torch.Tensor) -> torch.Tensor:
    """One curvature for all classes, `[..., 1]`: the mean over the directions in which logits differ."""
    return own_curvature(logits.softmax(-1)).sum(-1, keepdim=True) / max(logits.shape[-1] - 1, 1)


def laplace_update(
    features: torch.Tensor,
    outputs: torch.Tensor,
    y: torch.Tensor,
    precision: torch.Tensor,
    *,
    classification: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The change of theta that a chunk asks for, and the curvature that it adds.

    Of classes the steps are preconditioned by the bound of the curvature, so that none overshoots on any chunk.

    Args:
        features, outputs, y: of the chunk, `[tasks, n, ...]`; outputs are those of the present theta.
        precision: `[tasks, features, features]`, of theta, positive definite.
        classification: outputs are logits under the cross-entropy; otherwise values under half the squared error.

    Returns:
        Change `[tasks, features, outputs]` and curvature `[tasks, features, features]`, shared by the classes.
    """
    if not classification:
        curvature = features.mT @ features
        return solve(precision + curvature, features.mT @ (y - outputs)), curvature
    factor = torch.linalg.cholesky(precision + BOUND * features.mT @ features)
    change = ahead = torch.zeros_like(features.mT @ y)
    momentum = 1.0
    for _ in range(INNER_STEPS):  # Nesterov's method in the norm of the bound
        gradient = features.mT @ residual(outputs + features @ ahead, y) - precision @ ahead
        after = ahead + torch.cholesky_solve(gradient, factor)
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = after + (momentum - 1) / following * (after - change)
        change, momentum = after, following
    weighted = shared_curvature(outputs + features @ change) * features
    return change, weighted.mT @ features


def solve(matrix: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`matrix^-1 right` of positive definite matrices."""
    return torch.cholesky_solve(right, torch.linalg.cholesky(matrix))


def half_life_decay(examples: int, half_life: int | None) -> float:
    """What is left of the weight of what was seen, `examples` later; None never forgets."""
    return 1.0 if half_life is None else 0.5 ** (examples / half_life)


def power_decay(seen: torch.Tensor, new: int, exponent: torch.Tensor | float) -> torch.Tensor:
    """What is left of it where only the newest share of a stream counts: (n / (n + new))^exponent."""
    return (seen / (seen + new)) ** exponent


def bounded(change: torch.Tensor, limit: float) -> torch.Tensor:
    """A change within +-`limit`, that of a small one being itself."""
    return limit * torch.tanh(change / limit)
