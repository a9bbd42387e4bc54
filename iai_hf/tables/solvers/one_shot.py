"""OneShot: all observations at once through an amortizer's single step: hypernetworks and prior-fitted networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from iai_hf.tables.solvers.retained import Retained
from iai_hf.tables.solvers.solver import Batch, Solver


class OneShot(Retained):
    """Over a `Parametric` step a hypernetwork, over an `Implicit` one a prior-fitted network."""

    def __init__(self, step: Solver, budget: int = 4096) -> None:
        super().__init__(budget, batches=1)
        self.step, self.predictor, self.capturable = step, step.predictor, step.capturable

    @property
    def steps_apart(self) -> bool:
        """There are no steps."""
        return False

    def read(self, chunks: Sequence[Batch], x: torch.Tensor) -> torch.Tensor:
        """One step on all that is retained."""
        return self.step.rollout(chunks, x)[-1]
