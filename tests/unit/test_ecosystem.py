"""At home among other libraries: datasets split over nodes, third parties' methods, settings of bars and logs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from conftest import LABELS, examples
from datasets.distributed import split_dataset_by_node
from safetensors import safe_open
from safetensors.torch import save
from transformers import AutoModel

from iai_hf import AutoAmortizer, TaskSpec, TaskState
from iai_hf.backbones import Backbone, load_backbone
from iai_hf.errors import BackboneError, StateError
from iai_hf.files import STATE_FILE
from iai_hf.state import _digest

TASK = TaskSpec("classification", LABELS)


@pytest.mark.parametrize("streaming", [False, True])
def test_nodes_that_share_a_dataset_make_states_that_merge(encoder: Backbone, streaming: bool) -> None:
    rows = examples(48)
    whole = datasets.Dataset.from_list(rows)
    source = whole.to_iterable_dataset(num_shards=2) if streaming else whole
    amortizer = AutoAmortizer.from_pretrained("iterative-explicit", backbone=encoder)
    parts = [
        amortizer.adapt(split_dataset_by_node(source, rank=rank, world_size=2), task=TASK, progress=False)
        for rank in range(2)
    ]
    assert [part.header.examples for part in parts] == [24, 24]
    merged = amortizer.merge(parts)
    alone = amortizer.adapt(rows, task=TASK, progress=False)
    for name, tensor in alone.tensors.items():
        torch.testing.assert_close(merged.tensors[name], tensor, atol=1e-4, rtol=1e-4)


THIRD_PARTY = """
import torch
from dataclasses import dataclass
from iai_hf import Amortizer, Prediction

@dataclass(frozen=True)
class Config:
    strength: float = 1.0

class Prior(Amortizer):
    method, regime, kinds = "label-prior", "parametric", ("classification",)
    config_class = Config
    default_backbone = ""

    def initial(self, task):
        return {"counts": torch.zeros(len(task.labels))}

    def refine(self, tensors, task, chunk, examples):
        counts = torch.nn.functional.pad(tensors["counts"], (0, len(task.labels) - len(tensors["counts"])))
        rows = torch.tensor([task.labels.index(output) for output in chunk.outputs])
        return {"counts": counts.index_add(0, rows, torch.ones(len(rows)))}, {}

    def prepare(self, tensors, task):
        return (tensors["counts"] + self.config.strength).log()

    def answer(self, prepared, task, queries):
        return Prediction.from_logits(prepared.expand(len(queries), -1), task.labels)
"""


def test_another_package_registers_a_method_by_its_entry_point(encoder_folder: Path, tmp_path: Path) -> None:
    package, info = tmp_path / "site", tmp_path / "site" / "priors-1.0.dist-info"
    info.mkdir(parents=True)
    (package / "priors.py").write_text(THIRD_PARTY)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: priors\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[iai_hf.amortizers]\nlabel-prior = priors:Prior\n")
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in examples(30)))
    environment = {**os.environ, "PYTHONPATH": str(package)}

    def iai(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "iai_hf.cli", *map(str, words)]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    state = tmp_path / "state"
    done = iai("adapt", "label-prior", "--backbone", encoder_folder, "--data", data, "--output", state, "--quiet")
    assert done.returncode == 0, done.stderr
    done = iai("evaluate", state, "--data", data, "--json", "--quiet")
    assert 0.2 < json.loads(done.stdout)["accuracy"] < 0.7
    environment.pop("PYTHONPATH")
    done = iai("evaluate", state, "--data", data)
    assert done.returncode == 2
    assert "label-prior" in done.stderr


def test_a_state_of_an_older_version_loads_and_one_of_a_newer_names_it(encoder: Backbone, tmp_path: Path) -> None:
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=encoder)
    state = amortizer.adapt(examples(20), progress=False)
    path = state.save_pretrained(tmp_path) / STATE_FILE
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    header = json.loads(metadata["header"])
    # Version 0.1.0 knew neither columns, nor the backbone's revision, nor datasets.
    del header["task"]["columns"], header["backbone_revision"], header["datasets"]
    tensors = dict(sorted(state.tensors.items()))
    older = {**metadata, "header": json.dumps(header, sort_keys=True)}
    older["digest"] = _digest(tensors, older["header"])
    path.write_bytes(save(tensors, older))
    loaded = TaskState.from_pretrained(tmp_path)
    assert loaded.header == state.header
    amortizer.check(loaded)
    path.write_bytes(save(tensors, {**older, "format_version": "99", "library_version": "7.0"}))
    with pytest.raises(StateError, match=r"iai_hf 7\.0"):
        TaskState.from_pretrained(tmp_path)


@pytest.mark.parametrize("disabled", [False, True])
def test_progress_bars_obey_the_hubs_own_setting(encoder_folder: Path, tmp_path: Path, disabled: bool) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in examples(30)))
    # A bar is drawn on a terminal alone; a pseudo-terminal stands for one.
    code = (
        "import os, pty, sys\n"
        "words = [sys.executable, '-m', 'iai_hf.cli', *sys.argv[1:]]\n"
        "status = pty.spawn(['sh', '-c', 'stty rows 30 cols 100; exec \"$@\"', 'sh', *words])\n"
        "sys.exit(os.waitstatus_to_exitcode(status))"
    )
    words = ["adapt", "iterative", "--backbone", encoder_folder, "--data", data, "--output", tmp_path / "state"]
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1"} if disabled else {}
    command = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert ("adapt:" in done.stdout) != disabled


def test_a_device_map_reaches_the_model(encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = load_backbone(str(encoder_folder), dtype="float32")
    given: list[dict[str, Any]] = []
    load = AutoModel.from_pretrained

    def loading(*args: Any, **kwargs: Any) -> Any:
        given.append(kwargs)
        return load(*args, **kwargs)

    monkeypatch.setattr(AutoModel, "from_pretrained", loading)
    spread = load_backbone(str(encoder_folder), dtype="float32", device_map={"": "cpu"})
    assert given[0]["device_map"] == {"": "cpu"}
    texts = ["ball goal", "song"]
    torch.testing.assert_close(spread.features(texts).vectors, plain.features(texts).vectors)
    with pytest.raises(BackboneError, match="one of them"):
        load_backbone(str(encoder_folder), device="cpu", device_map="auto")
