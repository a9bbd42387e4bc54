"""The greedy objective for learners: every chunk is first a test of the state before it, then refines it.

So the loss is paid after every chunk, on examples that the state has not seen, for one forward and one backward pass a
chunk. The gradient is stopped between steps: an inner gradient counts as data (first-order MAML), and the start, the
step sizes and the shared weights get their gradients from where they enter each later loss.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from iai_hf.language_model.gradient import read_together
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
        device = next(self.learner.parameters()).device
        tensors: Tensors = {name: tensor.to(device) for name, tensor in self.learner.initial().items()}
        paid = _Paid(self.learner)
        amortizer, model = self.amortizer, self.amortizer.prompter.model
        retained: Tensors = amortizer.retained({})
        planned: list[tuple[list[Row], Tensors]] = []
        total = 0
        for chunk in episode.chunks:
            retained, others, _ = amortizer.retain(retained, chunk, total)
            rows = amortizer.rows(chunk)
            planned.append(([rows[i] for i in others], retained))
            total += len(others)
        for rows, known in planned:
            for group in read_together(rows):
                own, shared = self._leaves(tensors)
                for batch in amortizer.batches(amortizer.read(group, amortizer.entering(own, shared, known))):
                    own, shared = self._leaves(tensors)
                    losses = model.losses(batch, amortizer.entering(own, shared, known))
                    loss = (losses.sums / losses.tokens).mean()
                    gradients = paid.add(loss, own, shared, len(batch) / total)
                    refined = self.learner.refined(tensors, gradients, len(batch) / amortizer.config.batch_size)
                    paid.moved(tensors, refined)
                    tensors = refined
        if self.unrelated_weight and episode.unrelated:
            own, shared = self._leaves(tensors)
            entering = amortizer.entering(own, shared, retained)
            divergence = amortizer.divergence(entering, episode.unrelated, UNRELATED_TOKENS)
            paid.add(divergence, own, shared, self.unrelated_weight)
        return paid.total()

    def _leaves(self, tensors: Tensors) -> tuple[Tensors, Tensors]:
        own = {name: tensor.detach().requires_grad_() for name, tensor in self.learner.own(tensors).items()}
        shared = {name: tensor.detach().requires_grad_() for name, tensor in self.learner.common().items()}
        return own, shared


class _Paid:
    """Sums the losses paid, with their gradients, into one value whose backward pass is nearly free.

    With theta[i] = start - sum of moves, and each move proportional to exp(rate) * step^decay, a loss with gradient g
    in theta[i] has the gradients g in start, -<g, moves> in rate and -<g, log(step) * moves> in decay.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.value = torch.zeros((), device=next(learner.parameters()).device)
        self.moves = {name: torch.zeros_like(start) for name, start in learner.start.items()}
        self.late = {name: torch.zeros_like(start) for name, start in learner.start.items()}
        self.gradients = {name: torch.zeros_like(parameter) for name, parameter in learner.named_parameters()}

    def add(self, loss: torch.Tensor, own: Tensors, shared: Tensors, weight: float) -> dict[str, torch.Tensor]:
        """Pay `weight * loss`; the gradients of the loss in the task's own weights are returned."""
        leaves = {f"start.{name}": leaf for name, leaf in own.items()}
        leaves |= {f"shared.{name}": leaf for name, leaf in shared.items()}
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        self.value = self.value + weight * loss.detach()
        gradients = {}
        for (key, leaf), gradient in zip(leaves.items(), found, strict=True):
            gradients[key] = torch.zeros_like(leaf) if gradient is None else gradient
            self.gradients[key] += weight * gradients[key]
        for name in own:
            gradient = weight * gradients[f"start.{name}"]
            self.gradients[f"rates.{name}"] -= (gradient * self.moves[name]).flatten(1).sum(1)
            self.gradients[f"decays.{name}"] -= (gradient * self.late[name]).flatten(1).sum(1)
        return {name: gradients[f"start.{name}"] for name in own}

    def moved(self, before: Tensors, after: Tensors) -> None:
        """Remember a step."""
        lateness = math.log(int(after["steps"]))
        for name, old in self.learner.own(before).items():
            move = old - after[f"own.{name}"]
            self.moves[name] += move
            self.late[name] += lateness * move

    def total(self) -> torch.Tensor:
        """The value, with these gradients in the learned numbers."""
        pairs = ((parameter, self.gradients[name]) for name, parameter in self.learner.named_parameters())
        return self.value + sum(((parameter - parameter.detach()) * gradient).sum() for parameter, gradient in pairs)
