"""Moments of labelled features: additive, so free of order and chunking, and mergeable by addition."""

from __future__ import annotations

import torch


def class_sums(features: torch.Tensor, targets: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts `[C]` and sums `[C, d]` of a chunk."""
    onehot = torch.nn.functional.one_hot(targets, classes).to(features)
    return onehot.sum(0), onehot.T @ features


def pack(matrix: torch.Tensor) -> torch.Tensor:
    """Lower triangle, row by row, of a symmetric matrix `[s, s]`."""
    rows, columns = torch.tril_indices(*matrix.shape)
    return matrix[rows, columns]


def unpack(triangle: torch.Tensor, size: int) -> torch.Tensor:
    """The symmetric matrix `[size, size]` of a packed triangle."""
    matrix = triangle.new_zeros(size, size)
    rows, columns = torch.tril_indices(size, size)
    matrix[rows, columns] = triangle
    return matrix + matrix.tril(-1).T


def mixture(counts: torch.Tensor, present: torch.Tensor, chunk: float) -> torch.Tensor:
    """How far a chunk looks drawn at random: distinct classes in it over those expected, 0 for one class, at most 1.

    A stream sorted by class has chunks of a single class. On them the moments are as good as ever, but a logistic
    loss would pull everything towards the class at hand.
    """
    frequency = (counts + 1) / (counts.sum() + len(counts))
    expected = (1 - (1 - frequency) ** chunk).sum()
    return (((present > 0).sum() - 1) / (expected - 1).clamp(min=1e-3)).clamp(0, 1)
