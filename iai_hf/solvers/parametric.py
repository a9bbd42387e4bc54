"""Parametric and explicit: theta[i+1] = h_phi(theta[i], B[i]), theta the weights of the predictor.

Safe form: a solver that can't collapse, from a learned start and in a learned metric (`Prior`), plus what a network
proposes. The solver, by signal: online Laplace (data, both; `laplace`), or gradient steps as long as a Kalman filter
of theta would take them (gradient). The network's summaries of the chunks are averaged, so that their order and number
do no harm; its proposal is made from the average, zero at first, bounded, and counts the less the surer the solver is.
The solver goes its own way beneath. Free form, as in the paper: theta[i+1] = theta[i] + network(theta[i], B[i]).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from iai_hf.solvers.laplace import absorb
from iai_hf.solvers.network import NetworkSizes, UpdateNetwork
from iai_hf.solvers.predictor import Predictor, Signal
from iai_hf.solvers.prior import Prior
from iai_hf.solvers.solver import Batch, Scalar, Solver, Tensors
from iai_hf.solvers.tokens import ThetaTokens

BOUND = 2.0  # of a proposal, in units of theta
SURPRISE = 2.0  # lengths of a gradient relative to the expected one that are believed


class Parametric(Solver):
    """Refines theta.

    Args:
        sizes: of the network; None for the bare solver, which works at any size.
        free: the paper's form, without a solver beneath; it needs a network.
        window: states that the network sees, the present one and those before it (non-Markovian above 1).
        half_life: examples after which the curvature counts half, for streams that drift; None never forgets.
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
        size, outputs = (predictor.size(sizes.inputs), sizes.outputs) if sizes and not free else (0, 0)
        self.prior = Prior(size, outputs)
        # Prior precision, in units of an example; likeness of the features, 1 where they may be all alike, 0 where they
        # are independent, and noise of the targets, in units of the prior, which both shorten a gradient step; how much
        # less a proposal counts where the solver is sure.
        self.log_prior = Scalar(0.0)
        self.likeness = Scalar(1.0)
        self.log_noise = Scalar(-1.0)
        self.modesty = nn.Parameter(torch.tensor(0.0))
        self.log_curvatures = nn.Parameter(torch.zeros(size)) if size and signal == "gradient" else None
        self.network: UpdateNetwork | None = None
        if sizes is not None:
            self.tokens = ThetaTokens(predictor.size(sizes.inputs), sizes.outputs)
            channels = window + (0 if signal == "data" else 2)
            observed = 0 if signal == "gradient" else sizes.inputs + sizes.outputs
            self.network = UpdateNetwork(
                sizes, observed, channels * self.tokens.size, self.tokens.size, self.tokens.count
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
        self.modesty.data.fill_(1.0)
        self.log_prior.set(0.0 if self.predictor.classification else math.log(found.noise))
        if self.log_curvatures is not None:
            self.log_curvatures.data.copy_(found.curvatures.log())
            self.log_noise.set(math.log(found.noise))
            self.likeness.set(0.0)  # in the prior's metric

    def initial(self, tasks: int, inputs: int, outputs: int) -> Tensors:
        """theta[0] is zero, from the prior's start."""
        size = self.predictor.size(inputs)
        device = self.log_prior.slow.device
        theta = torch.zeros(tasks, size, outputs, device=device)
        tensors = {"theta": theta, "steps": torch.zeros(tasks, device=device)}
        if self.window > 1:
            tensors["history"] = theta[:, None].expand(-1, self.window - 1, -1, -1).contiguous()
        if self.free:
            return tensors
        if self.signal == "gradient":
            tensors["spread"] = torch.ones(tasks, size, device=device)
        else:
            tensors["gram"] = torch.zeros(tasks, size, size, device=device)
        if self.network is not None:
            tensors["correction"] = theta
            tensors["summary"] = torch.zeros(tasks, self.tokens.count, self.network.hidden, device=device)
        return tensors

    def refine(self, tensors: Tensors, batch: Batch) -> Tensors:
        """One step."""
        features = self.predictor.features(batch.x)
        seen, offset = self.prior.seen(features), self.prior.offset(features, batch.y.shape[-1])
        theta = tensors["theta"] - tensors.get("correction", 0.0)  # the solver's own
        outputs = offset + seen @ theta
        gradient = seen.mT @ self.predictor.residuals(outputs, batch.y) / seen.shape[-2]
        refined = dict(tensors)
        if not self.free:
            theta = self._solved(tensors, refined, batch, seen, outputs, theta, gradient)
        if self.window > 1:
            refined["history"] = torch.cat([tensors["theta"][:, None], tensors["history"][:, :-1]], 1)
        if self.network is not None:
            summary = self._summed_up(self.network, tensors, batch, theta, gradient)
            if self.free:
                theta = theta + self.tokens.join(self.network.propose(summary))
            else:
                share = 1 / (1 + tensors["steps"][:, None, None])
                refined["summary"] = tensors["summary"] + share * (summary - tensors["summary"])
                proposal = self.tokens.join(self.network.propose(refined["summary"]))
                refined["correction"] = self._doubt(refined) * BOUND * torch.tanh(proposal / BOUND)
                theta = theta + refined["correction"]
        refined["theta"] = theta
        refined["steps"] = tensors["steps"] + 1
        return refined

    def answer(self, tensors: Tensors, x: torch.Tensor) -> torch.Tensor:
        """phi(x) theta."""
        features = self.predictor.features(x)
        return self.prior.offset(features, tensors["theta"].shape[-1]) + self.prior.seen(features) @ tensors["theta"]

    def _solved(
        self,
        tensors: Tensors,
        refined: dict[str, torch.Tensor],
        batch: Batch,
        seen: torch.Tensor,
        outputs: torch.Tensor,
        theta: torch.Tensor,
        gradient: torch.Tensor,
    ) -> torch.Tensor:
        """The solver's theta; what it knows of its error is put into `refined`."""
        n, size = seen.shape[-2:]
        if self.signal == "gradient":
            # A weight's gradient is its error times its curvature, but for noise: that of the targets, and that of the
            # other weights' errors, since a chunk's curvature is known only on average. Features that are alike have
            # a curvature of up to their number.
            curvature = 1.0 if self.log_curvatures is None else self.log_curvatures.exp()
            spread = tensors["spread"]
            noise = ((curvature * spread).sum(-1, keepdim=True) + self.log_noise().exp()) / n
            gain = spread / (size ** self.likeness().clamp(min=0.0) * curvature * spread + noise)
            refined["spread"] = (1 - gain * curvature).clamp(min=0.0) * spread
            # A gradient far longer than that, on tasks of another kind: the step is no longer than it should have been.
            expected = (curvature * (curvature * spread + noise)).sum(-1) * gradient.shape[-1]
            length = (expected / gradient.square().sum((1, 2)).clamp(min=1e-12)).sqrt()
            return theta - (SURPRISE * length).clamp(max=1.0)[:, None, None] * gain[..., None] * gradient
        kept = 0.5 ** (n / self.half_life) if self.half_life else 1.0
        refined["gram"] = kept * tensors["gram"]
        change, curvature = absorb(self.predictor, seen, outputs, batch.y, self._precision(refined["gram"]))
        refined["gram"] = refined["gram"] + curvature
        return theta + change

    def _precision(self, gram: torch.Tensor) -> torch.Tensor:
        return gram + self.log_prior().exp() * torch.eye(gram.shape[-1], device=gram.device)

    def _doubt(self, tensors: Tensors) -> torch.Tensor:
        """Standard deviation of the solver's theta relative to the prior's, 1 at first, by the modesty's power."""
        with torch.no_grad():  # a network does not make the solver less sure to be heard more
            if self.signal == "gradient":
                variance = tensors["spread"]
            else:
                factor = torch.linalg.cholesky(self._precision(tensors["gram"]))
                variance = self.log_prior().exp() * torch.cholesky_inverse(factor).diagonal(dim1=-2, dim2=-1)
        return variance.clamp(min=1e-12)[..., None] ** (self.modesty.clamp(min=0.0) / 2)

    def _summed_up(
        self, network: UpdateNetwork, tensors: Tensors, batch: Batch, theta: torch.Tensor, gradient: torch.Tensor
    ) -> torch.Tensor:
        known = [theta]
        if self.window > 1:
            known += tensors["history"].unbind(1)
        if self.signal != "data":
            known += [gradient, gradient / (gradient.square().mean((1, 2), keepdim=True).sqrt() + 1e-6)]
        refined = torch.cat([self.tokens.split(part) for part in known], -1)
        observed = None if self.signal == "gradient" else torch.cat([batch.x, batch.y], -1)
        return network(observed, refined, tensors["steps"])
