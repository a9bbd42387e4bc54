"""Optimizers of the predictor's weights: SGD, Adam, gradient steps from a learned start, and a learned optimizer.

theta[i+1] = theta[i] - rate * direction(gradient of the loss on B[i] at theta[i])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from iai_hf.adam import running_mean
from iai_hf.hyperparameters import Hyperparameter, saved_as
from iai_hf.tables.solvers.predictor import Predictor
from iai_hf.tables.solvers.solver import Batch, Solver, stopped
from iai_hf.task import Tensors

Rule = Literal["sgd", "adam", "learned"]
KEPT = 0.9  # share of the running mean of gradients that a step of Adam keeps (beta 1)
LEARNED_KEPT = (0.5, 0.9, 0.99)  # of those that a learned optimizer sees, Adam's among them
SQUARE_KEPT = 0.999  # of the running mean of squares (beta 2)


class GradientOptimizer(Solver):
    """theta[i+1] = theta[i] - rate * direction(gradient), `inner_steps` times on each chunk.

    With a start and a rate that are learned it is MAML (Finn et al. 2017, arXiv 1703.03400) and Meta-SGD (Li et al.
    2017, arXiv 1707.09835). A learned direction is that of small_fc_lopt (Metz et al. 2022, arXiv 2203.11860).

    Args:
        rate: of a step at first; a parameter, so it may be meta-learned. Of SGD in units of 1 / features, where 1 can't
            overshoot on features of order one.
        start: `(features, outputs)` of a learned start (MAML, Reptile); None starts at zero.
        rate_exponent: step t is as long as rate / t^rate_exponent.
    """

    kept: torch.Tensor
    lengths_vary = False

    def __init__(
        self,
        predictor: Predictor,
        rule: Rule,
        rate: float = 0.1,
        inner_steps: int = 1,
        start: tuple[int, int] | None = None,
        rate_exponent: float = 0.0,
    ) -> None:
        super().__init__()
        self.predictor, self.rule, self.inner_steps, self.rate_exponent = predictor, rule, inner_steps, rate_exponent
        self.rate = Hyperparameter(rate)
        saved_as(self, {"rate": "log_rate"})
        shares = torch.tensor(LEARNED_KEPT if rule == "learned" else (KEPT,), dtype=torch.float32)
        self.register_buffer("kept", shares[:, None, None], persistent=False)
        self.start = nn.Parameter(torch.zeros(*start, dtype=torch.float32)) if start else None
        self.step: nn.Sequential | None = None
        if rule == "learned":
            # A small network a coordinate, which proposes a direction and a length.
            self.step = nn.Sequential(
                nn.Linear(len(LEARNED_KEPT) + 4, 16, dtype=torch.float32),
                nn.ReLU(),
                nn.Linear(16, 2, dtype=torch.float32),
            )

    @property
    def per_output(self) -> Sequence[str]:
        """Tensors whose last dimension is the outputs."""
        return ("theta", "momenta", "squares")

    def initial(self, tasks: int, inputs: int, outputs: int) -> Tensors:
        """theta[0], and no momentum."""
        zero = torch.zeros(
            tasks, self.predictor.size(inputs), outputs, device=self.rate.slow.device, dtype=torch.float32
        )
        tensors = {
            "theta": zero if self.start is None else zero + self.start,
            "steps": torch.zeros(tasks, device=zero.device, dtype=torch.float32),
        }
        if self.rule != "sgd":
            momenta = len(LEARNED_KEPT) if self.rule == "learned" else 1
            tensors |= {"momenta": zero[:, None].repeat(1, momenta, 1, 1), "squares": zero}
        return tensors

    def refine(self, tensors: Tensors, batch: Batch) -> Tensors:
        """`inner_steps` steps on the chunk."""
        features = self.predictor.features(batch.x)
        for _ in range(self.inner_steps):
            gradient = self.predictor.gradient(features, tensors["theta"], batch.y)
            tensors = self._stepped(tensors, gradient)
        return tensors

    def answer(self, tensors: Tensors, x: torch.Tensor) -> torch.Tensor:
        """phi(x) theta."""
        return self.predictor.features(x) @ tensors["theta"]

    def _stepped(self, tensors: Tensors, gradient: torch.Tensor) -> Tensors:
        steps = tensors["steps"] + 1
        rate = self.rate() * steps[:, None, None] ** -self.rate_exponent if self.rate_exponent else self.rate()
        moved = {**tensors, "steps": steps}
        if self.rule == "sgd":
            return moved | {"theta": tensors["theta"] - rate / gradient.shape[1] * gradient}
        late = steps[:, None, None]
        square, unbiased_square = running_mean(tensors["squares"], gradient.square(), SQUARE_KEPT, late)
        scale = (unbiased_square + 1e-12).sqrt()
        momenta, unbiased = running_mean(tensors["momenta"], gradient[:, None], self.kept, late[:, None])
        if self.step is None:
            change = -rate * unbiased[:, 0] / scale
        else:
            known = [*(unbiased / scale[:, None]).unbind(1), gradient / scale, tensors["theta"], scale.log()]
            known.append(late.log1p().expand_as(gradient))
            # What it sees is taken as given (Metz et al. 2019, arXiv 1810.10180): gradients through it explode.
            direction, length = self.step(torch.stack(known, -1).detach()).unbind(-1)
            # Starts near a plain Adam step: the network's first layer is random, its effect small.
            change = -rate * (unbiased[:, LEARNED_KEPT.index(KEPT)] / scale + 0.1 * direction) * torch.exp(0.1 * length)
        return moved | {"theta": tensors["theta"] + change, "momenta": momenta, "squares": square}


class Reptile(GradientOptimizer):
    """start <- start - epsilon (start - theta[k]), theta[k] where gradient steps end.

    Nichol et al. 2018, arXiv 1803.02999.
    """

    def pull(self, chunks: Sequence[Batch]) -> torch.Tensor:
        """A loss whose gradient in the start is `start - theta[k]`, mean over tasks."""
        assert self.start is not None
        tensors = self.initial(chunks[0].x.shape[0], chunks[0].x.shape[-1], chunks[0].y.shape[-1])
        for chunk in chunks:
            tensors = self.refine(stopped(tensors), chunk)
        return 0.5 * (self.start - tensors["theta"].detach()).square().sum((1, 2)).mean()
