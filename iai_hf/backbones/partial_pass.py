"""Passes through some of a model's layers only: up to one, or from one on.

Features are what enters a middle layer, so the layers behind it are never computed. Weights that change the last layers
only are trained from there on: rows are prefilled once up to their entrance, later passes read the scored positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from iai_hf.backbones.batching import pass_tokens
from iai_hf.backbones.low_rank import applied
from iai_hf.backbones.packed_pass import Layout, behind, masks
from iai_hf.backbones.packing import PACK_TOKENS, HiddenCache, Packed, Row, packs

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from iai_hf.backbones.conditions import Condition


def layers_of(model: torch.nn.Module, depth: int) -> torch.nn.ModuleList:
    """The outermost list of `depth` layers in the model's decoder.

    Raises:
        LookupError: there is none.
    """
    from torch import nn

    decoder: nn.Module = getattr(model, "get_decoder", lambda: model)()
    lists = [
        (name.count("."), part)
        for name, part in decoder.named_modules()
        if isinstance(part, nn.ModuleList) and len(part) == depth
    ]
    if not lists:
        raise LookupError(f"the model has no list of {depth} layers")
    return min(lists, key=lambda found: found[0])[1]


def middle_layer(base: torch.nn.Module, depth: int, ids: Sequence[int]) -> torch.nn.Module | None:
    """The layer that the middle hidden states enter, found on some `ids`; None where a pass can't end there."""
    import torch

    if any("forward" in vars(part) for part in base.modules()):  # accelerate has placed them and calls each by itself
        return None
    batch = torch.tensor([list(ids)], device=next(base.parameters()).device)
    expected = middle_of_whole(base, batch, None)
    half = (depth + 1) // 2
    try:
        # Mamba lists its hidden states from the first layer's output on, others from the embeddings on.
        for layer in layers_of(base, depth)[half : half + 2]:
            found = entrance(base, layer, batch, None)
            if found.shape == expected.shape and torch.allclose(found, expected):
                return layer
    except (RuntimeError, TypeError, AttributeError, LookupError):
        pass
    return None


def middle_of_whole(base: torch.nn.Module, batch: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The middle one of a model's hidden states, `[batch, tokens, hidden]`, by a pass through all layers."""
    states = base(input_ids=batch, attention_mask=mask, output_hidden_states=True).hidden_states
    found: torch.Tensor = states[len(states) // 2]
    return found


class _Reached(Exception):
    """Carries what enters a layer out of the model."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.hidden = hidden


def entrance(
    base: torch.nn.Module, layer: torch.nn.Module, batch: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """What enters a layer, `[batch, tokens, hidden]`, of ids and their mask `[batch, tokens]`; the pass ends there."""

    def leave(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> NoReturn:
        raise _Reached(given[0] if given else named["hidden_states"])

    hook = layer.register_forward_pre_hook(leave, prepend=True, with_kwargs=True)
    try:
        base(input_ids=batch, attention_mask=mask, use_cache=False)
    except _Reached as reached:
        return reached.hidden
    finally:
        hook.remove()
    raise RuntimeError(f"{type(base).__name__} never calls its {type(layer).__name__}")


def prefill(model: PreTrainedModel, rows: Sequence[Row], condition: Condition) -> list[Row]:
    """The rows with their `hidden_cache` from `condition.first_layer` on; one forward pass a pack, no gradient."""
    import torch

    prefix, first_layer = condition.prefix, condition.first_layer
    layer = layers_of(model.base_model, int(model.config.num_hidden_layers))[first_layer]
    prefilled: list[Row] = []
    for first, last in packs([len(row) for row in rows], pass_tokens(model.device, PACK_TOKENS)):
        packed = Packed.of(rows[first:last], model.device)
        layout = behind(prefix, packed)
        caught: list[torch.Tensor] = []
        cache: Any = prefix.cache()
        hook = layer.register_forward_pre_hook(lambda _, given, caught=caught: caught.append(given[0]))
        try:
            with torch.no_grad(), applied(model, condition.weights):
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
            for known in cache.layers[first_layer:]
        ]
        for i, row in enumerate(rows[first:last]):
            layers = tuple((keys[i], values[i]) for keys, values in kept)
            prefilled.append(dataclasses.replace(row, hidden_cache=HiddenCache(hidden[i], layers)))
    return prefilled


def logits(model: PreTrainedModel, packed: Packed, caches: Sequence[HiddenCache], condition: Condition) -> torch.Tensor:
    """Logits `[scored positions, vocabulary]`: those positions alone are read, from `condition.first_layer` on.

    A scored position sees itself and other scored ones as they are now, all others as they were when prefilled.
    """
    import torch
    from transformers import DynamicCache

    prefix = condition.prefix
    at = packed.scored.unique()
    whole = behind(prefix, packed)
    queries = whole.queries[at]
    prefilled = whole.visible[at].index_fill(1, prefix.length + at, False)
    visible = torch.cat([prefilled, packed.visible[at][:, at]], dim=1)
    cached: list[tuple[torch.Tensor | None, torch.Tensor | None]] = [(None, None)] * condition.first_layer
    for place in range(len(caches[0].layers)):
        keys, values = (
            torch.cat(part, dim=1)[None] for part in zip(*(cache.layers[place] for cache in caches), strict=True)
        )
        if prefix.layers:
            known_keys, known_values = prefix.layers[condition.first_layer + place]
            keys, values = torch.cat([known_keys, keys], dim=2), torch.cat([known_values, values], dim=2)
        cached.append((keys, values))
    hidden = torch.cat([cache.hidden for cache in caches])[at]
    layers = layers_of(model.base_model, int(model.config.num_hidden_layers))
    with entered(layers, condition.first_layer, hidden[None], handed_on):
        found: torch.Tensor = model(
            input_ids=packed.ids[at][None],
            position_ids=queries[None],
            attention_mask=masks(model, Layout(queries, torch.cat([whole.keys, queries]), visible)),
            past_key_values=DynamicCache(cached),
            use_cache=True,
            logits_to_keep=torch.searchsorted(at, packed.scored),
        ).logits[0]
    return found


@contextmanager
def entered(
    layers: torch.nn.ModuleList, first: int, hidden: torch.Tensor, hands_on: Callable[..., Any]
) -> Iterator[None]:
    """Passes that begin at layer `first`, which gets `hidden` `[batch, tokens, width]`, inside the block.

    The layers before it hand on what they get. They stay in the list: a layer's type is looked up by its place.

    Args:
        hands_on: one of `HANDING_ON`, which gives what they get in the form in which the layers give their own.
    """

    def enter(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return ((hidden, *given[1:]), named) if given else (given, {**named, "hidden_states": hidden})

    own = [layer.__dict__.get("forward") for layer in layers[:first]]
    hook = layers[first].register_forward_pre_hook(enter, with_kwargs=True)
    for layer in layers[:first]:
        layer.forward = hands_on
    try:
        yield
    finally:
        hook.remove()
        for layer, forward in zip(layers[:first], own, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward


def handed_on(hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """As layers do that give hidden states."""
    return hidden_states


def handed_on_first(hidden_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
    """As layers do that give hidden states, and perhaps more."""
    return (hidden_states,)


HANDING_ON = (handed_on, handed_on_first)
