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
from iai_hf.errors import ConfigError
from iai_hf.tables.training import TableCurriculum
from iai_hf.training.curriculum import Evaluation
from paper import tables
from paper.cells import OWN, PRESETS, SOLVER, Cell, own_cells, solver_cells
from paper.duels import duels, unready
from paper.findings import findings
from paper.reproduce import Job, cell_folder, cell_of, run, settled, tuned
from paper.tasks import family

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


def finding_cell(family: str, method: str, loss: float, flat: bool = True, signal: str = "data") -> tables.Cell:
    steps = {mark: {"loss": loss / (1 + place)} for place, mark in enumerate(tables.STEPS)}
    cell = Cell(OWN, family, f"numeric-{method}", 0, signal)
    return {**vars(cell), "flat": flat, "in distribution": {"steps": steps}, "shifted": {"steps": steps}}


def test_findings_are_told_on_models_that_no_longer_improved() -> None:
    names = ("linear regression, 5", "digits")
    cells = [finding_cell(name, regime, 1.0) for name in names for regime in ("parametric", "implicit")]
    found = findings([*cells, finding_cell(names[0], "explicit", 2.0), finding_cell(names[1], "explicit", 2.0, False)])
    assert len(found) == 5
    assert "**confirmed** on linear regression, 5; digits (loss after 10 chunks" in found[0]
    assert "in 5 of 5 cells" in found[0]
    assert "so far, on linear regression, 5: lower loss after 10 chunks in 1 of 1 pairs" in found[2]
    assert found[3].endswith("logits are the best implicit state: not measured yet.")
    found = findings([*cells, *(finding_cell(name, "explicit", 2.0) for name in names)])
    figure = "lower loss after 10 chunks in 2 of 2 pairs, ratio 0.500 ± 0.000"
    assert f"**confirmed** on linear regression, 5; digits ({figure})" in found[2]
    found = findings([*cells, *(finding_cell(name, "explicit", 0.5) for name in names)])
    assert "**not confirmed** on linear regression, 5; digits" in found[2]


def test_one_family_or_a_part_of_the_claim_confirms_nothing() -> None:
    one = [finding_cell("digits", regime, 1.0) for regime in ("parametric", "explicit", "implicit")]
    assert "so far, on digits: loss after 10 chunks below" in findings(one)[0]
    no_implicit = [
        finding_cell(name, regime, 1.0) for name in ("digits", "MNIST") for regime in ("parametric", "explicit")
    ]
    assert "so far, on digits; MNIST: loss after 10 chunks below" in findings(no_implicit)[0]

    def by_signal(name: str, best: str) -> list[tables.Cell]:
        losses = {"data": 2.0, "gradient": 2.5, "both": 1.0} | {best: 1.0}
        return [finding_cell(name, "parametric", loss, signal=signal) for signal, loss in losses.items()]

    low = [*by_signal("linear regression, 2", "data"), *by_signal("linear regression, 5", "data")]
    assert "so far, on linear regression, 2; linear regression, 5: data better" in findings(low)[1], "none is high"
    confirmed = findings([*low, *by_signal("digits", "gradient")])[1]
    assert "**confirmed** on linear regression, 2; linear regression, 5; digits (data better" in confirmed
    for line in (*findings(one), findings(no_implicit)[0], findings(low)[1]):
        assert "confirmed" not in line


def test_an_optimizer_that_diverges_with_every_rate_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TableCurriculum, "evaluate", lambda self: Evaluation(float("nan"), 0.0))
    cell = Cell("optimizer", "linear regression, 5", "maml", 0, "gradient")
    with pytest.raises(ConfigError, match="sgd diverges on linear regression, 5 with all rates"):
        tuned(cell, family(cell.family, tmp_path, full=False), PRESETS["smoke"])


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
