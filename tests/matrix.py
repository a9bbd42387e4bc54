"""The matrix: every registered method on a tiny backbone, with its settings; and examples as each reads them."""

from __future__ import annotations

from typing import Any

from conftest import LABELS, WORDS, examples

from iai_hf import TaskSpec
from iai_hf.amortizer import Amortizer

NETWORK = {"kind": "classification", "inputs": 12, "outputs": 3, "hidden": 16, "layers": 1}
LIMITED = {**NETWORK, "budget": 32}
METHODS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "iterative/encoder": ("iterative", "encoder", {}),
    "iterative/causal": ("iterative", "causal", {}),
    "iterative/data": ("iterative", "encoder", {"signal": "data", "max_features": 16}),
    "iterative/gradient": ("iterative", "encoder", {"signal": "gradient"}),
    "iterative-explicit": ("iterative-explicit", "encoder", {}),
    "iterative-implicit": ("iterative-implicit", "encoder", {"budget": 32}),
    "in-context": ("in-context", "causal", {"budget": 200}),
    "in-context/calibrated": ("in-context", "causal", {"budget": 200, "calibrate": True}),
    "prompt-tuning": ("prompt-tuning", "causal", {"num_virtual_tokens": 4}),
    "lora": ("lora", "causal", {"rank": 2}),
    "lm-state": ("lm-state", "causal", {"rank": 2, "layers": 1}),
    "numeric-parametric": ("numeric-parametric", "numeric", {}),
    "numeric-parametric/data": ("numeric-parametric", "numeric", {"signal": "data", "width": 16}),
    "numeric-parametric/gradient": ("numeric-parametric", "numeric", {"signal": "gradient"}),
    "numeric-parametric/network": ("numeric-parametric", "numeric", {**NETWORK, "kind": "classification"}),
    "numeric-parametric/free": ("numeric-parametric", "numeric", {**NETWORK, "free": True, "window": 3}),
    "numeric-explicit": ("numeric-explicit", "numeric", NETWORK),
    "numeric-implicit": ("numeric-implicit", "numeric", {"budget": 32}),
    "numeric-implicit/free": (
        "numeric-implicit",
        "numeric",
        {**NETWORK, "free": True, "carried": "latents", "budget": 32},
    ),
    "numeric-implicit/network": ("numeric-implicit", "numeric", LIMITED),
    "hypernetwork": ("hypernetwork", "numeric", LIMITED),
    "prior-fitted": ("prior-fitted", "numeric", LIMITED),
    "sgd": ("sgd", "numeric", {}),
    "adam": ("adam", "numeric", {"inner_steps": 2}),
    "maml": ("maml", "numeric", NETWORK),
    "reptile": ("reptile", "numeric", {}),
    "learned-optimizer": ("learned-optimizer", "numeric", {}),
}
COUNTED = tuple(word for words in WORDS.values() for word in words[:4])


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
