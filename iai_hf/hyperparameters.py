"""Hyperparameters: learned positive numbers, single ones and functions of how much was seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from functools import partial
from typing import Any

import torch
from torch import nn

SPEED = 10.0  # single numbers are learned this much faster than a network's weights, under one learning rate
SHAPE = 4  # features of (examples, classes) that a number may depend on


class Hyperparameter(nn.Module):
    """One number: exp(speed * slow).

    Args:
        value: at first.
        exponent: an exponent, which may come down to zero and is learned as it is: max(speed * slow, 0).
    """

    def __init__(self, value: float, *, exponent: bool = False, speed: float = SPEED) -> None:
        super().__init__()
        self.exponent, self.speed = exponent, speed
        self.slow = nn.Parameter(torch.zeros((), dtype=torch.float32))
        self.set(value)

    def forward(self) -> torch.Tensor:
        """The number, `[]`."""
        raw = self.speed * self.slow
        return raw.clamp(min=0.0) if self.exponent else raw.exp()

    def set(self, value: float) -> None:
        """Let the number be `value`."""
        self.slow.data.fill_((value if self.exponent else math.log(value)) / self.speed)


class Hyperparameters(nn.Module):
    """Named numbers, each exp(base + slope . phi(n, C)); at its initial value a constant.

    Args:
        initial: name to initial value, positive.
        horizon: beyond so many examples the numbers stay as they are, so that nothing is extrapolated.
    """

    def __init__(self, initial: Mapping[str, float], horizon: float = 2e4) -> None:
        super().__init__()
        self.names = tuple(initial)
        self.horizon = horizon
        self.base = nn.Parameter(torch.tensor([math.log(value) for value in initial.values()], dtype=torch.float32))
        self.slope = nn.Parameter(torch.zeros(len(initial), SHAPE, dtype=torch.float32))

    def forward(self, examples: torch.Tensor, classes: int) -> dict[str, torch.Tensor]:
        """Values by name, each `[]`, after `examples` (`[]`) examples of `classes` classes."""
        n = examples.clamp(max=self.horizon)
        many = torch.tensor(math.log(classes / 6), device=n.device, dtype=torch.float32)
        seen = (1 + n / 32).log()
        phi = 0.5 * torch.stack([seen, many, (1 + n / (4 * classes)).log(), seen * many])
        values = (self.base + self.slope @ phi.to(self.base)).exp()
        return dict(zip(self.names, values.unbind(), strict=True))


def saved_as(module: nn.Module, names: Mapping[str, str]) -> None:
    """Save, digest and load parts of a module under the names that files have for them; `names`: attribute to key."""
    attributes = {key: attribute for attribute, key in names.items()}
    # Partial functions, not closures: a module goes to other processes.
    module.register_state_dict_post_hook(partial(_rename, dict(names)))
    module.register_load_state_dict_pre_hook(partial(_rename, attributes))


def _rename(names: Mapping[str, str], _: nn.Module, state: MutableMapping[str, Any], prefix: str, *others: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        for before, after in names.items():
            rest = key[len(prefix + before) :]
            if key == prefix + before + rest and (not rest or rest.startswith(".")):
                state[prefix + after + rest] = state.pop(key)
