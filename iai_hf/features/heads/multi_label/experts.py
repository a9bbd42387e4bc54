"""Experts of a multi-label task: each label against all texts, in closed form, linear in the features.

The labels are C binary problems that share the features, and so the second moment: what costs most, its factor, is made
once for all. A score is a log odds that the label applies:

* name: similarity to the label's name about the mean name;     * centroid: to the mean of its texts, against all texts;
* ridge: regression to 0 and 1, which up to scale is the discriminant of the label against the rest (Fisher 1936);
* diagonal: centroid with features weighted by their variance, where no other second moment is known;
* frequency: log odds of the label's share.

As `heads/experts.py`, of which `ridge` is taken as it is, with scores of absorbed examples as if each were left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from iai_hf.features.heads.experts import SIMILARITY, Examples, Expert, Experts, Ridge, Summary
from iai_hf.features.heads.moments import Values, pooled_variance

LABEL_EXPERTS = ("name", "centroid", "ridge", "frequency")
CODE_EXPERTS = ("name", "centroid", "diagonal", "frequency")
INITIAL = {
    "name_count": 2.0,  # examples of a label that its name counts for
    "name_reach": 0.5,  # how far prior means of labels move from the overall mean towards the name
    "centre_count": 4.0,  # examples that the mean name counts for in the mean text
    "ridge": 300.0,  # penalty of `ridge`, in units of the variance
    "share_count": 0.5,  # examples that each label, and none of them, has in advance in `frequency`
}
DIAGONAL = 0.3  # scores of very different kinds are brought to about one size


@dataclass(frozen=True, eq=False)
class LabelSummary(Summary):
    """Moments of examples that have any number of labels: their number `[]` and sum `[d]`, beside those by label.

    Of the second moment there may be the diagonal alone, `[d]`.
    """

    examples: torch.Tensor
    whole: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        return self.examples

    @property
    def summed(self) -> torch.Tensor:
        return self.whole


class LabelFrequency(Expert):
    """Log odds of the label's share."""

    def __init__(self, summary: Summary, prior: torch.Tensor) -> None:
        self.counts, self.total, self.prior = summary.counts, summary.total, prior
        super().__init__(torch.zeros_like(summary.names), self._log_odds(summary.counts, summary.total))

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        return self.bias.expand(len(features), -1)

    def held_out(self, examples: Examples) -> torch.Tensor:
        return self._log_odds(self.counts - examples.own.to(self.counts), self.total - 1)

    def _log_odds(self, counts: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        return ((counts + self.prior) / (total + self.prior * (len(self.counts) + 1))).logit(eps=1e-6)


class LabelCentroid(Expert):
    """Nearer to the mean of the label's texts, a posterior around a mean made from its name, than to that of all.

    `unit` is what a squared distance counts, of all features `[]` or of each `[d]`.
    """

    def __init__(
        self, summary: Summary, centre: torch.Tensor, means: torch.Tensor, unit: torch.Tensor, count: torch.Tensor
    ) -> None:
        self.counts, self.centre, self.unit, self.count = summary.counts, centre, unit, count
        self.means = means - centre
        weight = unit * self.means
        super().__init__(weight, -weight @ centre - 0.5 * (unit * self.means.square()).sum(1))

    def held_out(self, examples: Examples) -> torch.Tensor:
        """The mean of a label that an example has moves away from it."""
        left = (self.counts - 1 + self.count).clamp(min=0.3)
        offset = examples.features - self.centre
        weighted = self.unit * offset
        length, along = (weighted * offset).sum(1)[:, None], weighted @ self.means.T
        norm = (self.unit * self.means.square()).sum(1)
        moved = along - (length - along) / left
        moved_norm = norm - 2 * (along - norm) / left + (length - 2 * along + norm) / left.square()
        return torch.where(examples.own, moved - 0.5 * moved_norm, self.scores(examples.features))


class LabelExperts(Experts):
    """All experts that a summary gives; as `Experts`, for any number of labels an example."""

    def __init__(self, summary: LabelSummary, values: Values) -> None:
        self.classes = len(summary.counts)
        mean_name = summary.names.mean(0)
        names, count = summary.names - mean_name, values["name_count"]
        centre = (summary.summed + values["centre_count"] * mean_name) / (summary.total + values["centre_count"])
        prior = centre + values["name_reach"] * names
        means = (summary.sums + count * prior) / (summary.counts + count)[:, None]
        mean, whole = summary.summed / summary.total.clamp(min=1), summary.second.ndim == 2
        within = (summary.second.diagonal() if whole else summary.second) - summary.total * mean.square()
        self.variance = pooled_variance(within.mean(), names, summary.total)
        unit = SIMILARITY / self.variance
        if whole:
            last: tuple[str, Expert] = "ridge", Ridge(summary, values["ridge"] * self.variance)
        else:
            count = values["variance_count"]
            each = (within.clamp(min=0) + count * self.variance) / (summary.total + count)
            last = "diagonal", LabelCentroid(summary, centre, means, DIAGONAL / each, values["name_count"])
        self.by_name: dict[str, Expert] = {
            "name": Expert(unit * names, -unit * names @ centre),
            "centroid": LabelCentroid(summary, centre, means, unit, values["name_count"]),
            last[0]: last[1],
            "frequency": LabelFrequency(summary, values["share_count"]),
        }

    def held_out(self, features: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """`[n, C, K]` of absorbed examples, each as if it alone were left out; `own` bool `[n, C]`."""
        return self._held_out(Examples(features, own.long().argmax(1), own))
