"""Families of numeric tasks, each with a shifted form for tests out of distribution, and the exact answer where known.

Regression and classification; a family of your own is a subclass of `Family`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from iai_hf.posterior import solve
from iai_hf.signals import SIGNALS
from iai_hf.tables.solvers.solver import Batch

Exact = Callable[[Batch, torch.Tensor], torch.Tensor]  # of the stream so far and the queries


class TableEpisode(NamedTuple):
    """Streams and queries of some tasks.

    Attributes:
        stream: `[tasks, examples, ...]`.
        queries: of the same tasks, with answers.
        exact: outputs for queries of the best possible answer, None where it is not known.
    """

    stream: Batch
    queries: Batch
    exact: Exact | None

    def chunks(self, size: int) -> list[Batch]:
        """The stream, cut."""
        return list(map(Batch, self.stream.x.split(size, 1), self.stream.y.split(size, 1)))


@dataclass(frozen=True)
class Family(ABC):
    """A distribution of tasks.

    Attributes:
        name: as the tables have it.
        classification: or regression.
        inputs, outputs: sizes.
        width: of the predictor's fixed random features, 0 for a linear predictor.
        signals: those that exist for it.
        queries: of a task, where there can't be any number of them.
    """

    name: str
    classification: bool
    inputs: int
    outputs: int
    width: int = 0
    signals: tuple[str, ...] = SIGNALS
    queries: int | None = None

    @abstractmethod
    def sample(
        self, generator: torch.Generator, tasks: int, examples: int, queries: int, shifted: bool = False
    ) -> TableEpisode:
        """Tasks drawn with the generator; `shifted` out of the training distribution."""


@dataclass(frozen=True)
class LinearRegression(Family):
    """y = x w + noise, w and x standard normal. Shifted: inputs of uneven scale, heavy-tailed weights."""

    noise: float = 0.5

    def sample(
        self, generator: torch.Generator, tasks: int, examples: int, queries: int, shifted: bool = False
    ) -> TableEpisode:
        """The exact answer is the Bayes-optimal ridge regression with the true noise."""
        weight = torch.randn(tasks, self.inputs, 1, generator=generator)
        x = torch.randn(tasks, examples + queries, self.inputs, generator=generator)
        if shifted:
            weight, x = weight * _heavy(generator, tasks), x * _uneven(self.inputs)
        noise = self.noise * torch.randn(tasks, examples + queries, 1, generator=generator)

        def exact(seen: Batch, asked: torch.Tensor) -> torch.Tensor:
            precision = self.noise**2 * torch.eye(self.inputs)
            return asked @ solve(seen.x.mT @ seen.x + precision, seen.x.mT @ seen.y)

        return _cut(x, x @ weight + noise, examples, exact)


@dataclass(frozen=True)
class LinearClassification(Family):
    """Labels drawn from softmax(2 x W), W standard normal over the root of the inputs. Shifted as the regression."""

    def sample(
        self, generator: torch.Generator, tasks: int, examples: int, queries: int, shifted: bool = False
    ) -> TableEpisode:
        """The exact answer is the classifier that generates the labels."""
        weight = 2 * torch.randn(tasks, self.inputs, self.outputs, generator=generator) / self.inputs**0.5
        x = torch.randn(tasks, examples + queries, self.inputs, generator=generator)
        if shifted:
            weight, x = weight * _heavy(generator, tasks), x * _uneven(self.inputs)
        y = drawn(x @ weight, generator)
        return _cut(x, y, examples, lambda _, asked: asked @ weight)


@dataclass(frozen=True)
class NonlinearClassification(Family):
    """Labels drawn from a random network with one hidden layer of 16 tanh units; shifted: of sines, half as wide."""

    def sample(
        self, generator: torch.Generator, tasks: int, examples: int, queries: int, shifted: bool = False
    ) -> TableEpisode:
        """The exact answer is the network that generates the labels."""
        units = 8 if shifted else 16
        first = 1.5 * torch.randn(tasks, self.inputs, units, generator=generator)
        second = 4 * torch.randn(tasks, units, self.outputs, generator=generator) / units**0.5
        x = torch.randn(tasks, examples + queries, self.inputs, generator=generator)

        def network(asked: torch.Tensor) -> torch.Tensor:
            hidden = asked @ first
            return (hidden.sin() if shifted else hidden.tanh()) @ second

        return _cut(x, drawn(network(x), generator), examples, lambda _, asked: network(asked))


def drawn(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One-hot labels drawn from logits `[..., classes]`."""
    uniform = torch.rand(logits.shape, generator=generator).clamp(1e-9, 1 - 1e-7)
    best = (logits - (-uniform.log()).log()).argmax(-1)
    return torch.nn.functional.one_hot(best, logits.shape[-1]).float()


def _cut(x: torch.Tensor, y: torch.Tensor, examples: int, exact: Exact | None) -> TableEpisode:
    stream, queries = Batch(x[:, :examples], y[:, :examples]), Batch(x[:, examples:], y[:, examples:])
    return TableEpisode(stream, queries, exact)


def _heavy(generator: torch.Generator, tasks: int) -> torch.Tensor:
    """Scales of a Student distribution with three degrees of freedom, one a task."""
    chi = torch.randn(tasks, 3, generator=generator).square().sum(1)
    return (3 / chi).sqrt().clamp(max=3)[:, None, None]


def _uneven(inputs: int) -> torch.Tensor:
    return torch.linspace(0.5, 1.5, inputs)
