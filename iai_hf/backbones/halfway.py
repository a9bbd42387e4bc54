"""Entering a model half-way: rows are read once up to a layer, later passes go from there on, for few positions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from iai_hf.backbones.low_rank import applied
from iai_hf.backbones.packed_pass import Layout, behind, masks
from iai_hf.backbones.packing import Packed, Reading, Row, packs
from iai_hf.errors import BackboneError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from iai_hf.backbones.conditions import Entering


def read(model: PreTrainedModel, rows: Sequence[Row], entering: Entering) -> list[Row]:
    """The rows with their `reading` from `entering.layer` on, under what enters; one forward pass, no gradient."""
    import torch

    prefix, layer = entering.prefix, entering.layer
    found: list[Row] = []
    for first, last in packs([len(row) for row in rows]):
        packed = Packed.of(rows[first:last], model.device)
        layout = behind(prefix, packed)
        caught: list[torch.Tensor] = []
        cache: Any = prefix.cache()
        hook = layers_of(model)[layer].register_forward_pre_hook(
            lambda _, given, caught=caught: caught.append(given[0])
        )
        try:
            with torch.no_grad(), applied(model, entering.low_rank):
                model.base_model(
                    input_ids=packed.ids[None],
                    position_ids=layout.queries[None],
                    attention_mask=masks(model, layout),
                    past_key_values=cache,
                    use_cache=True,
                )
        finally:
            hook.remove()
        sizes = [len(row) - len(row.answers) for row in rows[first:last]]
        hidden = caught[0][0].split(sizes)
        kept = [
            [part[0, :, prefix.length :].split(sizes, dim=1) for part in (known.keys, known.values)]
            for known in cache.layers[layer:]
        ]
        for i, row in enumerate(rows[first:last]):
            layers = tuple((keys[i], values[i]) for keys, values in kept)
            found.append(dataclasses.replace(row, reading=Reading(hidden[i], layers)))
    return found


def logits(model: PreTrainedModel, packed: Packed, readings: Sequence[Reading], entering: Entering) -> torch.Tensor:
    """Logits `[scored positions, vocabulary]`: those alone are read, from `entering.layer` on."""
    import torch
    from transformers import DynamicCache

    prefix, layer = entering.prefix, entering.layer
    at = packed.scored.unique()
    hidden = torch.cat([reading.hidden for reading in readings])[at]
    whole = behind(prefix, packed)
    queries = whole.queries[at]
    again = whole.visible[at].index_fill(1, prefix.length + at, False)  # what is known of the scored ones is not seen
    visible = torch.cat([again, packed.visible[at][:, at]], dim=1)
    layout = Layout(queries, torch.cat([whole.keys, queries]), visible)
    cached: list[tuple[torch.Tensor | None, torch.Tensor | None]] = [(None, None)] * layer
    for place in range(len(readings[0].layers)):
        before = prefix.layers[layer + place] if prefix.layers else ()
        parts = zip(*(reading.layers[place] for reading in readings), strict=True)
        keys, values = (torch.cat(part, dim=1)[None] for part in parts)
        if before:
            keys, values = torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)
        cached.append((keys, values))
    with _from_layer(model, layer, hidden):
        found: torch.Tensor = model(
            input_ids=packed.ids[at][None],
            position_ids=queries[None],
            attention_mask=masks(model, layout),
            past_key_values=DynamicCache(cached),
            use_cache=True,
            logits_to_keep=torch.searchsorted(at, packed.scored),
        ).logits[0]
    return found


def layers_of(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The list of the model's layers.

    Raises:
        BackboneError: there is none.
    """
    from torch import nn

    depth = int(model.config.num_hidden_layers)
    for part in model.base_model.modules():
        if isinstance(part, nn.ModuleList) and len(part) == depth:
            return part
    raise BackboneError(f"the model has no list of {depth} layers to enter half-way; choose 'lora', which needs none")


@contextmanager
def _from_layer(model: PreTrainedModel, first: int, hidden: torch.Tensor) -> Iterator[None]:
    """The model from layer `first` on, which gets `hidden` `[tokens, hidden]`, for the length of a `with` block.

    The layers before it hand on what they get. They stay in the list: a layer's type is looked up by its place.
    """
    layers = layers_of(model)
    own = [layer.__dict__.get("forward") for layer in layers[:first]]
    hook = layers[first].register_forward_pre_hook(lambda _, given: (hidden[None], *given[1:]))
    for layer in layers[:first]:
        layer.forward = _handed_on
    try:
        yield
    finally:
        hook.remove()
        for layer, forward in zip(layers[:first], own, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward


def _handed_on(hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return hidden
