"""Stacking: how much each expert counts, followed by Newton's method on honest evidence.

log weights = learned prior(n, C) + deviation. The deviation is a Gaussian posterior: a prior of learned precision, and
the evidence of each chunk, whose likelihood is met by a few Newton steps (online Laplace approximation). Evidence
fades with (n / (n + chunk))^3, as experts that have seen more deserve other weights.

A change of all log weights together is a temperature, whose prior (`temperature.py`) is looser.
"""

from __future__ import annotations

import torch

from iai_hf.features.heads import temperature

MEMORY = 3.0
STEPS = 2
LARGEST_STEP = 1.0  # of a log weight


def stack(
    deviation: torch.Tensor,
    evidence: torch.Tensor,
    scores: torch.Tensor,
    offset: torch.Tensor,
    targets: torch.Tensor,
    prior: torch.Tensor,
    precision: torch.Tensor,
    trust: torch.Tensor,
    seen: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """New deviation `[K]` and evidence `[K, K]` after a chunk.

    Args:
        scores: of the experts, `[n, C, K]`, on examples that they have not absorbed.
        offset: logits that are added to theirs, `[n, C]`.
        prior: log weights before any evidence, `[K]`.
        precision: of the prior of the deviation, but for what is common to all, `[K]`.
        trust: 0 to 1, how far this chunk's likelihood is followed, `[]`.
        seen: examples before this chunk, `[]`.
    """
    own = torch.nn.functional.one_hot(targets, scores.shape[1]).to(scores)
    faded = evidence * (seen / (seen + len(targets))) ** (MEMORY * trust)
    common = temperature.precision(scores.shape[1], seen + len(targets))
    metric = prior_metric(precision, common) + faded
    start = deviation
    curvature = faded
    for _ in range(STEPS):
        weighted = scores * (prior + deviation).exp()
        probabilities = (weighted.sum(-1) + offset).softmax(1)
        gradient = torch.einsum("nc,nck->k", own - probabilities, weighted)
        centred = weighted - (probabilities[..., None] * weighted).sum(1, keepdim=True)
        curvature = trust * torch.einsum("nc,nck,ncl->kl", probabilities, centred, centred)
        towards = trust * gradient - metric @ (deviation - start)
        step = torch.linalg.solve(metric + curvature, towards)
        deviation = deviation + step.clamp(-LARGEST_STEP, LARGEST_STEP)
    return deviation, faded + curvature


def prior_metric(precision: torch.Tensor, common: torch.Tensor) -> torch.Tensor:
    """Precision matrix `[K, K]` of the prior: `common` along equal changes of all, `precision` `[K]` across them."""
    total = precision.sum()
    return torch.diag(precision) - (1 - common / total) * torch.outer(precision, precision) / total
