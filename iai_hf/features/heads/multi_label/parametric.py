"""Parametric regime, several labels: C binary problems that share features, moments and the experts' weights.

The state is that of the parametric head, and a logit is the log odds of its label alone. The experts
(`experts.py`) are stacked as ever, on examples left out, each label of each example being a binary one; the
correction takes one preconditioned step of the logistic loss a chunk. All labels share one metric, G and a sphere,
scaled by each label's own mean curvature p (1 - p): one factor serves any number of labels. What left-out examples were
answered is tallied, and says above which logit a label applies (`thresholds.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from iai_hf.features.heads.moments import Moments, Values, pack, unpack, with_one
from iai_hf.features.heads.multi_label.experts import INITIAL, LABEL_EXPERTS, LabelExperts, LabelSummary
from iai_hf.features.heads.multi_label.head import LinearLabels, MultiLabelMoments, label_coverage
from iai_hf.features.heads.multi_label.thresholds import BINS, thresholds
from iai_hf.features.heads.parametric import Parameters, ParametricHead
from iai_hf.features.heads.stacking import prior_metric, stack, temperature_precision
from iai_hf.posterior import own_curvature, solve
from iai_hf.signals import Signal, takes_data, takes_gradient
from iai_hf.task import Tensors

# Chosen on sets that are not among the measured ones; see scripts/results/multilabel.md.
HYPERPARAMETERS = {
    **INITIAL,
    **{f"weight_{name}": 1.0 if name == "frequency" else 0.2 for name in LABEL_EXPERTS},
    **{f"precision_{name}": 30.0 for name in LABEL_EXPERTS},
    "safety": 2.5,  # factor on the curvature, which is not the same everywhere
    "penalty": 30.0,  # of the correction, in units of the features' total variance and of the curvature
    "warmup": 32.0,  # examples after which a correction step has half its size, and the curvature half its prior value
}


@dataclass(frozen=True, eq=False)
class LabelParameters(Parameters):
    """The state of the parametric head by label, and a `tally` of held-out logits, `[C, 2, bins]`."""

    tally: torch.Tensor


class MultiLabelParametricHead(MultiLabelMoments, ParametricHead):
    """logits_c = sum over k of exp(prior_k + deviation_k) (w_kc . x + b_kc) + D_c . [x, 1], each a log odds of its own.

    One versus rest, stacked as in Yao et al. 2018 (arXiv 1704.02030).
    """

    per_class: ClassVar[tuple[str, ...]] = (*ParametricHead.per_class, "tally")
    additive: ClassVar[tuple[str, ...]] = (*ParametricHead.additive, "tally")
    stepped: ClassVar[tuple[str, ...]] = (*ParametricHead.stepped, "tally")
    estimated = ()
    experts = LABEL_EXPERTS

    def __init__(self, signal: Signal = "both") -> None:
        super().__init__(signal, HYPERPARAMETERS)

    def initial(self, size: int) -> Tensors:
        return {**super().initial(size), "tally": torch.zeros(0, 2, BINS, dtype=torch.float32)}

    def refine(self, tensors: Tensors, features: torch.Tensor, targets: torch.Tensor) -> Tensors:
        before, ones = LabelParameters(**tensors), with_one(features)
        new = self.summed(features, targets, len(before.counts))
        state = replace(before, **{name: tensors[name] + moment for name, moment in new.items()})
        if not len(state.counts):  # until a label is known, texts are read that have none
            return state.tensors
        values = self.hyperparameters(self.examples(state.tensors), len(state.counts))
        experts = self._experts(state, values)
        scores = experts.held_out(features, targets) if takes_data(self.signal) else experts.scores(features)
        offset, seen = ones @ before.correction.T, self.examples(tensors)
        prior, precision = self._prior(values)
        trust = label_coverage(state.counts, seen + len(features), targets)
        if takes_gradient(self.signal):
            pairs = _as_pairs(scores), _as_pairs(offset), targets.flatten().long()
            deviation, evidence = stack(
                before.deviation, before.evidence, *pairs, prior, precision, trust, seen * len(state.counts)
            )
            state = replace(state, deviation=deviation, evidence=evidence)
        logits = scores @ (prior + state.deviation).exp() + offset
        state = replace(state, tally=self.tally_after(before.tally, logits, targets, seen, trust))
        if not takes_gradient(self.signal):
            return state.tensors
        return self._corrected(state, ones, targets, logits, trust, experts.variance, values).tensors

    def prepare(self, tensors: Tensors) -> LinearLabels:  # type: ignore[override]
        """The linear map that the state stands for, and the labels' thresholds."""
        state = LabelParameters(**tensors)
        values = self.hyperparameters(self.examples(tensors), len(state.counts))
        experts, weights = self._experts(state, values), (self._prior(values)[0] + state.deviation).exp()
        return LinearLabels(
            torch.einsum("k,kcd->cd", weights, experts.weight) + state.correction[:, :-1],
            weights @ experts.bias + state.correction[:, -1],
            thresholds(state.tally, state.counts),
        )

    def logits(self, prepared: LinearLabels, features: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return torch.nn.functional.linear(features, prepared.weight, prepared.bias)

    def held_out(self, tensors: Tensors, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """As `ParametricHead.held_out`, log odds."""
        state = LabelParameters(**tensors)
        values = self.hyperparameters(self.examples(tensors), len(state.counts))
        experts = self._experts(state, values)
        scores = experts.held_out(features, targets) if takes_data(self.signal) else experts.scores(features)
        return scores @ (self._prior(values)[0] + state.deviation).exp() + with_one(features) @ state.correction.T

    def summed(self, features: torch.Tensor, targets: torch.Tensor, classes: int) -> dict[str, torch.Tensor]:
        ones, own = with_one(features), targets.to(features)
        return {"counts": own.sum(0), "sums": own.T @ features, "gram": pack(ones.T @ ones)}

    def examples(self, tensors: Tensors) -> torch.Tensor:
        return tensors["gram"][-1]

    def all_texts(self, tensors: Tensors) -> Moments:
        size = tensors["sums"].shape[1]
        whole = unpack(tensors["gram"], size + 1)
        return Moments(whole[-1:, -1], whole[-1:, :-1], whole[:size, :size])

    def _precision(self, tensors: Tensors) -> torch.Tensor:
        seen, labels = self.examples(tensors), max(len(tensors["counts"]), 1)
        _, precision = self._prior(self.hyperparameters(seen, labels))
        return prior_metric(precision, temperature_precision(2, seen * labels)) + tensors["evidence"]

    def _experts(self, state: Parameters, values: Values) -> LabelExperts:
        return LabelExperts(self._summary(state), values)

    def _summary(self, state: Parameters) -> LabelSummary:
        plain = super()._summary(state)
        whole = unpack(state.gram, state.sums.shape[1] + 1)[-1]
        if not takes_data(self.signal):
            whole = torch.zeros_like(whole)
        return LabelSummary(**vars(plain), examples=whole[-1], whole=whole[:-1])

    def _corrected(
        self,
        state: LabelParameters,
        ones: torch.Tensor,
        own: torch.Tensor,
        logits: torch.Tensor,
        trust: torch.Tensor,
        variance: torch.Tensor,
        values: Values,
    ) -> LabelParameters:
        """One step of D on a chunk `[n, d + 1]` with its `logits` `[n, C]`.

        The mean curvature is of the answers so far, next to none where a label was not there. Where answers are
        calibrated it is the mean squared residual, so it is taken for no less than that of the chunk, up to the
        variance of the label: else the steps towards one that comes late would have no bound.
        """
        size, examples, warmup = ones.shape[1], self.examples(state.tensors), values["warmup"]
        probabilities, share = logits.sigmoid(), (state.counts + 1) / (examples + 2)
        residual = own.to(ones) - probabilities
        curvature = state.curvature + trust * own_curvature(probabilities).sum(0)
        mixed = state.mixed + trust * len(ones)
        mean_curvature = (curvature + warmup * own_curvature(share)) / (mixed + warmup)
        least = torch.minimum(residual.square().mean(0), own_curvature(share))
        identity = torch.eye(size, dtype=torch.float32).to(ones)
        metric = values["safety"] * unpack(state.gram, size) + values["penalty"] * size * variance * identity
        step = solve(metric, ones.T @ residual).T / torch.maximum(mean_curvature, least)[:, None]
        size_of_step = trust * state.mixed / (state.mixed + warmup)
        return replace(state, correction=state.correction + size_of_step * step, curvature=curvature, mixed=mixed)


def _as_pairs(scores: torch.Tensor) -> torch.Tensor:
    """Log odds `[n, C, ...]` as logits of two classes, `[n * C, 2, ...]`: that the label does not apply, or does."""
    flat = scores.flatten(0, 1)
    return torch.stack([torch.zeros_like(flat), flat], 1)
