"""Learner: the initial value of a task's own weights and the steps that refine them, both meta-learned.

    theta[0] = start,    theta[i+1] = theta[i] - rate * (1 + i)^decay * direction(gradient)

MAML (Finn et al. 2017, arXiv 1703.03400) with learned step sizes (Meta-SGD, Li et al. 2017, arXiv 1707.09835), as a
learned optimizer in the parametric regime of Mittal et al. 2025 (arXiv 2510.11471). At their initial value the learned
numbers make it plain gradient descent with the rule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from iai_hf.language_model.learners.rules import RULES, group_shape

Tensors = Mapping[str, torch.Tensor]
NO_SCALES: Mapping[str, float] = {}


class Learner(nn.Module):
    """Learned numbers, and the pure functions of a state's tensors that use them.

    The first dimension of each tensor counts its groups (layers, say): each group has a step size of its own.

    Args:
        start: a task's own weights before any example, by name, `[groups, ...]`.
        shared: weights of the same model that all tasks share: meta-learned, never adapted.
        rate, decay: step size to begin with, and its exponent in the number of the step.
        rule: name of one of `RULES`.
    """

    def __init__(self, start: Tensors, shared: Tensors, rate: float, decay: float, rule: str) -> None:
        super().__init__()
        self.start = nn.ParameterDict({name: nn.Parameter(tensor) for name, tensor in start.items()})
        self.shared = nn.ParameterDict({name: nn.Parameter(tensor) for name, tensor in shared.items()})
        self.rates = nn.ParameterDict(
            {name: torch.full((len(start[name]),), math.log(rate), dtype=torch.float32) for name in start}
        )
        self.decays = nn.ParameterDict(
            {name: torch.full((len(start[name]),), decay, dtype=torch.float32) for name in start}
        )
        self.rule = rule

    def initial(self) -> Tensors:
        """Tensors of a state before any example: `own.NAME`, its moments `mean.NAME` and `square.NAME`, `steps`."""
        tensors = {"steps": torch.zeros((), dtype=torch.int64)}
        for name, parameter in self.start.items():
            start = parameter.detach().cpu().clone()
            square = torch.zeros(start.shape if self.rule == "per_weight" else group_shape(start), dtype=torch.float32)
            tensors |= {f"own.{name}": start, f"mean.{name}": torch.zeros_like(start), f"square.{name}": square}
        return tensors

    def stored(self, tensors: Tensors) -> Tensors:
        """The tensors as a state keeps them, on the CPU; with the rule for small states in three bytes a weight.

        The task's own weights are then float16, and their momentum int8 in parts of its group's root mean square.
        """
        kept = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        if self.rule == "per_group":
            for name in self.start:
                scale = _part_of(kept[f"square.{name}"])
                kept[f"own.{name}"] = kept[f"own.{name}"].half()
                kept[f"mean.{name}"] = (kept[f"mean.{name}"] / scale).round().clamp(-127, 127).to(torch.int8)
        return kept

    def loaded(self, tensors: Tensors, device: torch.device) -> Tensors:
        """What `stored` kept, float32 on `device`."""
        found = {name: tensor.to(device) for name, tensor in tensors.items()}
        for name in self.start:
            found[f"own.{name}"] = found[f"own.{name}"].float()
            if found[f"mean.{name}"].dtype == torch.int8:
                found[f"mean.{name}"] = found[f"mean.{name}"] * _part_of(found[f"square.{name}"])
        return found

    def refined(
        self,
        tensors: Tensors,
        gradients: Tensors,
        share: float | torch.Tensor = 1.0,
        scales: Mapping[str, float] = NO_SCALES,
    ) -> Tensors:
        """Tensors after one step, float32.

        Those of several tasks stand one behind the other in the first dimension.

        Args:
            gradients: of the task's own weights, by name.
            share: of a full batch that the gradient comes from; a smaller one makes a smaller step. Of several tasks,
                `[tasks]`.
            scales: what the step sizes are multiplied by, by name; 1 where one is not named.
        """
        step = int(tensors["steps"]) + 1
        refined = {"steps": torch.tensor(step)}
        for name, own in self.task_weights(tensors).items():
            moments = (tensors[f"mean.{name}"].to(own), tensors[f"square.{name}"].to(own))
            direction, (mean, square) = RULES[self.rule](gradients[name].to(own), moments, step)
            rates = (self.rates[name] + self.decays[name] * math.log(step)).detach().exp().to(own)
            part = share.to(own)[:, None] if isinstance(share, torch.Tensor) else share
            moved = own - (part * scales.get(name, 1.0) * rates).view(group_shape(own)) * direction
            refined |= {f"own.{name}": moved, f"mean.{name}": mean, f"square.{name}": square}
        return refined

    def task_weights(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        """The task's own weights among a state's tensors, float32, by name."""
        return {name: tensors[f"own.{name}"].float() for name in self.start}

    def shared_weights(self) -> dict[str, torch.Tensor]:
        """The shared weights, by name."""
        return dict(self.shared.items())


def _part_of(square: torch.Tensor) -> torch.Tensor:
    """The unit of a stored momentum; momenta beyond 127 of it, four root mean squares, are cut there."""
    return square.sqrt().clamp(min=1e-12) / 32
