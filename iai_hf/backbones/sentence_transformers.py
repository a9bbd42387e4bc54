"""Sentence pipelines: what a sentence-transformers folder does with a text before its model and after it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iai_hf.backbones.stages import Dense, Stage, UnitLength
from iai_hf.errors import BackboneError

if TYPE_CHECKING:
    import torch

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
# As older folders say it, a flag each, in the order in which several are laid side by side.
FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True, eq=False)
class Pipeline:
    """How hidden states become a text's vector; by default their mean.

    A folder's `max_seq_length`, at which the library cuts a text, has no place here: longer texts are read whole, in
    windows as wide as the model's positions (MiniLM on long newsgroup posts: .70, in windows of its 256 tokens .69).

    Attributes:
        modes: how they are pooled, of `MODES`; vectors of several are laid side by side.
        prompt: text that every text is read behind.
        pools_prompt: the prompt's hidden states count too.
        lowercase: texts are read in lower case.
        stages: what a pooled vector goes through, in this order.
    """

    modes: tuple[str, ...] = ("mean",)
    prompt: str = ""
    pools_prompt: bool = True
    lowercase: bool = False
    stages: tuple[Stage, ...] = ()

    def size(self, hidden: int) -> int:
        """Of a text's vector, for hidden states of that size."""
        found = hidden * len(self.modes)
        for stage in self.stages:
            found = stage.size(found)
        return found

    @property
    def is_early(self) -> bool:
        """Whether it is one that format 1 had: the mean or the first token, and nothing else."""
        plain = not (self._changes or self.prompt or self.lowercase)
        return plain and self.modes in (("mean",), ("cls",))

    @property
    def reading(self) -> dict[str, Any]:
        """What it does with a text, in plain values."""
        return {
            "prompt": self.prompt,
            "prompt_counts": self.pools_prompt,
            "lowercase": self.lowercase,
            "pooling": list(self.modes),
            "then": [stage.kind for stage in (*self.stages, UnitLength())],
        }

    @property
    def _changes(self) -> bool:
        """Whether a stage does more than scale a vector, as is done at the end anyway."""
        return any(not isinstance(stage, UnitLength) for stage in self.stages)

    def described(self) -> bytes:
        """What tells pipelines apart; nothing for a plain mean."""
        if self.modes == ("mean",) and not self._changes and not self.prompt and not self.lowercase:
            return b""
        stages = self.stages if self._changes else ()
        parts = [f"{self.modes} {self.prompt!r} {self.pools_prompt} {self.lowercase}", *map(str, stages)]
        return " ".join(parts).encode()

    def pool(self, hidden: torch.Tensor, mask: torch.Tensor | None, before: int) -> torch.Tensor:
        """Vectors, float32 `[texts, size]`, of hidden states `[texts, tokens, hidden]`.

        Args:
            mask: 1 for a token and 0 for padding, `[texts, tokens]`, on the right; None where nothing is padded.
            before: tokens up to the prompt's last one.
        """
        import torch

        if self.modes == ("mean",) and (self.pools_prompt or not self.prompt):
            # The usual case, without a copy in float32.
            if mask is None:
                return hidden.mean(1, dtype=torch.float32)
            return (hidden * mask[..., None]).sum(1, dtype=torch.float32) / mask.sum(1, keepdim=True)
        read = torch.ones(hidden.shape[:2], device=hidden.device, dtype=torch.float32) if mask is None else mask.float()
        if self.prompt and not self.pools_prompt:
            counted = read.clone()
            counted[:, :before] = 0
            read = torch.where(counted.any(1, keepdim=True), counted, read)  # an empty text is its prompt
        return torch.cat([_pooled(mode, hidden.float(), read) for mode in self.modes], dim=1)

    def finish(self, vectors: torch.Tensor) -> torch.Tensor:
        """Pooled vectors after all stages."""
        for stage in self.stages:
            vectors = stage(vectors)
        return vectors


def _pooled(mode: str, hidden: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
    """Pooled over the tokens that `read` is 1 for, `[texts, hidden]`."""
    import torch

    rows = torch.arange(len(hidden), device=hidden.device)
    places = torch.arange(1, hidden.shape[1] + 1, device=hidden.device) * read
    if mode == "cls":
        return hidden[rows, read.argmax(1)]
    if mode == "lasttoken":
        return hidden[rows, places.argmax(1)]
    if mode == "max":
        return hidden.masked_fill(read[..., None] == 0, -torch.inf).amax(1)
    weights = places if mode == "weightedmean" else read
    total = weights.sum(1, keepdim=True)
    return (hidden * weights[..., None]).sum(1) / (total.sqrt() if mode == "mean_sqrt_len_tokens" else total)


def read_pipeline(folder: Path) -> tuple[Pipeline, Path] | None:
    """The pipeline of a sentence-transformers folder, and the folder of its model; None where it is no such folder.

    Raises:
        BackboneError: it has a part that is not known here, or whose files are missing or damaged.
    """
    listed = folder / "modules.json"
    if not listed.is_file():
        pooling = folder / "1_Pooling" / "config.json"
        return (Pipeline(modes=_modes(_json(pooling))), folder) if pooling.is_file() else None
    try:
        parts = [
            (str(part["type"]), folder / part["path"]) for part in sorted(_json(listed, list), key=lambda m: m["idx"])
        ]
    except (TypeError, KeyError) as error:
        raise BackboneError(
            f"{listed} is damaged ({error!r}); expected a list of modules with idx, path and type"
        ) from error
    kinds = [kind.rsplit(".", 1)[-1] if kind.startswith("sentence_transformers.") else kind for kind, _ in parts]
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise BackboneError(
            f"{folder} is the pipeline {' > '.join(kinds)}; one that can be read begins with Transformer > Pooling: "
            "choose another encoder"
        )
    settings, pooling = _transformer_settings(parts[0][1]), _json(parts[1][1] / "config.json")
    stages: list[Stage] = []
    for kind, place in zip(kinds[2:], [place for _, place in parts[2:]], strict=True):
        if kind == "Dense":
            stages.append(_dense(place))
        elif kind == "Normalize":
            stages.append(UnitLength())
        elif kind != "Dropout":  # which does nothing once training is over
            raise BackboneError(
                f"{folder} has a module {kind!r}, whose work is not known here (known are Transformer, Pooling, Dense, "
                "Normalize, Dropout): choose another encoder"
            )
    modes = _modes(pooling)
    if modes == ("mean_sqrt_len_tokens",) and all(isinstance(stage, UnitLength) for stage in stages):
        modes = ("mean",)  # of unit length they are the same
    pipeline = Pipeline(
        modes=modes,
        prompt=_prompt(folder),
        pools_prompt=bool(pooling.get("include_prompt", True)),
        lowercase=bool(settings.get("do_lower_case")),
        stages=tuple(stages),
    )
    return pipeline, parts[0][1]


def _modes(values: Mapping[str, Any]) -> tuple[str, ...]:
    found = values.get("pooling_mode")
    if found is None:
        found = [mode for flag, mode in FLAGS.items() if values.get(flag)] or ["mean"]
    modes = (found,) if isinstance(found, str) else tuple(found)
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown or not modes:
        raise BackboneError(f"pooling_mode is {found!r}; expected {', '.join(MODES)}: choose another encoder")
    return modes


def _prompt(folder: Path) -> str:
    """The prompt that is read before a text where none is named."""
    path = folder / "config_sentence_transformers.json"
    values = _json(path) if path.is_file() else {}
    name = values.get("default_prompt_name")
    prompts = values.get("prompts") or {}
    if name is None:
        return ""
    if not isinstance(prompts.get(name), str):
        raise BackboneError(f"{path} has no prompt {name!r}, its default; it has {', '.join(prompts) or 'none'}")
    return str(prompts[name])


def _transformer_settings(folder: Path) -> Mapping[str, Any]:
    for path in sorted(folder.glob("sentence_*_config.json")):
        values = _json(path)
        task = values.get("transformer_task", "feature-extraction")
        if task != "feature-extraction":
            raise BackboneError(f"{path} makes {task!r} of its model; expected feature-extraction: choose an encoder")
        return values
    return {}


def _dense(folder: Path) -> Dense:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    values = _json(folder / "config.json")
    if values.get("use_residual") or values.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        raise BackboneError(f"{folder} is a Dense module with a residual or of other inputs: choose another encoder")
    path = folder / "model.safetensors"
    try:
        weights = load_file(path)
        weight, bias = weights["linear.weight"].float(), weights.get("linear.bias")
    except (OSError, KeyError, SafetensorError) as error:
        raise BackboneError(
            f"{path} has no weights of a Dense module ({error}); a pickled pytorch_model.bin is not read: save the "
            "encoder anew with a current sentence-transformers"
        ) from error
    name = values.get("activation_function", "torch.nn.modules.activation.Tanh") or "torch.nn.modules.linear.Identity"
    kind = getattr(torch.nn, name.rsplit(".", 1)[-1], None) if name.startswith("torch.nn.modules.") else None
    try:
        activation = kind() if isinstance(kind, type) and issubclass(kind, torch.nn.Module) else None
    except TypeError:  # a layer that needs sizes
        activation = None
    if activation is None:
        raise BackboneError(f"{folder} has the activation {name!r}; expected one of torch.nn: choose another encoder")
    return Dense(weight, None if bias is None else bias.float(), activation)


def _json(path: Path, kind: type = dict) -> Any:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(f"{path} can't be read ({error}); load the encoder's folder anew") from error
    if not isinstance(values, kind):
        raise BackboneError(f"{path} holds a {type(values).__name__}, expected a {kind.__name__}; load the folder anew")
    return values
