"""Parametric and explicit: theta[i+1] = h_phi(theta[i], B[i]), theta the weights of the predictor.

Safe form: a solver that can't collapse, from a learned start and in a learned metric (`Prior`), plus what a network
proposes (`GatedCorrection`). The solver, by signal: online Laplace (data, both; `iai_hf.posterior`), or gradient steps
as long as a Kalman filter of theta would take them (gradient; `GradientFilter`). It goes its own way beneath the
network's correction. Free form, as in the paper: theta[i+1] = theta[i] + network(theta[i], B[i]).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from iai_hf.hyperparameters import Hyperparameter, saved_as
from iai_hf.posterior import half_life_decay
from iai_hf.signals import Signal, takes_data, takes_gradient
from iai_hf.tables.solvers.correction import GatedCorrection, averaged
from iai_hf.tables.solvers.kalman import GradientFilter
from iai_hf.tables.solvers.network import NetworkSizes, UpdateNetwork
from iai_hf.tables.solvers.predictor import Predictor
from iai_hf.tables.solvers.prior import Prior
from iai_hf.tables.solvers.solver import SUMMARY, Batch, Solver
from iai_hf.tables.solvers.tokens import ThetaTokens
from iai_hf.task import Tensors


class _Chunk(NamedTuple):
    """As the solver sees it: features, outputs and targets `[tasks, n, ...]`, and the mean loss's gradient in theta."""

    whitened: torch.Tensor
    outputs: torch.Tensor
    y: torch.Tensor
    gradient: torch.Tensor


class Parametric(Solver):
    """theta[i+1] = solver(theta[i], B[i]) + correction[i+1]; free: theta[i+1] = theta[i] + network(theta[i], B[i]).

    The parametric and the explicit regime of Mittal et al. 2025, arXiv 2510.11471.

    Args:
        sizes: of the network; None for the bare solver, which works at any size.
        free: the paper's form, without a solver beneath; it needs a network.
        window: states that the network sees, the present one and those before it (non-Markovian above 1).
        half_life: examples after which what was read counts half, for streams that drift; None never forgets.
    """

    def __init__(
        self,
        predictor: Predictor,
        signal: Signal,
        sizes: NetworkSizes | None = None,
        *,
        free: bool = False,
        window: int = 1,
        half_life: int | None = None,
    ) -> None:
        super().__init__()
        self.predictor, self.signal, self.free, self.window = predictor, signal, free, window
        self.half_life, self.capturable = half_life, free
        size, outputs = (predictor.size(sizes.inputs), sizes.outputs) if sizes and not free else (0, 0)
        self.prior = Prior(size, outputs)
        self.prior_precision = Hyperparameter(1.0)  # in units of an example
        self.filter = GradientFilter(0 if takes_data(signal) else size)
        self.correction = GatedCorrection()
        saved_as(self, {"prior_precision": "log_prior", "correction": "proposal"})
        self.network: UpdateNetwork | None = None
        if sizes is not None:
            self.tokens = ThetaTokens(predictor.size(sizes.inputs), sizes.outputs)
            channels = window + 2 * takes_gradient(signal)
            seen = predictor.size(sizes.inputs) if sizes.counting else sizes.inputs
            observed = seen + sizes.outputs if takes_data(signal) else 0
            self.network = UpdateNetwork(
                sizes, observed, channels * self.tokens.size, self.tokens.size, self.tokens.count, counts=free
            )

    @property
    def per_output(self) -> Sequence[str]:
        """Tensors whose last dimension is the outputs."""
        return ("theta", "history", "correction")

    def begin(self, stream: Batch, queries: Batch) -> None:
        """The prior's estimate from some tasks."""
        found = self.prior.estimate(self.predictor, stream, queries)
        if found is None:
            return
        self.correction.gate()
        self.prior_precision.set(1.0 if self.predictor.classification else found.noise)
        self.filter.set(found.curvatures, found.noise)

    def initial(self, tasks: int, inputs: int, outputs: int) -> Tensors:
        """theta[0] is zero, from the prior's start."""
        size = self.predictor.size(inputs)
        device = self.prior_precision.slow.device
        theta = torch.zeros(tasks, size, outputs, device=device, dtype=torch.float32)
        tensors = {"theta": theta, "steps": torch.zeros(tasks, device=device, dtype=torch.float32)}
        if self.window > 1:
            tensors["history"] = theta[:, None].expand(-1, self.window - 1, -1, -1).contiguous()
        if self.free:
            return tensors
        if not takes_data(self.signal):
            tensors["spread"] = torch.ones(tasks, size, device=device, dtype=torch.float32)
        else:
            tensors["gram"] = torch.zeros(tasks, size, size, device=device, dtype=torch.float32)
        if self.network is not None:
            tensors["correction"] = theta
            tensors[SUMMARY] = torch.zeros(
                tasks, self.tokens.count, self.network.hidden, device=device, dtype=torch.float32
            )
        return tensors

    def refine(self, tensors: Tensors, batch: Batch) -> Tensors:
        """The solver's step, and the network's correction of where it leads; free: the network's step."""
        kept = half_life_decay(batch.x.shape[1], self.half_life)
        theta = tensors["theta"] - tensors.get("correction", 0.0)  # the solver's own
        chunk = self._chunk(theta, batch)
        refined = {**tensors, "steps": tensors["steps"] * kept + 1}
        if self.window > 1:
            refined["history"] = torch.cat([tensors["theta"][:, None], tensors["history"][:, :-1]], 1)
        if not self.free:
            change, memory = self._solver_step(tensors, chunk, kept)
            theta, refined = theta + change, refined | memory
        if self.network is not None:
            summary = self._summary(self.network, tensors, batch, theta, chunk)
            if self.free:
                theta = theta + self.tokens.join(self.network.propose(summary))
            else:
                refined[SUMMARY] = averaged(tensors[SUMMARY], summary, tensors["steps"] * kept)
                proposed = self.tokens.join(self.network.propose(refined[SUMMARY]))
                refined["correction"] = self.correction(proposed, self._variance(refined))
                theta = theta + refined["correction"]
        return refined | {"theta": theta}

    def answer(self, tensors: Tensors, x: torch.Tensor) -> torch.Tensor:
        """phi(x) theta."""
        features = self.predictor.features(x)
        return self.prior.offset(features, tensors["theta"].shape[-1]) + self.prior.whiten(features) @ tensors["theta"]

    def _chunk(self, theta: torch.Tensor, batch: Batch) -> _Chunk:
        features = self.predictor.features(batch.x)
        whitened = self.prior.whiten(features)
        outputs = self.prior.offset(features, batch.y.shape[-1]) + whitened @ theta
        gradient = -whitened.mT @ self.predictor.residual(outputs, batch.y) / batch.x.shape[1]
        return _Chunk(whitened, outputs, batch.y, gradient)

    def _solver_step(
        self, tensors: Tensors, chunk: _Chunk, kept: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The change of theta, and what the solver knows then; `kept` of what it knew counts still."""
        if not takes_data(self.signal):
            variance = (tensors["spread"] / kept).clamp(max=1.0)
            change, variance = self.filter(variance, chunk.gradient, chunk.y.shape[1])
            return change, {"spread": variance}
        gram = tensors["gram"] * kept
        change, curvature = self.predictor.laplace_update(chunk.whitened, chunk.outputs, chunk.y, self._precision(gram))
        return change, {"gram": gram + curvature}

    def _precision(self, gram: torch.Tensor) -> torch.Tensor:
        return gram + self.prior_precision() * torch.eye(gram.shape[-1], device=gram.device, dtype=torch.float32)

    def _variance(self, tensors: Tensors) -> torch.Tensor:
        """The solver's, of each feature's weights, relative to the prior's, `[tasks, features]`."""
        if not takes_data(self.signal):
            return tensors["spread"]
        factor = torch.linalg.cholesky(self._precision(tensors["gram"]).detach())
        return self.prior_precision() * torch.cholesky_inverse(factor).diagonal(dim1=-2, dim2=-1)

    def _summary(
        self, network: UpdateNetwork, tensors: Tensors, batch: Batch, theta: torch.Tensor, chunk: _Chunk
    ) -> torch.Tensor:
        gradient = chunk.gradient
        known = [theta]
        if self.window > 1:
            known += tensors["history"].unbind(1)
        if takes_gradient(self.signal):
            known += [gradient, gradient / (gradient.square().mean((1, 2), keepdim=True).sqrt() + 1e-6)]
        refined = torch.cat([self.tokens.split(part) for part in known], -1)
        seen = chunk.whitened if network.counting else batch.x
        observed = torch.cat([seen, batch.y], -1) if takes_data(self.signal) else None
        return network(observed, refined, tensors["steps"], batch.x.shape[1])
