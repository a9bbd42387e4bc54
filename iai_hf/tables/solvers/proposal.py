"""Proposal: how a network's word counts beside a solver's, so that it can do no harm.

Its summaries of the chunks are averaged, so that their order and number do not matter; what it proposes from the
average is bounded, and counts the less the surer the solver is of its own answer.
"""

from __future__ import annotations

import torch
from torch import nn

BOUND = 2.0  # of a proposal, in units of theta, or of the answers


class Proposal(nn.Module):
    """Heard in full at first, as beside a solver that has nothing to learn from the data."""

    modest: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("modest", torch.tensor(False))
        self.modesty = nn.Parameter(
            torch.tensor(1.0, dtype=torch.float32)
        )  # power of the doubt that a proposal counts with

    def be_modest(self) -> None:
        """Count in proportion to the solver's doubt from now on, by a power that is learned."""
        self.modest.fill_(True)

    def forward(self, proposed: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        """The correction of what a solver found.

        Args:
            proposed: `[tasks, n, outputs]`.
            variance: `[tasks, n]`, the solver's, relative to that before the first chunk. No gradient goes through it:
                a network does not make the solver less sure to be heard more.
        """
        bounded = BOUND * torch.tanh(proposed / BOUND)
        if not self.modest:
            return bounded
        return bounded * variance.detach().clamp(min=1e-12)[..., None] ** (self.modesty.clamp(min=0.0) / 2)


def averaged(summary: torch.Tensor, newest: torch.Tensor, before: torch.Tensor | float) -> torch.Tensor:
    """The mean of summaries with one more; `before` of them were read, a number or `[tasks]`."""
    count = before[:, None, None] if isinstance(before, torch.Tensor) else before
    return summary + (newest - summary) / (1 + count)
