"""Implicit: yhat[i+1] = r_gamma([x, yhat[i]], B[i]); each query has a state of its own, refined batch by batch.

Safe form: the answers of a solver (online Laplace; `iai_hf.posterior`) from a learned start and in a learned metric
(`Prior`), plus what a network proposes from its averaged summaries of the batches, as in `parametric`. Observations
tell the network their answer (data), what the state leaves unexplained of it (gradient), or both. For that gradient the
state is also rolled for each batch's own inputs, which no batch before has seen. What is retained is read in a few
batches, which grow with the stream. Free form, as in the paper: the network alone, chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import nn

from iai_hf.hyperparameters import Hyperparameter, saved_as
from iai_hf.signals import Signal, takes_data, takes_gradient
from iai_hf.tables.solvers.correction import GatedCorrection, averaged
from iai_hf.tables.solvers.network import NetworkSizes, UpdateNetwork
from iai_hf.tables.solvers.predictor import Predictor
from iai_hf.tables.solvers.prior import Prior
from iai_hf.tables.solvers.retained import Retained
from iai_hf.tables.solvers.solver import Batch
from iai_hf.task import Tensors

ImplicitState = Literal["logits", "probabilities", "latents"]


class _Points(NamedTuple):
    """Queries, and behind them the inputs of batches to come; each `[tasks, points, ...]`."""

    x: torch.Tensor
    offset: torch.Tensor
    whitened: torch.Tensor
    state: torch.Tensor  # free: the state; otherwise the network's correction
    summary: torch.Tensor

    def part(self, first: int, last: int) -> _Points:
        """Some of them."""
        return _Points(*(tensor[:, first:last] for tensor in self))

    def without(self, first: int, last: int) -> _Points:
        """The others."""
        return _Points(*(torch.cat([tensor[:, :first], tensor[:, last:]], 1) for tensor in self))


class _Solution(NamedTuple):
    """The solver's weights `[tasks, features, outputs]` and their precision `[tasks, features, features]`."""

    theta: torch.Tensor
    precision: torch.Tensor


class Implicit(Retained):
    """yhat[i+1] = phi(x) theta[i+1] + correction[i+1](x); free: yhat[i+1] = yhat[i] + network([x, yhat[i]], B[i]).

    The implicit regime of Mittal et al. 2025, arXiv 2510.11471.

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
        carried: ImplicitState = "logits",
        budget: int = 4096,
        batches: int = 5,
    ) -> None:
        super().__init__(budget, None if free else batches)
        self.predictor, self.signal, self.free, self.carried = predictor, signal, free, carried
        self.capturable, self.lengths_vary = free, not free
        size, outputs = (predictor.size(sizes.inputs), sizes.outputs) if sizes and not free else (0, 0)
        self.prior = Prior(size, outputs)
        self.prior_precision = Hyperparameter(1.0)  # in units of an example
        self.correction = GatedCorrection()
        saved_as(self, {"prior_precision": "log_prior", "correction": "proposal"})
        self.network: UpdateNetwork | None = None
        self.decode: nn.Linear | None = None
        if sizes is not None:
            state = sizes.hidden if carried == "latents" else sizes.outputs
            signals = (takes_data(signal) + takes_gradient(signal)) * sizes.outputs
            known = state if free else 2 * state
            seen = predictor.size(sizes.inputs) if sizes.counting else sizes.inputs
            self.network = UpdateNetwork(sizes, seen + signals, seen + known, state, 0, counts=free)
            if carried == "latents":
                nn.init.normal_(self.network.propose.weight, std=0.02)  # it is the decoder that starts at zero
                self.decode = nn.Linear(sizes.hidden, sizes.outputs, dtype=torch.float32)
                nn.init.zeros_(self.decode.weight)
                nn.init.zeros_(self.decode.bias)

    def begin(self, stream: Batch, queries: Batch) -> None:
        """The prior's estimate from some tasks."""
        found = self.prior.estimate(self.predictor, stream, queries)
        if found is not None:
            self.correction.gate()
            self.prior_precision.set(1.0 if self.predictor.classification else found.noise)

    def read(self, chunks: Sequence[Batch], x: torch.Tensor) -> torch.Tensor:
        """Refine the answers batch by batch."""
        return self.outputs(chunks, x)[-1]

    def outputs(self, chunks: Sequence[Batch], x: torch.Tensor, *, greedy: bool = True) -> list[torch.Tensor]:
        """Outputs `[tasks, queries, outputs]` after each batch."""
        queries, width = x.shape[1], chunks[0].y.shape[-1]
        # Where the signal has a gradient, the inputs of later batches are queries too, behind the real ones.
        later = [chunk.x for chunk in chunks] if takes_gradient(self.signal) else []
        points = self._points(torch.cat([x, *later], 1), width)
        solution = self._start(points)
        found = []
        for step, chunk in enumerate(chunks):
            if greedy:
                points = points._replace(state=points.state.detach())
                solution = solution._replace(theta=solution.theta.detach())
            own = self._points(chunk.x, width)
            if later:  # this batch's own inputs have a state by now, and are not asked again
                end = queries + chunk.x.shape[1]
                own = own._replace(state=points.part(queries, end).state)
                points = points.without(queries, end)
            signal = self._signal(own, chunk.y, solution)
            if not self.free:
                solution = self._solved(own, chunk.y, solution)
            if self.network is not None:
                steps = torch.full((x.shape[0],), float(step), device=x.device, dtype=torch.float32)
                points = self._refined(self.network, points, own, signal, solution, steps)
            found.append(self._outputs(points.part(0, queries), solution))
        return found

    @property
    def steps_apart(self) -> bool:
        """Where the state is the queries' own: the network alone, which sees no state of the observations."""
        return self.free and not takes_gradient(self.signal)

    def begin_stream(self, x: torch.Tensor, outputs: int) -> Tensors:
        """The queries' states."""
        state = self._points(x, outputs).state
        return {"state": state, "steps": torch.zeros(x.shape[0], device=x.device, dtype=torch.float32)}

    def advance(self, tensors: Tensors, batch: Batch, x: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        """The queries' states refined once."""
        assert self.network is not None
        own, points = self._points(batch.x, batch.y.shape[-1]), self._points(x, batch.y.shape[-1])
        points = points._replace(state=tensors["state"])
        solution = self._start(points)
        points = self._refined(self.network, points, own, batch.y, solution, tensors["steps"])
        return {"state": points.state, "steps": tensors["steps"] + 1}, self._outputs(points, solution)

    def _points(self, x: torch.Tensor, outputs: int) -> _Points:
        features = self.predictor.features(x)
        size = outputs if self.decode is None else self.decode.in_features
        state = x.new_zeros(*x.shape[:2], size)
        summary = x.new_zeros(*x.shape[:2], self.network.hidden if self.network and not self.free else 0)
        return _Points(x, self.prior.offset(features, outputs), self.prior.whiten(features), state, summary)

    def _start(self, points: _Points) -> _Solution:
        """The solver's before any batch."""
        tasks, _, size = points.whitened.shape
        identity = torch.eye(size, device=points.x.device, dtype=torch.float32)
        theta = points.state.new_zeros(tasks, size, points.offset.shape[-1])
        return _Solution(theta, self.prior_precision() * identity.expand(tasks, -1, -1))

    def _signal(self, own: _Points, y: torch.Tensor, solution: _Solution) -> torch.Tensor:
        """What a batch's observations tell the network beside their inputs."""
        told = [y] if takes_data(self.signal) else []
        if takes_gradient(self.signal):
            told.append(self.predictor.residual(self._outputs(own, solution), y))
        return torch.cat(told, -1)

    def _solved(self, own: _Points, y: torch.Tensor, solution: _Solution) -> _Solution:
        """The solver's step on a batch."""
        outputs = own.offset + own.whitened @ solution.theta
        change, curvature = self.predictor.laplace_update(own.whitened, outputs, y, solution.precision)
        return _Solution(solution.theta + change, solution.precision + curvature)

    def _refined(
        self,
        network: UpdateNetwork,
        points: _Points,
        own: _Points,
        signal: torch.Tensor,
        solution: _Solution,
        steps: torch.Tensor,
    ) -> _Points:
        """The points with the network's step on a batch: its `own` inputs, and what they tell."""
        known = [self._known(points.state)]
        if not self.free:
            known.append(self._known(points.offset + points.whitened @ solution.theta))
        seen, asked = (part.whitened if network.counting else part.x for part in (own, points))
        summary = network(torch.cat([seen, signal], -1), torch.cat([asked, *known], -1), steps, signal.shape[1])
        if self.free:
            return points._replace(state=points.state + network.propose(summary))
        summary = averaged(points.summary, summary, steps)
        state = self.correction(network.propose(summary), self._variance(points.whitened, solution.precision))
        return points._replace(summary=summary, state=state)

    def _known(self, outputs: torch.Tensor) -> torch.Tensor:
        """What the network sees of a state."""
        probabilities = self.carried == "probabilities" and self.predictor.classification
        return outputs.softmax(-1) if probabilities else outputs

    def _variance(self, whitened: torch.Tensor, precision: torch.Tensor) -> torch.Tensor:
        """The solver's, of its answers, relative to that before the first batch, `[tasks, points]`."""
        factor = torch.linalg.cholesky(precision.detach())
        half = torch.linalg.solve_triangular(factor, whitened.detach().mT, upper=False)
        return self.prior_precision() * half.square().sum(1) / whitened.square().sum(-1)

    def _outputs(self, points: _Points, solution: _Solution) -> torch.Tensor:
        if self.free:
            return points.state if self.decode is None else self.decode(points.state)
        return points.offset + points.whitened @ solution.theta + points.state
