"""The reproduction's smallest preset: it runs, resumes without running anything again, and writes its report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from iai_hf import AutoAmortizer, Chunk, TaskSpec

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_the_smoke_preset_runs_and_resumes(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "paper" / "reproduce.py"), "--preset", "smoke", "--output", str(tmp_path)]
    first = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert first.returncode == 0, first.stderr[-2000:]
    content = (tmp_path / "results.json").read_text()
    cells = json.loads(content)["cells"]
    assert {cell["method"] for cell in cells} >= {"numeric-explicit", "maml", "hypernetwork", "prior-fitted"}
    report = (tmp_path / "results.md").read_text()
    assert "1. more steps help" in report
    assert "exact answer" in report
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    kept = {**json.loads(content), "cells": cells[:-2]}
    (tmp_path / "results.json").write_text(json.dumps(kept))
    again = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert again.returncode == 0, again.stderr[-2000:]
    assert json.loads((tmp_path / "results.json").read_text())["cells"][: len(cells) - 2] == cells[:-2]
    other = subprocess.run([*command[:3], "cpu", *command[4:]], capture_output=True, text=True, timeout=100)
    assert other.returncode == 2
    assert "preset 'smoke'" in other.stderr


def test_a_network_on_numbers_is_trained_by_the_same_script(tmp_path: Path) -> None:
    config = json.loads((SCRIPTS / "configs" / "linear-regression.json").read_text())
    config["settings"] |= {"hidden": 16, "layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = [
        sys.executable,
        str(SCRIPTS / "train_amortizer.py"),
        "--config",
        str(tmp_path / "config.json"),
        "--quiet",
    ]
    done = subprocess.run(
        [*command, "--output_dir", tmp_path / "run", "--max_train_steps", "4"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    amortizer = AutoAmortizer.from_pretrained(tmp_path / "run")
    columns = tuple(f"x{i}" for i in range(10))
    state = amortizer.init_state(TaskSpec("regression", columns=columns))
    rows = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    chunk = Chunk(tuple(map(tuple, rows.tolist())), tuple(str(float(value)) for value in rows.sum(1)))
    answers = amortizer.predict(amortizer.update(state, chunk), [tuple(row) for row in rows.tolist()]).values
    torch.testing.assert_close(answers, rows.sum(1), atol=1.0, rtol=0)
    (tmp_path / "config.json").write_text(json.dumps({**config, "tasks": ["nothing"]}))
    done = subprocess.run([*command, "--output_dir", tmp_path / "other"], capture_output=True, text=True)
    assert (done.returncode, "linear regression, 10" in done.stderr) == (2, True)
