"""Kernel logistic regression from observations that are kept: what heads of the implicit regime share.

    logits[i + 1] = logits[i] + sum over (x_j, y_j) in B[i] of K(x, x_j) move_j
    moves of a batch = (bound K_bb + penalty)^-1 (residual(logits[i], y) - penalty * moves so far)

A few rounds over the batches are block coordinate descent; `bound` is of the curvature of the loss, so that no step
overshoots.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from iai_hf.features.heads.head import Head
from iai_hf.posterior import BOUND

BATCH = 256  # kept examples that refine logits at once
ROUNDS = 5
SAME = 0.999  # similarity of two features, unit vectors, from which on they are of the same text
BUDGET = 1024
CURVATURE = 0.25  # of an observation, p (1 - p), at most


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


class KernelHead(Head):
    """Base class: a subclass says what observations there are, and their loss.

    Attributes:
        bound: of the curvature of the loss.
        budget: examples that the state may keep.
    """

    bound: ClassVar[float] = BOUND

    def __init__(self, hyperparameters: Mapping[str, float], budget: int) -> None:
        super().__init__(hyperparameters)
        self.budget = budget

    @staticmethod
    @abstractmethod
    def residual(logits: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Derivative of the log-likelihood in logits `[n, C]`; the observations' own classes are ones in `own`."""

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

    def _moves(self, prepared: Prepared, own: torch.Tensor) -> torch.Tensor:
        """What each observation moves the logits of like texts by, `[kept, C]`; its classes are ones in `own`."""
        penalty, steps = prepared.values["penalty"], []
        for batch in batches(own):
            kernel = prepared.kernel(prepared.features, prepared.features[batch])
            bound = self.bound * kernel[batch] + penalty * torch.eye(kernel.shape[1]).to(kernel)
            steps.append((batch, kernel, torch.linalg.cholesky(bound)))
        moves, logits = prepared.moves, prepared.by_name(prepared.features)
        for _ in range(ROUNDS):
            for batch, kernel, factor in steps:
                move = torch.cholesky_solve(self.residual(logits[batch], own[batch]) - penalty * moves[batch], factor)
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
