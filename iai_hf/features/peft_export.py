"""A classifier on adapted features as a genuine PEFT adapter of the encoder, with its linear head beside it.

`PeftModel.from_pretrained` loads the adapter without this package, on a model of the class that `head.json` names; pool
and normalise its hidden states as that says, then logits = features @ weight.T + bias. Both are in `head.safetensors`,
and so are mean and deviation where features are standardized; `head.json` has the labels in the order of the rows. A
language model's question counts in the number of tokens that a mean is divided by, and as zeros in its sum. The card in
the folder has lines that do all of this.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from iai_hf.backbones.low_rank import LowRank
from iai_hf.backbones.peft_files import HEAD, HEAD_WEIGHTS, lora_tensors, of_base, write_adapter
from iai_hf.backbones.stages import Standardize

if TYPE_CHECKING:
    import torch

    from iai_hf.backbones import Backbone


def write_classifier(
    backbone: Backbone,
    features: Backbone,
    weights: Sequence[LowRank],
    weight: torch.Tensor,
    bias: torch.Tensor,
    labels: Sequence[str],
    max_tokens: int | None,
    directory: Path,
) -> None:
    """Write low-rank weights that add up, and a linear head.

    Args:
        backbone: without any of the weights.
        features: the one that gives the features which the head takes.
        weight, bias: `[C, hidden]` and `[C]`.
        max_tokens: that are read of a text, special ones not counted.

    Raises:
        StateError: the folder can't be written.
    """
    import peft
    from safetensors.torch import save

    whole = stacked(weights)
    rank = len(next(iter(whole.down.values())))
    config = peft.LoraConfig(
        task_type=peft.TaskType.FEATURE_EXTRACTION,
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(whole.down),
        **of_base(backbone),
    )
    head = {"weight": weight.float().contiguous(), "bias": bias.float().contiguous()}
    for stage in features.pipeline.stages:
        if isinstance(stage, Standardize):
            head |= {"mean": stage.mean, "deviation": stage.deviation}
    before, behind = backbone.special_tokens
    read = {**features.reading, "before": before, "behind": behind, "max_tokens": max_tokens}
    told = {"labels": list(labels), "features": read}
    others = {HEAD_WEIGHTS: save(head, {"format": "pt"}), HEAD: json.dumps(told, indent=2).encode()}
    write_adapter(config, lora_tensors(whole), directory, others)


def stacked(weights: Sequence[LowRank]) -> LowRank:
    """The sum of low-rank weights as one, of the same rank in every layer; zeros where a layer has less."""
    import torch

    names = {name: None for part in weights for name in part.down}

    def plain(tensor: torch.Tensor) -> torch.Tensor:  # a file's are on the CPU, a state's where its backbone is
        return tensor.detach().to("cpu", torch.float32)

    downs = {name: torch.cat([plain(part.down[name]) for part in weights if name in part.down]) for name in names}
    ups = {name: torch.cat([plain(part.up[name]) for part in weights if name in part.up], dim=1) for name in names}
    rank = max(len(down) for down in downs.values())
    pad = torch.nn.functional.pad
    return LowRank(
        {name: pad(down, (0, 0, 0, rank - len(down))) for name, down in downs.items()},
        {name: pad(up, (0, rank - up.shape[1])) for name, up in ups.items()},
    )
