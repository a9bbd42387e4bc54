"""load_backbone: an id or a folder, to the right kind of backbone."""

from __future__ import annotations

import inspect
import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from iai_hf import hub
from iai_hf.backbones import numeric, weights
from iai_hf.backbones.backbone import Backbone
from iai_hf.backbones.sentence_transformers import Pipeline, read_pipeline
from iai_hf.backbones.validation import check_complete, check_finite, check_tokenizer
from iai_hf.errors import BackboneError
from iai_hf.threads import alone

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


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

    A sentence-transformers folder is an encoder, pooled as its own modules say, whatever its model is.

    Args:
        name: Hub id or folder; or `numeric/ARCHITECTURE` for tables of numbers, e.g. `numeric/llama`.
        dtype: a torch dtype or its name; by default bfloat16 where the processor has it, else float32.
        device: by default the GPU where there is one.
        device_map: spreads a large model over devices instead, as in transformers, e.g. "auto".
        revision, token, cache_dir, local_files_only, force_download: as in `huggingface_hub`.

    Raises:
        BackboneError: not found, not readable, damaged, or no text model. Code from a repository is never run.
    """
    import torch

    place, precision = _place(device), _precision(dtype)
    if name.startswith(numeric.PREFIX):
        if precision not in (None, torch.float32):
            raise BackboneError(f"tables of numbers are read in float32, not {precision}; leave dtype out")
        return numeric.NumericBackbone(name, place if device is not None else torch.device("cpu"))
    if device is not None and device_map is not None:
        raise BackboneError(f"got device {device} and device_map {device_map}; give one of them")
    found = weights.resolve(
        name,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        force_download=force_download,
    )
    if found.folder == Path(name):  # of a folder, where it is: a relative name would be another's elsewhere
        name = os.path.abspath(name)
        if (cached := hub.of_cache(name)) is not None and hub.in_cache(name):
            name, commit = cached
            found = weights.Found(found.folder, commit, f"the Hub, commit {commit[:8]}")
    pipeline, folder = read_pipeline(found.folder) or (None, found.folder)
    _refuse_foreign(folder)
    spread = {} if device_map is None else {"device_map": device_map}
    with alone(), quiet():
        try:
            read = _read(folder, pipeline is not None, dtype=precision or _native_dtype(place), **spread)
            model = read.model if spread else read.model.to(place)
        except Exception as error:  # of a damaged folder transformers raises anything
            reason = (str(error).splitlines() or [""])[0]
            raise BackboneError(
                f"{folder} is no text backbone that transformers can load ({type(error).__name__}: {reason}); expected "
                "config.json, a tokenizer and whole safetensors weights"
            ) from error
    check_finite(name, model)
    parts = {"name": name, "revision": found.commit, "tokenizer": read.tokenizer, "source": found.source}
    backbone = _assembled(model, read.causal, parts, pipeline)
    check_complete(name, backbone.model, read.missing, model)
    _ = backbone.traits
    digest = backbone.digest()
    if precision == torch.float16 and read.stored != torch.float16:
        # Rounded to float16 first they would have another digest; it is taken from the weights as they are stored.
        with quiet():
            stored = _read(folder, pipeline is not None, dtype="auto")
        digest = backbone.fingerprint = _assembled(stored.model, stored.causal, parts, pipeline).digest()
    log.info("%s: weights of %s, digest %s", name, found.source, digest[:8])
    return backbone


def _precision(dtype: torch.dtype | str | None) -> torch.dtype | None:
    import torch

    if dtype is None:
        return None
    precision = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if precision not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise BackboneError(f"dtype {dtype!r} is none that backbones are read in; expected 'bfloat16' or 'float32'")
    return precision


class _Read(NamedTuple):
    tokenizer: Any
    model: Any
    causal: bool  # it has a language-model head
    missing: Collection[str]  # names of tensors that no file has, or of another shape
    stored: Any  # dtype of the weights in the folder, where its configuration says it


def _read(folder: Path, as_encoder: bool, **options: Any) -> _Read:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForTextEncoding, AutoTokenizer

    here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(folder, **here)
    # What a folder asks of the form of outputs is for its own scripts.
    config.return_dict, config.output_hidden_states, config.output_attentions = True, False, False
    tokenizer = AutoTokenizer.from_pretrained(folder, **here)
    causal = not as_encoder and _names_a_causal_lm(config)
    loader: Any = AutoModelForCausalLM if causal else AutoModel
    halves = config.is_encoder_decoder or any("EncoderModel" in kind for kind in config.architectures or ())
    if halves and not causal and type(config) in AutoModelForTextEncoding._model_mapping:
        loader = AutoModelForTextEncoding
    kind = loader._model_mapping[type(config)]
    if not isinstance(kind, tuple) and "add_pooling_layer" in inspect.signature(kind).parameters:
        options["add_pooling_layer"] = False  # features are pooled from the hidden states
    stored = config.dtype
    model, report = loader.from_pretrained(
        folder,
        config=config,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # told by name, as what is missing
        **here,
        **options,
    )
    missing = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    return _Read(tokenizer, model, causal, missing, stored)


def _names_a_causal_lm(config: Any) -> bool:
    """Whether the configuration names a causal LM; one that names nothing does if it can't be a masked one too."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    causal, masked = AutoModelForCausalLM._model_mapping, AutoModelForMaskedLM._model_mapping
    if type(config) not in causal:
        return False
    if not config.architectures:
        return type(config) not in masked
    own = getattr(causal[type(config)], "__name__", None)
    return any(kind == own or "CausalLM" in kind or "LMHead" in kind for kind in config.architectures)


def _assembled(model: Any, causal: bool, parts: Mapping[str, Any], pipeline: Pipeline | None) -> Backbone:
    """A language model if no token sees those behind it, else an encoder: a part of the model, or all of it."""
    if causal:
        from iai_hf.backbones.causal_lm import CausalLM

        lm = CausalLM(model=model, **parts)
        check_tokenizer(lm)
        if lm.traits.causal:
            return lm
        model = lm.base
    elif model.config.is_encoder_decoder:
        model = model.get_encoder()
    encoder = Backbone(model=model, pipeline=pipeline, **parts)
    check_tokenizer(encoder)
    return encoder


def _refuse_foreign(folder: Path) -> None:
    """Raise BackboneError where weights are not what config.json says, or are of code in the folder."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if (folder / "adapter_config.json").is_file():
        raise BackboneError(
            f"{folder} holds an adapter (adapter_config.json), which would change the backbone unseen; merge it with "
            "peft's merge_and_unload and save the result, or load its base model"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind, foreign = config.get("model_type"), "auto_map" in config
    except (OSError, ValueError, AttributeError):
        return  # which transformers tells
    if foreign and kind not in CONFIG_MAPPING:
        raise BackboneError(
            f"{folder} has an architecture of its own ({kind!r}), whose code is in the repository and is never run; "
            "choose a backbone of an architecture that transformers has"
        )


def _place(device: torch.device | str | None) -> torch.device:
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise BackboneError(
            f"device {device!r} can't be used ({reason}); expected e.g. 'cpu', 'cuda' or 'cuda:0'"
        ) from error
    if place.type == "meta":
        raise BackboneError("device 'meta' holds no weights; expected e.g. 'cpu', 'cuda' or 'cuda:0'")
    return place


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bars and warnings: a file is read in a second, and that heads are left out is meant."""
    from transformers.utils import logging as transformers_logging

    bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _native_dtype(device: torch.device) -> torch.dtype:
    import torch

    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
