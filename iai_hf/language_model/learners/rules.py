"""Rules: from a gradient and what is remembered of earlier ones to a direction whose size does not depend on the loss.

Bounded directions are what keeps a learned step size safe on any chunk.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from iai_hf.adam import running_mean

MEAN_KEPT, SQUARE_KEPT = 0.9, 0.99  # shares of the running means that a step keeps (betas)
FLOOR = 1e-10
Moments = tuple[torch.Tensor, torch.Tensor]
Rule = Callable[[torch.Tensor, Moments, int], tuple[torch.Tensor, Moments]]


def group_shape(tensor: torch.Tensor) -> list[int]:
    """`[groups, 1, ...]`: what broadcasts over all but the first dimension."""
    return [len(tensor), *[1] * (tensor.dim() - 1)]


def per_weight(gradient: torch.Tensor, moments: Moments, step: int) -> tuple[torch.Tensor, Moments]:
    """Adam (`iai_hf.adam`): running mean over the root of the running square, weight by weight."""
    return _direction(gradient, moments, step, gradient.square())


def per_group(gradient: torch.Tensor, moments: Moments, step: int) -> tuple[torch.Tensor, Moments]:
    """The same with one running square for each index of the first dimension, which a small state can afford."""
    return _direction(gradient, moments, step, gradient.square().flatten(1).mean(1).view(group_shape(gradient)))


def _direction(
    gradient: torch.Tensor, moments: Moments, step: int, square: torch.Tensor
) -> tuple[torch.Tensor, Moments]:
    mean, unbiased_mean = running_mean(moments[0], gradient, MEAN_KEPT, step)
    squares, unbiased_square = running_mean(moments[1], square, SQUARE_KEPT, step)
    return unbiased_mean / (unbiased_square.sqrt() + FLOOR), (mean, squares)


RULES: dict[str, Rule] = {"per_weight": per_weight, "per_group": per_group}
