"""The solver inside the iterative head: a streaming linear classifier that can't collapse.

Notation: features x `[d]`, x1 = [x, 1], C classes, n examples seen, one-hot targets t.

1. Moments. Counts n_c, sums S_c and the second moment G = sum x1 x1^T are additive: free of order and chunking.
   They give linear discriminant analysis in closed form: class means mu_c as a posterior around a prior mean that is
   made from the label's name, a shared within-class covariance W shrunk towards a sphere, and
   score_c(x) = mu_c^T W^-1 x - mu_c^T W^-1 mu_c / 2 + log prior_c.
2. Scale. Gaussian scores are overconfident, and how far W should be shrunk differs from task to task; so two such
   scores, little and much shrunk, are added with weights ("scale") that follow Newton's method on the log-likelihood
   of each chunk *before* it is absorbed: they are fitted on unseen examples.
3. Correction. logits = sum of scale * score + D^T x1. D takes one preconditioned step of the logistic loss a chunk. The
   preconditioner is G weighted by the mean curvature p(1-p), split over the classes by their share of it: Boehning's
   (1992) bound, made as tight as the stream allows, so a step can't overshoot by much on any chunk, and the steps
   shrink as 1/n. This is what many classes need, where least squares and plain LDA fall behind logistic regression.
   A chunk moves scale and correction only as far as its classes are mixed (`_mixture`): a stream that is sorted by
   class leaves them where they are, and the closed form carries it.

With no example the head is the label names alone; with D = 0 and scale fixed it is shrunk LDA.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SCALE_RANGE = (0.01, 2.0)
SCALE_MEMORY = 3.0  # curvature of the scale decays as (n / (n + chunk))^3: early scores were fitted on less
SCALE_DAMPING = 10.0
SCALE_RELATIVE_DAMPING = 0.3  # of the mean curvature: the two scores are nearly alike, their contrast nearly flat
SCALE_STEP = 2.0  # a step may at most double or halve a scale


@dataclass(frozen=True)
class Prior:
    """Hand-set numbers of the untrained head.

    The values were chosen on meta-training tasks, the form of the head with the test tasks in sight.

    Attributes:
        mean_strength: examples of a class that the label's name counts for.
        name_weight: how far class prior means move from the overall mean towards their label's name.
        covariance_strengths: examples that the spherical covariance counts for, in each of the two scores.
        scale: logit scale before any example, shared out among the scores.
        ridge: precision of the correction D, in units of the features' total variance.
        share: safety factor on a class's share of the curvature.
        warmup: examples after which a correction step has half its size, and the curvature half its prior value.
    """

    mean_strength: float = 2.0
    name_weight: float = 0.5
    covariance_strengths: tuple[float, ...] = (300.0, 4000.0)
    scale: float = 0.1
    ridge: float = 40.0
    share: float = 2.0
    warmup: float = 32.0


@dataclass(frozen=True, eq=False)
class Statistics:
    """The state of the head. Float32, but for `names`.

    Attributes:
        counts: `[C]`.
        sums: `[C, d]`.
        gram: packed lower triangle of G, `[(d + 1) (d + 2) / 2]`.
        correction: D^T, `[C, d + 1]`.
        curvature: summed p (1 - p), `[C]`.
        mixed: examples that came in chunks of mixed classes, `[]`.
        scale: logit scale of each score, `[K]`.
        scale_curvature: its decayed curvature, `[K, K]`.
        names: features of the label names, float16 `[C, d]`.
    """

    counts: torch.Tensor
    sums: torch.Tensor
    gram: torch.Tensor
    correction: torch.Tensor
    curvature: torch.Tensor
    mixed: torch.Tensor
    scale: torch.Tensor
    scale_curvature: torch.Tensor
    names: torch.Tensor

    @classmethod
    def empty(cls, size: int, prior: Prior) -> Statistics:
        """No example, no label."""
        import torch

        scores = len(prior.covariance_strengths)
        return cls(
            counts=torch.zeros(0),
            sums=torch.zeros(0, size),
            gram=torch.zeros((size + 1) * (size + 2) // 2),
            correction=torch.zeros(0, size + 1),
            curvature=torch.zeros(0),
            mixed=torch.zeros(()),
            scale=torch.full((scores,), prior.scale / scores),
            scale_curvature=torch.zeros(scores, scores),
            names=torch.zeros(0, size, dtype=torch.float16),
        )

    def with_names(self, names: torch.Tensor) -> Statistics:
        """Grown by classes whose names have the features `[new, d]`."""
        import torch

        def grown(tensor: torch.Tensor) -> torch.Tensor:
            return torch.cat([tensor, tensor.new_zeros(len(names), *tensor.shape[1:])])

        return replace(
            self,
            counts=grown(self.counts),
            sums=grown(self.sums),
            correction=grown(self.correction),
            curvature=grown(self.curvature),
            names=torch.cat([self.names, names.to(torch.float16)]),
        )


@dataclass(frozen=True, eq=False)
class Discriminant:
    """Linear scores: `weight` `[C, d]`, `bias` `[C]`."""

    weight: torch.Tensor
    bias: torch.Tensor

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """`[n, C]` of features `[n, d]`."""
        import torch

        return torch.nn.functional.linear(features, self.weight, self.bias)


def discriminants(statistics: Statistics, prior: Prior) -> list[Discriminant]:
    """Linear discriminant analysis from the moments, once for each strength of shrinking."""
    import torch

    counts, sums, names = statistics.counts, statistics.sums, statistics.names.float()
    size, total = sums.shape[1], counts.sum()
    centre_of_names = names.mean(0)
    spread_of_names = (names - centre_of_names).square().mean() + 1e-6
    centre = (sums.sum(0) + 4 * centre_of_names) / (total + 4)
    prior_means = centre + prior.name_weight * (names - centre_of_names)
    means = (sums + prior.mean_strength * prior_means) / (counts + prior.mean_strength)[:, None]
    log_prior = ((counts + 1) / (total + len(counts))).log()
    # sum over examples of (x - mu)(x - mu)^T, from moments alone
    crossed = means.T @ sums
    scatter = unpack(statistics.gram, size + 1)[:size, :size] - crossed - crossed.T + (means.T * counts) @ means
    variance = (scatter.diagonal().mean() + 4 * spread_of_names) / (total + 4)
    found = []
    for strength in prior.covariance_strengths:
        covariance = (scatter + strength * variance * torch.eye(size)) / (total + strength)
        weight = torch.cholesky_solve(means.T, torch.linalg.cholesky(covariance)).T
        found.append(Discriminant(weight, log_prior - 0.5 * (weight * means).sum(1)))
    return found


def head(statistics: Statistics, prior: Prior) -> Discriminant:
    """The classifier that the state stands for: logits = sum of scale * score + correction, as one linear map."""
    weight, bias = statistics.correction[:, :-1], statistics.correction[:, -1]
    for scale, scores in zip(statistics.scale, discriminants(statistics, prior), strict=True):
        weight, bias = weight + scale * scores.weight, bias + scale * scores.bias
    return Discriminant(weight, bias)


def absorb(statistics: Statistics, features: torch.Tensor, targets: torch.Tensor, prior: Prior) -> Statistics:
    """One update: features float32 `[n, d]`, class numbers int64 `[n]`."""
    import torch

    size, chunk, classes = features.shape[1], len(features), len(statistics.counts)
    seen = statistics.counts.sum()
    ones = torch.cat([features, torch.ones(chunk, 1)], dim=1)
    onehot = torch.nn.functional.one_hot(targets, classes).float()
    # [n, C, K]
    scores = torch.stack([each.scores(features) for each in discriminants(statistics, prior)], dim=-1)
    probabilities = (scores @ statistics.scale + ones @ statistics.correction.T).softmax(1)
    residual = onehot - probabilities
    mixture = _mixture(statistics.counts, onehot.sum(0), chunk)

    gram = statistics.gram + pack(ones.T @ ones)
    sums = statistics.sums + onehot.T @ features
    curvature = statistics.curvature + mixture * (probabilities * (1 - probabilities)).sum(0)
    mixed = statistics.mixed + mixture * chunk

    second = unpack(gram, size + 1)
    variance = second.diagonal()[:size].sum() / (seen + chunk) - (sums.sum(0) / (seen + chunk)).square().sum()
    # Before much is known, the curvature is taken for the largest that it can be.
    mean_curvature = (curvature.sum() + prior.warmup * (1 - 1 / classes)) / (mixed + prior.warmup)
    metric = second * mean_curvature + prior.ridge * variance * torch.eye(size + 1)
    share = (prior.share * (curvature + 1) / (curvature.sum() + classes)).clamp(max=1.0)
    step = torch.cholesky_solve(ones.T @ residual, torch.linalg.cholesky(metric)).T / share[:, None]
    size_of_step = mixture * statistics.mixed / (statistics.mixed + prior.warmup)

    # An example of a class never seen says nothing of how far scores can be trusted, but for the very first chunk.
    informative = ((statistics.counts[targets] > 0) | (seen == 0)).float() * mixture
    centred = scores - (probabilities[..., None] * scores).sum(1, keepdim=True)
    scale_curvature = statistics.scale_curvature * (seen / (seen + chunk)) ** (SCALE_MEMORY * mixture)
    scale_curvature = scale_curvature + torch.einsum("n,nc,nck,ncl->kl", informative, probabilities, centred, centred)
    return replace(
        statistics,
        counts=statistics.counts + onehot.sum(0),
        sums=sums,
        gram=gram,
        correction=statistics.correction + size_of_step * step,
        curvature=curvature,
        mixed=mixed,
        scale=_rescale(statistics.scale, torch.einsum("n,nc,nck->k", informative, residual, scores), scale_curvature),
        scale_curvature=scale_curvature,
    )


def _mixture(counts: torch.Tensor, present: torch.Tensor, chunk: int) -> torch.Tensor:
    """How far a chunk looks drawn at random: distinct classes in it over those expected, 0 for one class, at most 1.

    A stream sorted by class has chunks of a single class. On them the moments are as good as ever, but the logistic
    loss would pull everything towards the class at hand.
    """
    frequency = (counts + 1) / (counts.sum() + len(counts))
    expected = (1 - (1 - frequency) ** chunk).sum()
    return (((present > 0).sum() - 1) / (expected - 1).clamp(min=1e-3)).clamp(0, 1)


def _rescale(scale: torch.Tensor, gradient: torch.Tensor, curvature: torch.Tensor) -> torch.Tensor:
    """One damped and limited Newton step on the logit scales `[K]`."""
    import torch

    damping = SCALE_DAMPING + SCALE_RELATIVE_DAMPING * curvature.diagonal().mean()
    moved = scale + torch.linalg.solve(curvature + damping * torch.eye(len(scale)), gradient)
    return torch.minimum(torch.maximum(moved, scale / SCALE_STEP), scale * SCALE_STEP).clamp(*SCALE_RANGE)


def pack(matrix: torch.Tensor) -> torch.Tensor:
    """Lower triangle, row by row, of a symmetric matrix `[s, s]`."""
    import torch

    rows, columns = torch.tril_indices(*matrix.shape)
    return matrix[rows, columns]


def unpack(triangle: torch.Tensor, size: int) -> torch.Tensor:
    """The symmetric matrix `[size, size]` of a packed triangle."""
    import torch

    matrix = triangle.new_zeros(size, size)
    rows, columns = torch.tril_indices(size, size)
    matrix[rows, columns] = triangle
    return matrix + matrix.tril(-1).T
