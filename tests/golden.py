"""Golden predictions: what every row of the matrix answers, and states as they were saved, in `fixtures/format-2`.

`python tests/golden.py` writes those that are missing: a new method's, or ones that were deleted since their answers
are meant to change. States are not deleted: what was saved once must load, and answer as it did, for ever.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from matrix import COUNTED, METHODS, NETWORK

from iai_hf import AutoAmortizer, Prediction, TaskSpec, TaskState
from iai_hf.amortizer import Amortizer
from iai_hf.backbones import Backbone, load_backbone
from iai_hf.data import Columns
from iai_hf.learned import Learned
from iai_hf.task import Kind

FIXTURES = Path(__file__).parent / "fixtures"
FORMAT_1, FORMAT_2 = FIXTURES / "format-1", FIXTURES / "format-2"
TEXTS: list[dict[str, str]] = [json.loads(line) for line in (FORMAT_1 / "train.jsonl").read_text().splitlines()]
QUERIES: list[str] = json.loads((FORMAT_1 / "expected.json").read_text())["queries"]
VALUED = {**NETWORK, "kind": "regression", "outputs": 1}
MINILM, SMOLLM = "sentence-transformers/all-MiniLM-L6-v2", "HuggingFaceTB/SmolLM2-135M-Instruct"
TOLERANCE, DEEP_TOLERANCE = 1e-4, 1e-2  # gradient steps at half precision multiply what processors round


@dataclass(frozen=True)
class Case:
    """A method with its settings, and a kind of task.

    Attributes:
        trained: whether its learned numbers are moved away from where they start, by noise.
        former: whether its updates were others when its state was saved, which answers as it did all the same.
    """

    method: str
    backbone: str
    config: Mapping[str, Any] = field(default_factory=dict)
    kind: Kind = "classification"
    trained: bool = False
    former: bool = False


def _cases() -> dict[str, Case]:
    rows = {name.replace("/", "-"): Case(*row[:3]) for name, row in METHODS.items()}
    del rows["iterative-watched"]  # which answers as `iterative` until its stream changes (`unit/test_watch.py`)
    now = rows["lm-state"]
    rows["lm-state"] = Case(now.method, now.backbone, {**now.config, "scale_steps": False})  # as it was saved
    for name in ("in-context", "prompt-tuning", "lora", "lm-state"):
        row = rows[name]
        rows[f"{name}-words"] = Case(row.method, row.backbone, {**row.config, "max_new_tokens": 5}, "generation")
    for name, row in tuple(rows.items()):
        if row.backbone == "numeric":
            config = {**row.config, **(VALUED if "inputs" in row.config else {"kind": "regression"})}
            rows[f"{name}-values"] = Case(row.method, row.backbone, config, "regression")
    for name, row in tuple(rows.items()):
        if row.kind == "regression" and (
            row.config.get("free") or row.method in ("hypernetwork", "prior-fitted", "maml")
        ):
            continue  # the same networks as of classification: fixtures stay small
        made = amortizer(row)
        if isinstance(made, Learned) and any(True for _ in made.module.parameters()):
            config = {**row.config, **({"kind": row.kind} if row.backbone == "numeric" else {})}
            rows[f"{name}-trained"] = Case(row.method, row.backbone, config, row.kind, trained=True)
    rows["iterative-multi-label"] = Case("iterative", "encoder", kind="multi-label", former=True)
    rows["iterative-multi-label-damped"] = Case("iterative", "encoder", kind="multi-label")
    for name in ("iterative-explicit", "iterative-implicit"):
        rows[f"{name}-multi-label"] = Case(name, "encoder", kind="multi-label")
    for name in ("in-context", "lm-state"):
        row = rows[name]
        rows[f"{name}-multi-label"] = Case(row.method, row.backbone, row.config, "multi-label")
    return rows | {"lm-state-scaled steps": now}


@cache
def backbone(name: str) -> str | Backbone:
    """A tiny one of the fixtures, or a real one."""
    if name == "numeric":
        return "numeric/llama"
    return load_backbone(str(FORMAT_1 / name) if (FORMAT_1 / name).is_dir() else name, dtype="float32")


def amortizer(case: Case) -> Amortizer:
    """At its initial value, or with the shipped weights of a real backbone."""
    return AutoAmortizer.from_pretrained(case.method, backbone=backbone(case.backbone), config=case.config)


CASES = _cases()
# Of real backbones the answers alone: their states are large. Each with the shipped weights that it finds.
REAL = {
    "minilm-iterative": Case("iterative", MINILM, {"adapter": None}),
    "minilm-iterative-data": Case("iterative", MINILM, {"adapter": None, "signal": "data"}),
    "minilm-iterative-gradient": Case("iterative", MINILM, {"adapter": None, "signal": "gradient"}),
    "minilm-iterative-explicit": Case("iterative-explicit", MINILM, {"adapter": None}),
    "minilm-iterative-implicit": Case("iterative-implicit", MINILM, {"adapter": None}),
    "smollm2-iterative": Case("iterative", SMOLLM, {"adapter": None}),  # as it was saved
    "smollm2-iterative-adapter": Case("iterative", SMOLLM),
    "smollm2-in-context": Case("in-context", SMOLLM),
    "smollm2-lm-state": Case("lm-state", SMOLLM, {"weights": "smollm2-135m-lm-state"}),
}


def rows(case: Case) -> list[dict[str, Any]]:
    """The examples, 24."""
    if case.kind == "multi-label":
        even = [["even"] * (len(row["input"]) % 2 == 0) for row in TEXTS]
        return [{**row, "output": [row["output"], *more]} for row, more in zip(TEXTS, even, strict=True)]
    if case.backbone != "numeric":
        return [dict(row) for row in TEXTS]
    return [
        {**counted(row["input"]), "output": float(len(row["input"])) if case.kind == "regression" else row["output"]}
        for row in TEXTS
    ]


def counted(text: str) -> dict[str, float]:
    """How often each of some words is in it."""
    return {word: float(text.split().count(word)) for word in COUNTED}


def queries(case: Case) -> list[Any]:
    """Some more, without answers."""
    return [tuple(counted(text).values()) for text in QUERIES] if case.backbone == "numeric" else list(QUERIES)


def part(case: Case, model: Amortizer) -> TaskState:
    """The state after 16 examples."""
    return model.adapt(rows(case), task=TaskSpec(case.kind), max_examples=16, **_reading(case))


def whole(case: Case, model: Amortizer, state: TaskState) -> TaskState:
    """The state after all of them, from that after 16."""
    return model.adapt(rows(case), state, resume=True, **_reading(case))


def _reading(case: Case) -> dict[str, Any]:
    columns = Columns(numbers=() if case.backbone == "numeric" else None)
    return {"columns": columns, "chunk_size": 8, "progress": False}


def told(prediction: Prediction) -> dict[str, Any]:
    """A prediction as the fixtures have it."""
    found: dict[str, Any] = {}
    if prediction.values is None:
        found["outputs"] = [output if isinstance(output, str) else list(output) for output in prediction.outputs]
    for name in ("log_probs", "values", "probabilities"):
        tensor = getattr(prediction, name)
        if tensor is not None:
            found[name] = [round(number, 6) for number in tensor.flatten().tolist()]
    return found


def answers(case: Case, model: Amortizer, state: TaskState) -> dict[str, Any]:
    """What is answered from a state of 16 examples, and after it went on to all."""
    ends = {"part": state, "whole": whole(case, model, state)}
    return {name: told(model.predict(end, queries(case))) for name, end in ends.items()}


def folder(name: str) -> Path:
    """Where a case stands: `expected.json`, `state.safetensors`, and the learned weights of trained ones."""
    return FORMAT_2 / name


def stored(name: str, case: Case) -> Amortizer:
    """The amortizer, a trained one from the weights in its folder."""
    if not case.trained:
        return amortizer(case)
    return AutoAmortizer.from_pretrained(folder(name) / "weights", backbone=backbone(case.backbone))


def _write(name: str, case: Case) -> None:
    target = folder(name)
    target.mkdir(parents=True, exist_ok=True)
    if case.trained and not (target / "weights").is_dir():
        moved = amortizer(case)
        assert isinstance(moved, Learned)
        generator = torch.Generator().manual_seed(0)
        for _, parameter in sorted(moved.module.named_parameters()):
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        moved.save_pretrained(target / "weights")
        describing = json.loads((target / "weights" / "config.json").read_text())
        describing["base_model_name_or_path"] = case.backbone
        (target / "weights" / "config.json").write_text(json.dumps(describing, indent=1))
    model = stored(name, case)
    file = target / "state.safetensors"
    if case.backbone not in (MINILM, SMOLLM) and not file.is_file():
        with TemporaryDirectory() as temporary:
            saved = part(case, model).published().save_pretrained(temporary)  # which names no folder of this machine
            file.write_bytes((saved / file.name).read_bytes())
    expected = json.dumps(answers(case, model, part(case, model)))
    (target / "expected.json").write_text(expected.replace('"part"', '\n"part"').replace('"whole"', '\n"whole"') + "\n")


def main() -> None:
    """Write what is missing."""
    for name, case in (CASES | REAL).items():
        if not (folder(name) / "expected.json").is_file():
            _write(name, case)
            print(name)


if __name__ == "__main__":
    main()
