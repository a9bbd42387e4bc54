"""Stacking: how much each expert counts, followed by Newton's method on honest evidence.

    log weights = learned prior(n, C) + deviation,    deviation ~ N(0, prior metric)

The deviation is a Gaussian posterior: each chunk's likelihood is met by a few Newton steps (online Laplace, as in
`iai_hf.posterior`), in the log weights w of the logits sum over k of exp(w_k) scores_k. Evidence fades as
(n / (n + chunk))^3, since experts that have seen more deserve other weights. Stacking as in Yao et al. 2018 (arXiv
1704.02030), on scores of examples as if each alone were left out.

A change of all log weights together is a temperature. It differs most from task to task and is told by a few examples,
so its prior is looser: of precision 10 where every class was seen, more where few examples tell of many classes.
"""

from __future__ import annotations

import torch

from iai_hf.posterior import power_decay, residual

MEMORY_EXPONENT = 3.0
STEPS, TEMPERATURE_STEPS = 2, 4
LARGEST_STEP = 1.0  # of a log weight
TEMPERATURE_PRECISION = 10.0


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
    remembered = evidence * power_decay(seen, len(targets), MEMORY_EXPONENT * trust)
    common = temperature_precision(scores.shape[1], seen + len(targets))
    metric = prior_metric(precision, common) + remembered
    own = torch.nn.functional.one_hot(targets, scores.shape[1]).to(scores)
    deviation, curvature = _newton(scores, offset, own, prior, deviation, metric, trust, STEPS)
    return deviation, remembered + curvature


def inverse_temperature(scores: torch.Tensor, offset: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """What to multiply `scores` by, `[]`: the weight of a single expert.

    Args:
        scores: of examples `[n, C]`, each as if it alone had not been seen.
        offset: logits that are added as they are, `[C]`.
        targets: `[n]`.
    """
    examples, classes = scores.shape
    metric = temperature_precision(classes, torch.tensor(float(examples)).to(scores)).reshape(1, 1)
    own = torch.nn.functional.one_hot(targets, classes).to(scores)
    none, whole = scores.new_zeros(1), scores.new_ones(())
    log, _ = _newton(scores[..., None], offset, own, none, none, metric, whole, TEMPERATURE_STEPS)
    return log[0].exp()


def temperature_precision(classes: int, examples: torch.Tensor) -> torch.Tensor:
    """Of the prior of a log temperature, `[]`."""
    return TEMPERATURE_PRECISION * (1 + classes / examples.clamp(min=1))


def prior_metric(precision: torch.Tensor, common: torch.Tensor) -> torch.Tensor:
    """Precision matrix `[K, K]` of the prior: `common` along equal changes of all, `precision` `[K]` across them."""
    total = precision.sum()
    return torch.diag(precision) - (1 - common / total) * torch.outer(precision, precision) / total


def _newton(
    scores: torch.Tensor,
    offset: torch.Tensor,
    own: torch.Tensor,
    prior: torch.Tensor,
    start: torch.Tensor,
    metric: torch.Tensor,
    trust: torch.Tensor,
    steps: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The deviation `[K]` of the log weights from `prior`, under a Gaussian around `start`, and the curvature there."""
    deviation, curvature, by_expert = start, torch.zeros_like(metric), scores.movedim(-1, 0).flatten(1)
    for _ in range(steps):
        weighted = by_expert * (prior + deviation).exp()[:, None]
        logits = weighted.sum(0).view(scores.shape[:-1]) + offset
        probabilities = logits.softmax(1)
        gradient = weighted @ residual(logits, own).flatten()
        weighted = weighted.view(len(start), *logits.shape)
        centred = (weighted - (probabilities * weighted).sum(2, keepdim=True)).flatten(1)
        curvature = trust * (probabilities.flatten() * centred) @ centred.T
        step = torch.linalg.solve(metric + curvature, trust * gradient - metric @ (deviation - start))
        deviation = deviation + step.clamp(-LARGEST_STEP, LARGEST_STEP)
    return deviation, curvature
