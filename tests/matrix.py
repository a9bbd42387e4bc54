"""The matrix: every registered method on a tiny backbone, with its settings; and examples as each reads them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from conftest import LABELS, WORDS, examples

from iai_hf import AutoAmortizer, Chunk, TaskSpec, TaskState
from iai_hf.amortizer import Amortizer
from iai_hf.backbones import Backbone
from iai_hf.data import Columns


class Row(NamedTuple):
    """A method on a tiny backbone.

    Attributes:
        learns: how `contract/test_learning.py` shows that it learns. "task": from some examples it answers others.
            "rows": a random language model has no features that would tell one class from another, but a batch that
            is read again and again is known by heart. "names": nothing is fitted, and demonstrations teach a random
            language model nothing; SmolLM2 looks up what they say, also under names that mean another class.
            "meta-trained": a network alone, which changes no answer before it is trained on tasks of the kind, so that
            is done first.
    """

    method: str
    backbone: str
    config: dict[str, Any]
    learns: Literal["task", "rows", "names", "meta-trained"] = "task"


NETWORK = {"kind": "classification", "inputs": 12, "outputs": 3, "hidden": 16, "layers": 1}
SAMPLED = {"calibration_examples": 32}  # so few that others are pushed out
LIMITED = {**NETWORK, "budget": 32}
METHODS = {
    "iterative/encoder": Row("iterative", "encoder", SAMPLED),
    "iterative/causal": Row("iterative", "causal", SAMPLED),
    "iterative/data": Row("iterative", "encoder", {**SAMPLED, "signal": "data", "max_features": 16}),
    "iterative/gradient": Row("iterative", "encoder", {**SAMPLED, "signal": "gradient"}),
    "iterative/deep": Row(
        "iterative",
        "encoder",
        {"depth": "auto", "rank": 2, "steps": 2.0, "learning_rate": 3e-3, "retained_bytes": 4000},
    ),
    "iterative/deep causal": Row("iterative", "causal", {"depth": 1, "rank": 2, "retained_bytes": 500}),
    "iterative/watched": Row("iterative", "encoder", {"watch": True}),
    "iterative-explicit": Row("iterative-explicit", "encoder", SAMPLED),
    "iterative-implicit": Row("iterative-implicit", "encoder", {"budget": 32}),
    "in-context": Row("in-context", "causal", {"demonstration_tokens": 200}, "names"),
    "in-context/calibrated": Row("in-context", "causal", {"demonstration_tokens": 200, "calibrate": True}, "names"),
    "prompt-tuning": Row("prompt-tuning", "causal", {"num_virtual_tokens": 4}, "rows"),
    "lora": Row("lora", "causal", {"rank": 2}, "rows"),
    "lm-state": Row("lm-state", "causal", {"rank": 2, "layers": 1}, "rows"),
    "numeric-parametric": Row("numeric-parametric", "numeric", {}),
    "numeric-parametric/data": Row("numeric-parametric", "numeric", {"signal": "data", "width": 16}),
    "numeric-parametric/gradient": Row("numeric-parametric", "numeric", {"signal": "gradient"}),
    "numeric-parametric/network": Row("numeric-parametric", "numeric", {**NETWORK, "kind": "classification"}),
    "numeric-parametric/free": Row(
        "numeric-parametric", "numeric", {**NETWORK, "free": True, "window": 3}, "meta-trained"
    ),
    "numeric-explicit": Row("numeric-explicit", "numeric", NETWORK),
    "numeric-implicit": Row("numeric-implicit", "numeric", {"budget": 32}),
    "numeric-implicit/free": Row(
        "numeric-implicit",
        "numeric",
        {**NETWORK, "free": True, "carried": "latents", "budget": 32},
        "meta-trained",
    ),
    "numeric-implicit/network": Row("numeric-implicit", "numeric", LIMITED),
    "hypernetwork": Row("hypernetwork", "numeric", LIMITED, "meta-trained"),
    "prior-fitted": Row("prior-fitted", "numeric", LIMITED, "meta-trained"),
    "sgd": Row("sgd", "numeric", {}),
    "adam": Row("adam", "numeric", {"inner_steps": 2}),
    "maml": Row("maml", "numeric", NETWORK),
    "reptile": Row("reptile", "numeric", {}),
    "learned-optimizer": Row("learned-optimizer", "numeric", {}),
}
COUNTED = tuple(word for words in WORDS.values() for word in words[:4])


def made(row: Row, encoder: Backbone, causal: Backbone) -> Amortizer:
    """The amortizer of a row; backbones of the session."""
    backbones: dict[str, Backbone | str] = {"encoder": encoder, "causal": causal, "numeric": "numeric/llama"}
    return AutoAmortizer.from_pretrained(row.method, backbone=backbones[row.backbone], config=row.config)


def rows_of(amortizer: Amortizer, count: int, seed: int = 0, labels: tuple[str, ...] = LABELS) -> list[dict[str, Any]]:
    """Examples as the method reads them: texts, or counts of some words."""
    found = examples(count, seed, labels)
    if amortizer.reads == "texts":
        return found
    return [
        {word: float(row["input"].split().count(word)) for word in COUNTED} | {"output": row["output"]} for row in found
    ]


def task_of(amortizer: Amortizer, labels: tuple[str, ...] = LABELS) -> TaskSpec:
    return TaskSpec("classification", labels, () if amortizer.reads == "texts" else COUNTED)


def input_of(row: dict[str, Any]) -> Any:
    return row["input"] if "input" in row else tuple(row[word] for word in COUNTED)


def queries_of(amortizer: Amortizer, count: int = 20) -> list[Any]:
    return [input_of(row) for row in rows_of(amortizer, count, seed=9)]


def adapt(
    amortizer: Amortizer, rows: Iterable[dict[str, Any]], state: TaskState | None = None, **options: Any
) -> TaskState:
    columns = Columns(numbers=None if amortizer.reads == "texts" else ())
    return amortizer.adapt(rows, state, columns=columns, progress=False, **options)


def chunk_of(rows: list[dict[str, Any]]) -> Chunk:
    return Chunk(tuple(map(input_of, rows)), tuple(row["output"] for row in rows))
