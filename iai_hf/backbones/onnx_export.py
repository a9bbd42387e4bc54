"""A linear classifier as one ONNX graph, from `torch.onnx`: token ids and their mask to logits."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iai_hf.errors import BackboneError

if TYPE_CHECKING:
    import torch

    from iai_hf.backbones.linear_classifier import LinearClassifier

NEEDED = ("onnx", "onnxscript", "onnxruntime")
ONNX_FILE = "model.onnx"
LARGEST = 2**31 - 2**20  # bytes of a graph in one file; a larger one's weights lie beside it
TOLERANCE = 1e-3  # of the logits' size
USE = """```python
import onnxruntime
from transformers import AutoConfig, AutoTokenizer

tokenizer, config = AutoTokenizer.from_pretrained({place!r}), AutoConfig.from_pretrained({place!r})
session = onnxruntime.InferenceSession({place!r} + "/model.onnx")
texts = [{prompt!r} + text for text in ["a text to answer"]]
tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="np")
logits = session.run(None, {{name: tokens[name] for name in ("input_ids", "attention_mask")}})[0]  # one row a text
{answers}
```"""
ONE_LABEL = "print([config.id2label[int(best)] for best in logits.argmax(1)])"
SEVERAL_LABELS = """applying = logits > config.label_thresholds  # the labels above their thresholds
print([[config.id2label[int(number)] for number in row.nonzero()[0]] for row in applying])"""


def write(classifier: LinearClassifier, folder: Path) -> None:
    """Write `model.onnx`, the tokenizer, and a `config.json` that names the labels.

    Raises:
        BackboneError: a package is missing, or the exporter can't express the model.
    """
    import torch

    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise BackboneError(f"{', '.join(missing)} is not installed, which ONNX needs; pip install 'iai_hf[onnx]'")
    module = classifier.module()
    classifier.backbone.model.config.save_pretrained(folder)
    classifier.save_tokenizer(folder)
    classifier.describe(folder)
    ids, mask = classifier.batch(["A text.", "Another text, which is longer."])
    axes = {0: "texts", 1: "tokens"}
    size = sum(part.nbytes for part in (*module.parameters(), *module.buffers()))
    try:
        with _quiet(), torch.no_grad():
            torch.onnx.export(
                module,
                (ids, mask),
                folder / ONNX_FILE,
                dynamo=True,
                input_names=["input_ids", "attention_mask"],
                output_names=["logits"],
                dynamic_shapes=(axes, axes),
                external_data=size > LARGEST,
                verbose=False,
            )
        differs = _differs(folder / ONNX_FILE, module, classifier)
    except Exception as error:  # whatever a model's code makes of being traced, or the runtime of its graph
        reason = (str(error).strip().splitlines() or [""])[0]
        raise BackboneError(
            f"{classifier.backbone.name} can't be exported to ONNX ({type(error).__name__}: {reason}); choose the "
            "sentence-transformers form, or another encoder"
        ) from error
    if differs:
        raise BackboneError(
            f"the graph of {classifier.backbone.name} gives other logits than the model, so it is not kept; choose the "
            "sentence-transformers form, or another encoder"
        )


def _differs(path: Path, module: torch.nn.Module, classifier: LinearClassifier) -> bool:
    """Whether the graph answers otherwise than the module: one text, and more of other lengths than it was made of."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for texts in (["a"], ["one", "two words", "and a text that is longer than the two before it"]):
        ids, mask = classifier.batch(texts)
        found = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
        with torch.inference_mode():
            expected = module(ids, mask)
        if not torch.allclose(torch.from_numpy(found), expected, atol=TOLERANCE * float(expected.abs().max())):
            return True
    return False


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on packages that it would know too."""
    exporter: Any = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
