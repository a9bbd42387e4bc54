"""The training script and `iai adapt` under accelerate, in one process and in two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import examples

from iai_hf import AutoAmortizer, TaskState
from iai_hf.training.checkpoint import CHECKPOINT_FILE, read_progress

ROOT = Path(__file__).parents[2]


def launch(processes: int, *arguments: object, **settings: str) -> subprocess.CompletedProcess[str]:
    """One process as it is; several by torchrun, as accelerate starts one alone on a CPU."""
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(several if processes > 1 else []), *map(str, arguments)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} | settings
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=300)


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


@pytest.mark.parametrize("episodes", [1, 2, 3])
def test_two_processes_learn_what_one_learns(config: Path, tmp_path: Path, episodes: int) -> None:
    config.write_text(json.dumps({**json.loads(config.read_text()), "episodes_per_step": episodes}))
    shared = ("--config", config, "--data_dir", tmp_path / "tasks", "--cache_dir", tmp_path / "cache")
    heads = []
    for processes in (1, 2):
        output = tmp_path / f"run{processes}"
        done = launch(processes, "scripts/train_amortizer.py", *shared, "--output_dir", output, "--quiet")
        assert done.returncode == 0, done.stderr
        assert json.loads((output / "training.json").read_text())["processes"] == processes
        heads.append(AutoAmortizer.from_pretrained(output).head.state_dict())  # type: ignore[attr-defined]
    for name, tensor in heads[0].items():
        torch.testing.assert_close(tensor, heads[1][name], atol=1e-4, rtol=1e-4)


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


def test_training_that_is_terminated_says_what_it_saved(config: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    shared = ("--config", config, "--data_dir", tmp_path / "tasks", "--output_dir", output, "--quiet")
    command = [sys.executable, "scripts/train_amortizer.py", *map(str, shared), "--max_train_steps", "1000000"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, env=environment) as run:
        assert run.stderr is not None
        while run.poll() is None and not (output / CHECKPOINT_FILE).is_file():
            time.sleep(0.02)
        run.terminate()
        err = run.stderr.read().decode()
    assert (run.returncode, "Traceback" in err) == (143, False), err
    step = read_progress(output).step
    assert step > 0
    assert f"terminated; {output} holds the checkpoint of step {step}, --resume_from_checkpoint goes on" in err


@pytest.mark.parametrize("depth", ["0", "auto"])
def test_two_processes_adapt_one_stream_to_the_state_of_one(tmp_path: Path, encoder_folder: Path, depth: str) -> None:
    data = write(tmp_path / "data.jsonl", 90, 0)
    states = []
    for processes in (1, 2):
        output = tmp_path / f"state{processes}"
        options = ["--data", data, "--output", output, "--backbone", encoder_folder, "--chunk-size", 16, "--json"]
        options += ["--dtype", "float32", *(["--set", "depth=auto", "--set", "steps=1"] if depth == "auto" else [])]
        done = launch(processes, "-m", "iai_hf.cli", "adapt", "iterative", *options)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["examples"] == 90
        states.append(TaskState.from_pretrained(output))
    assert states[0].header == states[1].header
    near = 1e-5 if depth == "0" else 5e-3  # rounding grows over gradient steps
    for name, tensor in states[0].tensors.items():
        torch.testing.assert_close(tensor, states[1].tensors[name], atol=near, rtol=near)


TOGETHER = """
import os, sys
from iai_hf import AutoAmortizer, load_backbone
from iai_hf.errors import DataError
from iai_hf.processes import Group

folder, output, case = sys.argv[1:]
rank = int(os.environ["RANK"])
backbone = load_backbone(folder, dtype="float32", device=Group.joined().device)
amortizer = AutoAmortizer.from_pretrained("iterative", backbone=backbone, config={"weights": None})
texts = [f"{word} the {other}" for word in ("ball", "song") for other in ("team", "band", "note", "goal")]
alone = backbone.features(texts).vectors
backbone.split_over_processes()
read = []
backbone._pool, pool = lambda batch, *rest: (read.append(len(batch)), pool(batch, *rest))[1], backbone._pool
long = [" ".join([text] * 15) for text in texts]
assert (backbone.features(long).vectors - alone).shape == alone.shape and sum(read) < len(long) * 2, read
assert (backbone.features(texts).vectors - alone).abs().max() < 1e-6
rows = [{"input": text, "output": text.split()[0]} for text in texts]
changed = {"order": rows[::-1], "fewer": rows[:4]}[case] if rank else rows
try:
    amortizer.adapt(changed, chunk_size=4, output=output, progress=False)
except DataError as error:
    assert "do not read the same texts" in str(error), error
    print("refused")
"""


@pytest.mark.parametrize("case", ["order", "fewer"])
def test_processes_that_read_different_texts_are_told_and_save_nothing(
    tmp_path: Path, encoder_folder: Path, case: str
) -> None:
    (tmp_path / "together.py").write_text(TOGETHER)
    done = launch(2, tmp_path / "together.py", encoder_folder, tmp_path / "state", case, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["refused", "refused"]
    assert not (tmp_path / "state").exists()


def test_a_process_that_was_started_with_others_but_works_alone_saves_its_state(
    tmp_path: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=str(encoder_folder))
    state = amortizer.adapt(examples(16), output=tmp_path, progress=False)
    assert TaskState.from_pretrained(tmp_path).header == state.header


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
