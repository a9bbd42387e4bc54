"""Targets: the layers of a model that can get low-rank weights beside them, and which of them do by default."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from iai_hf.backbones.low_rank import layer_of
from iai_hf.backbones.self_test import FAULTS
from iai_hf.errors import BackboneError
from iai_hf.threads import computing

if TYPE_CHECKING:
    import torch

    from iai_hf.backbones import Backbone

VALUES = "v_proj"  # what attention's values are projected by, unless it is fused or compressed
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


def by_family(backbone: Backbone, usual: Sequence[str]) -> list[str]:
    """Those of the `usual` names that the model has, or where its values have no layer of their own, its family's.

    The family's are those that PEFT takes for it; of a family that PEFT does not know, all layers beside a usual one.

    Raises:
        BackboneError: there are none; the model's layers are named.
    """
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as families

    layers = [name for name in linear_layers(backbone.model) if layer_of(name) >= 0]
    known = {last_part(name) for name in layers}
    found = [name for name in usual if name in known]
    if VALUES not in known:
        family = families.get(backbone.model.config.model_type, ())
        parents = {name.rpartition(".")[0] for name in layers if last_part(name) in found}
        beside = sorted({last_part(name) for name in layers if name.rpartition(".")[0] in parents})
        again = over_the_cache(backbone, beside)
        beside = [name for name in beside if name not in again]
        found = [name for name in family if name in known and not isinstance(family, str)] or beside
    if not found:
        raise unknown(backbone, usual)
    if found != list(usual):
        log.info("%s: low-rank weights beside %s", backbone.name, ", ".join(found))
    return found


def over_the_cache(backbone: Backbone, names: Sequence[str]) -> set[str]:
    """Those of the layers that are applied again to all that is cached: weights beside them would change a prefix."""
    import torch

    model: Any = backbone.model
    tokens: dict[str, int] = {}

    def count(module: torch.nn.Module, given: Any, output: Any, *, name: str) -> None:
        tokens[name] = given[0].shape[:-1].numel()

    cache = None
    with computing(), backbone.lock:
        handles = [
            layer.register_forward_hook(partial(count, name=last_part(name)))
            for name, layer in linear_layers(model).items()
            if last_part(name) in names
        ]
        try:
            with torch.no_grad():
                ids = torch.zeros(1, 4, dtype=torch.long, device=backbone.device)
                cache = model(input_ids=ids, use_cache=True).get("past_key_values")
                if cache is not None:
                    model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)
        except FAULTS as fault:  # a cache of another kind
            log.debug("%s: %s", backbone.name, fault)
        finally:
            for handle in handles:
                handle.remove()
    return set() if cache is None else {name for name, read in tokens.items() if read > 1}


def unknown(backbone: Backbone, names: Sequence[str]) -> BackboneError:
    """The error that says which layers there are."""
    known = sorted({last_part(name) for name in linear_layers(backbone.model)})
    return BackboneError(
        f"{backbone.name} has no linear layers called {', '.join(names)}; it has {', '.join(known)}: name some of them "
        "with target_modules"
    )
