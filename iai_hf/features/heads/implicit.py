"""Implicit regime: nothing but observations is kept, and each query's logits are refined batch by batch.

    logits[i + 1] = r([x, logits[i]], B[i]) = logits[i] + sum over (x_j, c_j) in B[i] of K(x, x_j) move_j
    moves of a batch = (K_bb / 2 + penalty)^-1 (onehot(c) - softmax(logits[i]) - penalty * moves so far)

Data and gradient are the signal: a batch's residuals are the loss's gradient in the logits, spread by a kernel K to
like texts, queries and observations alike, in steps that Boehning's (1992) bound of the curvature keeps from
overshooting. A few rounds over the batches are block coordinate descent on kernel logistic regression, around the
label names, which alone speak before the first batch. Learned: the kernel's sharpness and scale, the penalty, what
names count for, how class frequency and temperature enter, as functions of how much was seen. The observations tell
how far the temperature should be another, each as if it alone were left out. The state keeps observations within a
budget, each once, the newest of each class, balanced; counts of all stay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from iai_hf.features.heads.kernel import BUDGET, SAME, KernelHead, Prepared, newest_balanced, newest_of_same
from iai_hf.features.heads.stacking import inverse_temperature
from iai_hf.posterior import residual
from iai_hf.task import Tensors

HYPERPARAMETERS = {
    "sharpness": 1.0,
    "scale": 20.0,
    "penalty": 0.5,
    "name_scale": 10.0,
    "frequency": 1.0,  # exponent of examples seen over examples kept, per class
    "temperature": 1.5,
}


@dataclass(frozen=True, eq=False)
class Observations:
    """The state: `features` float16 `[kept, d]`, `targets` int16 `[kept]`, `counts` seen `[C]`, `names` `[C, d]`."""

    features: torch.Tensor
    targets: torch.Tensor
    counts: torch.Tensor
    names: torch.Tensor


class ImplicitHead(KernelHead):
    """logits[i + 1] = logits[i] + sum over (x_j, c_j) in B[i] of K(x, x_j) move_j: kernel logistic regression.

    The implicit regime of Mittal et al. 2025, arXiv 2510.11471: yhat[i+1] = r_gamma([x, yhat[i]], B[i]).

    Args:
        budget: examples that the state may keep.
    """

    per_class = ("counts", "names")
    additive = ("counts",)
    moments = ("counts",)

    def __init__(self, budget: int = BUDGET) -> None:
        super().__init__(HYPERPARAMETERS, budget)

    def initial(self, size: int) -> Tensors:
        return vars(
            Observations(
                features=torch.zeros(0, size, dtype=torch.float16),
                targets=torch.zeros(0, dtype=torch.int16),
                counts=torch.zeros(0, dtype=torch.float32),
                names=torch.zeros(0, size, dtype=torch.float16),
            )
        )

    def refine(self, tensors: Tensors, features: torch.Tensor, targets: torch.Tensor) -> Tensors:
        state = Observations(**tensors)
        counts = state.counts + torch.bincount(targets, minlength=len(state.counts))
        every = torch.cat([state.features, features.to(torch.float16)])
        labels = torch.cat([state.targets, targets.to(torch.int16)])
        once = newest_of_same(every.float(), labels, len(features))
        every, labels = every[once], labels[once]
        kept = newest_balanced(labels, len(counts), self.budget)
        return vars(replace(state, features=every[kept], targets=labels[kept], counts=counts))

    def without(self, tensors: Tensors, features: torch.Tensor, targets: torch.Tensor) -> Tensors:
        """As `Head.without`; observations of the same texts go, however often these were read."""
        state = Observations(**tensors)
        kept = ~self._same(state, features, targets).any(1)
        counts = state.counts - torch.bincount(targets, minlength=len(state.counts))
        return vars(replace(state, features=state.features[kept], targets=state.targets[kept], counts=counts))

    def may_hold(self, tensors: Tensors, features: torch.Tensor, targets: torch.Tensor) -> bool:
        """As `Head.may_hold`: an example that is not kept was pushed out by others, or came before."""
        state = Observations(**tensors)
        missing = ~self._same(state, features, targets).any(0)
        classes = len(state.counts)
        here = torch.bincount(state.targets.long(), minlength=classes)
        return bool((torch.bincount(targets[missing], minlength=classes) <= state.counts - here + 0.5).all())

    def _same(self, state: Observations, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Which observations are of which examples, `[kept, n]`."""
        kept, given = (nn.functional.normalize(some.float(), dim=1) for some in (state.features, features))
        return (kept @ given.T > SAME) & (state.targets[:, None] == targets)

    def traces(self, tensors: Tensors, *, of_stream: bool = False) -> tuple[str, ...]:
        """As `Head.traces`: another observation would be kept in the place of one that pushed it out."""
        pushed_out = not of_stream and len(tensors["targets"]) < float(tensors["counts"].sum()) - 0.5
        return ("features", "targets") if pushed_out else ()

    def without_class(self, tensors: Tensors, number: int) -> Tensors:
        kept = tensors["targets"] != number
        counts = tensors["counts"].index_fill(0, torch.tensor([number], device=kept.device), 0)
        return {**tensors, "counts": counts, **{name: tensors[name][kept] for name in ("features", "targets")}}

    def regrouped(self, tensors: Tensors, kept: torch.Tensor, places: torch.Tensor, classes: int) -> Tensors:
        """As `Head.regrouped`; observations get the new class numbers."""
        moved = dict(super().regrouped(tensors, kept, places, classes))
        place_of = torch.zeros_like(tensors["counts"], dtype=torch.long).index_copy(0, kept, places)
        return moved | {"targets": place_of[tensors["targets"].long()].to(torch.int16)}

    def merge(self, parts: Sequence[Tensors]) -> Tensors:
        """As `Head.merge`; observations are put one behind the other, within the budget."""
        merged = dict(super().merge(parts))
        targets = torch.cat([part["targets"] for part in parts])
        kept = newest_balanced(targets, len(merged["counts"]), self.budget)
        merged["targets"] = targets[kept]
        merged["features"] = torch.cat([part["features"] for part in parts])[kept]
        return merged

    def aligned(self, tensors: Tensors, places: torch.Tensor, classes: int) -> Tensors:
        """As `Head.aligned`; observations get the new class numbers."""
        moved = dict(super().aligned(tensors, places, classes))
        moved["targets"] = places[tensors["targets"].long()].to(torch.int16)
        return moved

    def faded(self, tensors: Tensors, factor: float) -> Tensors:
        """As `Head.faded`; of the observations, as many of the oldest go."""
        faded = dict(super().faded(tensors, factor))
        gone = len(tensors["targets"]) - math.ceil(factor * len(tensors["targets"]))
        return faded | {name: tensors[name][gone:] for name in ("features", "targets")}

    def prepare(self, tensors: Tensors) -> Prepared:
        state = Observations(**tensors)
        features, targets = state.features.float(), state.targets.long()
        classes = len(state.counts)
        values = self.hyperparameters(state.counts.sum(), classes)
        names = nn.functional.normalize(state.names.float(), dim=1)
        here = torch.bincount(targets, minlength=classes).clamp(min=1)
        weight = values["frequency"] * (state.counts.clamp(min=1) / here).log()
        start = values["name_scale"] * (names - names.mean(0))
        none = features.new_zeros(len(features), classes)
        prepared = Prepared(features, none, start, weight, values, values["temperature"])
        onehot = nn.functional.one_hot(targets, classes).to(features)
        prepared = replace(prepared, moves=self._moves(prepared, onehot))
        scores = values["temperature"] * self._held_out(prepared)
        observed = inverse_temperature(scores, weight, targets)
        return replace(prepared, inverse_temperature=values["temperature"] * observed)

    @staticmethod
    def residual(logits: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        return residual(logits, own)
