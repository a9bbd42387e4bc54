"""Experts: known classifiers, each a closed form in the moments of what was seen, all linear in the features.

With counts n_c, sums S_c, the second moment G and names' features L_c, in this order:

* name: similarity to the label's name;          * centred: the same about the mean text and the mean name;
* lda, lda_shrunk: linear discriminant analysis (class means as a posterior around a prior mean that is made from the
  name, one covariance shrunk towards a sphere, little and much);
* centroid: nearest class mean;                  * ridge: regression to one-hot targets;
* frequency: log of the class's share.

Each also gives its scores for examples that it has absorbed *as if it had not* (leave one out, in closed form by the
Sherman-Morrison identity): so every example, the first chunk's too, tells honestly how far an expert can be trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

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
Values = Mapping[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Summary:
    """Moments: counts `[C]`, sums `[C, d]`, second moment `[d, d]`; names, unit vectors `[C, d]`."""

    counts: torch.Tensor
    sums: torch.Tensor
    second: torch.Tensor
    names: torch.Tensor


class Experts:
    """All experts that a summary gives.

    Attributes:
        weight, bias: `[K, C, d]` and `[K, C]`: scores are weight . x + bias.
        variance: of a feature within a class, mean over features, `[]`.
    """

    def __init__(self, summary: Summary, values: Values) -> None:
        counts, sums, names = summary.counts, summary.sums, summary.names
        size = sums.shape[1]
        self.summary, self.values = summary, values
        self.total = counts.sum()
        sphere = torch.eye(size).to(sums)
        mean_name = names.mean(0)
        self.centre = (sums.sum(0) + values["centre_count"] * mean_name) / (self.total + values["centre_count"])
        prior_means = self.centre + values["name_reach"] * (names - mean_name)
        name_count = values["name_count"]
        self.means = (sums + name_count * prior_means) / (counts + name_count)[:, None]
        # sum over examples of (x - mean)(x - mean)^T, from moments alone
        crossed = self.means.T @ sums
        scatter = summary.second - crossed - crossed.T + (self.means.T * counts) @ self.means
        spread_of_names = (names - mean_name).square().mean() + 1e-6
        self.variance = variance = (scatter.diagonal().mean() + 4 * spread_of_names) / (self.total + 4)
        self.unit = 0.1 / variance  # brings similarities to the size of the discriminants' scores
        self.factors = [
            torch.linalg.cholesky(scatter + values[strength] * variance * sphere)
            for strength in ("sphere", "sphere_shrunk")
        ]
        self.precisions = [0.3 * (self.total + values[strength]) for strength in ("sphere", "sphere_shrunk")]
        self.centroids = (sums + values["centroid_count"] * self.centre) / (counts + values["centroid_count"])[:, None]
        seen = self.total.clamp(min=1)
        self.mean, self.shares = sums.sum(0) / seen, counts / seen
        total_scatter = summary.second - self.total * torch.outer(self.mean, self.mean)
        self.ridge_factor = torch.linalg.cholesky(total_scatter + values["ridge"] * variance * sphere)
        regression = torch.cholesky_solve((sums - counts[:, None] * self.mean).T, self.ridge_factor).T
        self.frequency = self._log_share(counts)

        weights = [0.3 * self.unit * names, self.unit * (names - mean_name)]
        biases = [torch.zeros_like(counts), -weights[1] @ self.centre]
        for factor, precision in zip(self.factors, self.precisions, strict=True):
            weights.append(precision * torch.cholesky_solve(self.means.T, factor).T)
            biases.append(-0.5 * (weights[-1] * self.means).sum(1))
        weights += [self.unit * (self.centroids - self.centre), 10 * regression, torch.zeros_like(names)]
        biases += [
            -0.5 * self.unit * self.centroids.square().sum(1),
            10 * (self.shares - regression @ self.mean),
            self.frequency,
        ]
        self.weight, self.bias = torch.stack(weights), torch.stack(biases)

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """`[n, C, K]` of features `[n, d]` that the experts have not absorbed."""
        return torch.einsum("nd,kcd->nck", features, self.weight) + self.bias.T

    def held_out(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """`[n, C, K]` of absorbed examples, each as if it alone were left out."""
        scores = self.scores(features)
        own = torch.nn.functional.one_hot(targets, scores.shape[1]).bool()
        count = self.summary.counts[targets]
        columns = list(scores.unbind(-1))
        for place, factor, precision in zip((2, 3), self.factors, self.precisions, strict=True):
            columns[place] = self._discriminant_held_out(features, targets, own, count, factor, precision)
        # centroid: the mean of the own class moves away from the example
        left = (count - 1 + self.values["centroid_count"]).clamp(min=0.3)
        centroid = self.centroids[targets] - (features - self.centroids[targets]) / left[:, None]
        moved = (features * (centroid - self.centre)).sum(1) - 0.5 * centroid.square().sum(1)
        columns[4] = torch.where(own, self.unit * moved[:, None], columns[4])
        # ridge: the residual grows by 1 / (1 - leverage)
        offset = features - self.mean
        leverage = (offset * torch.cholesky_solve(offset.T, self.ridge_factor).T).sum(1)
        room = (1 - leverage - 1 / self.total.clamp(min=2)).clamp(min=0.05)
        hits = own.to(scores)
        columns[5] = 10 * (hits - (hits - columns[5] / 10) / room[:, None])
        without = self._log_share(self.summary.counts[targets] - 1)
        columns[6] = torch.where(own, without[:, None], columns[6])
        return torch.stack(columns, -1)

    def _discriminant_held_out(
        self,
        features: torch.Tensor,
        targets: torch.Tensor,
        own: torch.Tensor,
        count: torch.Tensor,
        factor: torch.Tensor,
        precision: torch.Tensor,
    ) -> torch.Tensor:
        """Scores `[n, C]` with the example's part taken out of its class mean and of the covariance."""
        strength = count - 1 + self.values["name_count"]
        residual = features - self.means[targets]
        part = ((strength + 1) / strength.clamp(min=1e-3)).clamp(max=3)
        solved = torch.cholesky_solve(torch.cat([residual, self.means]).T, factor).T
        by_residual, by_mean = solved[: len(features)], solved[len(features) :]
        leverage = (residual * by_residual).sum(1)
        gain = part / (1 - part * leverage).clamp(min=0.1)
        along = (features * by_residual).sum(1)
        across = by_residual @ self.means.T
        straight, norms = features @ by_mean.T, (by_mean * self.means).sum(1)
        move = 1 / strength.clamp(min=0.3)

        def score(straight: torch.Tensor, across: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
            return straight + gain[:, None] * along[:, None] * across - 0.5 * (norms + gain[:, None] * across.square())

        others = score(straight, across, norms)
        to_own = across[own][:, None]
        moved = score(
            straight[own][:, None] - (move * along)[:, None],
            to_own - (move * leverage)[:, None],
            (norms[targets] - 2 * move * to_own[:, 0] + move.square() * leverage)[:, None],
        )
        return precision * torch.where(own, moved, others)

    def _log_share(self, counts: torch.Tensor) -> torch.Tensor:
        prior = self.values["share_count"]
        return ((counts + prior) / (self.total + len(self.summary.counts) * prior)).log()
