"""Staggered: streams at different steps side by side, of which a step of the optimiser takes one step each."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from iai_hf.tables.solvers.solver import Batch, Solver
from iai_hf.tables.training.families import Family, TableEpisode
from iai_hf.task import Tensors
from iai_hf.training.config import TrainingConfig


class StaggeredStep(NamedTuple):
    """The next chunk of all streams and their queries; `fresh`: streams that begin with it, bool `[streams]`."""

    chunk: Batch
    queries: Batch
    fresh: torch.Tensor


class Staggered(nn.Module):
    """The greedy objective without walking whole streams: the gradient stops between steps, so a state will do.

    What the steps before left behind is kept as buffers, so a checkpoint holds it. `most_steps` groups of streams are a
    step apart; one group begins anew in each step of the optimiser (unrolls a step apart: Vicol et al. 2021, arXiv
    2112.13835).
    """

    def __init__(self, solver: Solver, family: Family, config: TrainingConfig) -> None:
        super().__init__()
        self.solver, self.family, self.config = solver, family, config
        self.groups = config.most_steps
        self.each = -(-config.tasks_per_episode // self.groups)  # streams in a group
        self.drawn: dict[int, tuple[int, TableEpisode]] = {}  # the streams of each group, and when they began
        inputs = torch.zeros(self.groups * self.each, config.queries, family.inputs)
        if family.queries is not None:
            inputs = inputs[:, : family.queries]
        self.names = tuple(solver.begin_stream(inputs, family.outputs))
        for name, tensor in solver.begin_stream(inputs, family.outputs).items():
            self.register_buffer(f"kept_{name}", tensor.detach().clone())

    def forward(self, episode: StaggeredStep) -> torch.Tensor:
        """Mean loss of the queries behind the step; the states behind it are kept."""
        chunk, queries, fresh = episode
        kept = {name: self.get_buffer(f"kept_{name}") for name in self.names}
        tensors: Tensors = {
            name: torch.where(fresh.view(-1, *(1 for _ in tensor.shape[1:])), tensor, kept[name])
            for name, tensor in self.solver.begin_stream(queries.x, queries.y.shape[-1]).items()
        }
        tensors, outputs = self.solver.advance(tensors, chunk, queries.x)
        for name, tensor in tensors.items():
            kept[name].copy_(tensor.detach())
        return self.solver.predictor.loss(outputs, queries.y).mean()

    def draw(self, number: int, size: int, device: torch.device) -> StaggeredStep:
        """Step `number`, with chunks of `size` examples; it follows from its number, but for the states."""
        chunks, queries = [], []
        for group in range(self.groups):
            place = (number - group) % self.groups
            episode = self._streams(group, number - place)
            first = place * self.config.chunk_sizes[1]
            chunks.append(Batch(*(part[:, first : first + size] for part in episode.stream)))
            queries.append(episode.queries)
        fresh = torch.zeros(self.groups, self.each, dtype=torch.bool)
        fresh[number % self.groups] = True
        fresh = fresh.flatten() if number else torch.ones(self.groups * self.each, dtype=torch.bool)
        return StaggeredStep(_joined(chunks, device), _joined(queries, device), fresh.to(device))

    def _streams(self, group: int, began: int) -> TableEpisode:
        """The streams of a group that began in step `began`, below zero those that a run begins amidst."""
        if group not in self.drawn or self.drawn[group][0] != began:
            generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.groups + began)
            examples = self.groups * self.config.chunk_sizes[1]
            self.drawn[group] = began, self.family.sample(generator, self.each, examples, self.config.queries)
        return self.drawn[group][1]


def _joined(batches: list[Batch], device: torch.device) -> Batch:
    return Batch(*(torch.cat(parts).to(device) for parts in zip(*batches, strict=True)))
