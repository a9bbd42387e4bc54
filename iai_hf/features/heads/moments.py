"""Moments of labelled features: additive, so free of order and chunking, and mergeable by addition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from iai_hf.posterior import solve
from iai_hf.task import Tensors

Values = Mapping[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class ClassMeans:
    """Posterior means of classes, around prior means that are made from their names.

    Attributes:
        centre: the mean text, `[d]`.
        names: of the classes, about their mean, `[C, d]`.
        means: `[C, d]`.
    """

    centre: torch.Tensor
    names: torch.Tensor
    means: torch.Tensor


def class_means(counts: torch.Tensor, sums: torch.Tensor, names: torch.Tensor, values: Values) -> ClassMeans:
    """From counts `[C]`, sums `[C, d]` and names, unit vectors `[C, d]`."""
    mean_name = names.mean(0)
    centre = (sums.sum(0) + values["centre_count"] * mean_name) / (counts.sum() + values["centre_count"])
    prior = centre + values["name_reach"] * (names - mean_name)
    means = (sums + values["name_count"] * prior) / (counts + values["name_count"])[:, None]
    return ClassMeans(centre, names - mean_name, means)


def pooled_variance(within: torch.Tensor, names: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """Of a feature within a class, `[]`: from the sum of squares, and centred names that count for four examples."""
    return (within + 4 * (names.square().mean() + 1e-6)) / (total + 4)


def log_shares(counts: torch.Tensor, total: torch.Tensor, classes: int, prior: torch.Tensor) -> torch.Tensor:
    """Log of classes' shares, each class having `prior` examples in advance."""
    return ((counts + prior) / (total + classes * prior)).log()


def with_one(features: torch.Tensor) -> torch.Tensor:
    """[x, 1] of each example, `[n, d + 1]`."""
    return torch.cat([features, features.new_ones(len(features), 1)], dim=1)


def class_sums(features: torch.Tensor, targets: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts `[C]` and sums `[C, d]` of a chunk."""
    onehot = torch.nn.functional.one_hot(targets, classes).to(features)
    return onehot.sum(0), onehot.T @ features


def pack(matrix: torch.Tensor) -> torch.Tensor:
    """Lower triangle, row by row, of a symmetric matrix `[s, s]`."""
    return matrix.flatten().index_select(0, torch.from_numpy(_triangle(len(matrix))[0]).to(matrix.device))


def unpack(triangle: torch.Tensor, size: int) -> torch.Tensor:
    """The symmetric matrix `[size, size]` of a packed triangle."""
    return triangle.index_select(0, torch.from_numpy(_triangle(size)[1]).to(triangle.device)).view(size, size)


@lru_cache(maxsize=8)
def _triangle(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where a matrix, flat, has its lower triangle, and where a packed triangle has the matrix.

    Arrays, since a tensor that is made where nothing is differentiated can't be kept for where something is.
    """
    rows, columns = np.tril_indices(size)
    matrix = np.zeros((size, size), dtype=np.int64)
    matrix[rows, columns] = matrix[columns, rows] = np.arange(len(rows))
    return size * rows + columns, matrix.flatten()


def class_coverage(counts: torch.Tensor, present: torch.Tensor, chunk: float) -> torch.Tensor:
    """How far a chunk looks drawn at random: distinct classes in it over those expected, 0 for one class, at most 1.

    A stream sorted by class has chunks of a single class. On them the moments are as good as ever, but a logistic
    loss would pull everything towards the class at hand.
    """
    frequency = (counts + 1) / (counts.sum() + len(counts))
    expected = (1 - (1 - frequency) ** chunk).sum()
    return (((present > 0).sum() - 1) / (expected - 1).clamp(min=1e-3)).clamp(0, 1)


IMPOSSIBLE = 0.02  # of an example's squared length: how far below zero rounding alone brings no variance


@dataclass(frozen=True, eq=False)
class Moments:
    """Of examples: counts `[C]`, sums `[C, d]`, second moment `[d, d]`, or its diagonal `[d]`."""

    counts: torch.Tensor
    sums: torch.Tensor
    second: torch.Tensor

    @classmethod
    def of(cls, tensors: Tensors) -> Moments:
        """Of a state that keeps them of [x, 1], packed."""
        size = tensors["sums"].shape[1]
        return cls(tensors["counts"], tensors["sums"], unpack(tensors["gram"], size + 1)[:size, :size])


def within_classes(found: Moments) -> torch.Tensor:
    """Scatter of examples about the means of their classes, `[d, d]`, or its diagonal `[d]`."""
    means = found.sums / found.counts.clamp(min=1)[:, None]
    return found.second - (means.T @ found.sums if found.second.ndim == 2 else (means * found.sums).sum(0))


def may_hold(whole: Moments, part: Moments) -> bool:
    """Whether moments can be those of examples among which are those of `part`.

    If so, without them no variance is below zero, and where no example is left no sum is. A direction that some
    examples alone had is empty after them, so that other ones leave less than nothing of it: as long as there are fewer
    examples than features, nearly none can be taken for others.
    """
    left, tolerance = _left(whole, part), _tolerance(part)
    if bool((left.sums[left.counts == 0].square().sum(1) > tolerance).any()):
        return False
    scatter = within_classes(left)
    if scatter.ndim == 2:
        return bool(torch.linalg.eigvalsh(scatter)[0] > -tolerance)
    return bool((scatter > -tolerance / len(scatter)).all())


def may_hold_each(whole: Moments, part: Moments, texts: Moments, gone: Moments) -> bool:
    """`may_hold` of each label alone, as of two classes, the texts that have it and those that do not.

    Between the means of the two is a part of rank one, u u^T, of the scatter S of all texts, so that within them no
    variance is below -t just where u^T (S + t)^-1 u <= 1: one factor serves any number of labels.

    Args:
        whole, part: of the texts of each label, a row a label; their second moment is that of `texts` and `gone`. Of a
            diagonal each dimension is asked by itself.
        texts, gone: of all texts as of one class, of which `may_hold` is true.
    """
    own, rest, tolerance = _left(whole, part), _left(texts, gone), _tolerance(gone)
    others = Moments(rest.counts - own.counts, rest.sums - own.sums, rest.second)
    for side in (own, others):
        empty = side.sums[side.counts == 0].square().sum(1)
        if bool((side.counts < 0).any()) or bool((empty > tolerance).any()):
            return False
    both = (own.counts > 0) & (others.counts > 0)
    counts, without = own.counts[both, None], others.counts[both, None]
    between = (own.sums[both] / counts - others.sums[both] / without) * (counts * without / rest.counts).sqrt()
    scatter = within_classes(rest)
    if scatter.ndim == 1:
        return bool((between.square() <= scatter + tolerance / len(scatter)).all())
    metric = scatter + tolerance * torch.eye(len(scatter), dtype=scatter.dtype)
    return bool(((between * solve(metric, between.T).T).sum(1) <= 1).all())


def _left(whole: Moments, part: Moments) -> Moments:
    """Of the examples that are not in `part`, in float64 on the processor."""
    counts, sums, second = (
        (mine - theirs).double().cpu() for mine, theirs in zip(vars(whole).values(), vars(part).values(), strict=True)
    )
    return Moments(counts.round(), sums, second)


def _tolerance(part: Moments) -> float:
    """How far below zero a variance may be, of what is left without `part`."""
    lengths = part.second.diagonal() if part.second.ndim == 2 else part.second
    return IMPOSSIBLE * float(lengths.sum()) / float(part.counts.sum()) ** 0.5
