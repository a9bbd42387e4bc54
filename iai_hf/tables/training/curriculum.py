"""TableCurriculum: episodes of a family, the loss after every chunk, and held-out tasks that choose the weights."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from iai_hf.tables.solvers.optimizers import Reptile
from iai_hf.tables.solvers.solver import Batch, Solver
from iai_hf.tables.training.families import Family, TableEpisode
from iai_hf.training.config import TrainingConfig
from iai_hf.training.curriculum import Curriculum, Evaluation

VALIDATION_SEED, VALIDATION_EPISODES = 10**9, 4
PRIOR_SEED, PRIOR_TASKS, PRIOR_LENGTH = 6 * 10**9, 256, 4  # length: in longest streams of an episode


class SolverObjective(nn.Module):
    """Mean loss of the queries over all steps; by default the gradient is stopped between them (greedy)."""

    def __init__(self, solver: Solver, greedy: bool) -> None:
        super().__init__()
        self.solver, self.greedy = solver, greedy

    def forward(self, episode: tuple[list[Batch], Batch]) -> torch.Tensor:
        """Of one episode's chunks and queries."""
        chunks, queries = episode
        if isinstance(self.solver, Reptile):
            return self.solver.pull(chunks)
        found = self.solver.outputs(chunks, queries.x, greedy=self.greedy)
        return torch.stack([self.solver.predictor.loss(outputs, queries.y).mean() for outputs in found]).mean()


class Solves(Protocol):
    """What is needed of an amortizer: its solver, and whether the gradient is stopped between steps."""

    greedy: ClassVar[bool]

    @property
    def solver(self) -> Solver:
        """What is trained."""


class TableCurriculum(Curriculum):
    """Tasks of one family, new ones in every episode.

    Args:
        amortizer: its solver is trained.
        config: `episodes_per_step` batches of `tasks_per_episode` tasks; chunk sizes are drawn log-uniformly, numbers
            of chunks, at most `most_steps`, uniformly.
    """

    def __init__(self, amortizer: Solves, family: Family, config: TrainingConfig) -> None:
        self.family, self.config = family, config
        self.learned = self.solver = amortizer.solver
        self.objective = SolverObjective(self.solver, amortizer.greedy)

    def begin(self) -> None:
        """Let the solver learn from some whole tasks, longer than those of episodes."""
        generator = torch.Generator().manual_seed(PRIOR_SEED + self.config.seed)
        examples = PRIOR_LENGTH * self.config.most_steps * self.config.chunk_sizes[1]
        drawn = self.family.sample(generator, PRIOR_TASKS, examples, self.config.queries)
        device = next(self.solver.parameters()).device
        self.solver.begin(_moved(drawn.stream, device), _moved(drawn.queries, device))

    def draw(self, number: int, device: torch.device) -> tuple[list[Batch], Batch]:
        """Episode `number`."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + number)
        steps = int(torch.randint(1, self.config.most_steps + 1, (), generator=generator))
        size = _log_uniform(generator, *self.config.chunk_sizes)
        drawn = self.family.sample(generator, self.config.tasks_per_episode, steps * size, self.config.queries)
        chunks, queries = _on(drawn, size, device)
        return list(self.solver.training_chunks(chunks, generator)), queries

    def describe(self, episode: Any) -> str:
        """Where an episode comes from."""
        return f"{self.family.name}, {len(episode[0])} chunks of {episode[0][0].x.shape[1]}"

    def evaluate(self) -> Evaluation:
        """Held-out tasks: mean loss after 1, 2, 4, ... chunks and the last, right answers then (or minus loss)."""
        generator = torch.Generator().manual_seed(VALIDATION_SEED)
        steps, size = self.config.most_steps, self.config.chunk_sizes[1]
        tasks = VALIDATION_EPISODES * self.config.tasks_per_episode
        drawn = self.family.sample(generator, tasks, steps * size, self.config.queries)
        device = next(self.solver.parameters()).device
        chunks, queries = _on(drawn, size, device)
        with torch.no_grad():
            tensors = self.solver.initial(tasks, self.family.inputs, self.family.outputs)
            losses, outputs = [], queries.y
            for count, chunk in enumerate(chunks, 1):
                tensors = self.solver.refine(tensors, chunk)
                if count & (count - 1) == 0 or count == len(chunks):
                    outputs = self.solver.answer(tensors, queries.x)
                    losses.append(float(self.solver.predictor.loss(outputs, queries.y).mean()))
            right = float((outputs.argmax(-1) == queries.y.argmax(-1)).float().mean())
        return Evaluation(sum(losses) / len(losses), right if self.family.classification else -losses[-1])


def _on(episode: TableEpisode, size: int, device: torch.device) -> tuple[list[Batch], Batch]:
    return [_moved(chunk, device) for chunk in episode.chunks(size)], _moved(episode.queries, device)


def _moved(batch: Batch, device: torch.device) -> Batch:
    return Batch(batch.x.to(device), batch.y.to(device))


def _log_uniform(generator: torch.Generator, least: int, most: int) -> int:
    share = float(torch.rand((), generator=generator))
    return min(int(least * ((most + 1) / least) ** share), most)
