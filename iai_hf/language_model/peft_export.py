"""Task states as genuine PEFT adapters: `PeftModel.from_pretrained` loads them without this package.

Texts must be given to the PEFT model as `Prompter` words them, without special tokens where the adapter is a prompt
or a prefix: start-of-text is a part of it. Where a `prompt.txt` lies beside it, its text belongs before every query;
`prompt_ids.json` has its token ids with start-of-text, since a tokenizer may split the joined text in other ways.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iai_hf.backbones.peft_files import lora_tensors, of_base, write_adapter
from iai_hf.errors import StateError
from iai_hf.language_model.targets import is_transposed

if TYPE_CHECKING:
    import torch

    from iai_hf.backbones.causal_lm import CausalLM
    from iai_hf.backbones.conditions import Prefix
    from iai_hf.backbones.low_rank import LowRank
    from iai_hf.language_model.prompting import Prompter

PROMPT, PROMPT_IDS = "prompt.txt", "prompt_ids.json"
NO_PROMPT: Mapping[str, str] = {}


def write_lora(
    weights: LowRank, rank: int, alpha: int, prompter: Prompter, demonstrations: Sequence[int] | None, directory: Path
) -> None:
    """A LoRA adapter: `lora_A` is `down` [rank, in], `lora_B` times alpha / rank is `up` [out, rank].

    Where the plain model reads demonstrations first (else None), it is an activated LoRA (Greenewald et al. 2025, arXiv
    2504.12397): the weights act from the query on, whose first tokens invoke them. What belongs before every query is
    written beside it.
    """
    import peft

    backbone = prompter.model
    before = [] if demonstrations is None else [*backbone.special_tokens[0], *demonstrations]
    layers = sorted({int(part) for name in weights.down for part in name.split(".") if part.isdecimal()})
    if before and backbone.model.config.model_type == "mpt":  # PEFT has a forward of its own for this one
        raise StateError(
            "PEFT does not switch an activated LoRA on in MPT; export a state of 'lora' or 'prompt-tuning'"
        )
    transposed = {is_transposed(backbone.model.get_submodule(name)) for name in weights.down}
    if len(transposed) > 1:
        raise StateError("PEFT holds no adapter of both nn.Linear and Conv1D layers; adapt those of one kind")
    everywhere = layers == list(range(int(backbone.model.config.num_hidden_layers)))
    config = peft.LoraConfig(
        task_type=peft.TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=alpha,
        target_modules=sorted({name.split(".")[-1] for name in weights.down}),
        layers_to_transform=None if everywhere else layers,
        fan_in_fan_out=transposed == {True},
        alora_invocation_tokens=list(prompter.query_prefix) if before else None,
        **of_base(backbone),
    )
    texts = {}
    if demonstrations is not None and before:
        texts = {PROMPT: str(backbone.tokenizer.decode(list(demonstrations))), PROMPT_IDS: json.dumps(before)}
    _write(config, lora_tensors(weights, rank / alpha), directory, texts)


def write_prompt(prompt: torch.Tensor, model: CausalLM, directory: Path) -> None:
    """A prompt-tuning adapter of `prompt`, `[length, width]`, behind start-of-text."""
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
        num_attention_heads=int(getattr(model.model.config, "num_attention_heads", 1)),  # asked for, and not used
        **of_base(model),
    )
    _write(config, {"prompt_embeddings": whole}, directory)


def write_prefix(prefix: Prefix, model: CausalLM, directory: Path) -> None:
    """A prefix-tuning adapter of a prefix's keys and values.

    Raises:
        StateError: the prefix is empty, or no adapter can hold it.
    """
    import peft
    import torch

    if not prefix.length:
        raise StateError("the state has no demonstration yet, so it is no prefix; adapt it on data first")
    shapes = {tuple(part.shape) for layer in prefix.layers for part in layer}
    if len(shapes) != 1:
        raise StateError(
            f"{model.name} keeps {'keys and values of several sizes' if shapes else 'no keys and values'}, which a "
            "prefix adapter can't hold; export a state of 'lora' or 'prompt-tuning'"
        )
    _, heads, _, size = shapes.pop()
    # PEFT reads [length, layers * 2, heads, head size], each layer's keys before its values.
    whole = torch.stack([part[0].transpose(0, 1) for layer in prefix.layers for part in layer], dim=1)
    config = peft.PrefixTuningConfig(
        task_type=peft.TaskType.CAUSAL_LM,
        num_virtual_tokens=prefix.length,
        token_dim=heads * size,
        num_transformer_submodules=1,
        num_layers=len(prefix.layers),
        num_attention_heads=heads,
        **of_base(model),
    )
    _write(config, {"prompt_embeddings": whole.flatten(1)}, directory)


def _write(
    config: Any, tensors: dict[str, torch.Tensor], directory: Path, prompt: Mapping[str, str] = NO_PROMPT
) -> None:
    for name in {PROMPT, PROMPT_IDS} - set(prompt):  # of another adapter that lay there
        (directory / name).unlink(missing_ok=True)
    write_adapter(config, tensors, directory, {name: text.encode() for name, text in prompt.items()})
