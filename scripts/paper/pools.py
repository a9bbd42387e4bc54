"""Tasks from labelled data: five of its classes, shuffled, so that a class number means nothing across tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from iai_hf.tables.solvers.solver import Batch
from iai_hf.tables.training.families import Family, TableEpisode


class Pool(NamedTuple):
    """Labelled vectors: x float32 `[examples, inputs]`, y int64 `[examples]`."""

    x: torch.Tensor
    y: torch.Tensor


class Source(NamedTuple):
    """A training and a test part, and the pair for tests out of distribution."""

    train: Pool
    test: Pool
    shifted_train: Pool
    shifted_test: Pool


@dataclass(frozen=True)
class PoolFamily(Family):
    """`outputs` classes a task, streams from the training part, queries from the test part."""

    source: Source | None = None

    def sample(
        self, generator: torch.Generator, tasks: int, examples: int, queries: int, shifted: bool = False
    ) -> TableEpisode:
        """Examples are drawn with replacement; no exact answer is known."""
        assert self.source is not None
        train, test = self.source[2:] if shifted else self.source[:2]
        classes = train.y.unique()
        ranks = torch.rand(tasks, len(classes), generator=generator).argsort(1)
        chosen = classes[ranks[:, : self.outputs]]
        return TableEpisode(_drawn(train, chosen, examples, generator), _drawn(test, chosen, queries, generator), None)


def reduced(pools: list[Pool], size: int) -> list[Pool]:
    """Principal components of the first pool, of variance one together a component, applied to all."""
    first = pools[0].x
    mean = first.mean(0)
    _, _, directions = torch.linalg.svd(first - mean, full_matrices=False)
    projected = (first - mean) @ directions[:size].T
    scale = projected.square().mean().sqrt()
    return [Pool((pool.x - mean) @ directions[:size].T / scale, pool.y) for pool in pools]


def halves(pool: Pool, seed: int = 0) -> tuple[Pool, Pool]:
    """Two thirds for streams, a third for queries."""
    order = torch.randperm(len(pool.y), generator=torch.Generator().manual_seed(seed))
    cut = 2 * len(order) // 3
    return Pool(pool.x[order[:cut]], pool.y[order[:cut]]), Pool(pool.x[order[cut:]], pool.y[order[cut:]])


def _drawn(pool: Pool, chosen: torch.Tensor, count: int, generator: torch.Generator) -> Batch:
    """`count` examples of a task's classes `[tasks, classes]`, any of them as likely, with their numbers there."""
    order, counts = pool.y.argsort(), pool.y.bincount()
    ends = counts[chosen].cumsum(1)
    picks = (torch.rand(len(chosen), count, generator=generator) * ends[:, -1:]).long().clamp(max=ends[:, -1:] - 1)
    number = (picks[..., None] >= ends[:, None]).sum(-1)  # of the class within the task
    within = picks - (ends - counts[chosen]).gather(1, number)
    first = (counts.cumsum(0) - counts)[chosen].gather(1, number)
    x = pool.x[order[first + within]]
    return Batch(x, torch.nn.functional.one_hot(number, chosen.shape[1]).float())
