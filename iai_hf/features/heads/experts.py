"""Experts: known classifiers, each a closed form in the moments of what was seen, all linear in the features.

* name: similarity to the label's name;          * centred: the same about the mean text and the mean name;
* lda, lda_shrunk: linear discriminant analysis (class means as a posterior around a prior mean that is made from the
  name, one covariance shrunk towards a sphere, little and much);
* centroid: nearest class mean (Snell et al. 2017, arXiv 1703.05175);
* ridge: regression to one-hot targets (as in R2-D2, Bertinetto et al. 2019, arXiv 1805.08136);
* frequency: log of the class's share.

Each also gives its scores for examples that it has absorbed *as if it had not* (leave one out, in closed form by the
Sherman-Morrison identity): so every example, the first chunk's too, tells honestly how far an expert can be trusted.

A further one is a class here, a name in `EXPERTS` and in `Experts.by_name`; states and learned weights then have
another shape, so weights are trained anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from iai_hf.features.heads.moments import ClassMeans, Values, class_means, log_shares, pooled_variance
from iai_hf.features.heads.unlabelled import SoftMoments

EXPERTS = ("name", "centred", "lda", "lda_shrunk", "centroid", "ridge", "frequency")
INITIAL = {
    "name_count": 2.0,  # examples of a class that its name counts for
    "name_reach": 0.5,  # how far class prior means move from the overall mean towards the name
    "centre_count": 4.0,  # examples that the mean name counts for in the mean text
    "sphere": 300.0,  # examples that the spherical covariance counts for in `lda`
    "sphere_shrunk": 4000.0,  # and in `lda_shrunk`
    "centroid_count": 2.0,  # examples of a class that the overall mean counts for in `centroid`
    "ridge": 1000.0,  # penalty of `ridge`, in units of the variance
    "share_count": 1.0,  # examples that each class has in advance in `frequency`
}
# Scores of very different kinds are brought to about one size.
SIMILARITY, NAME, DISCRIMINANT, RIDGE = 0.1, 0.3, 0.3, 10.0


@dataclass(frozen=True, eq=False)
class Summary:
    """Moments: counts `[C]`, sums `[C, d]`, second moment `[d, d]`; names, unit vectors `[C, d]`."""

    counts: torch.Tensor
    sums: torch.Tensor
    second: torch.Tensor
    names: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        """Examples, `[]`."""
        return self.counts.sum()

    @property
    def summed(self) -> torch.Tensor:
        """Sum of all examples, `[d]`."""
        return self.sums.sum(0)

    def with_soft(self, soft: SoftMoments) -> Summary:
        """The same with moments of unlabelled rows beside them."""
        return Summary(self.counts + soft.counts, self.sums + soft.sums, self.second + soft.second, self.names)


@dataclass(frozen=True, eq=False)
class Examples:
    """Absorbed examples: features `[n, d]`, targets `[n]`, and where a score is of the own class, bool `[n, C]`."""

    features: torch.Tensor
    targets: torch.Tensor
    own: torch.Tensor


class Expert:
    """Scores weight . x + bias; `weight` `[C, d]`, `bias` `[C]`.

    A subclass may make its weight where it is asked for: the scores of a few features often cost less without it.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self.weight, self.bias = weight, bias

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """`[n, C]` of features `[n, d]`."""
        return torch.nn.functional.linear(features, self.weight, self.bias)

    def held_out(self, examples: Examples) -> torch.Tensor:
        """Scores `[n, C]` as if each example alone were left out; here it never counted."""
        return self.scores(examples.features)


class Frequency(Expert):
    """Log of the class's share."""

    def __init__(self, summary: Summary, prior: torch.Tensor) -> None:
        self.summary, self.prior = summary, prior
        super().__init__(torch.zeros_like(summary.names), self._log_shares(summary.counts))

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        return self.bias.expand(len(features), -1)

    def held_out(self, examples: Examples) -> torch.Tensor:
        without = self._log_shares(self.summary.counts[examples.targets] - 1)
        return torch.where(examples.own, without[:, None], self.bias)

    def _log_shares(self, counts: torch.Tensor) -> torch.Tensor:
        return log_shares(counts, self.summary.total, len(self.summary.counts), self.prior)


class Centroid(Expert):
    """Nearest class mean; the overall mean counts for `count` examples of each class."""

    def __init__(self, summary: Summary, centre: torch.Tensor, unit: torch.Tensor, count: torch.Tensor) -> None:
        self.counts, self.centre, self.unit, self.count = summary.counts, centre, unit, count
        self.centroids = (summary.sums + count * centre) / (summary.counts + count)[:, None]
        super().__init__(unit * (self.centroids - centre), -0.5 * unit * self.centroids.square().sum(1))

    def held_out(self, examples: Examples) -> torch.Tensor:
        """The mean of the own class moves away from the example."""
        features, centroids = examples.features, self.centroids[examples.targets]
        left = (self.counts[examples.targets] - 1 + self.count).clamp(min=0.3)
        moved = centroids - (features - centroids) / left[:, None]
        without = (features * (moved - self.centre)).sum(1) - 0.5 * moved.square().sum(1)
        return torch.where(examples.own, self.unit * without[:, None], self.scores(features))


class Ridge(Expert):
    """Ridge regression to one-hot targets, about the mean text."""

    def __init__(self, summary: Summary, penalty: torch.Tensor) -> None:
        self.total = summary.total
        seen = self.total.clamp(min=1)
        self.mean, self.shares = summary.summed / seen, summary.counts / seen
        scatter = summary.second - self.total * torch.outer(self.mean, self.mean)
        self.factor = torch.linalg.cholesky(scatter + penalty * torch.eye(len(scatter)).to(scatter))
        self.crossed = summary.sums - summary.counts[:, None] * self.mean

    @cached_property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        return RIDGE * torch.cholesky_solve(self.crossed.T, self.factor).T

    @cached_property
    def bias(self) -> torch.Tensor:  # type: ignore[override]
        return RIDGE * self.shares - self.weight @ self.mean

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        return RIDGE * self._fitted(whitened(features - self.mean, self.factor))

    def held_out(self, examples: Examples) -> torch.Tensor:
        """The residual grows by 1 / (1 - leverage)."""
        white = whitened(examples.features - self.mean, self.factor)
        room = (1 - white.square().sum(1) - 1 / self.total.clamp(min=2)).clamp(min=0.05)
        hits = examples.own.to(white)
        return RIDGE * (hits - (hits - self._fitted(white)) / room[:, None])

    def _fitted(self, white: torch.Tensor) -> torch.Tensor:
        """Values `[n, C]` of whitened features: these, and not the classes' sums, are whitened once more."""
        solved = torch.linalg.solve_triangular(self.factor, white, upper=False, left=False)
        return torch.addmm(self.shares, solved, self.crossed.T)


class Discriminant(Expert):
    """Linear discriminant analysis; the shared covariance has a sphere that counts for `sphere` examples."""

    def __init__(
        self, summary: Summary, means: torch.Tensor, covariance: torch.Tensor, sphere: torch.Tensor, count: torch.Tensor
    ) -> None:
        self.counts, self.count = summary.counts, count
        self.factor = torch.linalg.cholesky(covariance)
        self.precision = DISCRIMINANT * (summary.total + sphere)
        self.means = whitened(means, self.factor)
        self.norms = self.means.square().sum(1)
        self.bias = -0.5 * self.precision * self.norms

    @cached_property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        return self.precision * torch.linalg.solve_triangular(self.factor, self.means, upper=False, left=False)

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, self.precision * whitened(features, self.factor), self.means.T)

    def held_out(self, examples: Examples) -> torch.Tensor:
        """The example's part is taken out of its class mean and of the covariance."""
        features, targets = whitened(examples.features, self.factor), examples.targets
        strength = self.counts[targets] - 1 + self.count
        residual = features - self.means[targets]
        part = ((strength + 1) / strength.clamp(min=1e-3)).clamp(max=3)
        leverage = residual.square().sum(1)
        gain = part / (1 - part * leverage).clamp(min=0.1)
        along = (features * residual).sum(1)
        move = 1 / strength.clamp(min=0.3)
        straight, across = (torch.cat([features, residual]) @ self.means.T).split(len(features))

        def score(straight: torch.Tensor, across: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
            return straight - 0.5 * norms + gain[:, None] * across * (along[:, None] - 0.5 * across)

        to_own = across.gather(1, targets[:, None])
        moved = score(
            straight.gather(1, targets[:, None]) - (move * along)[:, None],
            to_own - (move * leverage)[:, None],
            (self.norms[targets] - 2 * move * to_own[:, 0] + move.square() * leverage)[:, None],
        )
        return self.precision * torch.where(examples.own, moved, score(straight, across, self.norms))


def whitened(rows: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Rows `[n, d]` in the metric of factor factor^T, in which that is the unit matrix: row factor^-T."""
    return torch.linalg.solve_triangular(factor.mT, rows, upper=True, left=False)


class Experts:
    """All experts that a summary gives.

    Attributes:
        by_name: each of `EXPERTS`.
        classes: their number.
        variance: of a feature within a class, mean over features, `[]`.
    """

    def __init__(self, summary: Summary, values: Values) -> None:
        self.classes = len(summary.counts)
        found = class_means(summary.counts, summary.sums, summary.names, values)
        scatter = _within_classes(summary, found)
        self.variance = pooled_variance(scatter.diagonal().mean(), found.names, summary.total)
        unit = SIMILARITY / self.variance

        def discriminant(sphere: torch.Tensor) -> Expert:
            covariance = scatter + sphere * self.variance * torch.eye(len(scatter)).to(scatter)
            return Discriminant(summary, found.means, covariance, sphere, values["name_count"])

        self.by_name: dict[str, Expert] = {
            "name": Expert(NAME * unit * summary.names, torch.zeros_like(summary.counts)),
            "centred": Expert(unit * found.names, -unit * found.names @ found.centre),
            "lda": discriminant(values["sphere"]),
            "lda_shrunk": discriminant(values["sphere_shrunk"]),
            "centroid": Centroid(summary, found.centre, unit, values["centroid_count"]),
            "ridge": Ridge(summary, values["ridge"] * self.variance),
            "frequency": Frequency(summary, values["share_count"]),
        }

    @cached_property
    def weight(self) -> torch.Tensor:
        """The experts' linear maps, in their order, `[K, C, d]`."""
        return torch.stack([expert.weight for expert in self.by_name.values()])

    @cached_property
    def bias(self) -> torch.Tensor:
        """Of their linear maps, `[K, C]`."""
        return torch.stack([expert.bias for expert in self.by_name.values()])

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """`[n, C, K]` of features `[n, d]` that the experts have not absorbed."""
        return self._side_by_side([expert.scores(features) for expert in self.by_name.values()])

    def held_out(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """`[n, C, K]` of absorbed examples, each as if it alone were left out."""
        own = torch.nn.functional.one_hot(targets, self.classes).bool()
        return self._held_out(Examples(features, targets, own))

    def _held_out(self, examples: Examples) -> torch.Tensor:
        return self._side_by_side([expert.held_out(examples) for expert in self.by_name.values()])

    @staticmethod
    def _side_by_side(scores: Sequence[torch.Tensor]) -> torch.Tensor:
        """`[n, C, K]` of each expert's `[n, C]`, which lie one behind the other in memory."""
        return torch.stack(list(scores)).movedim(0, -1)


def _within_classes(summary: Summary, found: ClassMeans) -> torch.Tensor:
    """Sum over examples of (x - mean)(x - mean)^T, `[d, d]`, from moments alone."""
    crossed = found.means.T @ (summary.sums - 0.5 * summary.counts[:, None] * found.means)
    return summary.second - crossed - crossed.T
