"""Explicit regime, several labels: a code of sums, and a predictor that reads it.

The code is that of one label a text, with the sum of all texts beside those by label: `whole`. Of two features
together nothing is known. The predictor adds the experts of such sums (`experts.py`) with fixed weights, brings
the sum to log odds that are as sure as held-out answers were right (Platt 1999; `thresholds.calibration`), and gives a
label where it lies above that label's threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from iai_hf.features.heads.moments import Moments, with_one
from iai_hf.features.heads.multi_label.experts import CODE_EXPERTS, INITIAL, LabelExperts, LabelSummary
from iai_hf.features.heads.multi_label.head import LinearLabels, MultiLabelMoments, label_coverage
from iai_hf.features.heads.multi_label.thresholds import BINS, calibration, thresholds
from iai_hf.task import Tensors

# Chosen on sets that are not among the measured ones; see scripts/results/multilabel.md.
HYPERPARAMETERS = {
    **INITIAL,
    "variance_count": 30.0,  # examples that a sphere counts for in the features' variance
    "weight_name": 0.1,
    "weight_centroid": 0.1,
    "weight_diagonal": 0.2,
    "weight_frequency": 1.0,
}


@dataclass(frozen=True, eq=False)
class LabelCode:
    """The state. Float32, but for `names`.

    Attributes:
        counts: `[C]`.
        sums: `[C, d]`.
        whole: sum of [x, 1] over all texts, `[d + 1]`.
        squares: summed over all texts, `[d]`.
        tally: of held-out logits, `[C, 2, bins]`.
        names: features of the label names, float16 `[C, d]`.
    """

    counts: torch.Tensor
    sums: torch.Tensor
    whole: torch.Tensor
    squares: torch.Tensor
    tally: torch.Tensor
    names: torch.Tensor


class MultiLabelExplicitHead(MultiLabelMoments):
    """logits_c = scale (sum over k of weight_k score_kc(x)) + shift, each a log odds of its own."""

    per_class: ClassVar[tuple[str, ...]] = ("counts", "sums", "tally", "names")
    additive: ClassVar[tuple[str, ...]] = ("counts", "sums", "whole", "squares", "tally")
    moments: ClassVar[tuple[str, ...]] = ("counts", "sums", "whole", "squares")
    stepped: ClassVar[tuple[str, ...]] = ("tally",)

    def __init__(self) -> None:
        super().__init__(HYPERPARAMETERS)

    def initial(self, size: int) -> Tensors:
        return vars(
            LabelCode(
                counts=torch.zeros(0, dtype=torch.float32),
                sums=torch.zeros(0, size, dtype=torch.float32),
                whole=torch.zeros(size + 1, dtype=torch.float32),
                squares=torch.zeros(size, dtype=torch.float32),
                tally=torch.zeros(0, 2, BINS, dtype=torch.float32),
                names=torch.zeros(0, size, dtype=torch.float16),
            )
        )

    def refine(self, tensors: Tensors, features: torch.Tensor, targets: torch.Tensor) -> Tensors:
        new = self.summed(features, targets, len(tensors["counts"]))
        after = {**tensors, **{name: tensors[name] + moment for name, moment in new.items()}}
        if not len(after["counts"]):  # until a label is known, texts are read that have none
            return after
        experts, weights = self._experts(after)
        logits, seen = experts.held_out(features, targets) @ weights, self.examples(tensors)
        trust = label_coverage(after["counts"], seen + len(features), targets)
        return {**after, "tally": self.tally_after(tensors["tally"], logits, targets, seen, trust)}

    def prepare(self, tensors: Tensors) -> LinearLabels:
        """The linear map that the code is read as, and the labels' thresholds."""
        experts, weights = self._experts(tensors)
        scale, shift = calibration(tensors["tally"])
        return LinearLabels(
            scale * torch.einsum("k,kcd->cd", weights, experts.weight),
            scale * (weights @ experts.bias) + shift,
            scale * thresholds(tensors["tally"], tensors["counts"]) + shift,
        )

    def logits(self, prepared: LinearLabels, features: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(features, prepared.weight, prepared.bias)

    def summed(self, features: torch.Tensor, targets: torch.Tensor, classes: int) -> dict[str, torch.Tensor]:
        own, whole = targets.to(features), with_one(features).sum(0)
        return {"counts": own.sum(0), "sums": own.T @ features, "whole": whole, "squares": features.square().sum(0)}

    def examples(self, tensors: Tensors) -> torch.Tensor:
        return tensors["whole"][-1]

    def all_texts(self, tensors: Tensors) -> Moments:
        return Moments(tensors["whole"][-1:], tensors["whole"][None, :-1], tensors["squares"])

    def _experts(self, tensors: Tensors) -> tuple[LabelExperts, torch.Tensor]:
        """All experts, and their weights `[K]`."""
        code = LabelCode(**tensors)
        values = self.hyperparameters(self.examples(tensors), len(code.counts))
        names = nn.functional.normalize(code.names.float(), dim=1)
        summary = LabelSummary(code.counts, code.sums, code.squares, names, code.whole[-1], code.whole[:-1])
        return LabelExperts(summary, values), torch.stack([values[f"weight_{name}"] for name in CODE_EXPERTS])
