"""OneShot: all observations at once through an amortizer's single step: hypernetworks and prior-fitted networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from iai_hf.solvers.retained import Retained
from iai_hf.solvers.solver import Batch, Solver, Tensors


class OneShot(Retained):
    """Over a `Parametric` step a hypernetwork, over an `Implicit` one a prior-fitted network."""

    def __init__(self, step: Solver, budget: int = 4096) -> None:
        super().__init__(budget)
        self.step, self.predictor = step, step.predictor

    def answer(self, tensors: Tensors, x: torch.Tensor) -> torch.Tensor:
        """One step on all that is retained."""
        merged = {**tensors, "sizes": tensors["sizes"].sum(1, keepdim=True)}
        return super().answer(merged if tensors["x"].shape[1] else tensors, x)

    def rollout(self, chunks: Sequence[Batch], x: torch.Tensor, *, greedy: bool = True) -> list[torch.Tensor]:
        """Outputs of one step on all chunks so far, for each number of them."""
        found = []
        for length in range(1, len(chunks) + 1):
            x_all, y_all = (torch.cat(parts, 1) for parts in zip(*chunks[:length], strict=True))
            found.append(self.step.rollout([Batch(x_all, y_all)], x, greedy=greedy)[-1])
        return found
