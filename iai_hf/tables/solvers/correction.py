"""GatedCorrection: how far a network corrects a solver, so that it can do no harm.

Its summaries of the chunks are averaged, so that their order and number do not matter; the correction that it proposes
from the average is bounded, and counts the less the surer the solver is of its own answer.
"""

from __future__ import annotations

import torch
from torch import nn

from iai_hf.hyperparameters import Hyperparameter, saved_as
from iai_hf.posterior import bounded

BOUND = 2.0  # of a correction, in units of theta, or of the answers


class GatedCorrection(nn.Module):
    """correction = gate * bounded(proposed), gate = (variance of the solver / that of its prior)^(exponent / 2).

    The gate is open (one) at first, as beside a solver that has nothing to learn from the data.
    """

    gated: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gated", torch.tensor(False))
        self.exponent = Hyperparameter(1.0, exponent=True, speed=1.0)
        saved_as(self, {"gated": "modest", "exponent.slow": "modesty"})

    def gate(self) -> None:
        """From now on the solver's variance decides how far a correction counts."""
        self.gated.fill_(True)

    def forward(self, proposed: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        """The correction of what a solver found.

        Args:
            proposed: `[tasks, n, outputs]`.
            variance: `[tasks, n]`, the solver's, relative to that before the first chunk. No gradient goes through it:
                a network does not make the solver less sure to be heard more.
        """
        correction = bounded(proposed, BOUND)
        if not self.gated:
            return correction
        return correction * variance.detach().clamp(min=1e-12)[..., None] ** (self.exponent() / 2)


def averaged(summary: torch.Tensor, newest: torch.Tensor, before: torch.Tensor | float) -> torch.Tensor:
    """The mean of summaries with one more; `before` of them were read, a number or `[tasks]`."""
    count = before[:, None, None] if isinstance(before, torch.Tensor) else before
    return summary + (newest - summary) / (1 + count)
