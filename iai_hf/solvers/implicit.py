"""Implicit: yhat[i+1] = r_gamma([x, yhat[i]], B[i]); each query has a state of its own, refined batch by batch.

Safe form, by signal: the running mean of the ridge answers of the batches (data: a committee), or boosting, a ridge
answer of each batch to what the state leaves unexplained on it (gradient, both: functional gradient steps); plus what
a network proposes, zero at first, bounded, in steps of length 1, 1/2, 1/3, and so on. For the gradient at a batch, the
state is also rolled for the batch's own inputs, which no batch before has seen. What is retained is read in a few
batches, which grow with the stream: more steps than it was trained for make a network drift. Free form, as in the
paper: the network alone, chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from iai_hf.solvers.network import NetworkSizes, UpdateNetwork
from iai_hf.solvers.parametric import BOUND, CURVATURE, solve
from iai_hf.solvers.predictor import Predictor, Signal
from iai_hf.solvers.retained import Retained, merged
from iai_hf.solvers.solver import Batch, Scalar

Carried = Literal["logits", "probabilities", "latents"]


class Implicit(Retained):
    """Refines the answers themselves.

    Args:
        sizes: of the network; None for the bare solver.
        free: the paper's form, without a solver beneath.
        carried: what is handed from batch to batch: outputs, their probabilities, or, in the free form, a vector.
        budget, batches: examples retained, and batches that the safe form reads them in, at most.
    """

    def __init__(
        self,
        predictor: Predictor,
        signal: Signal,
        sizes: NetworkSizes | None = None,
        *,
        free: bool = False,
        carried: Carried = "logits",
        budget: int = 4096,
        batches: int = 5,
    ) -> None:
        super().__init__(budget, None if free else batches)
        self.predictor, self.signal, self.free, self.carried = predictor, signal, free, carried
        self.log_prior = Scalar(0.0)
        # Logits a unit of a ridge answer on one-hot targets; the first boosting step, and how steps fall.
        self.log_scale = Scalar(1.5 if predictor.classification else 0.0)
        self.log_rate = Scalar(0.0)
        self.decay = Scalar(1.0)
        self.network: UpdateNetwork | None = None
        self.decode: nn.Linear | None = None
        if sizes is not None:
            state = sizes.hidden if carried == "latents" else sizes.outputs
            told = {"data": 1, "gradient": 1, "both": 2}[signal] * sizes.outputs
            self.network = UpdateNetwork(sizes, sizes.inputs + told, sizes.inputs + state, state, 0)
            if carried == "latents":
                nn.init.normal_(self.network.propose.weight, std=0.02)  # a latent says nothing yet: the decoder is zero
                self.decode = nn.Linear(sizes.hidden, sizes.outputs)
                nn.init.zeros_(self.decode.weight)
                nn.init.zeros_(self.decode.bias)

    def lesson(self, chunks: Sequence[Batch], generator: torch.Generator) -> Sequence[Batch]:
        """The chunks merged into a random number of batches."""
        most = min(self.batches or 0, len(chunks))
        return merged(chunks, int(torch.randint(1, most + 1, (), generator=generator))) if most else chunks

    def read(self, chunks: Sequence[Batch], x: torch.Tensor) -> torch.Tensor:
        """Refine the answers batch by batch."""
        return self.outputs(chunks, x)[-1]

    def outputs(self, chunks: Sequence[Batch], x: torch.Tensor, *, greedy: bool = True) -> list[torch.Tensor]:
        """Outputs `[tasks, queries, outputs]` after each batch."""
        queries, outputs = x.shape[1], chunks[0].y.shape[-1]
        # Where the signal has a gradient, the inputs of later batches are queries too, behind the real ones.
        later = [] if self.signal == "data" else [chunk.x for chunk in chunks]
        points = torch.cat([x, *later], 1)
        state = points.new_zeros(*points.shape[:2], self._state_size(outputs))
        found = []
        for step, chunk in enumerate(chunks):
            state = state.detach() if greedy else state
            size = chunk.x.shape[1]
            own = None if self.signal == "data" else self._outputs(state[:, queries : queries + size])
            told = self._told(chunk, own)
            if own is not None:  # this batch's own inputs are not asked again
                points, state = (_without(part, queries, size) for part in (points, state))
            moves = [] if self.free else [self._solved(chunk, told, points, state, step)]
            if self.network is not None:
                moves.append(self._proposed(chunk, told, points, state, step))
            state = state + sum(moves, torch.zeros_like(state))
            found.append(self._outputs(state)[:, :queries])
        return found

    def _told(self, chunk: Batch, outputs: torch.Tensor | None) -> torch.Tensor:
        """What is said of each observation: its answer, what the state leaves unexplained, or both."""
        if outputs is None:
            return chunk.y
        unexplained = -self.predictor.residuals(outputs, chunk.y)
        return unexplained if self.signal == "gradient" else torch.cat([chunk.y, unexplained], -1)

    def _solved(
        self, chunk: Batch, told: torch.Tensor, points: torch.Tensor, state: torch.Tensor, step: int
    ) -> torch.Tensor:
        """The solver's move."""
        outputs = chunk.y.shape[-1]
        classification = self.predictor.classification
        if self.signal == "data":
            targets = self.log_scale().exp() * (chunk.y - 1 / outputs) if classification else chunk.y
            return (self._ridge(chunk.x, targets, points) - state) / (1 + step)
        # The newest part of what is told is the unexplained one.
        share = self.log_rate().exp() * (1 + step) ** -self.decay().clamp(0, 1)
        targets = told[..., -outputs:] / (CURVATURE if classification else 1.0)
        return share * self._ridge(chunk.x, targets, points)

    def _ridge(self, x: torch.Tensor, targets: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """Answers for `points` of a ridge regression on the batch, in the cheaper of its two forms."""
        seen, asked = self.predictor.features(x), self.predictor.features(points)
        prior = self.log_prior().exp()
        size, width = seen.shape[-2:]
        if width <= size:
            gram = seen.mT @ seen + prior * torch.eye(width, device=x.device)
            return asked @ solve(gram, seen.mT @ targets)
        kernel = seen @ seen.mT + prior * torch.eye(size, device=x.device)
        return asked @ (seen.mT @ solve(kernel, targets))

    def _proposed(
        self, chunk: Batch, told: torch.Tensor, points: torch.Tensor, state: torch.Tensor, step: int
    ) -> torch.Tensor:
        """The network's move."""
        assert self.network is not None
        probabilities = self.carried == "probabilities" and self.predictor.classification
        known = torch.cat([points, state.softmax(-1) if probabilities else state], -1)
        steps = torch.full((points.shape[0],), float(step), device=points.device)
        proposal = self.network(torch.cat([chunk.x, told], -1), known, steps)
        return proposal if self.free else BOUND * torch.tanh(proposal / BOUND) / (1 + step)

    def _state_size(self, outputs: int) -> int:
        return outputs if self.decode is None else self.decode.in_features

    def _outputs(self, state: torch.Tensor) -> torch.Tensor:
        return state if self.decode is None else self.decode(state)


def _without(tensor: torch.Tensor, start: int, size: int) -> torch.Tensor:
    return torch.cat([tensor[:, :start], tensor[:, start + size :]], 1)
