"""Middle: a language model's middle layer, without computing those behind it."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from torch import nn

if TYPE_CHECKING:
    import torch


class _Reached(Exception):
    """Carries what enters a layer out of the model."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.hidden = hidden


class Middle:
    """Hidden states in the middle of a model: of its `depth` layers only the first half is computed.

    The model itself is not touched, so that several threads may read with it: a shallow copy shares all weights and
    ends where the layer behind the middle begins. It is used if it gives the same for a few ids as the whole model.

    Args:
        base: without a head.
        depth: its number of layers.
        ids: some that it can read.
    """

    def __init__(self, base: nn.Module, depth: int, ids: Sequence[int]) -> None:
        self.base, self.depth, self.ids = base, depth, ids

    def __call__(self, batch: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """`[batch, tokens, hidden]`, of ids and their mask `[batch, tokens]`."""
        return self._whole(batch, mask) if self._short is None else _read(self._short, batch, mask)

    def _whole(self, batch: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        states = self.base(input_ids=batch, attention_mask=mask, output_hidden_states=True).hidden_states
        found: torch.Tensor = states[len(states) // 2]
        return found

    @cached_property
    def _short(self) -> nn.Module | None:
        """The model up to the middle; None where it can't be entered so."""
        import torch

        path = self._layers()
        if path is None:
            return None
        some = torch.tensor([list(self.ids)], device=next(self.base.parameters()).device)
        expected = self._whole(some, None)
        # Mamba lists its hidden states from the first layer's output on, others from the embeddings on.
        for layer in range((self.depth + 1) // 2, min((self.depth + 1) // 2 + 2, self.depth)):
            short = self._until(path, layer)
            try:
                found = _read(short, some, None)
            except (RuntimeError, TypeError, AttributeError):  # what can't be cut short is read whole
                continue
            if found.shape == expected.shape and torch.allclose(found, expected):
                return short
        return None

    def _layers(self) -> str | None:
        """Where the list of layers is, unless accelerate has placed them and calls each by itself."""
        decoder: nn.Module = getattr(self.base, "get_decoder", lambda: self.base)()
        inside = {id(part) for part in decoder.modules()}
        paths = [
            path
            for path, part in self.base.named_modules()
            if isinstance(part, nn.ModuleList) and len(part) == self.depth and id(part) in inside
        ]
        placed = any("forward" in vars(part) for part in self.base.modules())
        return None if placed else min(paths, key=lambda path: path.count("."), default=None)

    def _until(self, path: str, layer: int) -> nn.Module:
        """A copy that ends where that layer begins."""
        layers = self.base.get_submodule(path)
        assert isinstance(layers, nn.ModuleList)
        end = _copied(layers[layer])
        end._forward_pre_hooks = OrderedDict()
        end._forward_pre_hooks_with_kwargs = OrderedDict()
        end.register_forward_pre_hook(_leave, with_kwargs=True)
        short = parent = _copied(self.base)
        *above, name = path.split(".")
        for step in above:
            parent._modules[step] = _copied(parent.get_submodule(step))
            parent = parent.get_submodule(step)
        parent._modules[name] = nn.ModuleList([*layers[:layer], end])
        return short


def _read(short: nn.Module, batch: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """What reaches the end of a shortened model."""
    try:
        short(input_ids=batch, attention_mask=mask, use_cache=False)
    except _Reached as reached:
        return reached.hidden
    raise RuntimeError(f"{type(short).__name__} never calls its last layer")


def _copied(module: nn.Module) -> nn.Module:
    """A module of its own with the same weights and parts."""
    copied = copy.copy(module)
    copied._modules = dict(module._modules)
    return copied


def _leave(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> NoReturn:
    raise _Reached(given[0] if given else named["hidden_states"])
