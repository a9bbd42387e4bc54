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

from iai_hf.features.heads.head import Head
from iai_hf.features.heads.stacking import inverse_temperature
from iai_hf.posterior import BOUND, residual
from iai_hf.task import Tensors

HYPERPARAMETERS = {
    "sharpness": 1.0,
    "scale": 20.0,
    "penalty": 0.5,
    "name_scale": 10.0,
    "frequency": 1.0,  # exponent of examples seen over examples kept, per class
    "temperature": 1.5,
}
BATCH = 256  # kept examples that refine logits at once
ROUNDS = 5
SAME = 0.999  # similarity of two features, unit vectors, from which on they are of the same text
BUDGET = 1024
CURVATURE = 0.25  # of an observation, p (1 - p), at most


@dataclass(frozen=True, eq=False)
class Observations:
    """The state: `features` float16 `[kept, d]`, `targets` int16 `[kept]`, `counts` seen `[C]`, `names` `[C, d]`."""

    features: torch.Tensor
    targets: torch.Tensor
    counts: torch.Tensor
    names: torch.Tensor


@dataclass(frozen=True, eq=False)
class Prepared:
    """What queries need.

    Attributes:
        features, moves: of the observations, `[kept, d]` and `[kept, C]`.
        names: weight of the logits before the first batch, `[C, d]`.
        weight: log weights of the classes, `[C]`.
        values: learned numbers.
        inverse_temperature: what logits are multiplied by, as the observations tell, `[]`.
    """

    features: torch.Tensor
    moves: torch.Tensor
    names: torch.Tensor
    weight: torch.Tensor
    values: dict[str, torch.Tensor]
    inverse_temperature: torch.Tensor

    def by_name(self, features: torch.Tensor) -> torch.Tensor:
        """Logits before the first batch."""
        return features @ self.names.T

    def kernel(self, features: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
        """K: Gaussian, for unit vectors have -|x - x_j|^2 / 2 = x . x_j - 1."""
        sharpness = self.values["sharpness"]
        return self.values["scale"] / sharpness * (sharpness * (features @ observed.T - 1)).exp()


class ImplicitHead(Head):
    """logits[i + 1] = logits[i] + sum over (x_j, c_j) in B[i] of K(x, x_j) move_j: kernel logistic regression.

    The implicit regime of Mittal et al. 2025, arXiv 2510.11471: yhat[i+1] = r_gamma([x, yhat[i]], B[i]).

    Args:
        budget: examples that the state may keep.
    """

    per_class = ("counts", "names")
    additive = ("counts",)
    moments = ("counts",)

    def __init__(self, budget: int = BUDGET) -> None:
        super().__init__(HYPERPARAMETERS)
        self.budget = budget

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

    def logits(self, prepared: Prepared, features: torch.Tensor) -> torch.Tensor:
        return prepared.inverse_temperature * self._refined(prepared, features) + prepared.weight

    def _refined(self, prepared: Prepared, features: torch.Tensor) -> torch.Tensor:
        """Logits `[n, C]` after all batches, at temperature 1 and without the classes' weights."""
        logits = prepared.by_name(features)
        for batch in batches(prepared.features):
            logits = logits + prepared.kernel(features, prepared.features[batch]) @ prepared.moves[batch]
        return logits

    def _held_out(self, prepared: Prepared) -> torch.Tensor:
        """Logits `[kept, C]` of the observations, each without what it moved itself.

        As in kernel ridge regression a residual grows by a closed form of the kernel's inverse; an observation's
        curvature p (1 - p) is taken for the largest that it can be.
        """
        penalty, own = prepared.values["penalty"] / CURVATURE, prepared.features.new_zeros(len(prepared.features))
        for batch in batches(prepared.features):
            observed = prepared.features[batch]
            ridged = prepared.kernel(observed, observed) + penalty * torch.eye(len(batch), dtype=torch.float32).to(
                observed
            )
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(ridged))
            own = own.index_add(0, batch, 1 / inverse.diagonal() - penalty)
        return self._refined(prepared, prepared.features) - own[:, None] * prepared.moves

    def _moves(self, prepared: Prepared, onehot: torch.Tensor) -> torch.Tensor:
        """What each observation moves the logits of like texts by, `[kept, C]`."""
        penalty, steps = prepared.values["penalty"], []
        for batch in batches(onehot):
            kernel = prepared.kernel(prepared.features, prepared.features[batch])
            bound = BOUND * kernel[batch] + penalty * torch.eye(kernel.shape[1]).to(kernel)
            steps.append((batch, kernel, torch.linalg.cholesky(bound)))
        moves, logits = prepared.moves, prepared.by_name(prepared.features)
        for _ in range(ROUNDS):
            for batch, kernel, factor in steps:
                move = torch.cholesky_solve(residual(logits[batch], onehot[batch]) - penalty * moves[batch], factor)
                moves = moves.index_add(0, batch, move)
                logits = logits + kernel @ move
        return moves


def batches(observed: torch.Tensor) -> list[torch.Tensor]:
    """Positions of each batch among what was `[kept, ...]` observed, dealt out: a sorted stream's batches are mixed."""
    count = math.ceil(len(observed) / BATCH)
    return [torch.arange(first, len(observed), count, device=observed.device) for first in range(count)]


def newest_of_same(features: torch.Tensor, targets: torch.Tensor, new: int) -> torch.Tensor:
    """Positions, in order, without the examples that come again among the last `new`: those push no others out."""
    first = len(targets) - new
    same = (features @ features[first:].T > SAME) & (targets[:, None] == targets[first:])
    places = torch.arange(len(targets), device=targets.device)
    later = places[:, None] < places[first:]
    return (~(same & later).any(1)).nonzero()[:, 0]


def newest_balanced(targets: torch.Tensor, classes: int, budget: int) -> torch.Tensor:
    """Positions `[at most budget]`, in order, of the newest examples of each class, as even as classes allow."""
    places = torch.arange(len(targets), device=targets.device)
    if len(targets) <= budget:
        return places
    counts = torch.bincount(targets.long(), minlength=classes)
    quotas = torch.arange(budget + 1, device=targets.device)
    quota = int((torch.minimum(counts, quotas[:, None]).sum(1) <= budget).nonzero().max())
    onehot = torch.nn.functional.one_hot(targets.long(), classes)
    still_to_come = onehot.flip(0).cumsum(0).flip(0)
    rank = still_to_come[places, targets.long()]  # 1 for the newest of its class
    return (rank <= quota).nonzero()[:, 0]
