"""Numbers: positive hyper-parameters as learned functions of how much was seen and of how many classes there are."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

SHAPE = 4  # features of (examples, classes) that a number may depend on


class Numbers(nn.Module):
    """Named numbers, each exp(base + slope . phi(n, C)); at its initial value a constant.

    Args:
        initial: name to initial value, positive.
        horizon: beyond so many examples the numbers stay as they are, so that nothing is extrapolated.
    """

    def __init__(self, initial: Mapping[str, float], horizon: float = 2e4) -> None:
        super().__init__()
        self.names = tuple(initial)
        self.horizon = horizon
        self.base = nn.Parameter(torch.tensor([math.log(value) for value in initial.values()], dtype=torch.float32))
        self.slope = nn.Parameter(torch.zeros(len(initial), SHAPE, dtype=torch.float32))

    def forward(self, examples: torch.Tensor, classes: int) -> dict[str, torch.Tensor]:
        """Values by name, each `[]`, after `examples` (`[]`) examples of `classes` classes."""
        n = examples.clamp(max=self.horizon)
        many = torch.tensor(math.log(classes / 6), device=n.device, dtype=torch.float32)
        seen = (1 + n / 32).log()
        phi = 0.5 * torch.stack([seen, many, (1 + n / (4 * classes)).log(), seen * many])
        values = (self.base + self.slope @ phi.to(self.base)).exp()
        return dict(zip(self.names, values.unbind(), strict=True))
