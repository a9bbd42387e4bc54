"""Numeric tables at the command line: regression and classification, and what is wrong with a table."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from test_cli import iai

from iai_hf import TaskState

COLUMNS = ("size", "rooms", "age")


def table(path: Path, rows: int, seed: int, kind: str = "regression") -> Path:
    """y = 1000 size - 3 age + noise, in units that differ by orders of magnitude; or its sign as a word."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 3, generator=generator) * torch.tensor([5.0, 1.0, 400.0]) + torch.tensor([9.0, 3.0, 900.0])
    y = 1000 * x[:, 0] - 3 * x[:, 2] + 50 * torch.randn(rows, generator=generator)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "price"])
        for values, target in zip(x.tolist(), y.tolist(), strict=True):
            writer.writerow([*values, target if kind == "regression" else ("dear" if target > 6300 else "cheap")])
    return path


@pytest.mark.parametrize("method", ["numeric-parametric", "numeric-explicit", "numeric-implicit"])
def test_a_regression_table_is_fitted_in_its_own_units(method: str, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    train, test = table(tmp_path / "train.csv", 400, 0), table(tmp_path / "test.csv", 100, 1)
    state = tmp_path / "state"
    status, out, err = iai(
        capsys, "adapt", method, "--data", train, "--target", "price", "--output", state, "--quiet", "--json"
    )
    assert status == 0, err
    found = json.loads(out)
    assert (found["kind"], found["columns"]) == ("regression", list(COLUMNS))
    status, out, err = iai(capsys, "evaluate", state, "--data", test, "--target", "price", "--quiet", "--json")
    assert status == 0, err
    metrics = json.loads(out)
    assert metrics["r2"] > 0.99
    assert metrics["root_mean_squared_error"] < 150
    answers = tmp_path / "answers.jsonl"
    assert iai(capsys, "predict", state, "--data", test, "--output", answers, "--quiet")[0] == 0
    assert len(answers.read_text().splitlines()) == 100
    assert float(json.loads(answers.read_text().splitlines()[0])["prediction"])
    status, out, _ = iai(capsys, "info", state, "--json")
    told = json.loads(out)
    assert (status, told["columns"], told["reads"]) == (0, list(COLUMNS), "numbers")
    assert told["regime"] in method
    assert told["meaning"]


def test_a_table_with_classes_is_told_from_the_data(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    train = table(tmp_path / "train.csv", 400, 0, "classification")
    test = table(tmp_path / "test.csv", 200, 1, "classification")
    state = tmp_path / "state"
    status, _, err = iai(
        capsys, "adapt", "numeric-parametric", "--data", train, "--target", "price", "--output", state, "--quiet"
    )
    assert status == 0, err
    status, out, err = iai(capsys, "evaluate", state, "--data", test, "--target", "price", "--quiet", "--json")
    assert status == 0, err
    assert json.loads(out)["accuracy"] > 0.95


def test_more_data_tomorrow_may_have_its_columns_in_another_order(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    train, state = table(tmp_path / "train.csv", 100, 0), tmp_path / "state"
    adapt = ("adapt", "numeric-parametric", "--data", train, "--target", "price", "--quiet", "--output")
    assert iai(capsys, *adapt, state)[0] == 0
    rows = list(csv.DictReader(train.open()))
    turned = tmp_path / "turned.csv"
    with turned.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["price", "note", *reversed(COLUMNS)], restval="new")
        writer.writeheader()
        writer.writerows(rows)
    again = ("adapt", state, "--data", turned, "--target", "price", "--output", tmp_path / "more", "--quiet", "--json")
    status, out, err = iai(capsys, *again)
    assert status == 0, err
    assert json.loads(out)["examples"] == 200
    status, out, _ = iai(capsys, "evaluate", tmp_path / "more", "--data", train, "--target", "price", "--json")
    assert json.loads(out)["r2"] > 0.99


def test_a_table_shuffled_and_resumed_ends_in_the_same_state(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    train = table(tmp_path / "train.csv", 200, 0)
    adapt = ("adapt", "numeric-parametric", "--data", train, "--target", "price", "--shuffle-seed", 3, "--quiet")
    assert iai(capsys, *adapt, "--output", tmp_path / "whole")[0] == 0
    assert iai(capsys, *adapt, "--output", tmp_path / "part", "--max-examples", 128)[0] == 0
    assert iai(capsys, *adapt, "--output", tmp_path / "part", "--resume")[0] == 0
    whole, part = (TaskState.from_pretrained(tmp_path / name) for name in ("whole", "part"))
    assert whole.header == part.header
    assert all(torch.equal(whole.tensors[name], part.tensors[name]) for name in whole.tensors)


@pytest.mark.parametrize(
    ("content", "target", "words"),
    [
        ("a,b,y\n1,x,2\n", "y", "'b' is 'x'; expected a finite number"),
        ("a,b,y\n1,,2\n", "y", "'b' is ''; expected a finite number"),
        ("a,b,y\n1,nan,2\n", "y", "'b' is 'nan'"),
        ("a,b,y\n1,2,3\n", "z", "no column 'z'"),
    ],
)
def test_bad_tables_are_named(content: str, target: str, words: str, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "bad.csv"
    path.write_text(content)
    adapt = ("adapt", "numeric-parametric", "--data", path, "--target", target, "--output", tmp_path / "state")
    status, _, err = iai(capsys, *adapt, "--quiet")
    assert status == 2
    assert words in err
    assert not (tmp_path / "state" / "state.safetensors").exists()


def test_texts_and_tables_are_not_mixed_up(tmp_path: Path, encoder_folder: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    train, texts = table(tmp_path / "train.csv", 50, 0), tmp_path / "texts.jsonl"
    texts.write_text('{"input": "a", "output": "b"}\n{"input": "c", "output": "d"}\n')
    status, _, err = iai(
        capsys, "adapt", "iterative", "--backbone", encoder_folder, "--data", train, "--target", "price",
        "--output", tmp_path / "one", "--quiet",
    )  # fmt: skip
    assert status == 2
    assert "reads texts, these inputs are numbers" in err
    status, _, err = iai(
        capsys, "adapt", "numeric-parametric", "--data", texts, "--output", tmp_path / "two", "--quiet"
    )
    assert status == 2
    assert "--target" in err


def test_weights_say_for_which_table_they_are(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    train = table(tmp_path / "train.csv", 50, 0)
    adapt = ("adapt", "numeric-parametric", "--data", train, "--target", "price", "--output", tmp_path / "state")
    status, _, err = iai(capsys, *adapt, "--set", "inputs=7", "--set", "outputs=1", "--set", "hidden=16")
    assert status == 2
    assert "read 7 numbers" in err
    status, _, err = iai(capsys, *adapt, "--set", "signal=magic")
    assert status == 2
    assert "data, gradient, both" in err
