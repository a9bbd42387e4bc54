"""Explicit regime: the state is a compact code of the task, and the predictor that reads it is learned too.

    logits_c = sum over k of weight_k score_kc(x) + bounded(network(scores_c, amounts))

The code holds, per class, a count, a mean text and a name, and one variance for all features: 6 bytes a feature and
class, no second moment. The predictor adds known scores of (query, class) with learned weights: similarity to the
name, plain and centred; to the class's mean (as in prototypical networks, Snell et al. 2017, arXiv 1703.05175), plain
and with features weighted by their variance; and the class's frequency. A small network, the same for every class,
corrects the sum from the scores themselves and from how much was seen. At its initial value the network is silent,
and the predictor is a nearest-centroid classifier around names.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from iai_hf.features.heads.head import Head
from iai_hf.features.heads.moments import (
    Moments,
    Values,
    class_means,
    class_sums,
    log_shares,
    may_hold,
    pooled_variance,
    within_classes,
)
from iai_hf.features.heads.unlabelled import Scores, SoftMoments, informed, split
from iai_hf.posterior import bounded
from iai_hf.task import Tensors

SCORES = ("name", "centred", "centroid", "diagonal", "frequency")
INFORMED = {"centred": 0.5, "diagonal": 0.5}  # scores that take unlabelled rows, and how far
HYPERPARAMETERS = {
    "name_count": 2.0,
    "name_reach": 0.5,
    "centre_count": 4.0,
    "variance_count": 30.0,  # examples that a sphere counts for in the features' variance
    "share_count": 1.0,
    **{f"weight_{name}": 0.3 if name == "frequency" else 0.1 for name in SCORES},
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

    def with_soft(self, soft: SoftMoments) -> Code:
        """The same with moments of unlabelled rows beside them."""
        counts, sums, squares = self.counts + soft.counts, self.sums + soft.sums, self.squares + soft.second.diagonal()
        return Code(counts, sums, squares, self.names)


@dataclass(frozen=True, eq=False)
class Prepared:
    """Linear scores `[5, C, d]` and `[5, C]`, their weights `[5]`, log amounts `[C]` and `[]`."""

    weight: torch.Tensor
    bias: torch.Tensor
    weights: torch.Tensor
    class_amounts: torch.Tensor
    amount: torch.Tensor


class ExplicitHead(Head):
    """logits_c = sum over k of weight_k score_kc(x) + bounded(network(scores_c, amounts)).

    A deep-set code read by a learned predictor: the explicit regime of Mittal et al. 2025, arXiv 2510.11471.
    """

    per_class = ("counts", "sums", "names")
    additive = ("counts", "sums", "squares")
    moments = ("counts", "sums", "squares")
    estimated = ("squares",)

    def __init__(self) -> None:
        super().__init__(HYPERPARAMETERS)
        inner = nn.Linear(2 * len(SCORES) + 3, WIDTH, dtype=torch.float32)
        last = nn.Linear(WIDTH, 1, dtype=torch.float32)
        # The same in every process: an untrained head is a known thing.
        inner.weight.data.normal_(std=inner.in_features**-0.5, generator=torch.Generator().manual_seed(0))
        for silent in (inner.bias, last.weight, last.bias):
            nn.init.zeros_(silent)
        self.network = nn.Sequential(inner, nn.GELU(), last)

    def initial(self, size: int) -> Tensors:
        return vars(
            Code(
                counts=torch.zeros(0, dtype=torch.float32),
                sums=torch.zeros(0, size, dtype=torch.float32),
                squares=torch.zeros(size, dtype=torch.float32),
                names=torch.zeros(0, size, dtype=torch.float16),
            )
        )

    def refine(self, tensors: Tensors, features: torch.Tensor, targets: torch.Tensor) -> Tensors:
        new = self.summed(features, targets, len(tensors["counts"]))
        return {**tensors, **{name: tensors[name] + moment for name, moment in new.items()}}

    def summed(self, features: torch.Tensor, targets: torch.Tensor, classes: int) -> dict[str, torch.Tensor]:
        counts, sums = class_sums(features, targets, classes)
        return {"counts": counts, "sums": sums, "squares": features.square().sum(0)}

    def may_hold(self, tensors: Tensors, features: torch.Tensor, targets: torch.Tensor) -> bool:
        gone = self.summed(features, targets, len(tensors["counts"]))
        return may_hold(_moments(tensors), _moments(gone))

    def without_class(self, tensors: Tensors, number: int) -> Tensors:
        """As `Head.without_class`: of the squares, those of the class's mean, and its share of the scatter."""
        counts, sums = tensors["counts"], tensors["sums"]
        own = sums[number].square() / counts[number].clamp(min=1e-6)
        scatter = counts[number] / counts.sum().clamp(min=1e-6) * within_classes(_moments(tensors))
        empty = torch.tensor([number], device=counts.device)
        rows = {name: tensors[name].index_fill(0, empty, 0) for name in ("counts", "sums")}
        return {**tensors, **rows, "squares": tensors["squares"] - own - scatter}

    def prepare(self, tensors: Tensors) -> Prepared:
        tensors, sample = split(tensors)
        code = Code(**tensors)
        total, classes = code.counts.sum(), len(code.counts)
        values = self.hyperparameters(total, classes)
        amounts = torch.stack([values[f"weight_{name}"] for name in SCORES]), code.counts.log1p(), total.log1p()
        scores = _scores(code, values)
        if sample is not None:
            scores = informed(
                sample,
                code.counts,
                code.sums,
                scores,
                lambda soft: _scores(code.with_soft(soft), values),
                lambda found, features: self.logits(Prepared(found.weight, found.bias, *amounts), features),
                torch.tensor([INFORMED.get(name, 0.0) for name in SCORES], dtype=torch.float32).to(total),
            )
        return Prepared(scores.weight, scores.bias, *amounts)

    def logits(self, prepared: Prepared, features: torch.Tensor) -> torch.Tensor:
        scores = (torch.einsum("nd,kcd->nck", features, prepared.weight) + prepared.bias.T) * prepared.weights
        queries, classes = scores.shape[:2]
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
        correction = LARGEST_CORRECTION * self.network(inputs)[..., 0]
        return scores.sum(-1) + bounded(correction, LARGEST_CORRECTION)


def _moments(tensors: Tensors) -> Moments:
    return Moments(tensors["counts"], tensors["sums"], tensors["squares"])


def _scores(code: Code, values: Values) -> Scores:
    """Those of `SCORES`, in that order."""
    counts, sums, total, classes = code.counts, code.sums, code.counts.sum(), len(code.counts)
    names = nn.functional.normalize(code.names.float(), dim=1)
    found = class_means(counts, sums, names, values)
    means, centre = found.means, found.centre
    within = (code.squares - (2 * means * sums - counts[:, None] * means.square()).sum(0)).clamp(min=0)
    typical = pooled_variance(within.mean(), found.names, total)
    variance = (within + values["variance_count"] * typical) / (total + values["variance_count"])
    unit, precision = 0.1 / typical, 0.3 / variance
    scores = {
        "name": (0.3 * unit * names, torch.zeros_like(counts)),
        "centred": (unit * found.names, -unit * found.names @ centre),
        "centroid": (unit * (means - centre), -0.5 * unit * means.square().sum(1)),
        "diagonal": (
            precision * (means - centre),
            -0.5 * (precision * (means.square() - centre.square())).sum(1),
        ),
        "frequency": (torch.zeros_like(names), log_shares(counts, total, classes, values["share_count"])),
    }
    weight, bias = (torch.stack([scores[name][part] for name in SCORES]) for part in (0, 1))
    return Scores(weight, bias)
