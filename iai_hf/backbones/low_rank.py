"""Low-rank weights beside the linear layers of a frozen model (LoRA, arXiv 2106.09685), without touching the model.

Forward hooks add them for the length of a `with` block, so a state is swapped without a copy of the backbone, and
rows of one batch may each have weights of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class LowRank:
    """For each linear layer by its name in the model, `up @ down` is added to its weight.

    Attributes:
        down: `[rank, in]` a layer.
        up: `[out, rank]` a layer.
    """

    down: Mapping[str, torch.Tensor]
    up: Mapping[str, torch.Tensor]


def layer_of(name: str) -> int:
    """Number of the layer that a module belongs to by its name in the model, -1 for none."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), -1)


def called_linear_layers(model: torch.nn.Module, read: Callable[[], object]) -> dict[str, tuple[int, int]]:
    """Sizes, in and out, of the linear layers that are called while the model reads, by their name in it."""
    from torch import nn

    layers = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    called: set[nn.Module] = set()
    hooks = [part.register_forward_hook(lambda part, *_: called.add(part)) for part in layers.values()]
    try:
        read()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (part.in_features, part.out_features) for name, part in layers.items() if part in called}


@contextmanager
def applied(
    model: torch.nn.Module, weights: Sequence[LowRank], adapter_indices: torch.Tensor | None = None
) -> Iterator[None]:
    """Add low-rank weights to `model` inside the block.

    Args:
        weights: of one layout: the same layers and ranks.
        adapter_indices: which of the weights each token is read with, int64 `[batch, tokens or 1]`, below 0 for
            none; None where there are no several. Where a pass has fewer tokens, it has the last ones.
    """
    import torch

    handles = []
    several = len(weights) > 1
    chosen = adapter_indices is not None and (several or bool((adapter_indices < 0).any()))
    try:
        for name in weights[0].down if weights else ():
            # All adapters' ranks side by side; a token sees its own through the mask.
            down = torch.cat([adapter.down[name] for adapter in weights]) if several else weights[0].down[name]
            up = torch.cat([adapter.up[name] for adapter in weights], dim=1) if several else weights[0].up[name]
            mask = None
            if chosen and adapter_indices is not None:
                rank = len(weights[0].down[name])
                of_rank = torch.arange(len(weights), device=down.device).repeat_interleave(rank)
                mask = adapter_indices[..., None] == of_rank
            hook = partial(_add, down=down, up=up, mask=mask)
            handles.append(model.get_submodule(name).register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add(
    module: torch.nn.Module, inputs: Any, output: torch.Tensor, *, down: torch.Tensor, up: torch.Tensor, mask: Any
) -> torch.Tensor:
    from torch.nn.functional import linear

    inner = linear(inputs[0], down)
    if mask is not None:
        tokens = inner.shape[:-1].numel() // len(mask)
        mask = mask[:, -tokens:].expand(-1, tokens, -1).reshape(inner.shape)
        inner = inner * mask
    return output + linear(inner, up)
