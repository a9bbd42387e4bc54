"""The training script and `iai adapt` under accelerate, in one process and in two."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import examples

from iai_hf import AutoAmortizer, TaskState

ROOT = Path(__file__).parents[2]


def launch(processes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(processes)]
    options = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    return subprocess.run([*command, *options, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)


def write(path: Path, count: int, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in examples(count, seed=seed)))
    return path


@pytest.fixture
def config(tmp_path: Path, encoder_folder: Path) -> Path:
    for number, name in enumerate(("a", "b")):
        write(tmp_path / "tasks" / name / "train.jsonl", 150, number)
    values = {
        "method": "iterative",
        "backbone": str(encoder_folder),
        "tasks": ["{data}/*"],
        "validation": ["b"],
        "train_steps": 6,
        "episodes_per_step": 2,
        "queries": 16,
        "longest": 64,
        "evaluate_every": 3,
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    return tmp_path / "config.json"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_state_inside_the_language_model_is_trained_by_the_same_script(
    config: Path, tmp_path: Path, causal_folder: Path, processes: int
) -> None:
    values = json.loads(config.read_text()) | {
        "method": "lm-state",
        "backbone": str(causal_folder),
        "settings": {"rank": 2, "layers": 1},
        "unrelated": ["{data}/b"],
        "unrelated_weight": 0.1,
    }
    config.write_text(json.dumps(values))
    output = tmp_path / "run"
    shared = ("--config", config, "--data_dir", tmp_path / "tasks", "--output_dir", output, "--quiet")
    done = launch(processes, "scripts/train_amortizer.py", *shared)
    assert done.returncode == 0, done.stderr
    amortizer = AutoAmortizer.from_pretrained(output)
    state = amortizer.adapt(examples(40), chunk_size=16)
    assert len(amortizer.predict(state, ["the match was won"]).outputs) == 1


@pytest.mark.parametrize("processes", [1, 2])
def test_training_makes_an_amortizer(config: Path, tmp_path: Path, processes: int) -> None:
    output = tmp_path / "run"
    shared = ("--config", config, "--data_dir", tmp_path / "tasks", "--cache_dir", tmp_path / "cache")
    tracked = ("--output_dir", output, "--quiet", "--with_tracking")
    done = launch(processes, "scripts/train_amortizer.py", *shared, *tracked)
    assert done.returncode == 0, done.stderr
    assert list(output.rglob("events.out.tfevents*"))
    record = json.loads((output / "training.json").read_text())
    assert record["step"] == 6
    amortizer = AutoAmortizer.from_pretrained(output)
    state = amortizer.adapt(examples(32), progress=False)
    assert state.header.config["weights"] == str(output)
    assert AutoAmortizer.for_state(state).fingerprint == amortizer.fingerprint


def test_two_processes_learn_what_one_learns(config: Path, tmp_path: Path) -> None:
    shared = ("--config", config, "--data_dir", tmp_path / "tasks", "--cache_dir", tmp_path / "cache")
    heads = []
    for processes in (1, 2):
        output = tmp_path / f"run{processes}"
        done = launch(processes, "scripts/train_amortizer.py", *shared, "--output_dir", output, "--quiet")
        assert done.returncode == 0, done.stderr
        heads.append(AutoAmortizer.from_pretrained(output).head.state_dict())  # type: ignore[attr-defined]
    for name, tensor in heads[0].items():
        torch.testing.assert_close(tensor, heads[1][name], atol=1e-3, rtol=1e-3)


def test_mixed_precision_leaves_the_heads_in_float32(config: Path, tmp_path: Path) -> None:
    shared = ("--config", config, "--data_dir", tmp_path / "tasks", "--cache_dir", tmp_path / "cache", "--quiet")
    heads = []
    for precision in ("no", "bf16"):
        options = ("--output_dir", tmp_path / precision, "--mixed_precision", precision, "--max_train_steps", 3)
        done = launch(1, "scripts/train_amortizer.py", *shared, *options)
        assert done.returncode == 0, done.stderr
        heads.append(AutoAmortizer.from_pretrained(tmp_path / precision).head.state_dict())  # type: ignore[attr-defined]
    for name, tensor in heads[0].items():
        torch.testing.assert_close(tensor, heads[1][name])


def test_two_processes_adapt_one_stream_to_the_state_of_one(tmp_path: Path, encoder_folder: Path) -> None:
    data = write(tmp_path / "data.jsonl", 90, 0)
    states = []
    for processes in (1, 2):
        output = tmp_path / f"state{processes}"
        options = ("--data", data, "--output", output, "--backbone", encoder_folder, "--chunk-size", 16, "--json")
        done = launch(processes, "-m", "iai_hf.cli", "adapt", "iterative", *options)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["examples"] == 90
        states.append(TaskState.from_pretrained(output))
    assert states[0].header == states[1].header
    for name, tensor in states[0].tensors.items():
        torch.testing.assert_close(tensor, states[1].tensors[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": 1}, "colour"),
        ({"tasks": ["{data}/none"]}, "no task at"),
        ({"method": "in-context"}, "nothing to learn"),
    ],
)
def test_a_mistake_is_one_line_and_status_two(config: Path, tmp_path: Path, change: dict, words: str) -> None:  # type: ignore[type-arg]
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    command = ["scripts/train_amortizer.py", "--config", config, "--data_dir", tmp_path / "tasks"]
    options = ["--output_dir", tmp_path / "run", "--cache_dir", tmp_path / "cache", "--quiet"]
    done = subprocess.run([sys.executable, *map(str, command + options)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
