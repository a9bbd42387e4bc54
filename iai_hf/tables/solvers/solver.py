"""The contract of a solver: initial, refine, answer; on numbers, for many tasks at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from iai_hf.tables.solvers.predictor import Predictor
from iai_hf.task import Tensors

SUMMARY = "summary"


class Batch(NamedTuple):
    """A chunk of every task: x `[tasks, chunk, inputs]`, y `[tasks, chunk, outputs]` (values, or one-hot), float32."""

    x: torch.Tensor
    y: torch.Tensor


class Solver(nn.Module, ABC):
    """A method; its parameters are what is meta-learned. `refine` is pure.

    Attributes:
        predictor: the form of the answer, and the loss.
        lengths_vary: training takes streams of all lengths; otherwise long ones alone, each of whose steps counts.
        capturable: a step has no linear system to solve, for whose success it would wait.
    """

    predictor: Predictor
    lengths_vary: bool = True
    capturable: bool = True

    def begin(self, stream: Batch, queries: Batch) -> None:
        """Before training, learn from some whole tasks what they say in closed form; by default nothing."""
        return

    @abstractmethod
    def initial(self, tasks: int, inputs: int, outputs: int) -> Tensors:
        """theta[0] of every task; each tensor `[tasks, ...]`."""

    @abstractmethod
    def refine(self, tensors: Tensors, batch: Batch) -> Tensors:
        """theta[i+1] from theta[i] and a mini-batch."""

    @abstractmethod
    def answer(self, tensors: Tensors, x: torch.Tensor) -> torch.Tensor:
        """Outputs `[tasks, queries, outputs]` for queries `[tasks, queries, inputs]`."""

    def grow(self, tensors: Tensors, outputs: int) -> Tensors:
        """The state with classes added, of which nothing is known."""
        return {
            name: torch.nn.functional.pad(tensor, (0, outputs - tensor.shape[-1]))
            if name in self.per_output
            else tensor
            for name, tensor in tensors.items()
        }

    @property
    def per_output(self) -> Sequence[str]:
        """Tensors whose last dimension is the outputs."""
        return ()

    def rollout(self, chunks: Sequence[Batch], x: torch.Tensor, *, greedy: bool = True) -> list[torch.Tensor]:
        """Outputs for the queries `x` after each chunk.

        Args:
            greedy: stop the gradient between steps, as the paper trains; otherwise it goes through all of them.
        """
        tensors = self.initial(x.shape[0], x.shape[-1], chunks[0].y.shape[-1])
        found = []
        for chunk in chunks:
            tensors = self.refine(stopped(tensors) if greedy else tensors, chunk)
            found.append(self.answer(tensors, x))
        return found

    @property
    def steps_apart(self) -> bool:
        """Whether one step can be trained on its own, from the state that the steps before it left behind."""
        return True

    def begin_stream(self, x: torch.Tensor, outputs: int) -> Tensors:
        """The state in front of a stream whose queries are `x`; by default `initial`."""
        return self.initial(x.shape[0], x.shape[-1], outputs)

    def advance(self, tensors: Tensors, batch: Batch, x: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        """One step of such a stream: the state behind it, and the outputs for the queries."""
        tensors = self.refine(tensors, batch)
        return tensors, self.answer(tensors, x)

    def training_chunks(self, chunks: Sequence[Batch], generator: torch.Generator) -> Sequence[Batch]:
        """The steps to train on, of an episode's chunks; by default these."""
        return chunks

    def outputs(self, chunks: Sequence[Batch], x: torch.Tensor, *, greedy: bool = True) -> list[torch.Tensor]:
        """Outputs for the queries `x` after each of the training chunks, all of which enter the loss; as `rollout`."""
        return self.rollout(chunks, x, greedy=greedy)


def stopped(tensors: Tensors) -> Tensors:
    """The tensors without their history.

    But for the mean of a network's summaries: each is of one chunk, so nothing runs through many steps.
    """
    return {name: tensor if name == SUMMARY else tensor.detach() for name, tensor in tensors.items()}
