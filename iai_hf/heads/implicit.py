"""Implicit regime: nothing but observations is kept, and each query's logits are refined batch by batch.

    logits[i + 1] = r([x, logits[i]], B[i]) = log(exp(logits[i]) + sum over (x_j, c) in B[i] of weight_c K(x, x_j))

With a Gaussian kernel K on unit vectors this is kernel regression (Nadaraya-Watson), the streaming form of one softmax
attention head over all examples: the logits are all that a query carries from batch to batch, the order of batches
does not matter, and no number of steps can harm. Before the first batch the logits are those of the label names.
Learned: the kernel's sharpness, what names count for, how class frequency and temperature enter, as functions of how
much was seen. The state keeps batches within a budget, the newest of each class, balanced; counts of all stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from iai_hf.heads.head import Head, Tensors, grown
from iai_hf.heads.numbers import Numbers

NUMBERS = {
    "sharpness": 15.0,
    "name_sharpness": 10.0,
    "name_count": 1.0,
    "frequency": 1.0,  # exponent of examples seen over examples kept, per class
    "temperature": 0.7,
}
BATCH = 64  # kept examples that refine a query's logits at once
BUDGET = 1024


@dataclass(frozen=True, eq=False)
class Observations:
    """The state: `features` float16 `[kept, d]`, `targets` int16 `[kept]`, `counts` seen `[C]`, `names` `[C, d]`."""

    features: torch.Tensor
    targets: torch.Tensor
    counts: torch.Tensor
    names: torch.Tensor


class ImplicitHead(Head):
    """See the module's text.

    Args:
        budget: examples that the state may keep.
    """

    per_class = ("counts", "names")
    additive = ("counts",)

    def __init__(self, budget: int = BUDGET) -> None:
        super().__init__()
        self.budget = budget
        self.numbers = Numbers(NUMBERS)

    def initial(self, size: int) -> Tensors:
        return vars(
            Observations(
                features=torch.zeros(0, size, dtype=torch.float16),
                targets=torch.zeros(0, dtype=torch.int16),
                counts=torch.zeros(0),
                names=torch.zeros(0, size, dtype=torch.float16),
            )
        )

    def grow(self, tensors: Tensors, names: torch.Tensor) -> Tensors:
        state = Observations(**tensors)
        mixed = torch.cat([state.names, self.mixed_names(names).to(torch.float16)])
        return vars(replace(state, counts=grown(state.counts, names.shape[1]), names=mixed))

    def refine(self, tensors: Tensors, features: torch.Tensor, targets: torch.Tensor) -> Tensors:
        state = Observations(**tensors)
        counts = state.counts + torch.bincount(targets, minlength=len(state.counts))
        every = torch.cat([state.features, features.to(torch.float16)])
        labels = torch.cat([state.targets, targets.to(torch.int16)])
        kept = newest_balanced(labels, len(counts), self.budget)
        return vars(replace(state, features=every[kept], targets=labels[kept], counts=counts))

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

    def prepare(self, tensors: Tensors) -> Observations:
        state = Observations(**tensors)
        names = nn.functional.normalize(state.names.float(), dim=1)
        return replace(state, features=state.features.float(), names=names)

    def logits(self, prepared: Observations, features: torch.Tensor) -> torch.Tensor:
        classes, kept = len(prepared.counts), len(prepared.targets)
        values = self.numbers(prepared.counts.sum(), classes)
        targets = prepared.targets.long()
        here = torch.bincount(targets, minlength=classes).clamp(min=1)
        weight = values["frequency"] * (prepared.counts.clamp(min=1) / here).log()
        similarity = features @ prepared.names.T
        by_name = values["name_sharpness"] * (similarity - similarity.mean(1, keepdim=True))
        # A name weighs as so many examples of typical likeness, whatever the kernel's sharpness is.
        centre = prepared.features.mean(0) if kept else prepared.names.mean(0)
        typical = values["sharpness"] * (features @ centre - 1)
        logits = by_name + typical[:, None] + values["name_count"].log()
        for first in range(0, kept, BATCH):
            last = first + BATCH
            logits = self.refined(
                logits, features, prepared.features[first:last], targets[first:last], weight, values["sharpness"]
            )
        return values["temperature"] * logits

    def refined(
        self,
        logits: torch.Tensor,
        queries: torch.Tensor,
        features: torch.Tensor,
        targets: torch.Tensor,
        weight: torch.Tensor,
        sharpness: torch.Tensor,
    ) -> torch.Tensor:
        """One step r: logits `[n, C]` of queries `[n, d]`, by a batch `[b, d]`, `[b]` with class log weights `[C]`."""
        classes = logits.shape[1]
        # For unit vectors, -|x - x_j|^2 / 2 = x . x_j - 1.
        likeness = sharpness * (queries @ features.T - 1) + weight[targets]
        belongs = targets[:, None] == torch.arange(classes)
        evidence = likeness[:, :, None].masked_fill(~belongs, float("-inf"))
        present = belongs.any(0)
        summed = evidence[:, :, present].logsumexp(1)
        return logits.index_copy(1, present.nonzero()[:, 0], torch.logaddexp(logits[:, present], summed))


def newest_balanced(targets: torch.Tensor, classes: int, budget: int) -> torch.Tensor:
    """Positions `[at most budget]`, in order, of the newest examples of each class, as even as classes allow."""
    if len(targets) <= budget:
        return torch.arange(len(targets))
    counts = torch.bincount(targets.long(), minlength=classes)
    quotas = torch.arange(budget + 1)
    quota = int((torch.minimum(counts, quotas[:, None]).sum(1) <= budget).nonzero().max())
    onehot = torch.nn.functional.one_hot(targets.long(), classes)
    still_to_come = onehot.flip(0).cumsum(0).flip(0)
    rank = still_to_come[torch.arange(len(targets)), targets.long()]  # 1 for the newest of its class
    return (rank <= quota).nonzero()[:, 0]
