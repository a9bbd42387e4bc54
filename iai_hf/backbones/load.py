"""load_backbone: an id or a folder, to the right kind of backbone."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iai_hf.backbones import numeric, weights
from iai_hf.backbones.backbone import Backbone
from iai_hf.errors import BackboneError

if TYPE_CHECKING:
    import torch


def load_backbone(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
) -> Backbone:
    """Load an encoder, or a causal LM where the configuration names one, frozen and in evaluation mode.

    Args:
        name: Hub id or folder; or `numeric/ARCHITECTURE` for tables of numbers, e.g. `numeric/llama`.
        dtype: a torch dtype or its name; by default bfloat16 where the processor has it, else float32.
        device: by default the GPU where there is one.
        device_map: spreads a large model over devices instead, as in transformers, e.g. "auto".
        revision, token, cache_dir, local_files_only, force_download: as in `huggingface_hub`.

    Raises:
        BackboneError: not found, not readable, or no text model. Code from a repository is never run.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    if name.startswith(numeric.PREFIX):
        return numeric.NumericBackbone(name, torch.device(device or "cpu"))
    folder, commit = weights.resolve(
        name,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        force_download=force_download,
    )
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device is not None and device_map is not None:
        raise BackboneError(f"got device {device} and device_map {device_map}; give one of them")
    precision = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if dtype is not None and not isinstance(precision, torch.dtype):
        raise BackboneError(f"dtype {dtype!r} is unknown; expected e.g. 'bfloat16' or 'float32'")
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    spread = {} if device_map is None else {"device_map": device_map}
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    # Reading a local file is a matter of a second, and that heads are left out is meant.
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        config = AutoConfig.from_pretrained(folder, **options)
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        causal = any("CausalLM" in kind or "LMHead" in kind for kind in config.architectures or ())
        loader = AutoModelForCausalLM if causal else AutoModel
        kind: Any = loader._model_mapping[type(config)]
        if "add_pooling_layer" in inspect.signature(kind).parameters:
            options["add_pooling_layer"] = False  # features are pooled from the hidden states
        model: Any = loader.from_pretrained(
            folder, config=config, dtype=precision or _native_dtype(place), use_safetensors=True, **spread, **options
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise BackboneError(
            f"{folder} is no text backbone that transformers can load ({str(error).splitlines()[0]}); expected "
            "config.json, a tokenizer and safetensors weights"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    parts: dict[str, Any] = {
        "name": name,
        "revision": commit,
        "tokenizer": tokenizer,
        "model": model if spread else model.to(place),
    }
    if causal:
        from iai_hf.backbones.causal_lm import CausalLM

        return CausalLM(**parts)
    return Backbone(**parts, pooling=_pooling(folder))


def _native_dtype(device: torch.device) -> torch.dtype:
    import torch

    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def _pooling(folder: Path) -> str:
    """How the encoder was trained to be pooled, where a sentence-transformers folder says so."""
    try:
        modes = json.loads((folder / "1_Pooling" / "config.json").read_text())
        return "first" if modes.get("pooling_mode_cls_token") else "mean"
    except (OSError, ValueError):
        return "mean"
