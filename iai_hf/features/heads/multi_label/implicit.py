"""Implicit regime, several labels: observations alone, from which each label's log odds are refined batch by batch.

As of one label (`heads/implicit.py`), with the residual of each label's logistic loss, whose curvature is at most 1/4.
Logits begin at the log odds of the label's share. The budget is balanced over the rarest label of each observation.
What observations are answered as if each alone were left out says how sure answers are, and above which logit a label
applies (`thresholds.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from iai_hf.features.heads.kernel import (
    BUDGET,
    CURVATURE,
    SAME,
    KernelHead,
    Prepared,
    newest_balanced,
    newest_of_same,
)
from iai_hf.features.heads.multi_label.head import MultiLabelHead
from iai_hf.features.heads.multi_label.thresholds import calibration, tallied, thresholds
from iai_hf.task import Tensors

# Chosen on sets that are not among the measured ones; see scripts/results/multilabel.md.
HYPERPARAMETERS = {
    "sharpness": 2.0,
    "scale": 20.0,
    "penalty": 0.5,
    "name_scale": 15.0,
    "centre_count": 4.0,  # observations that the mean name counts for in the mean text
    "share_count": 0.5,  # examples that each label, and none of them, has in advance in its share
}


@dataclass(frozen=True, eq=False)
class LabelledObservations:
    """The state: `features` float16 `[kept, d]`, `targets` bool `[kept, C]`, `names` float16 `[C, d]`.

    `counts` `[C]` and `examples` `[]` are of all that were read.
    """

    features: torch.Tensor
    targets: torch.Tensor
    counts: torch.Tensor
    examples: torch.Tensor
    names: torch.Tensor


@dataclass(frozen=True, eq=False)
class PreparedLabels(Prepared):
    """The same of label sets.

    Attributes:
        bias: of the logits before the first batch, `[C]`.
        thresholds: `[C]`.
    """

    bias: torch.Tensor
    thresholds: torch.Tensor

    def by_name(self, features: torch.Tensor) -> torch.Tensor:
        return features @ self.names.T + self.bias


class MultiLabelImplicitHead(MultiLabelHead, KernelHead):
    """logits[i + 1] = logits[i] + sum over (x_j, y_j) in B[i] of K(x, x_j) move_j: kernel logistic regression.

    Args:
        budget: examples that the state may keep.
    """

    per_class: ClassVar[tuple[str, ...]] = ("counts", "names")
    additive: ClassVar[tuple[str, ...]] = ("counts", "examples")
    moments: ClassVar[tuple[str, ...]] = ("counts", "examples")
    bound: ClassVar[float] = CURVATURE

    def __init__(self, budget: int = BUDGET) -> None:
        super().__init__(HYPERPARAMETERS, budget)

    def initial(self, size: int) -> Tensors:
        return vars(
            LabelledObservations(
                features=torch.zeros(0, size, dtype=torch.float16),
                targets=torch.zeros(0, 0, dtype=torch.bool),
                counts=torch.zeros(0, dtype=torch.float32),
                examples=torch.zeros((), dtype=torch.float32),
                names=torch.zeros(0, size, dtype=torch.float16),
            )
        )

    def refine(self, tensors: Tensors, features: torch.Tensor, targets: torch.Tensor) -> Tensors:
        state = LabelledObservations(**tensors)
        counts, every = state.counts + targets.sum(0), torch.cat([state.features, features.to(torch.float16)])
        sets = torch.cat([state.targets, targets])
        once = newest_of_same(every.float(), _numbered(sets), len(features))
        kept = once[self._kept(sets[once], counts)]
        examples = state.examples + len(features)
        return vars(replace(state, features=every[kept], targets=sets[kept], counts=counts, examples=examples))

    def examples(self, tensors: Tensors) -> torch.Tensor:
        return tensors["examples"]

    def grow(self, tensors: Tensors, names: torch.Tensor) -> Tensors:
        new = tensors["targets"].new_zeros(len(tensors["targets"]), names.shape[1])
        return {**super().grow(tensors, names), "targets": torch.cat([tensors["targets"], new], 1)}

    def without(self, tensors: Tensors, features: torch.Tensor, targets: torch.Tensor) -> Tensors:
        """As `Head.without`; observations of the same texts go, however often these were read."""
        state = LabelledObservations(**tensors)
        kept = ~_same(state, features, targets).any(1)
        counts, examples = state.counts - targets.sum(0), state.examples - len(targets)
        left = replace(state, features=state.features[kept], targets=state.targets[kept])
        return vars(replace(left, counts=counts, examples=examples))

    def may_hold(self, tensors: Tensors, features: torch.Tensor, targets: torch.Tensor) -> bool:
        """As `Head.may_hold`: an example that is not kept was pushed out by others, or came before."""
        state = LabelledObservations(**tensors)
        missing = ~_same(state, features, targets).any(0)
        if int(missing.sum()) > float(state.examples) - len(state.targets) + 0.5:
            return False
        return bool((targets[missing].sum(0) <= state.counts - state.targets.sum(0) + 0.5).all())

    def traces(self, tensors: Tensors, *, of_stream: bool = False) -> tuple[str, ...]:
        """As `Head.traces`: another observation would be kept in the place of one that pushed it out."""
        pushed_out = not of_stream and len(tensors["targets"]) < float(tensors["examples"]) - 0.5
        return ("features", "targets") if pushed_out else ()

    def without_class(self, tensors: Tensors, number: int) -> Tensors:
        empty = torch.tensor([number], device=tensors["counts"].device)
        return {**super().without_class(tensors, number), "targets": tensors["targets"].index_fill(1, empty, False)}

    def regrouped(self, tensors: Tensors, kept: torch.Tensor, places: torch.Tensor, classes: int) -> Tensors:
        """As `Head.regrouped`; the observations' labels move along."""
        moved = super().regrouped(tensors, kept, places, classes)
        return {**moved, "targets": _moved(tensors["targets"][:, kept], places, classes)}

    def aligned(self, tensors: Tensors, places: torch.Tensor, classes: int) -> Tensors:
        """As `Head.aligned`, for the observations' labels too."""
        moved = super().aligned(tensors, places, classes)
        return {**moved, "targets": _moved(tensors["targets"], places, classes)}

    def merge(self, parts: Sequence[Tensors]) -> Tensors:
        """As `Head.merge`; observations are put one behind the other, within the budget."""
        merged = dict(super().merge(parts))
        targets, features = (torch.cat([part[name] for part in parts]) for name in ("targets", "features"))
        kept = self._kept(targets, merged["counts"])
        return {**merged, "targets": targets[kept], "features": features[kept]}

    @staticmethod
    def residual(logits: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        return own - logits.sigmoid()

    def faded(self, tensors: Tensors, factor: float) -> Tensors:
        """As `Head.faded`; of the observations, as many of the oldest go."""
        gone = len(tensors["targets"]) - math.ceil(factor * len(tensors["targets"]))
        return {**super().faded(tensors, factor), **{name: tensors[name][gone:] for name in ("features", "targets")}}

    def prepare(self, tensors: Tensors) -> PreparedLabels:
        state = LabelledObservations(**tensors)
        features, own = state.features.float(), state.targets.float()
        values = self.hyperparameters(state.examples, len(state.counts))
        names = nn.functional.normalize(state.names.float(), dim=1)
        mean_name, count = names.mean(0), values["centre_count"]
        centre = (features.sum(0) + count * mean_name) / (len(features) + count)
        start, here = values["name_scale"] * (names - mean_name), own.sum(0)
        kept = torch.full_like(state.examples, float(len(features)))
        share, seen = (_log_odds(*of, values) for of in ((here, kept), (state.counts, state.examples)))
        none, whole = features.new_zeros(own.shape), torch.ones_like(kept)
        prepared = PreparedLabels(
            features, none, start, seen - share, values, whole, share - start @ centre, torch.zeros_like(here)
        )
        prepared = replace(prepared, moves=self._moves(prepared, own))
        # As the stream had them, of which observations are a balanced part.
        each = [(state.examples - state.counts) / (kept - here).clamp(min=1), state.counts / here.clamp(min=1)]
        tally = torch.stack(each, 1)[..., None] * tallied(self._held_out(prepared) + prepared.weight, state.targets)
        scale, shift = calibration(tally)
        return replace(
            prepared,
            inverse_temperature=scale,
            weight=scale * prepared.weight + shift,
            thresholds=scale * thresholds(tally, state.counts) + shift,
        )

    def _kept(self, targets: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Positions within the budget, balanced over the rarest label of each, none being one more; `[n, C]`, `[C]`."""
        none = counts.new_full((len(targets), 1), torch.finfo(counts.dtype).max)
        rarest = torch.cat([torch.where(targets, counts, torch.inf), none], 1).argmin(1)
        return newest_balanced(rarest, len(counts) + 1, self.budget)


def _log_odds(counts: torch.Tensor, examples: torch.Tensor, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
    prior = values["share_count"]
    return ((counts + prior) / (examples + prior * (len(counts) + 1))).logit(eps=1e-6)


def _numbered(sets: torch.Tensor) -> torch.Tensor:
    """The same number for the same set, `[n]`, of bool `[n, C]`."""
    return torch.unique(nn.functional.pad(sets, (0, 1)), dim=0, return_inverse=True)[1]


def _same(state: LabelledObservations, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Which observations are of which examples, `[kept, n]`."""
    kept, given = (nn.functional.normalize(some.float(), dim=1) for some in (state.features, features))
    first, second = _numbered(torch.cat([state.targets, targets])).split([len(kept), len(given)])
    return (kept @ given.T > SAME) & (first[:, None] == second)


def _moved(targets: torch.Tensor, places: torch.Tensor, classes: int) -> torch.Tensor:
    """Columns at their new places; of several that come to one, which of them had any."""
    moved = torch.zeros(len(targets), classes, device=targets.device)
    return moved.index_add(1, places, targets.float()) > 0
