"""Topological order: samples of a linear causal graph in, each node's place in the causal order out."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from iai_hf.tables.solvers.solver import Batch
from iai_hf.tables.training.families import Family, TableEpisode


@dataclass(frozen=True)
class CausalOrder(Family):
    """Nodes of a random graph with noise of equal variance, in random order; a query names a node by one-hot.

    The observations have no answers of their own (their y is zero), so the gradient of a loss on them does not exist:
    the data are the only signal. Answers are places from -1 (first) to 1. Shifted: twice as many edges.
    """

    def sample(
        self, generator: torch.Generator, tasks: int, examples: int, queries: int, shifted: bool = False
    ) -> TableEpisode:
        """No exact answer is known: with equal noise an order can be told, without labels, by which node has the least
        variance given those before it (Chen, Drton and Wang 2019), but where many are right none is their mean."""
        nodes = self.inputs
        edges = torch.rand(tasks, nodes, nodes, generator=generator) < (0.9 if shifted else 0.45)
        size = 0.5 + torch.rand(tasks, nodes, nodes, generator=generator)
        sign = torch.randint(0, 2, (tasks, nodes, nodes), generator=generator) * 2 - 1
        weight = (edges * size * sign).triu(1)  # from a node to later ones
        noise = torch.randn(tasks, examples, nodes, generator=generator)
        sorted_x = noise @ torch.linalg.inv(torch.eye(nodes) - weight)
        order = torch.rand(tasks, nodes, generator=generator).argsort(1)  # column of each place in the order
        x = torch.zeros_like(sorted_x).scatter(2, order[:, None].expand(-1, examples, -1), sorted_x)
        places = torch.linspace(-1, 1, nodes).expand(tasks, -1)
        answers = torch.zeros(tasks, nodes).scatter(1, order, places)
        asked = torch.eye(nodes).expand(tasks, -1, -1)
        return TableEpisode(
            Batch(x, torch.zeros(tasks, examples, 1)),
            Batch(asked.contiguous(), answers[..., None]),
            None,
        )
