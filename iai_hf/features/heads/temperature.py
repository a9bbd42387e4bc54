"""Temperature: what differs most from task to task, and is told by honest scores of a few examples.

The log temperature is a Gaussian posterior, met by Newton's method: its prior has precision 10 where every class was
seen, more where few examples tell of many classes.
"""

from __future__ import annotations

import torch

PRECISION = 10.0
STEPS = 4
LARGEST_STEP = 1.0


def precision(classes: int, examples: torch.Tensor) -> torch.Tensor:
    """Of the prior of a log temperature, `[]`."""
    return PRECISION * (1 + classes / examples.clamp(min=1))


def inverse_temperature(scores: torch.Tensor, offset: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """What to multiply `scores` by, `[]`.

    Args:
        scores: of examples `[n, C]`, each as if it alone had not been seen.
        offset: logits that are added as they are, `[C]`.
        targets: `[n]`.
    """
    examples, classes = scores.shape
    own = torch.nn.functional.one_hot(targets, classes).to(scores)
    prior = precision(classes, torch.tensor(float(examples)).to(scores))
    log = scores.new_zeros(())
    for _ in range(STEPS):
        scaled = scores * log.exp()
        probabilities = (scaled + offset).softmax(1)
        gradient = ((own - probabilities) * scaled).sum() - prior * log
        centred = scaled - (probabilities * scaled).sum(1, keepdim=True)
        curvature = (probabilities * centred.square()).sum() + prior
        log = log + (gradient / curvature).clamp(-LARGEST_STEP, LARGEST_STEP)
    return log.exp()
