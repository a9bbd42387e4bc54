"""The reproduction's smallest preset: both parts run, resume without running anything again, and write their report."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from iai_hf import AutoAmortizer, Chunk, TaskSpec
from paper import tables
from paper.cells import OWN, PRESETS, SOLVER, Cell, own_cells, solver_cells
from paper.duels import duels, unready
from paper.findings import findings
from paper.reproduce import Job, cell_folder, cell_of, run, settled

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_the_smoke_preset_runs_and_resumes(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "paper" / "reproduce.py"), "--preset", "smoke", "--output", str(tmp_path)]
    first = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert first.returncode == 0, first.stderr[-2000:]
    content = (tmp_path / "results.json").read_text()
    cells = json.loads(content)["cells"]
    assert {cell["method"] for cell in cells} >= {"numeric-explicit", "maml", "hypernetwork", "prior-fitted"}
    assert {cell["group"] for cell in cells} >= {"own", "solver", "window", "carried", "one-shot", "optimizer"}
    report = (tmp_path / "results.md").read_text()
    assert "1. more steps help in all regimes, in and out of distribution: not measured yet." in report, "none is flat"
    assert "exact answer" in report
    assert report.index("# The paper's form") < report.index("# What a solver adds")
    assert "nothing here is claimed to match" in report
    classes = [line for line in report.splitlines() if line.startswith("| parametric, data |")]
    assert any("0 of 1" in line for line in classes), "eight steps make nothing flat"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    kept = {**json.loads(content), "cells": cells[:-2]}
    (tmp_path / "results.json").write_text(json.dumps(kept))
    damaged = cell_folder(tmp_path, cell_of(cells[-1]))
    damaged.mkdir(parents=True, exist_ok=True)
    (damaged / "checkpoint.safetensors").write_bytes(b"none")
    again = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert (again.returncode, "1 cells failed" in again.stderr) == (2, True), again.stderr[-2000:]
    found = json.loads((tmp_path / "results.json").read_text())["cells"]
    assert found[:-1] == cells[:-2]
    assert cell_of(found[-1]) == cell_of(cells[-2])
    other = subprocess.run([*command[:3], "cpu", *command[4:]], capture_output=True, text=True, timeout=100)
    assert other.returncode == 2
    assert "preset 'smoke'" in other.stderr


@pytest.mark.parametrize("method", ["numeric-parametric", "prior-fitted"])
def test_a_cell_that_was_cut_off_goes_on_exactly(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell(OWN if method == "numeric-parametric" else "one-shot", "linear regression, 5", method, 0)

    def ran(place: str, seconds: float) -> tables.Cell:
        found = run(Job(cell, PRESETS["smoke"], tmp_path / place, full=False, seconds=seconds, end=float("inf")))
        assert found is not None
        return found

    straight = ran("straight", 60.0)
    with monkeypatch.context() as patch:
        ticks = itertools.count()
        patch.setattr(time, "perf_counter", lambda: float(next(ticks)))
        cut = ran("broken", 8.0)
    whole = ran("broken", 60.0)
    assert cut["steps"] in range(1, 8)
    assert whole["steps"] == straight["steps"] == 8
    assert not settled(cut, 60.0)
    assert settled(whole, 60.0)
    errors = [[found["loss"] for found in record["shifted"]["steps"].values()] for record in (straight, whole)]
    assert errors[0] == errors[1]


def test_a_run_whose_hours_are_over_begins_no_cell(tmp_path: Path) -> None:
    cell = Cell(OWN, "linear regression, 5", "numeric-parametric", 0)
    assert run(Job(cell, PRESETS["smoke"], tmp_path, full=False, seconds=60.0, end=0.0)) is None


def test_what_most_rests_on_comes_first() -> None:
    preset = PRESETS["cpu"]
    cells = own_cells(preset)
    assert len(set(cells)) == len(cells)
    first = cells[:45]
    assert {cell.family for cell in first} == {f"linear regression, {size}" for size in (2, 5, 10)}
    assert {cell.signal for cell in first} == {"data", "both"}
    places = {cell: place for place, cell in enumerate(cells)}
    rival = places[Cell("one-shot", "linear regression, 10", "prior-fitted", 0)]
    assert rival < places[Cell(OWN, "digits", "numeric-parametric", 0, "data")]
    assert {cell.family for cell in cells} == {cell.family for cell in solver_cells(preset)} == set(preset.families)


def test_a_rival_that_still_improved_wins_and_loses_nothing() -> None:
    def record(group: str, method: str, loss: float, flat: bool = True) -> tables.Cell:
        part = {"steps": {steps: {"loss": loss} for steps in tables.STEPS}}
        cell = Cell(group, "linear regression, 5", method, 0)
        return {**vars(cell), "flat": flat, "tasks": 8, "in distribution": part, "shifted": part}

    cells = [record(OWN, "numeric-parametric", 1.0), record("optimizer", "maml", 2.0)]
    assert {(duel.rival, duel.ratio) for duel in duels(cells, OWN)} == {("maml", 0.5)}
    cells[1] = record("optimizer", "maml", 2.0, flat=False)
    assert not duels(cells, OWN)
    assert unready(cells) == ["maml (linear regression, 5)"]
    assert not duels(cells, SOLVER)


def test_findings_are_told_on_models_that_no_longer_improved() -> None:
    def record(method: str, loss: float, flat: bool) -> tables.Cell:
        steps = {mark: {"loss": loss / (1 + place)} for place, mark in enumerate(tables.STEPS)}
        cell = Cell(OWN, "linear regression, 5", method, 0)
        return {**vars(cell), "flat": flat, "in distribution": {"steps": steps}, "shifted": {"steps": steps}}

    found = findings([record("numeric-parametric", 1.0, True), record("numeric-explicit", 2.0, False)])
    assert len(found) == 5
    assert "**confirmed**" in found[0]
    assert "in 1 of 1 cells" in found[0]
    assert found[2].endswith("parametric beats explicit: not measured yet.")
    found = findings([record("numeric-parametric", 1.0, True), record("numeric-explicit", 2.0, True)])
    assert "**confirmed** (lower loss after 10 chunks in 1 of 1 pairs, ratio 0.500)" in found[2]


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
