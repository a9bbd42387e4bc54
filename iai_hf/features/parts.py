"""Parts of a state: tensors whose names begin with a prefix, beside those of the head, whose names have none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iai_hf.task import Tensors

if TYPE_CHECKING:
    import torch


def part_of(prefix: str, tensors: Tensors) -> dict[str, torch.Tensor]:
    """Tensors whose names begin with the prefix, without it; of no prefix, those that have none."""
    if not prefix:
        return {name: tensor for name, tensor in tensors.items() if "." not in name}
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def as_part(prefix: str, tensors: Tensors) -> dict[str, torch.Tensor]:
    """The tensors with the prefix before their names."""
    return {prefix + name: tensor for name, tensor in tensors.items()}
