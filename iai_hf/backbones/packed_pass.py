"""Forward passes over packed rows behind a cached prefix, each layer looking no further back than it does by itself.

transformers takes a mask of four dimensions as it is, so a model's windows have to be in it: by type of layer where a
model has several, and by positions, since a packed row's place in the sequence says nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from iai_hf.backbones.conditions import Prefix

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from iai_hf.backbones.packing import Packed

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"


class Layout(NamedTuple):
    """Where the tokens of a pass are, and what each sees.

    Attributes:
        queries: positions of the tokens that are read, int64 `[tokens]`.
        keys: positions of all that may be seen, int64 `[prefix + tokens]`.
        visible: bool `[tokens, prefix + tokens]`, whatever the distance.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    visible: torch.Tensor


def behind(prefix: Prefix, packed: Packed) -> Layout:
    """A pack behind the keys and values of a prefix."""
    import torch

    device = packed.ids.device
    parts = torch.tensor(prefix.parts, device=device)
    own = packed.adapter_indices if len(parts) > 1 else torch.zeros_like(packed.adapter_indices)
    of_part = torch.arange(len(parts), device=device).repeat_interleave(parts)
    before = torch.cat([torch.arange(part, device=device) for part in prefix.parts])
    positions = packed.positions + parts[own]
    visible = torch.cat([own[:, None] == of_part[None], packed.visible], dim=1)
    return Layout(positions, torch.cat([before, positions]), visible)


def behind_prompt(length: int, packed: Packed) -> Layout:
    """A pack with a soft prompt of so many tokens before it, all in one sequence."""
    import torch

    device = packed.ids.device
    positions = torch.cat([torch.arange(length, device=device), packed.positions + length])
    visible = torch.zeros(len(positions), len(positions), dtype=torch.bool, device=device)
    visible[:, :length] = True
    visible[:length, :length] = visible[:length, :length].tril()
    visible[length:, length:] = packed.visible
    return Layout(positions, positions, visible)


def masks(model: PreTrainedModel, layout: Layout) -> torch.Tensor | dict[str, torch.Tensor]:
    """What is visible, as attention takes it: `[1, 1, queries, keys]`, added to scores; by type of layer."""
    import torch

    config = model.config.get_text_config(decoder=True)

    def mask(kind: str) -> torch.Tensor:
        visible = layout.visible
        if kind == SLIDING:
            visible = visible & (layout.queries[:, None] - layout.keys[None] < config.sliding_window)
        elif kind == CHUNKED:
            size = config.attention_chunk_size
            visible = visible & (layout.queries[:, None] // size == layout.keys[None] // size)
        empty = torch.zeros(visible.shape, dtype=model.dtype, device=visible.device)
        return empty.masked_fill_(~visible, torch.finfo(model.dtype).min)[None, None]

    # The same rule by which transformers itself makes masks ahead of a model.
    if kinds := getattr(config, "layer_types", None):
        return {kind: mask(kind) for kind in dict.fromkeys(kinds)}
    if getattr(config, "sliding_window", None) is not None:
        return mask(SLIDING)
    return mask(CHUNKED if getattr(config, "attention_chunk_size", None) is not None else FULL)


def has_windows(model: PreTrainedModel) -> bool:
    """Whether some layer looks no further back than a window."""
    config = model.config.get_text_config(decoder=True)
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return bool({SLIDING, CHUNKED} & set(kinds))
    return any(getattr(config, name, None) is not None for name in ("sliding_window", "attention_chunk_size"))


def encode(model: PreTrainedModel, before: torch.Tensor) -> Prefix:
    """Keys and values, all of them whatever the windows, of ids int64 `[length]` or embeddings `[length, width]`."""
    import torch
    from transformers import DynamicCache

    inputs = {"inputs_embeds" if before.is_floating_point() else "input_ids": before[None]}
    with torch.inference_mode():
        output = model.base_model(**inputs, past_key_values=DynamicCache(), use_cache=True)
    layers: list[Any] = output.past_key_values.layers
    return Prefix(tuple((layer.keys, layer.values) for layer in layers), (len(before),))


def logits(model: PreTrainedModel, packed: Packed, before: Prefix | torch.Tensor) -> torch.Tensor:
    """Logits `[scored positions, vocabulary]` of a pack behind a cached prefix or a prompt that is trained."""
    import torch

    if isinstance(before, torch.Tensor):
        layout, shift, cache = behind_prompt(len(before), packed), len(before), None
        whole = torch.cat([before, model.get_input_embeddings()(packed.ids)])
        inputs = {"inputs_embeds": whole[None]}
    else:
        layout, shift, cache = behind(before, packed), 0, before.cache()
        inputs = {"input_ids": packed.ids[None]}
    found: torch.Tensor = model(
        **inputs,
        position_ids=layout.queries[None],
        attention_mask=masks(model, layout),
        past_key_values=cache,
        use_cache=cache is not None,
        logits_to_keep=packed.scored + shift,
    ).logits[0]
    return found
