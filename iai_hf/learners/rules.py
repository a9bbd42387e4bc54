"""Rules: from a gradient and what is remembered of earlier ones to a direction whose size does not depend on the loss.

Bounded directions are what keeps a learned step size safe on any chunk.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

MEAN_DECAY, SQUARE_DECAY = 0.9, 0.99
FLOOR = 1e-10
Moments = tuple[torch.Tensor, torch.Tensor]
Rule = Callable[[torch.Tensor, Moments, int], tuple[torch.Tensor, Moments]]


def per_weight(gradient: torch.Tensor, moments: Moments, step: int) -> tuple[torch.Tensor, Moments]:
    """Adam (Kingma and Ba 2015): running mean over the root of the running square, weight by weight."""
    return _direction(gradient, moments, step, gradient.square())


def per_tensor(gradient: torch.Tensor, moments: Moments, step: int) -> tuple[torch.Tensor, Moments]:
    """The same with one running square for a whole tensor, which a small state can afford."""
    return _direction(gradient, moments, step, gradient.square().mean())


def _direction(
    gradient: torch.Tensor, moments: Moments, step: int, square: torch.Tensor
) -> tuple[torch.Tensor, Moments]:
    mean = MEAN_DECAY * moments[0] + (1 - MEAN_DECAY) * gradient
    squares = SQUARE_DECAY * moments[1] + (1 - SQUARE_DECAY) * square
    unbiased = (squares / (1 - SQUARE_DECAY**step)).sqrt() + FLOOR
    return mean / (1 - MEAN_DECAY**step) / unbiased, (mean, squares)


RULES: dict[str, Rule] = {"per_weight": per_weight, "per_tensor": per_tensor}
