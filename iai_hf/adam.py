"""Adam (Kingma and Ba 2015, arXiv 1412.6980): mean / sqrt(square), running means of a gradient and of its square."""

from __future__ import annotations

import torch


def running_mean(
    mean: torch.Tensor, newest: torch.Tensor, kept: torch.Tensor | float, step: torch.Tensor | int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The running mean of step `step`, 1 for the first, and the same without its bias towards the zero it began at.

    Args:
        kept: share of the mean that a step keeps (beta).
    """
    mean = kept * mean + (1 - kept) * newest
    return mean, mean / (1 - kept**step)
