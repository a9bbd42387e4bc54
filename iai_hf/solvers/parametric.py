"""Parametric and explicit: theta[i+1] = h_phi(theta[i], B[i]), theta the weights of the predictor.

Safe form: a solver that can't collapse, plus the running mean of what a network proposes, which is zero at first.
The solver, by signal: the ridge solution of the moments of all observations (data); gradient steps as long as a Kalman
filter of theta would take them (gradient); gradient steps preconditioned by the curvature of all observations (both),
which for the squared error is recursive least squares, hence exact, and for the cross-entropy an online Newton method
with a curvature bound (Boehning 1992). Free form, as in the paper: theta[i+1] = theta[i] + network(theta[i], B[i]).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from iai_hf.solvers.network import NetworkSizes, UpdateNetwork
from iai_hf.solvers.predictor import Predictor, Signal
from iai_hf.solvers.solver import Batch, Scalar, Solver, Tensors
from iai_hf.solvers.tokens import ThetaTokens

BOUND = 2.0  # of a proposal, in units of theta
CURVATURE = 0.5  # of the cross-entropy, at most (Boehning 1992)


class Parametric(Solver):
    """Refines theta.

    Args:
        sizes: of the network; None for the bare solver, which works at any size.
        free: the paper's form, without a solver beneath; it needs a network.
        window: states that the network sees, the present one and those before it (non-Markovian above 1).
        half_life: examples after which the moments count half, for streams that drift; None never forgets.
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
        self.half_life = half_life
        # Prior precision, in units of an example; likeness of the features, 1 where they may be all alike, 0 where they
        # are independent, and noise of the targets, in units of the prior, which both shorten a gradient step; logits a
        # unit of a ridge solution on one-hot targets; share of the curvature's bound.
        self.log_prior = Scalar(0.0)
        self.likeness = Scalar(1.0)
        self.log_noise = Scalar(-1.0)
        self.log_scale = Scalar(1.5 if predictor.classification else 0.0)
        self.log_curvature = Scalar(0.0)
        self.network: UpdateNetwork | None = None
        if sizes is not None:
            self.tokens = ThetaTokens(predictor.size(sizes.inputs), sizes.outputs)
            channels = window + (0 if signal == "data" else 2)
            observed = 0 if signal == "gradient" else sizes.inputs + sizes.outputs
            size = self.tokens.size
            self.network = UpdateNetwork(sizes, observed, channels * size, size, self.tokens.count)

    @property
    def per_output(self) -> Sequence[str]:
        """Tensors whose last dimension is the outputs."""
        return ("theta", "sums", "history", "correction")

    def initial(self, tasks: int, inputs: int, outputs: int) -> Tensors:
        """theta[0] is zero."""
        size = self.predictor.size(inputs)
        device = self.log_prior.slow.device
        theta = torch.zeros(tasks, size, outputs, device=device)
        tensors = {"theta": theta, "steps": torch.zeros(tasks, device=device)}
        if self.network is not None and not self.free:
            tensors["correction"] = theta
        if self.window > 1:
            tensors["history"] = theta[:, None].expand(-1, self.window - 1, -1, -1).contiguous()
        if self.signal != "gradient" and not self.free:
            tensors["gram"] = torch.zeros(tasks, size, size, device=device)
        if self.signal == "data" and not self.free:
            tensors["sums"] = theta
        if self.signal == "gradient" and not self.free:
            tensors["spread"] = torch.ones(tasks, device=device)
        return tensors

    def refine(self, tensors: Tensors, batch: Batch) -> Tensors:
        """One step."""
        features = self.predictor.features(batch.x)
        gradient = torch.zeros_like(tensors["theta"])
        if self.signal != "data":  # which looks at none
            gradient = self.predictor.gradient(features, tensors["theta"], batch.y)
        refined = dict(tensors)
        if self.window > 1:
            refined["history"] = torch.cat([tensors["theta"][:, None], tensors["history"][:, :-1]], 1)
        proposal = self._proposal(tensors, batch, gradient)
        if self.free and proposal is not None:
            refined["theta"] = tensors["theta"] + proposal
        else:
            base = tensors["theta"] - tensors.get("correction", 0.0)
            base = self._solved(tensors, refined, batch, features, gradient, base)
            if proposal is not None:
                share = 1 / (1 + tensors["steps"][:, None, None])
                bounded = BOUND * torch.tanh(proposal / BOUND)
                refined["correction"] = tensors["correction"] + share * (bounded - tensors["correction"])
                base = base + refined["correction"]
            refined["theta"] = base
        refined["steps"] = tensors["steps"] + 1
        return refined

    def answer(self, tensors: Tensors, x: torch.Tensor) -> torch.Tensor:
        """phi(x) theta."""
        return self.predictor.features(x) @ tensors["theta"]

    def _solved(
        self,
        tensors: Tensors,
        refined: dict[str, torch.Tensor],
        batch: Batch,
        features: torch.Tensor,
        gradient: torch.Tensor,
        theta: torch.Tensor,
    ) -> torch.Tensor:
        """The solver's theta; its moments are put into `refined`."""
        if self.signal == "gradient":
            # Where all features have curvature 1, theta minus the gradient is an estimate of the optimum; its variance:
            # that of theta (`spread`, of a weight) times features / examples, for a chunk's curvature is known only on
            # average, and the noise of the targets. Features that are alike have a curvature of up to their number.
            n, size = features.shape[-2:]
            curvature = size ** self.likeness().clamp(min=0.0) + size / n
            gain = tensors["spread"] / (curvature * tensors["spread"] + self.log_noise().exp() / n)
            refined["spread"] = (1 - gain) * tensors["spread"]
            return theta - gain[:, None, None] * gradient
        kept = 0.5 ** (features.shape[-2] / self.half_life) if self.half_life else 1.0
        refined["gram"] = kept * tensors["gram"] + features.mT @ features
        precision = self.log_prior().exp() * torch.eye(features.shape[-1], device=features.device)
        if self.signal == "data":
            targets = batch.y - 1 / batch.y.shape[-1] if self.predictor.classification else batch.y
            refined["sums"] = kept * tensors["sums"] + features.mT @ targets
            return self.log_scale().exp() * solve(refined["gram"] + precision, refined["sums"])
        share = CURVATURE * self.log_curvature().clamp(max=0.0).exp() if self.predictor.classification else 1.0
        return theta - solve(share * refined["gram"] + precision, features.shape[-2] * gradient)

    def _proposal(self, tensors: Tensors, batch: Batch, gradient: torch.Tensor) -> torch.Tensor | None:
        if self.network is None:
            return None
        known = [tensors["theta"]]
        if self.window > 1:
            known += tensors["history"].unbind(1)
        if self.signal != "data":
            known += [gradient, gradient / (gradient.square().mean((1, 2), keepdim=True).sqrt() + 1e-6)]
        refined = torch.cat([self.tokens.split(part) for part in known], -1)
        observed = None if self.signal == "gradient" else torch.cat([batch.x, batch.y], -1)
        return self.tokens.join(self.network(observed, refined, tensors["steps"]))


def solve(matrix: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`matrix^-1 right` of positive definite matrices."""
    return torch.cholesky_solve(right, torch.linalg.cholesky(matrix))
