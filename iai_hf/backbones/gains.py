"""Gains: how much larger what a linear layer puts out is than what it is given.

A step of a fixed size on low-rank weights beside a layer changes its output by a multiple of the input's size. So it is
a larger change, of what the layer puts out, in a model whose inputs are large, as behind Gemma's normalisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

FLOOR = 1e-6  # of a root mean square


def output_gains(
    model: torch.nn.Module, groups: Mapping[str, Sequence[str]], read: Callable[[], object]
) -> dict[str, float]:
    """Root mean square of the output over that of the input, geometric mean over the layers of each group.

    Args:
        groups: layers by their names in the model; 1 is found for a group that `read` calls none of.
        read: lets the model read something.
    """
    found: dict[str, float] = {}

    def note(name: str, _: Any, given: tuple[Any, ...], output: torch.Tensor) -> None:
        found.setdefault(name, math.log(_size(output) / _size(given[0])))

    names = [name for group in groups.values() for name in group]
    hooks = [model.get_submodule(name).register_forward_hook(partial(note, name)) for name in names]
    try:
        read()
    finally:
        for hook in hooks:
            hook.remove()
    called = {group: [found[name] for name in names if name in found] for group, names in groups.items()}
    return {group: math.exp(sum(logs) / len(logs)) if logs else 1.0 for group, logs in called.items()}


def _size(tensor: torch.Tensor) -> float:
    return max(float(tensor.detach().float().square().mean().sqrt()), FLOOR)
