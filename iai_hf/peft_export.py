"""Task states as genuine PEFT adapters: `PeftModel.from_pretrained` loads them without this package.

Texts must be given to the PEFT model as `Prompter` words them, without special tokens where the adapter is a prompt
or a prefix: start-of-text is a part of it. Where a `prompt.txt` lies beside it, its text belongs before every query.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iai_hf.errors import StateError
from iai_hf.files import write_whole

if TYPE_CHECKING:
    import torch

    from iai_hf.amortizers.prompting import Prompter
    from iai_hf.backbones import Backbone
    from iai_hf.backbones.causal_lm import CausalLM
    from iai_hf.backbones.conditions import Prefix
    from iai_hf.backbones.low_rank import LowRank

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PROMPT = "prompt.txt"


def write_lora(
    weights: LowRank, rank: int, alpha: int, prompter: Prompter, demonstrations: Sequence[int], directory: Path
) -> None:
    """A LoRA adapter: `lora_A` is `down` [rank, in], `lora_B` times alpha / rank is `up` [out, rank]; also vLLM's.

    With demonstrations it is an activated LoRA (Greenewald et al. 2025): the weights act from the query on, whose first
    tokens invoke them. The demonstrations' text, which belongs before every query, is written beside it.
    """
    import peft

    backbone = prompter.model
    tensors = {}
    for name in weights.down:
        tensors[f"base_model.model.{name}.lora_A.weight"] = weights.down[name]
        tensors[f"base_model.model.{name}.lora_B.weight"] = weights.up[name] * (rank / alpha)
    layers = sorted({int(part) for name in weights.down for part in name.split(".") if part.isdecimal()})
    everywhere = layers == list(range(int(backbone.model.config.num_hidden_layers)))
    config = peft.LoraConfig(
        task_type=peft.TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=alpha,
        target_modules=sorted({name.split(".")[-1] for name in weights.down}),
        layers_to_transform=None if everywhere else layers,
        alora_invocation_tokens=list(prompter.head) if demonstrations else None,
        **_base(backbone),
    )
    texts = {PROMPT: str(backbone.tokenizer.decode(list(demonstrations)))} if demonstrations else {}
    _write(config, tensors, directory, texts)


def write_prompt(prompt: torch.Tensor, model: CausalLM, directory: Path) -> None:
    """A prompt-tuning adapter of `prompt`, `[length, hidden]`, behind start-of-text."""
    import peft
    import torch

    start = model.embeddings(model.special_tokens[0])
    whole = torch.cat([start.cpu(), prompt.cpu().to(start.dtype)])
    config = peft.PromptTuningConfig(
        task_type=peft.TaskType.CAUSAL_LM,
        num_virtual_tokens=len(whole),
        token_dim=whole.shape[1],
        num_transformer_submodules=1,
        num_layers=int(model.model.config.num_hidden_layers),
        num_attention_heads=int(model.model.config.num_attention_heads),
        **_base(model),
    )
    _write(config, {"prompt_embeddings": whole}, directory)


def write_prefix(prefix: Prefix, model: CausalLM, directory: Path) -> None:
    """A prefix-tuning adapter of a prefix's keys and values.

    Raises:
        StateError: the prefix is empty.
    """
    import peft
    import torch

    if not prefix.length:
        raise StateError("the state has no demonstration yet, so it is no prefix; adapt it on data first")
    heads, size = prefix.layers[0][0].shape[1], prefix.layers[0][0].shape[3]
    # PEFT reads [length, layers * 2, heads, head size], each layer's keys before its values.
    whole = torch.stack([part[0].transpose(0, 1) for layer in prefix.layers for part in layer], dim=1)
    config = peft.PrefixTuningConfig(
        task_type=peft.TaskType.CAUSAL_LM,
        num_virtual_tokens=prefix.length,
        token_dim=heads * size,
        num_transformer_submodules=1,
        num_layers=len(prefix.layers),
        num_attention_heads=heads,
        **_base(model),
    )
    _write(config, {"prompt_embeddings": whole.flatten(1)}, directory)


def _base(backbone: Backbone) -> dict[str, Any]:
    return {"base_model_name_or_path": backbone.name, "revision": backbone.revision, "inference_mode": True}


def _write(
    config: Any, tensors: dict[str, torch.Tensor], directory: Path, texts: Mapping[str, str] | None = None
) -> None:
    """All files, the configuration last: a folder with one is complete."""
    from safetensors.torch import save

    values = config.to_dict() | {"peft_version": _peft_version()}
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, {"format": "pt"})
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(directory / ADAPTER_WEIGHTS, content)
        for name, text in (texts or {}).items():
            write_whole(directory / name, text.encode())
        write_whole(directory / ADAPTER_CONFIG, json.dumps(plain, indent=2, default=str).encode())
    except OSError as error:
        raise StateError(f"can't write the adapter to {directory}: {error.strerror or error}") from error


def _peft_version() -> str:
    import peft

    return peft.__version__
