"""Retained: a state that is the observations themselves, within a stated budget of examples."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch

from iai_hf.tables.solvers.solver import Batch, Solver
from iai_hf.task import Tensors


class Retained(Solver):
    """Keeps the newest chunks, at most `budget` examples, and reads them for each query.

    Args:
        budget: examples.
        batches: they are read in, at most; where there are more chunks, neighbours are merged. None reads each chunk.
    """

    def __init__(self, budget: int = 4096, batches: int | None = None) -> None:
        super().__init__()
        self.budget, self.batches = budget, batches

    @property
    def per_output(self) -> Sequence[str]:
        """Tensors whose last dimension is the outputs."""
        return ("y",)

    def initial(self, tasks: int, inputs: int, outputs: int) -> Tensors:
        """No observation."""
        return {
            "x": torch.zeros(tasks, 0, inputs, dtype=torch.float32),
            "y": torch.zeros(tasks, 0, outputs, dtype=torch.float32),
            "sizes": torch.zeros(tasks, 0, dtype=torch.int64),  # of the chunks
        }

    def refine(self, tensors: Tensors, batch: Batch) -> Tensors:
        """With the chunk, and without the oldest ones that no longer fit."""
        tasks, size = batch.x.shape[:2]
        if size > self.budget:
            batch, size = Batch(batch.x[:, : self.budget], batch.y[:, : self.budget]), self.budget
        sizes = [*tensors["sizes"][0].tolist(), size]
        while sum(sizes) > self.budget:
            sizes.pop(0)
        start = -sum(sizes)
        return {
            "x": torch.cat([tensors["x"].to(batch.x), batch.x], 1)[:, start:],
            "y": torch.cat([tensors["y"].to(batch.y), batch.y], 1)[:, start:],
            "sizes": torch.tensor(sizes).expand(tasks, -1).contiguous(),
        }

    def answer(self, tensors: Tensors, x: torch.Tensor) -> torch.Tensor:
        """Read what is retained, for these queries."""
        sizes = tensors["sizes"][0].tolist()
        if not sizes:
            return torch.zeros(*x.shape[:2], tensors["y"].shape[-1], device=x.device, dtype=torch.float32)
        chunks = list(map(Batch, tensors["x"].split(sizes, 1), tensors["y"].split(sizes, 1)))
        return self.read(merged(chunks, min(self.batches or len(chunks), len(chunks))), x)

    def training_chunks(self, chunks: Sequence[Batch], generator: torch.Generator) -> Sequence[Batch]:
        """The chunks merged into a random number of batches, as many as may be read."""
        if self.batches is None:
            return chunks
        most = min(self.batches, len(chunks))
        return merged(chunks, int(torch.randint(1, most + 1, (), generator=generator)))

    @abstractmethod
    def read(self, chunks: Sequence[Batch], x: torch.Tensor) -> torch.Tensor:
        """Outputs for the queries `x` from these batches, in their order."""


def merged(chunks: Sequence[Batch], count: int) -> list[Batch]:
    """As many batches, of about as many neighbouring chunks each."""
    bounds = [round(number * len(chunks) / count) for number in range(count + 1)]
    return [Batch(*(torch.cat(parts, 1) for parts in zip(*chunks[a:b], strict=True))) for a, b in pairwise(bounds)]
