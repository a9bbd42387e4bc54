"""The prequential objective for learners: each batch first tests the state before it, then refines the state.

    loss = 1/N * sum over batches of n[i] * L(theta[i]; batch[i]),    theta[i+1] = theta[i] - step(gradient of L)

The greedy objective of Mittal et al. 2025 (arXiv 2510.11471), for one forward and one backward pass a batch. The
gradient is stopped between steps, as in first-order MAML (Nichol et al. 2018, arXiv 1803.02999): an inner gradient
counts as data, and the start, the step sizes and the shared weights get theirs from where they enter each later loss.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from iai_hf.language_model.gradient import prefill_groups
from iai_hf.language_model.learners import Learner, Tensors
from iai_hf.language_model.training.episodes import TextEpisode

if TYPE_CHECKING:
    from iai_hf.backbones.packing import Row
    from iai_hf.language_model.gradient import Gradient

UNRELATED_TOKENS = 32


class PrequentialObjective(nn.Module):
    """Loss of an amortizer's learner on an episode.

    Args:
        unrelated_weight: of the divergence from the plain model on unrelated texts, after the last chunk.
    """

    def __init__(self, amortizer: Gradient, unrelated_weight: float) -> None:
        super().__init__()
        self.learner: Learner = amortizer.learner
        self.amortizer, self.unrelated_weight = amortizer, unrelated_weight

    def forward(self, episode: TextEpisode) -> torch.Tensor:
        """Mean negative log-likelihood a token over all chunks, each under the state before it."""
        amortizer, learner, model = self.amortizer, self.learner, self.amortizer.prompter.model
        device = next(learner.parameters()).device
        theta: Tensors = {name: tensor.to(device) for name, tensor in learner.initial().items()}
        losses = LossSum(learner)
        chunks, retained = self._examples(episode)
        count = sum(len(rows) for rows, _ in chunks)
        for rows, kept in chunks:
            for group in prefill_groups(rows):
                prefilled = amortizer.prefill(group, amortizer.condition(*self._leaves(theta), kept))
                for batch in amortizer.batches(prefilled):
                    own, shared = self._leaves(theta)
                    found = model.losses(batch, amortizer.condition(own, shared, kept))
                    loss = (found.sums / found.tokens).mean()
                    gradients = losses.add(loss, own, shared, len(batch) / count)
                    refined = learner.refined(theta, gradients, len(batch) / amortizer.config.batch_size)
                    losses.stepped(theta, refined)
                    theta = refined
        if self.unrelated_weight and episode.unrelated:
            own, shared = self._leaves(theta)
            condition = amortizer.condition(own, shared, retained)
            divergence = amortizer.divergence(condition, episode.unrelated, UNRELATED_TOKENS)
            losses.add(divergence, own, shared, self.unrelated_weight)
        return losses.total()

    def _examples(self, episode: TextEpisode) -> tuple[list[tuple[list[Row], Tensors]], Tensors]:
        """For each chunk the rows to step on, and what is retained by then; what is retained at the end."""
        retained: Tensors = self.amortizer.retained({})
        chunks: list[tuple[list[Row], Tensors]] = []
        steps = 0
        for chunk in episode.chunks:
            retained, trained_on, _ = self.amortizer.retain(retained, chunk, steps)
            rows = self.amortizer.rows(chunk)
            chunks.append(([rows[i] for i in trained_on], retained))
            steps += len(trained_on)
        return chunks, retained

    def _leaves(self, theta: Tensors) -> tuple[Tensors, Tensors]:
        """The task's own weights and the shared ones, for a gradient that ends there."""
        own = {name: tensor.detach().requires_grad_() for name, tensor in self.learner.task_weights(theta).items()}
        shared = {name: tensor.detach().requires_grad_() for name, tensor in self.learner.shared_weights().items()}
        return own, shared


class LossSum:
    """Sums weighted losses, with their gradients, into one value whose backward pass is nearly free.

    The own weights of several tasks stand one behind the other in the first dimension.

    With theta[i] = start - sum of moves[j], and moves[j] = exp(rate) * j^decay * direction[j] for the steps j before i,
    a loss with gradient g in theta[i] has the gradients

        g in start,    -<g, sum of moves[j]> in rate,    -<g, sum of log(j) * moves[j]> in decay.
    """

    def __init__(self, learner: Learner, tasks: int = 1) -> None:
        self.learner, self.tasks = learner, tasks
        self.value = torch.zeros((), device=next(learner.parameters()).device)
        self.moves = {name: torch.zeros_like(torch.cat([start] * tasks)) for name, start in learner.start.items()}
        self.log_step_moves = {name: torch.zeros_like(moves) for name, moves in self.moves.items()}
        self.gradients = {name: torch.zeros_like(parameter) for name, parameter in learner.named_parameters()}

    def add(
        self, loss: torch.Tensor, own: Tensors, shared: Tensors, weight: float, probe: Tensors | None = None
    ) -> dict[str, torch.Tensor]:
        """Add `weight * loss`; the gradients of the loss in the task's own weights are returned, or in the `probe`."""
        leaves = {f"start.{name}": leaf for name, leaf in own.items()}
        leaves |= {f"shared.{name}": leaf for name, leaf in shared.items()}
        leaves |= {f"probe.{name}": leaf for name, leaf in (probe or {}).items()}
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        gradients = dict(zip(leaves, found, strict=True))
        self.value = self.value + weight * loss.detach()
        for name in shared:
            self.gradients[f"shared.{name}"] += weight * gradients[f"shared.{name}"]
        for name in own:
            gradient = weight * gradients[f"start.{name}"]
            self.gradients[f"start.{name}"] += self._over_tasks(gradient)
            moved, log_moved = gradient * self.moves[name], gradient * self.log_step_moves[name]
            self.gradients[f"rates.{name}"] -= self._over_tasks(moved.flatten(1).sum(1))
            self.gradients[f"decays.{name}"] -= self._over_tasks(log_moved.flatten(1).sum(1))
        part = "start" if probe is None else "probe"
        return {name: gradients[f"{part}.{name}"] for name in own}

    def stepped(self, before: Tensors, after: Tensors) -> None:
        """Remember a step's move."""
        log_step = math.log(int(after["steps"]))
        for name, old in self.learner.task_weights(before).items():
            move = old - after[f"own.{name}"]
            self.moves[name] += move
            self.log_step_moves[name] += log_step * move

    def _over_tasks(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over tasks, `[groups, ...]`."""
        return values.unflatten(0, (self.tasks, -1)).sum(0)

    def total(self) -> torch.Tensor:
        """The value, with these gradients in the learned numbers."""
        pairs = ((parameter, self.gradients[name]) for name, parameter in self.learner.named_parameters())
        return self.value + sum(((parameter - parameter.detach()) * gradient).sum() for parameter, gradient in pairs)
