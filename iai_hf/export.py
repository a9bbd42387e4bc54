"""The ways out: a state in a form that other libraries load, without this package."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from iai_hf import readme
from iai_hf.backbones.peft_files import ADAPTER_CONFIG, HEAD
from iai_hf.card import classifier_card
from iai_hf.config import require
from iai_hf.errors import meant
from iai_hf.files import new_folder, write_whole
from iai_hf.hub import CARD_FILE
from iai_hf.peft_card import peft_card

if TYPE_CHECKING:
    from iai_hf.backbones.linear_classifier import LinearClassifier
    from iai_hf.state import TaskState

log = logging.getLogger(__name__)
Form = Literal["peft", "sentence-transformers", "onnx"]


def export(self: Any, state: TaskState, directory: str | Path, form: Form = "peft") -> Path:
    """Write a state in a form that other libraries load without this package.

    Args:
        directory: a new folder, or an empty one.
        form: "peft", an adapter for `PeftModel.from_pretrained`; "sentence-transformers", modules for
            `SentenceTransformer`, which encodes a text to the state's logits; "onnx", one graph of token ids to them.

    Raises:
        StateError: the state belongs to another method or backbone, or the folder can't be written.
        ConfigError: the method's states have no such form.
        BackboneError: the backbone has none, or a package is missing that writes it.
        DataError: the state knows fewer than two labels.
    """
    require(form in FORMS, f"form is {form!r}; expected {', '.join(FORMS)}{meant(str(form), FORMS)}")
    directory = Path(directory)
    self.check(state)
    FORMS[form](self, state, directory)
    return directory


def _peft(amortizer: Any, state: TaskState, directory: Path) -> None:
    amortizer.export_peft(state.tensors, state.task, directory)
    backbone = amortizer.backbone
    adapts = json.loads((directory / ADAPTER_CONFIG).read_text())["peft_type"] == "LORA"
    start = backbone.special_tokens[0] if adapts else []  # of a prompt or a prefix it is a part
    files = [path.name for path in directory.iterdir()]
    head = directory / HEAD
    told = json.loads(head.read_text()) if head.is_file() else None
    card = peft_card(state.header, files, start, backbone.text_ends, directory.resolve().name, told)
    place = directory / CARD_FILE
    here = place.read_text(encoding="utf-8") if place.is_file() else None
    write_whole(place, readme.combined(card, here, None, str(directory)).encode())


def _sentence_transformers(amortizer: Any, state: TaskState, directory: Path) -> None:
    from iai_hf.backbones import sentence_export

    _whole_model(amortizer.linear_classifier(state), directory, "sentence-transformers", sentence_export)


def _onnx(amortizer: Any, state: TaskState, directory: Path) -> None:
    from iai_hf.backbones import onnx_export

    _whole_model(amortizer.linear_classifier(state), directory, "onnx", onnx_export)


def _whole_model(classifier: LinearClassifier, directory: Path, form: Form, writer: Any) -> None:
    """A model that needs no backbone, as the module `writer` writes it, and its card."""
    name = directory.resolve().name
    with new_folder(directory) as folder:
        writer.write(classifier, folder)
        answers = writer.ONE_LABEL if classifier.thresholds is None else writer.SEVERAL_LABELS
        use = writer.USE.format(place=name, prompt=classifier.backbone.pipeline.prompt, answers=answers)
        (folder / CARD_FILE).write_text(classifier_card(classifier, form, use, name), encoding="utf-8")
    if classifier.reads_in_windows:
        log.warning(
            "texts longer than %d tokens are cut by other libraries, where the state reads them whole and may answer "
            "otherwise",
            classifier.max_seq_length,
        )


FORMS: Mapping[str, Callable[[Any, TaskState, Path], None]] = {
    "peft": _peft,
    "sentence-transformers": _sentence_transformers,
    "onnx": _onnx,
}
