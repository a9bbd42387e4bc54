"""Implicit: yhat[i+1] = r_gamma([x, yhat[i]], B[i]); each query has a state of its own, refined batch by batch.

Safe form: the answers of a solver (online Laplace; `laplace`) from a learned start and in a learned metric (`Prior`),
plus what a network proposes from its averaged summaries of the batches, as in `parametric`. Observations tell the
network their answer (data), what the state leaves unexplained of it (gradient), or both. For that gradient the state is
also rolled for each batch's own inputs, which no batch before has seen. What is retained is read in a few batches,
which grow with the stream. Free form, as in the paper: the network alone, chunk by chunk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import nn

from iai_hf.tables.solvers.laplace import absorb
from iai_hf.tables.solvers.network import NetworkSizes, UpdateNetwork
from iai_hf.tables.solvers.predictor import Predictor, Signal
from iai_hf.tables.solvers.prior import Prior
from iai_hf.tables.solvers.proposal import Proposal, averaged
from iai_hf.tables.solvers.retained import Retained
from iai_hf.tables.solvers.solver import Batch, Scalar

Carried = Literal["logits", "probabilities", "latents"]


class _Points(NamedTuple):
    """Queries, and behind them the inputs of batches to come; each `[tasks, points, ...]`."""

    x: torch.Tensor
    offset: torch.Tensor
    seen: torch.Tensor
    state: torch.Tensor  # free: the state; otherwise the network's correction
    summary: torch.Tensor


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
        size, outputs = (predictor.size(sizes.inputs), sizes.outputs) if sizes and not free else (0, 0)
        self.prior = Prior(size, outputs)
        self.log_prior = Scalar(0.0)  # precision, in units of an example
        self.proposal = Proposal()
        self.network: UpdateNetwork | None = None
        self.decode: nn.Linear | None = None
        if sizes is not None:
            state = sizes.hidden if carried == "latents" else sizes.outputs
            told = {"data": 1, "gradient": 1, "both": 2}[signal] * sizes.outputs
            known = state if free else 2 * state
            self.network = UpdateNetwork(sizes, sizes.inputs + told, sizes.inputs + known, state, 0, counts=free)
            if carried == "latents":
                nn.init.normal_(self.network.propose.weight, std=0.02)  # it is the decoder that starts at zero
                self.decode = nn.Linear(sizes.hidden, sizes.outputs, dtype=torch.float32)
                nn.init.zeros_(self.decode.weight)
                nn.init.zeros_(self.decode.bias)

    def begin(self, stream: Batch, queries: Batch) -> None:
        """The prior's estimate from some tasks."""
        found = self.prior.estimate(self.predictor, stream, queries)
        if found is not None:
            self.proposal.be_modest()
            self.log_prior.set(0.0 if self.predictor.classification else math.log(found.noise))

    def read(self, chunks: Sequence[Batch], x: torch.Tensor) -> torch.Tensor:
        """Refine the answers batch by batch."""
        return self.outputs(chunks, x)[-1]

    def outputs(self, chunks: Sequence[Batch], x: torch.Tensor, *, greedy: bool = True) -> list[torch.Tensor]:
        """Outputs `[tasks, queries, outputs]` after each batch."""
        queries, width = x.shape[1], chunks[0].y.shape[-1]
        # Where the signal has a gradient, the inputs of later batches are queries too, behind the real ones.
        later = [] if self.signal == "data" else [chunk.x for chunk in chunks]
        points = self._points(torch.cat([x, *later], 1), width)
        size = points.seen.shape[-1]
        theta = points.state.new_zeros(x.shape[0], size, width)
        precision = self.log_prior().exp() * torch.eye(size, device=x.device, dtype=torch.float32).expand(
            x.shape[0], -1, -1
        )
        found = []
        for step, chunk in enumerate(chunks):
            if greedy:
                points = points._replace(state=points.state.detach())
                theta = theta.detach()
            own = self._points(chunk.x, width)
            told = chunk.y
            if self.signal != "data":
                size = chunk.x.shape[1]
                own = own._replace(state=points.state[:, queries : queries + size])
                unexplained = -self.predictor.residuals(self._outputs(own, theta), chunk.y)
                told = unexplained if self.signal == "gradient" else torch.cat([chunk.y, unexplained], -1)
                # This batch's own inputs are not asked again.
                points = _Points(*(_without(part, queries, size) for part in points))
            if not self.free:
                outputs = own.offset + own.seen @ theta
                change, curvature = absorb(self.predictor, own.seen, outputs, chunk.y, precision)
                theta, precision = theta + change, precision + curvature
            if self.network is not None:
                points = self._moved(self.network, points, torch.cat([chunk.x, told], -1), theta, precision, step)
            found.append(self._outputs(_Points(*(part[:, :queries] for part in points)), theta))
        return found

    def _points(self, x: torch.Tensor, outputs: int) -> _Points:
        features = self.predictor.features(x)
        state = x.new_zeros(*x.shape[:2], self._state_size(outputs))
        summary = x.new_zeros(*x.shape[:2], self.network.hidden if self.network and not self.free else 0)
        return _Points(x, self.prior.offset(features, outputs), self.prior.seen(features), state, summary)

    def _moved(
        self,
        network: UpdateNetwork,
        points: _Points,
        observed: torch.Tensor,
        theta: torch.Tensor,
        precision: torch.Tensor,
        step: int,
    ) -> _Points:
        """The points with the network's move."""
        known = [self._known(points.state)]
        if not self.free:
            known.append(self._known(points.offset + points.seen @ theta))
        steps = torch.full((points.x.shape[0],), float(step), device=points.x.device, dtype=torch.float32)
        summary = network(observed, torch.cat([points.x, *known], -1), steps)
        if self.free:
            return points._replace(state=points.state + network.propose(summary))
        summary = averaged(points.summary, summary, step)
        state = self.proposal(network.propose(summary), self._variance(points.seen, precision))
        return points._replace(summary=summary, state=state)

    def _known(self, outputs: torch.Tensor) -> torch.Tensor:
        """What the network is told of a state."""
        probabilities = self.carried == "probabilities" and self.predictor.classification
        return outputs.softmax(-1) if probabilities else outputs

    def _variance(self, seen: torch.Tensor, precision: torch.Tensor) -> torch.Tensor:
        """The solver's, of its answers, relative to that before the first batch, `[tasks, points]`."""
        half = torch.linalg.solve_triangular(torch.linalg.cholesky(precision.detach()), seen.detach().mT, upper=False)
        return self.log_prior().exp() * half.square().sum(1) / seen.square().sum(-1)

    def _state_size(self, outputs: int) -> int:
        return outputs if self.decode is None else self.decode.in_features

    def _outputs(self, points: _Points, theta: torch.Tensor) -> torch.Tensor:
        if self.free:
            return points.state if self.decode is None else self.decode(points.state)
        return points.offset + points.seen @ theta + points.state


def _without(tensor: torch.Tensor, start: int, size: int) -> torch.Tensor:
    return torch.cat([tensor[:, :start], tensor[:, start + size :]], 1)
