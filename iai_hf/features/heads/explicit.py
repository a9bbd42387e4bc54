"""Explicit regime: the state is a compact code of the task, and the predictor that reads it is learned too.

The code holds, per class, a count, a mean text and a name, and one variance for all features: 6 bytes a feature and
class, no second moment. The predictor adds known scores of (query, class) with learned weights: similarity to the
name, plain and centred; to the class's mean, plain and with features weighted by their variance; and the class's
frequency. A small network, the same for every class, corrects the sum from the scores themselves and from how much
was seen. At its initial value the network is silent, and the predictor is a nearest-centroid classifier around names.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from iai_hf.features.heads.head import Head, Tensors, grown
from iai_hf.features.heads.moments import class_sums
from iai_hf.features.heads.numbers import Numbers

SCORES = ("name", "centred", "centroid", "diagonal", "frequency")
NUMBERS = {
    "name_count": 2.0,
    "name_reach": 0.5,
    "centre_count": 4.0,
    "variance_count": 30.0,  # examples that a sphere counts for in the features' variance
    "share_count": 1.0,
    **{f"weight_{name}": 0.1 for name in SCORES[:-1]},
    "weight_frequency": 0.3,
}
WIDTH = 32
LARGEST_CORRECTION = 3.0  # of a logit


@dataclass(frozen=True, eq=False)
class Code:
    """The state: `counts` `[C]`, `sums` `[C, d]`, `squares` `[d]` (summed over examples), `names` float16 `[C, d]`."""

    counts: torch.Tensor
    sums: torch.Tensor
    squares: torch.Tensor
    names: torch.Tensor


class ExplicitHead(Head):
    """See the module's text."""

    per_class = ("counts", "sums", "names")
    additive = ("counts", "sums", "squares")

    def __init__(self) -> None:
        super().__init__()
        self.numbers = Numbers(NUMBERS)
        hidden, last = (
            nn.Linear(2 * len(SCORES) + 3, WIDTH, dtype=torch.float32),
            nn.Linear(WIDTH, 1, dtype=torch.float32),
        )
        # The same in every process: an untrained head is a known thing.
        hidden.weight.data.normal_(std=hidden.in_features**-0.5, generator=torch.Generator().manual_seed(0))
        for silent in (hidden.bias, last.weight, last.bias):
            nn.init.zeros_(silent)
        self.network = nn.Sequential(hidden, nn.GELU(), last)

    def initial(self, size: int) -> Tensors:
        return vars(
            Code(
                counts=torch.zeros(0, dtype=torch.float32),
                sums=torch.zeros(0, size, dtype=torch.float32),
                squares=torch.zeros(size, dtype=torch.float32),
                names=torch.zeros(0, size, dtype=torch.float16),
            )
        )

    def grow(self, tensors: Tensors, names: torch.Tensor) -> Tensors:
        code, new = Code(**tensors), names.shape[1]
        mixed = torch.cat([code.names, self.mixed_names(names).to(torch.float16)])
        return vars(replace(code, counts=grown(code.counts, new), sums=grown(code.sums, new), names=mixed))

    def refine(self, tensors: Tensors, features: torch.Tensor, targets: torch.Tensor) -> Tensors:
        code = Code(**tensors)
        counts, sums = class_sums(features, targets, len(code.counts))
        squares = code.squares + features.square().sum(0)
        return vars(replace(code, counts=code.counts + counts, sums=code.sums + sums, squares=squares))

    def prepare(self, tensors: Tensors) -> Prepared:
        code = Code(**tensors)
        counts, sums, total, classes = code.counts, code.sums, code.counts.sum(), len(code.counts)
        values = self.numbers(total, classes)
        names = nn.functional.normalize(code.names.float(), dim=1)
        mean_name = names.mean(0)
        centre = (sums.sum(0) + values["centre_count"] * mean_name) / (total + values["centre_count"])
        prior = centre + values["name_reach"] * (names - mean_name)
        means = (sums + values["name_count"] * prior) / (counts + values["name_count"])[:, None]
        within = (code.squares - (2 * means * sums - counts[:, None] * means.square()).sum(0)).clamp(min=0)
        typical = (within.mean() + 4 * ((names - mean_name).square().mean() + 1e-6)) / (total + 4)
        variance = (within + values["variance_count"] * typical) / (total + values["variance_count"])
        unit, precision = 0.1 / typical, 0.3 / variance
        frequency = ((counts + values["share_count"]) / (total + classes * values["share_count"])).log()
        weight = torch.stack(
            [0.3 * unit * names, unit * (names - mean_name), unit * (means - centre), precision * (means - centre)]
        )
        bias = torch.stack(
            [
                torch.zeros(classes).to(sums),
                -unit * (names - mean_name) @ centre,
                -0.5 * unit * means.square().sum(1),
                -0.5 * (precision * (means.square() - centre.square())).sum(1),
            ]
        )
        weights = torch.stack([values[f"weight_{name}"] for name in SCORES])
        return Prepared(weight, bias, frequency, weights, torch.log1p(counts), torch.log1p(total))

    def logits(self, prepared: Prepared, features: torch.Tensor) -> torch.Tensor:
        linear = torch.einsum("nd,kcd->nck", features, prepared.weight) + prepared.bias.T
        queries, classes = linear.shape[:2]
        scores = torch.cat([linear, prepared.frequency.expand(queries, classes)[..., None]], -1) * prepared.weights
        against_best = scores - scores.max(1, keepdim=True).values
        amounts = torch.stack(
            [
                prepared.class_amounts.expand(queries, classes),
                prepared.amount.expand(queries, classes),
                torch.full((queries, classes), float(classes)).log().to(scores),
            ],
            -1,
        )
        inputs = torch.cat([scores - scores.mean(1, keepdim=True), against_best, 0.2 * amounts], -1)
        return scores.sum(-1) + LARGEST_CORRECTION * self.network(inputs)[..., 0].tanh()


@dataclass(frozen=True, eq=False)
class Prepared:
    """Linear scores `[4, C, d]` and `[4, C]`, the frequency's `[C]`, weights `[5]`, log amounts `[C]` and `[]`."""

    weight: torch.Tensor
    bias: torch.Tensor
    frequency: torch.Tensor
    weights: torch.Tensor
    class_amounts: torch.Tensor
    amount: torch.Tensor
