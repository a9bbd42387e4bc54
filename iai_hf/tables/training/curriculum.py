"""TableCurriculum: episodes of a family, the loss after every chunk, and held-out tasks that choose the weights."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from iai_hf.tables.solvers.optimizers import Reptile
from iai_hf.tables.solvers.solver import Batch, Solver
from iai_hf.tables.training.families import Family, TableEpisode
from iai_hf.tables.training.staggered import Staggered, StaggeredStep
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


class _Averaged(nn.Module):
    """An objective with the solver that it trains, and one whose weights are the mean of the former's over steps."""

    def __init__(self, average: Solver, objective: nn.Module) -> None:
        super().__init__()
        self.average, self.objective = average, objective

    @torch.no_grad()
    def stepped(self, trained: Solver, memory: float) -> None:
        """Move the mean; `memory` is how much of it stays."""
        torch._foreach_lerp_(list(self.average.parameters()), list(trained.parameters()), 1 - memory)


class TableCurriculum(Curriculum):
    """Tasks of one family, new ones in every episode.

    Args:
        amortizer: its solver is trained.
        config: `episodes_per_step` batches of `tasks_per_episode` tasks; chunk sizes are drawn log-uniformly, numbers
            of chunks, at most `most_steps`, uniformly.
    """

    def __init__(self, amortizer: Solves, family: Family, config: TrainingConfig) -> None:
        self.family, self.config = family, config
        self.learned = self.solver = self.trained = amortizer.solver
        self.staggered = config.staggered and amortizer.greedy and self.solver.steps_apart
        if config.averaging or self.staggered:
            self.trained = copy.deepcopy(self.solver)
        self.objective = (
            Staggered(self.trained, family, config)
            if self.staggered
            else SolverObjective(self.trained, amortizer.greedy)
        )
        self.capturable = self.solver.capturable
        if self.trained is not self.solver:
            self.learned = _Averaged(self.solver, self.objective)

    def begin(self) -> None:
        """Let the solver learn from some whole tasks, longer than those of episodes."""
        generator = torch.Generator().manual_seed(PRIOR_SEED + self.config.seed)
        examples = PRIOR_LENGTH * self.config.most_steps * self.config.chunk_sizes[1]
        drawn = self.family.sample(generator, PRIOR_TASKS, examples, self.config.queries)
        device = next(self.solver.parameters()).device
        self.solver.begin(_moved(drawn.stream, device), _moved(drawn.queries, device))
        self.trained.load_state_dict(self.solver.state_dict())

    def stepped(self, step: int) -> None:
        """Move the mean of the weights over steps: of the last tenth or so, as far as `averaging` reaches back."""
        if isinstance(self.learned, _Averaged):
            self.learned.stepped(self.trained, min(self.config.averaging, step / (step + 10)))

    def draw(self, number: int, device: torch.device) -> tuple[list[Batch], Batch] | StaggeredStep:
        """Episode `number`."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + number)
        steps = int(torch.randint(1, self.config.most_steps + 1, (), generator=generator))
        if not self.solver.lengths_vary:
            steps = self.config.most_steps
        size = _log_uniform(generator, *self.config.chunk_sizes)
        if isinstance(self.objective, Staggered):
            return self.objective.draw(number, size, device)
        drawn = self.family.sample(generator, self.config.tasks_per_episode, steps * size, self.config.queries)
        chunks, queries = _on(drawn, size, device)
        return list(self.solver.training_chunks(chunks, generator)), queries

    def describe(self, episode: Any) -> str:
        """Where an episode comes from."""
        chunks = [episode.chunk] if isinstance(episode, StaggeredStep) else episode[0]
        return f"{self.family.name}, {len(chunks)} chunks of {chunks[0].x.shape[1]}"

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
    """A size between the two, a multiple of a quarter of the largest so that few shapes occur."""
    share = float(torch.rand((), generator=generator))
    size = least * ((most + 1) / least) ** share
    unit = max(most // 4, 1)
    return min(max(int(size / unit) * unit, least), most)
