"""Targets: the layers of a model that can get low-rank weights beside them, and which of them do by default."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from iai_hf.errors import BackboneError

if TYPE_CHECKING:
    import torch

    from iai_hf.backbones import Backbone

log = logging.getLogger(__name__)


def linear_layers(model: torch.nn.Module) -> Mapping[str, torch.nn.Module]:
    """Layers that multiply by a matrix, by their names in the model: `nn.Linear`, and `Conv1D` as GPT-2 has them."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}


def is_transposed(layer: torch.nn.Module) -> bool:
    """Whether its weight is `[in, out]`."""
    from torch import nn

    return not isinstance(layer, nn.Linear)


def sizes(layer: torch.nn.Module) -> tuple[int, int]:
    """Size of its input, and of its output."""
    first, second = cast("torch.Tensor", layer.weight).shape
    return (first, second) if is_transposed(layer) else (second, first)


def last_part(name: str) -> str:
    """What a layer is called in its own module."""
    return name.split(".")[-1]


def layer_of(name: str) -> int:
    """Number of the layer that a module belongs to by its name, -1 for none."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), -1)


def by_family(backbone: Backbone, usual: Sequence[str]) -> list[str]:
    """Those of the `usual` names that the model has; where it has none, those that PEFT takes for its family.

    Raises:
        BackboneError: it has none of either; its layers are named.
    """
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as families

    known = {last_part(name) for name in linear_layers(backbone.model) if layer_of(name) >= 0}
    family = families.get(backbone.model.config.model_type, ())
    for names in (usual, () if isinstance(family, str) else family):
        found = [name for name in names if name in known]
        if found:
            if found != list(usual):
                log.info("%s: low-rank weights beside %s", backbone.name, ", ".join(found))
            return found
    raise unknown(backbone, usual)


def unknown(backbone: Backbone, names: Sequence[str]) -> BackboneError:
    """The error that says which layers there are."""
    known = sorted({last_part(name) for name in linear_layers(backbone.model)})
    return BackboneError(
        f"{backbone.name} has no linear layers called {', '.join(names)}; it has {', '.join(known)}: name some of them "
        "with target_modules"
    )
