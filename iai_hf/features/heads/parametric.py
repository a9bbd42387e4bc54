"""Parametric regime: the state is a linear classifier's parameters, refined from data, from gradients, or from both.

* data: the moments of the features, and with them the experts (`experts.py`), stacked with learned weights.
* gradient: the loss's gradient and curvature, in two places. The experts' weights follow Newton's method on examples
  that they had not absorbed (`stacking.py`); a correction D takes one preconditioned step of the logistic loss a
  chunk. The preconditioner is G weighted by the mean curvature p(1-p), split over the classes by their share of it:
  Boehning's (1992) bound, made as tight as the stream allows, so a step can't overshoot by much on any chunk, and the
  steps shrink as 1/n. This is what many classes need, where closed forms fall behind logistic regression.

A chunk moves weights and correction only as far as its classes are mixed (`moments.mixture`). logits = sum of
weight * expert + D^T [x, 1], a single linear map. At their initial value the learned numbers
weigh all experts alike, the frequency apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from iai_hf.features.heads.experts import EXPERTS, INITIAL, Experts, Summary
from iai_hf.features.heads.head import Head, Tensors, grown
from iai_hf.features.heads.moments import class_sums, mixture, pack, unpack
from iai_hf.features.heads.numbers import Numbers
from iai_hf.features.heads.stacking import stack

Signal = Literal["data", "gradient", "both"]
NUMBERS = {
    **INITIAL,
    **{f"weight_{name}": 0.05 for name in EXPERTS[:-1]},
    "weight_frequency": 0.3,
    **{f"precision_{name}": 30.0 for name in EXPERTS},
    "penalty": 40.0,  # precision of the correction D, in units of the features' total variance
    "share": 2.0,  # safety factor on a class's share of the curvature
    "warmup": 32.0,  # examples after which a correction step has half its size, and the curvature half its prior value
}


@dataclass(frozen=True, eq=False)
class Parameters:
    """The state. Float32, but for `names`.

    Attributes:
        counts: `[C]`.
        sums: `[C, d]`.
        gram: packed lower triangle of G = sum [x, 1] [x, 1]^T, `[(d + 1) (d + 2) / 2]`.
        correction: D^T, `[C, d + 1]`.
        curvature: summed p (1 - p), `[C]`.
        mixed: examples that came in chunks of mixed classes, `[]`.
        deviation: of the experts' log weights from their learned prior, `[K]`.
        evidence: its decayed curvature, `[K, K]`.
        names: features of the label names, float16 `[C, d]`.
    """

    counts: torch.Tensor
    sums: torch.Tensor
    gram: torch.Tensor
    correction: torch.Tensor
    curvature: torch.Tensor
    mixed: torch.Tensor
    deviation: torch.Tensor
    evidence: torch.Tensor
    names: torch.Tensor


class ParametricHead(Head):
    """See the module's text.

    Args:
        signal: "data" keeps the closed forms alone, "gradient" the label names' experts and the correction alone.
    """

    per_class = ("counts", "sums", "correction", "curvature", "names")
    additive = ("counts", "sums", "gram", "curvature", "mixed", "evidence")

    def __init__(self, signal: Signal = "both") -> None:
        super().__init__()
        self.signal = signal
        self.numbers = Numbers(NUMBERS)

    def initial(self, size: int) -> Tensors:
        kinds = len(EXPERTS)
        return vars(
            Parameters(
                counts=torch.zeros(0, dtype=torch.float32),
                sums=torch.zeros(0, size, dtype=torch.float32),
                gram=torch.zeros((size + 1) * (size + 2) // 2, dtype=torch.float32),
                correction=torch.zeros(0, size + 1, dtype=torch.float32),
                curvature=torch.zeros(0, dtype=torch.float32),
                mixed=torch.zeros((), dtype=torch.float32),
                deviation=torch.zeros(kinds, dtype=torch.float32),
                evidence=torch.zeros(kinds, kinds, dtype=torch.float32),
                names=torch.zeros(0, size, dtype=torch.float16),
            )
        )

    def grow(self, tensors: Tensors, names: torch.Tensor) -> Tensors:
        state, new = Parameters(**tensors), names.shape[1]
        return vars(
            replace(
                state,
                counts=grown(state.counts, new),
                sums=grown(state.sums, new),
                correction=grown(state.correction, new),
                curvature=grown(state.curvature, new),
                names=torch.cat([state.names, self.mixed_names(names).to(torch.float16)]),
            )
        )

    def refine(self, tensors: Tensors, features: torch.Tensor, targets: torch.Tensor) -> Tensors:
        before = Parameters(**tensors)
        classes, chunk = len(before.counts), len(features)
        seen = before.counts.sum()
        counts, sums = class_sums(features, targets, classes)
        ones = torch.cat([features, features.new_ones(chunk, 1)], dim=1)
        state = replace(
            before,
            counts=before.counts + counts,
            sums=before.sums + sums,
            gram=before.gram + pack(ones.T @ ones),
        )
        if self.signal == "data":
            return vars(state)
        values = self.numbers(state.counts.sum(), classes)
        experts = self._experts(state, values)
        absorbed = self.signal == "both"
        scores = experts.held_out(features, targets) if absorbed else experts.scores(features)
        offset = ones @ before.correction.T
        trust = mixture(before.counts, counts, float(chunk))
        deviation, evidence = stack(
            before.deviation, before.evidence, scores, offset, targets, *_prior(values), trust, seen
        )
        weights = (_prior(values)[0] + deviation).exp()
        probabilities = (scores @ weights + offset).softmax(1)
        state = replace(state, deviation=deviation, evidence=evidence)
        return vars(self._correct(state, ones, targets, probabilities, trust, experts.variance, values))

    def merge(self, parts: Sequence[Tensors]) -> Tensors:
        """As `Head.merge`; corrections are averaged by the examples that made them, deviations by their evidence."""
        merged = dict(super().merge(parts))
        share = torch.stack([part["mixed"] for part in parts])
        share = share / share.sum().clamp(min=1)
        merged["correction"] = torch.einsum("p,pcd->cd", share, torch.stack([part["correction"] for part in parts]))
        pull = torch.stack([part["evidence"] @ part["deviation"] for part in parts]).sum(0)
        known = merged["evidence"] + 1e-3 * torch.eye(len(EXPERTS), dtype=torch.float32)
        merged["deviation"] = torch.linalg.solve(known, pull)
        return merged

    def faded(self, tensors: Tensors, factor: float) -> Tensors:
        """As `Head.faded`; the correction too, as what it corrects."""
        faded = dict(super().faded(tensors, factor))
        faded["correction"] = factor * tensors["correction"]
        return faded

    def prepare(self, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """The linear map that the state stands for: weight `[C, d]`, bias `[C]`."""
        state = Parameters(**tensors)
        values = self.numbers(state.counts.sum(), len(state.counts))
        experts = self._experts(state, values)
        weights = (_prior(values)[0] + state.deviation).exp()
        weight = torch.einsum("k,kcd->cd", weights, experts.weight) + state.correction[:, :-1]
        return weight, weights @ experts.bias + state.correction[:, -1]

    def logits(self, prepared: tuple[torch.Tensor, torch.Tensor], features: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(features, *prepared)

    def _experts(self, state: Parameters, values: dict[str, torch.Tensor]) -> Experts:
        size = state.sums.shape[1]
        names = nn.functional.normalize(state.names.float(), dim=1)
        if self.signal == "gradient":
            zeros = torch.zeros_like
            return Experts(Summary(zeros(state.counts), zeros(state.sums), names.new_zeros(size, size), names), values)
        return Experts(Summary(state.counts, state.sums, unpack(state.gram, size + 1)[:size, :size], names), values)

    def _correct(
        self,
        state: Parameters,
        ones: torch.Tensor,
        targets: torch.Tensor,
        probabilities: torch.Tensor,
        trust: torch.Tensor,
        variance: torch.Tensor,
        values: dict[str, torch.Tensor],
    ) -> Parameters:
        """One step of D on a chunk `[n, d + 1]` with its class `probabilities` `[n, C]`."""
        size, classes = ones.shape[1], len(state.counts)
        curvature = state.curvature + trust * (probabilities * (1 - probabilities)).sum(0)
        mixed = state.mixed + trust * len(ones)
        second = unpack(state.gram, size)
        # Before much is known, the curvature is taken for the largest that it can be.
        mean_curvature = (curvature.sum() + values["warmup"] * (1 - 1 / classes)) / (mixed + values["warmup"])
        metric = second * mean_curvature + values["penalty"] * size * variance * torch.eye(
            size, dtype=torch.float32
        ).to(second)
        residual = nn.functional.one_hot(targets, classes).to(probabilities) - probabilities
        share = (values["share"] * (curvature + 1) / (curvature.sum() + classes)).clamp(max=1.0)
        step = torch.cholesky_solve(ones.T @ residual, torch.linalg.cholesky(metric)).T / share[:, None]
        size_of_step = trust * state.mixed / (state.mixed + values["warmup"])
        return replace(state, correction=state.correction + size_of_step * step, curvature=curvature, mixed=mixed)


def _prior(values: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log weights of the experts before any evidence, and how firmly they are held, `[K]` each."""
    weights = torch.stack([values[f"weight_{name}"] for name in EXPERTS]).log()
    return weights, torch.stack([values[f"precision_{name}"] for name in EXPERTS])
