"""The comparison: measures every row, goes on where it was cut off, and reports only what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import examples

from comparison import compare_encoders, compare_sizes
from comparison.baselines import BASELINES
from comparison.compare_report import best_rival, table
from comparison.compare_words import means
from comparison.tasks import Task
from iai_hf.backbones import Backbone

ROOT = Path(__file__).parents[2]
ROWS = ("iterative, untrained", "label names", "prototypes", "logistic regression")


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    for name, seed in (("a", 0), ("b", 1)):
        (tmp_path / "tasks" / name).mkdir(parents=True)
        for part, count in (("train", 100), ("test", 40)):
            lines = [json.dumps(row) for row in examples(count, seed=seed + count)]
            (tmp_path / "tasks" / name / f"{part}.jsonl").write_text("\n".join(lines))
    return tmp_path / "tasks"


def compare(tasks: Path, folder: Path, encoder: Path, *rows: str) -> subprocess.CompletedProcess[str]:
    options = ["--data_dir", tasks, "--tasks", "a", "b", "--backbone", encoder, "--seeds", "2", "--output", folder]
    command = [
        sys.executable,
        "scripts/comparison/compare.py",
        *map(str, options),
        "--cache_dir",
        str(folder / "cache"),
        "--rows",
    ]
    return subprocess.run([*command, *rows], cwd=ROOT, capture_output=True, text=True)


def test_it_measures_goes_on_and_reports(tasks: Path, tmp_path: Path, encoder_folder: Path) -> None:
    output = tmp_path / "results"
    first = compare(tasks, output, encoder_folder, *ROWS[:2])
    assert first.returncode == 0, first.stderr
    before = json.loads((output / "results.json").read_text())
    assert len(before) == 2 * 2 * 2
    assert [point["examples"] for point in before[0]["curve"]] == [0, 16, 64, 100]
    assert compare(tasks, output, encoder_folder, *ROWS).returncode == 0
    after = json.loads((output / "results.json").read_text())
    assert after[: len(before)] == before
    assert len(after) == 2 * len(before)
    report = (output / "results.md").read_text()
    assert all(row in report for row in ROWS)
    assert len(list(output.glob("*.png"))) == 2


def test_rows_with_unlabelled_text_are_measured(tasks: Path, tmp_path: Path, encoder_folder: Path) -> None:
    names = ("self-training, 2,000 unlabelled", "label spreading, 2,000 unlabelled")
    assert compare(tasks, tmp_path, encoder_folder, *names).returncode == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert {record["row"] for record in found} == set(names)
    assert [point["examples"] for point in found[0]["curve"]] == [16, 64, 100]
    assert all("negative_log_likelihood" in point for record in found for point in record["curve"])


def test_streams_that_change_and_come_in_parts_are_measured(tasks: Path, tmp_path: Path, encoder_folder: Path) -> None:
    output = tmp_path / "streams"
    options = ["--data_dir", tasks, "--tasks", "a", "b", "--backbone", encoder_folder, "--seeds", "2"]
    options += ["--output", output, "--cache_dir", tmp_path / "cache"]
    command = [sys.executable, "scripts/comparison/measure_streams.py", *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((output / "results.json").read_text())
    exact = found["in_parts"]["iterative-explicit"]["a"][0]
    assert exact["8"]["accuracy"] == exact["1"]["accuracy"]
    report = (output / "results.md").read_text()
    assert all(name in report for name in found["changing"])


def test_weights_that_are_not_shipped_are_named(tasks: Path, tmp_path: Path, encoder_folder: Path) -> None:
    done = compare(tasks, tmp_path / "results", encoder_folder, "iterative")
    assert done.returncode == 2
    assert "no weights are shipped" in done.stderr


def test_the_table_is_the_mean_over_tasks_and_the_rival_is_chosen_task_by_task() -> None:
    def record(task: str, row: str, accuracy: float) -> dict:  # type: ignore[type-arg]
        return {"task": task, "row": row, "seed": 0, "curve": [{"examples": 16, "accuracy": accuracy}]}

    records = [
        record("a", "ridge", 0.2),
        record("b", "ridge", 0.6),
        record("a", "prototypes", 0.5),
        record("b", "prototypes", 0.1),
    ]
    assert table(records, "accuracy")["ridge"]["all"] == [pytest.approx(0.4)]
    assert best_rival(records)["all"] == pytest.approx(0.55)


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_learn(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    names = torch.nn.functional.normalize(torch.randn(3, 16, generator=generator), dim=1)
    y = torch.randint(3, (90,), generator=generator)
    x = torch.nn.functional.normalize(names[y] + 0.3 * torch.randn(90, 16, generator=generator), dim=1)
    found = BASELINES[name](x[:60], y[:60], names)(x[60:]).argmax(1)
    assert float((found == y[60:]).float().mean()) > 0.7


def words(tasks: Path, folder: Path, causal: Path, *rows: str) -> subprocess.CompletedProcess[str]:
    options = ["--data_dir", tasks, "--tasks", "a", "b", "--backbone", causal, "--seeds", "2", "--examples", "16"]
    options += ["--queries", "5", "--unrelated", tasks / "a" / "test.jsonl", "--output", folder, "--rows", *rows]
    command = [sys.executable, "scripts/comparison/compare_words.py", *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_answers_in_words_are_compared(tasks: Path, tmp_path: Path, causal_folder: Path) -> None:
    output, rows = tmp_path / "results", ("lm-state, untrained", "in-context, 8", "LoRA 1x")
    done = words(tasks, output, causal_folder, *rows)
    assert done.returncode == 0, done.stderr
    records = json.loads((output / "results.json").read_text())
    assert {(r["row"], r["task"], r["seed"]) for r in records} == {
        (row, task, seed) for row in rows for task in "ab" for seed in (0, 1)
    }
    report = output / "results.md"
    written = report.read_text()
    assert all(row in written for row in rows)
    report.unlink()
    assert words(tasks, output, causal_folder, *rows).returncode == 0  # nothing left to measure: told all the same
    assert report.read_text() == written
    unmeasured = words(tasks, output, causal_folder, "lm-state")
    assert (unmeasured.returncode, "no weights of lm-state" in unmeasured.stderr) == (2, True)
    assert json.loads((output / "results.json").read_text()) == records


def test_sizes_are_compared_in_shares_and_put_together(tasks: Path, tmp_path: Path, causal_folder: Path) -> None:
    output, rows = tmp_path / "results", ("lm-state, untrained", "in-context", "in-context retrieved", "LoRA 1x")
    options = ["--data_dir", tasks, "--tasks", "a", "b", "--backbone", causal_folder, "--seeds", "1", "--queries", "4"]
    options += ["--sizes", "4", "16", "--output", output]
    command = [sys.executable, "scripts/comparison/compare_sizes.py", *map(str, options), "--rows", *rows]
    for share in ("0/2", "1/2"):
        done = subprocess.run([*command, "--share", share], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert {path.name for path in output.glob("*.json")} == {"results-0.json", "results-1.json"}
    whole = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    assert [path.name for path in output.glob("*.json")] == ["results.json"]
    records = json.loads((output / "results.json").read_text())
    places = [(r["row"], r["task"], r["size"], r["examples"]) for r in records]
    assert len(places) == len(set(places))
    assert set(places) == {(row, task, size, int(size)) for row in rows for task in "ab" for size in ("4", "16")}
    assert all(row in (output / "results.md").read_text() for row in rows)
    alone = [*command[:-1], "LoRA 10x", "--output", str(tmp_path / "other"), "--rows", "LoRA 10x"]
    refused = subprocess.run(alone, cwd=ROOT, capture_output=True, text=True)
    assert (refused.returncode, "is given times of" in refused.stderr) == (2, True)


def test_a_cut_run_of_sizes_has_the_first_order_of_all_rows_first() -> None:
    found = compare_sizes.cells(("fv_antonym", "sst2"), compare_sizes.ROWS, compare_sizes.SIZES, 2)
    assert len(found) == len(set(found))
    assert [cell.seed for cell in found] == sorted(cell.seed for cell in found)
    assert not any(cell.row == "iterative" and cell.task == "fv_antonym" for cell in found)
    shares = [list(compare_sizes.mine(found, index, 3)) for index in range(3)]
    assert sorted(cell for share in shares for cell in share) == sorted(found)
    owners = [{(cell.seed, cell.task) for cell in share} for share in shares]
    assert sum(map(len, owners)) == len(set.union(*owners))


def test_the_best_number_of_demonstrations_is_up_to_the_size() -> None:
    def record(size: str, value: float) -> dict:  # type: ignore[type-arg]
        return {"task": "fv_a", "row": "in-context", "seed": 0, "size": size, "answers": {"exact_match": value}}

    records = [record("4", 0.3), record("8", 0.5), record("16", 0.4)]
    best = [compare_sizes.best_in_context(records, size, ["fv_a"]) for size in ("4", "8", "16")]
    assert best == [[0.3], [0.5], [0.5]]


def test_means_are_of_rows_that_were_measured_on_all_tasks() -> None:
    def record(task: str, row: str, seed: int, value: float) -> dict:  # type: ignore[type-arg]
        return {"task": task, "row": row, "seed": seed, "answers": {"exact_match": value}}

    records = [
        record("a", "lm-state", 0, 0.2),
        record("b", "lm-state", 0, 0.4),
        record("a", "lm-state", 1, 0.9),
        record("a", "zero-shot", 0, 0.1),
    ]
    assert means(records, "exact_match") == {"lm-state": [pytest.approx(0.3)]}


def test_methods_that_change_the_encoder_are_measured_with_their_seconds(
    tasks: Path, tmp_path: Path, encoder_folder: Path
) -> None:
    output = tmp_path / "encoders"
    options = ["--data_dir", tasks, "--tasks", "a", "--backbone", encoder_folder, "--seeds", "1", "--output", output]
    rows = ["iterative, depth=auto", "fine-tuning", "LoRA"]
    command = [sys.executable, "scripts/comparison/compare_encoders.py", *map(str, options), "--examples", "16", "64"]
    done = subprocess.run([*command, "--rows", *rows], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    records = json.loads((output / "results.json").read_text())
    assert {(record["row"], record["examples"]) for record in records} == {(row, n) for row in rows for n in (16, 64)}
    assert all(record["seconds"] > 0 and 0 <= record["accuracy"] <= 1 for record in records)
    assert all(record["ms_per_query"] > 0 for record in records)
    assert "| iterative, depth=auto |" in (output / "results.md").read_text()
    again = subprocess.run([*command, "--rows", *rows], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0
    assert json.loads((output / "results.json").read_text()) == records


def test_seconds_to_adapt_are_those_before_the_first_answer(
    tasks: Path, encoder: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(queries: Sequence[str]) -> torch.Tensor:
        began = time.process_time()
        while time.process_time() < began + 0.5:
            pass
        return torch.zeros(len(queries), 3)

    monkeypatch.setitem(compare_encoders.RIVALS, "slow", lambda task, rows, seed: slow)
    record = compare_encoders.rival(Task(tasks / "a", encoder), "slow", 0, 16)
    assert record["seconds"] < 0.5
    assert record["ms_per_query"] >= 500 / 40
