"""Validation of what was loaded: weights, all of them and finite, and a tokenizer that belongs to them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from iai_hf.backbones.backbone import SAMPLE, Backbone
from iai_hf.errors import BackboneError

if TYPE_CHECKING:
    import torch


def check_finite(name: str, model: torch.nn.Module) -> None:
    """Raise BackboneError where weights are not in memory, or not finite."""
    import torch

    weights = dict(model.named_parameters())
    away = [key for key, weight in weights.items() if weight.is_meta]
    if away:
        raise BackboneError(
            f"the weights of {name} are not in memory ({_few(away)}); choose a device that holds them, or another model"
        )
    real = {key: weight for key, weight in weights.items() if weight.is_floating_point()}
    broken = [key for key, weight in real.items() if not weight.detach().sum(dtype=torch.float32).isfinite()]
    if broken:
        raise BackboneError(
            f"the weights of {name} are not finite ({_few(broken)}); load them anew, or in another dtype, e.g. float32"
        )


def check_complete(name: str, model: torch.nn.Module, missing: Collection[str], loaded: torch.nn.Module) -> None:
    """Raise BackboneError where weights that `model` reads with are not in the files.

    Args:
        missing: names of parameters of `loaded` that no file has in their shape.
        loaded: what was loaded; `model` is it, or a part of it.
    """
    used = {id(weight) for weight in model.parameters()}
    named = dict(loaded.named_parameters())
    # A pooler is made from the hidden states, which features are made of themselves.
    lost = [key for key in sorted(missing) if key in named and id(named[key]) in used and "pooler" not in key]
    if lost:
        raise BackboneError(
            f"the weights of {name} lack {_few(lost)}, which would be random; the files are incomplete or of another "
            "architecture than config.json names: load them anew"
        )


def check_tokenizer(backbone: Backbone) -> None:
    """Raise BackboneError where the tokenizer knows no words, or gives ids that the model has no embeddings for."""
    name, tokenizer = backbone.name, backbone.tokenizer
    words = set(backbone.texts.ids([SAMPLE])[0]) - {tokenizer.unk_token_id}
    if not words:
        raise BackboneError(
            f"the tokenizer of {name} knows no word of an English sentence; expected tokenizer.json, or the vocabulary "
            "files of its tokenizer, beside config.json"
        )
    try:
        rows = len(backbone.base.get_input_embeddings().weight)  # type: ignore[operator]
    except (AttributeError, NotImplementedError):  # of bytes or characters
        return
    if len(tokenizer) <= rows:
        return
    start, end = backbone.special_tokens
    always = {*start, *end, backbone.pad_id}
    # Other special tokens are never read: texts don't name them.
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} - always
    beyond = [i for i in {*tokenizer.get_vocab().values(), *always} - special if i >= rows]
    if beyond:
        raise BackboneError(
            f"the tokenizer of {name} gives ids up to {max(beyond)}, but the model has word embeddings for {rows}: "
            "the tokenizer is another model's, or tokens were added without model.resize_token_embeddings"
        )


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more
