"""A linear classifier as a sentence-transformers folder, which that library loads without this package.

What it encodes a text to are the logits. Names and settings are those that every version of the library reads; a
SetFit folder has no place for them but a pickled head, which is not written here.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iai_hf.backbones.load import quiet
from iai_hf.backbones.sentence_transformers import FLAGS, Pipeline
from iai_hf.backbones.stages import Dense, Stage, Standardize, UnitLength

if TYPE_CHECKING:
    import torch

    from iai_hf.backbones.linear_classifier import LinearClassifier

USE = """```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({place!r})
logits = model.encode(["a text to answer"], convert_to_tensor=True)  # one row a text
{answers}
```

The logits come from the folder's last module; `AutoModelForSequenceClassification` would put a random head in its
place."""

ONE_LABEL = """labels = [model[0].auto_model.config.id2label[best] for best in logits.argmax(1).tolist()]
print(labels, logits.softmax(1))"""
SEVERAL_LABELS = """config = model[0].auto_model.config  # the labels that apply are those above their thresholds
applying = logits > logits.new_tensor(config.label_thresholds)
labels = [[config.id2label[number] for number in row.nonzero()[:, 0].tolist()] for row in applying]
print(labels, logits.sigmoid())"""


def write(classifier: LinearClassifier, folder: Path) -> None:
    """Write the modules Transformer, Pooling, those of the backbone's own pipeline, Normalize and Dense.

    Raises:
        BackboneError: the library would read texts otherwise than the backbone does.
    """
    import torch

    classifier.module()  # which compares
    backbone = classifier.backbone
    pipeline = backbone.pipeline
    with quiet():
        backbone.model.save_pretrained(folder)
    classifier.save_tokenizer(folder)
    classifier.describe(folder)
    head = Dense(classifier.weight, classifier.bias, torch.nn.Identity())
    modules: list[tuple[str, dict[str, Any], Mapping[str, torch.Tensor]]] = [
        ("Pooling", _pooling(pipeline, backbone.width), {}),
        *map(_module, (*pipeline.stages, UnitLength(), head)),
    ]
    listed = [("", "Transformer"), *((f"{number}_{kind}", kind) for number, (kind, _, _) in enumerate(modules, 1))]
    for (path, _), (_, config, weights) in zip(listed[1:], modules, strict=True):
        _write(folder / path, config, weights)
    _json(
        folder / "modules.json",
        [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for number, (path, kind) in enumerate(listed)
        ],
    )
    settings: dict[str, Any] = {"max_seq_length": classifier.max_seq_length, "do_lower_case": pipeline.lowercase}
    if "add_pooling_layer" in inspect.signature(type(backbone.model)).parameters:
        settings["model_args"] = {"add_pooling_layer": False}  # nothing of it is saved, or used
    _json(folder / "sentence_bert_config.json", settings)
    prompts = {"classification": pipeline.prompt} if pipeline.prompt else {}
    default = next(iter(prompts), None)
    _json(folder / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": default})


def _pooling(pipeline: Pipeline, width: int) -> dict[str, Any]:
    shared = {"word_embedding_dimension": width, "include_prompt": pipeline.pools_prompt}
    if pipeline.modes == tuple(mode for mode in FLAGS.values() if mode in pipeline.modes):
        return shared | {flag: mode in pipeline.modes for flag, mode in FLAGS.items()}
    return shared | {"pooling_mode": list(pipeline.modes)}  # flags are laid side by side in an order of their own


def _module(stage: Stage) -> tuple[str, dict[str, Any], Mapping[str, torch.Tensor]]:
    """A stage as a module: its class, configuration and weights."""
    import torch

    if isinstance(stage, UnitLength):
        return "Normalize", {}, {}
    if isinstance(stage, Standardize):
        scale = 1 / stage.deviation
        stage = Dense(scale.diag(), -stage.mean * scale, torch.nn.Identity())
    assert isinstance(stage, Dense)
    weights = {"linear.weight": stage.weight} | ({} if stage.bias is None else {"linear.bias": stage.bias})
    size, inputs = stage.weight.shape
    config = {
        "in_features": inputs,
        "out_features": size,
        "bias": stage.bias is not None,
        "activation_function": f"{type(stage.activation).__module__}.{type(stage.activation).__qualname__}",
    }
    return "Dense", config, weights


def _write(folder: Path, config: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    if config:
        _json(folder / "config.json", config)
    if weights:
        plain = {name: tensor.detach().cpu().float().contiguous() for name, tensor in weights.items()}
        save_file(plain, folder / "model.safetensors", {"format": "pt"})


def _json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
