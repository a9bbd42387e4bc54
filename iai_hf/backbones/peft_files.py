"""Files of a PEFT adapter, as `PeftModel.from_pretrained` reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iai_hf.errors import StateError
from iai_hf.files import write_together

if TYPE_CHECKING:
    import torch

    from iai_hf.backbones.backbone import Backbone
    from iai_hf.backbones.low_rank import LowRank

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HEAD, HEAD_WEIGHTS = "head.json", "head.safetensors"  # beside an adapter of a classifier on features


def of_base(backbone: Backbone) -> dict[str, Any]:
    """What an adapter's configuration says of the model that it belongs to."""
    return {"base_model_name_or_path": backbone.name, "revision": backbone.revision, "inference_mode": True}


def lora_tensors(weights: LowRank, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Low-rank weights by PEFT's names: `lora_A` is `down` `[rank, in]`, `lora_B` `scale` times `up` `[out, rank]`."""
    tensors = {f"base_model.model.{name}.lora_A.weight": down for name, down in weights.down.items()}
    return tensors | {f"base_model.model.{name}.lora_B.weight": up * scale for name, up in weights.up.items()}


def write_adapter(
    config: Any, tensors: Mapping[str, torch.Tensor], directory: Path, others: Mapping[str, bytes]
) -> None:
    """All files, the configuration last: a folder with one is complete.

    Args:
        config: a `peft.PeftConfig`.
        others: further files, by their names.

    Raises:
        StateError: the folder can't be written.
    """
    import peft
    from safetensors.torch import save

    values = config.to_dict() | {"peft_version": peft.__version__}
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, {"format": "pt"})
    try:
        directory.mkdir(parents=True, exist_ok=True)
        contents = {ADAPTER_WEIGHTS: content, **others}
        write_together(directory, contents | {ADAPTER_CONFIG: json.dumps(plain, indent=2, default=str).encode()})
    except OSError as error:
        raise StateError(f"can't write the adapter to {directory}: {error.strerror or error}") from error
