"""Every method that learns makes its own curriculum from a run's configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import examples

from iai_hf.auto import amortizer_class
from iai_hf.errors import ConfigError
from iai_hf.features.training import AdapterCurriculum, FeatureCurriculum
from iai_hf.files import ADAPTER_FILE, WEIGHTS_FILE
from iai_hf.language_model.training import TextCurriculum
from iai_hf.learned import Learned
from iai_hf.tables.training import TableCurriculum
from iai_hf.tables.training.families import LinearRegression
from iai_hf.training import TrainingConfig
from iai_hf.training.curriculum import Curriculum, Sources

CASES: dict[str, tuple[str, str | None, dict[str, Any], type[Curriculum], str]] = {
    "head": ("iterative", "encoder_folder", {}, FeatureCurriculum, WEIGHTS_FILE),
    "adapter": ("iterative", "encoder_folder", {"learns": "adapter"}, AdapterCurriculum, ADAPTER_FILE),
    "text": ("prompt-tuning", "causal_folder", {"unrelated": ["{data}/a"]}, TextCurriculum, WEIGHTS_FILE),
    "numbers": ("numeric-parametric", None, {"tasks": ["linear"]}, TableCurriculum, WEIGHTS_FILE),
}


@pytest.mark.parametrize("case", CASES)
def test_a_method_makes_its_curriculum(case: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    method, folder, changes, kind, file = CASES[case]
    backbone = "numeric/llama" if folder is None else str(request.getfixturevalue(folder))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text("\n".join(json.dumps(row) for row in examples(40)))
    changes = {"tasks": ["{data}/a", "{data}/b"], "validation": ["b"], "longest": 16, **changes}
    config = TrainingConfig(method, backbone, **changes)
    sources = Sources(tmp_path, tmp_path / "cache", family=lambda name: LinearRegression(name, False, 3, 1))
    amortizer, curriculum = learned(method).curriculum(config, sources)
    assert (amortizer.config.weights, type(curriculum)) == (None, kind)
    episode = curriculum.draw(0, torch.device("cpu"))
    assert curriculum.describe(episode)
    assert curriculum.objective(episode).isfinite()
    curriculum.save(amortizer, tmp_path / "made")
    assert (tmp_path / "made" / file).is_file()


def test_numbers_want_one_family(tmp_path: Path) -> None:
    for tasks, family in ((["a", "b"], lambda name: LinearRegression(name, False, 3, 1)), (["a"], None)):
        sources = Sources(tmp_path, tmp_path, family=family)
        with pytest.raises(ConfigError, match="expected one family"):
            learned("sgd").curriculum(TrainingConfig("sgd", "numeric/llama", tasks), sources)


def learned(method: str) -> type[Learned]:
    kind = amortizer_class(method)
    assert issubclass(kind, Learned)
    return kind
