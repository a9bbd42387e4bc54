"""Splits and quotation marks at the command line: one rule for all commands, said in --help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import examples
from test_cli import adapt, iai, write

from iai_hf import TaskState

SIZES = {"train": 40, "test": 10, "validation": 7}


@pytest.fixture
def hub_data(monkeypatch: pytest.MonkeyPatch) -> str:
    """Id of a dataset with three splits of different sizes."""

    def load(name: str, config: str | None, *, split: str, **_: Any) -> datasets.Dataset:
        assert (name, config) == ("someone/data.v2", "part.1")
        return datasets.Dataset.from_list(examples(SIZES[split]))

    monkeypatch.setattr(datasets, "load_dataset", load)
    return "someone/data.v2:part.1"


def test_splits_are_those_to_learn_from_and_those_to_answer(encoder_folder, hub_data, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    state, data = tmp_path / "state", ("--data", hub_data, "--quiet", "--json")
    options = ("--backbone", encoder_folder, "--test", hub_data)
    status, out, err = iai(capsys, "adapt", "iterative", *data, *options, "--output", state)
    assert status == 0, err
    assert json.loads(out)["examples"] == 40
    assert json.loads((state / "evaluation.json").read_text())["test_examples"] == 10
    assert TaskState.from_pretrained(state).header.datasets == ("someone/data.v2",)
    for choice, size in (((), 10), (("--split", "validation"), 7)):
        status, out, err = iai(capsys, "predict", state, *data, "--output", tmp_path / "p.jsonl", *choice)
        assert (status, json.loads(out)["predictions"]) == (0, size), err
        status, out, err = iai(capsys, "evaluate", state, *data, *choice)
        assert (status, json.loads(out)["examples"]) == (0, size), err
    more = ("--methods", "iterative", *options)
    both = ("--split", "validation", "--test-split", "train")
    for chosen, tested, learned in ((), 10, 40), (both, 40, 7):
        status, out, err = iai(capsys, "compare", *data, *more, "--output", tmp_path / f"c{tested}", *chosen)
        assert status == 0, err
        found = json.loads(out)
        assert (found["test_examples"], found["methods"][0]["examples"]) == (tested, learned)


@pytest.mark.parametrize("command", ["adapt", "predict", "evaluate", "compare"])
def test_help_says_which_split_is_read(command: str, capsys, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = iai(capsys, command, "--help")
    assert "by default train to learn from, test to answer or to measure" in " ".join(out.split())
    assert "--no-quotes" in out


def test_quotation_marks_of_texts_are_read_on_demand(encoder_folder, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    rows = examples(60)
    rows[20]["input"] = f'"{rows[20]["input"]}'
    rows[50]["input"] = f'{rows[50]["input"]}"'
    path = tmp_path / "data.tsv"
    path.write_text("input\toutput\n" + "".join(f"{row['input']}\t{row['output']}\n" for row in rows))
    state = tmp_path / "state"
    status, _, err = iai(capsys, *adapt(encoder_folder, path, state))
    assert (status, "line 22" in err, "--no-quotes" in err) == (2, True, True)
    assert iai(capsys, *adapt(encoder_folder, path, state, "--no-quotes"))[0] == 0
    assert TaskState.from_pretrained(state).header.examples == 60
    for command in (("predict", state, "--output", tmp_path / "p.jsonl"), ("evaluate", state)):
        status, _, err = iai(capsys, *command, "--data", path, "--quiet")
        assert (status, "line 22" in err) == (2, True)
        status, out, err = iai(capsys, *command, "--data", path, "--quiet", "--json", "--no-quotes")
        assert (status, 60 in json.loads(out).values()) == (0, True), err


def test_test_labels_that_the_data_never_show_are_refused(encoder_folder, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    data: Path = write(tmp_path / "train.jsonl", examples(40))
    test = write(tmp_path / "test.jsonl", [{"input": "ball", "output": "chess"}, {"input": "song", "output": "music"}])
    status, _, err = iai(capsys, *adapt(encoder_folder, data, tmp_path / "state", "--test", test))
    assert (status, "not seen, first 'chess'" in err) == (2, True)
    more = ("--test", test, "--allow-unseen-labels")
    status, _, err = iai(capsys, *adapt(encoder_folder, data, tmp_path / "state", *more))
    assert (status, err) == (0, "")


def test_a_split_of_a_file_is_refused(encoder_folder, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    data: Path = write(tmp_path / "train.jsonl", examples(40))
    state = tmp_path / "state"
    assert iai(capsys, *adapt(encoder_folder, data, state))[0] == 0
    commands = (
        adapt(encoder_folder, data, tmp_path / "other", "--split", "validation"),
        adapt(encoder_folder, data, tmp_path / "other", "--test", data, "--test-split", "validation"),
        ("predict", state, "--data", data, "--output", tmp_path / "p.jsonl", "--split", "validation"),
        ("evaluate", state, "--data", data, "--split", "validation"),
        ("compare", "--data", data, "--test", data, "--output", tmp_path / "c", "--split", "validation"),
    )
    for command in commands:
        status, _, err = iai(capsys, *command)
        assert (status, "has no split 'validation'" in err) == (2, True)


def test_advice_on_many_labels_does_not_go_round_in_circles(encoder_folder, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    def run(labels: int, count: int, *more: object) -> tuple[int, str]:
        rows = [{"input": f"ball {i}", "output": f"label {i * 17 % labels}"} for i in range(count)]
        data: Path = write(tmp_path / f"{labels}.jsonl", rows)
        status, _, err = iai(capsys, *adapt(encoder_folder, data, tmp_path / f"state-{labels}", *more))
        return status, err

    assert run(300, 600)[0] == 0  # none of the 300 occurs twice among the first
    status, err = run(1001, 2002)
    assert (status, "not generation" in err, "(--kind classification)" in err) == (2, True, True)
    status, err = run(1001, 2002, "--kind", "classification")
    assert (status, "over 1000 different outputs" in err, "join or drop rare ones" in err) == (2, True, True)
