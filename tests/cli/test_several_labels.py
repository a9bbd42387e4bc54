"""Several labels a text, from files to files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import examples
from test_cli import iai, write

from iai_hf import TaskState


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts about one thing, some of which are short as well; those of food have no label."""
    found: list[dict[str, Any]] = [*examples(count, seed)]
    for row in found[::2]:
        row["input"] = " ".join(row["input"].split()[:3])
    for i, row in enumerate(found):
        own = [row["output"]] if row["output"] in ("sports", "music") else []
        row["output"] = own + ["short"] * (i % 2 == 0)
    return found


@pytest.mark.parametrize("method", ["iterative", "iterative-explicit", "iterative-implicit"])
def test_adapt_predict_evaluate_and_compare(
    method: str, encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = write(tmp_path / "train.jsonl", rows(48)), write(tmp_path / "test.jsonl", rows(20, seed=1))
    state = tmp_path / "state"
    making = ("adapt", method, "--data", train, "--backbone", encoder_folder, "--output", state, "--quiet")
    status, out, err = iai(capsys, *making, "--chunk-size", 8, "--test", test, "--json")
    assert status == 0, err
    assert json.loads(out)["kind"] == "multi-label"
    (*_, last) = json.loads((state / "evaluation.json").read_text())["curve"]
    assert {"macro_f1", "micro_f1", "ranking_loss"} <= set(last)
    status, _, err = iai(capsys, "predict", state, "--data", test, "--output", tmp_path / "answers.jsonl", "--quiet")
    assert status == 0, err
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    labels = TaskState.from_pretrained(state).task.labels
    assert set(labels) == {"sports", "music", "short"}
    assert all(tuple(answer["probabilities"]) == labels for answer in answers)
    assert all(set(answer["prediction"]) <= set(labels) for answer in answers)
    status, out, err = iai(capsys, "evaluate", state, "--data", test, "--quiet", "--json")
    assert status == 0, err
    assert 0 <= json.loads(out)["subset_accuracy"] <= json.loads(out)["micro_f1"] <= 1
    status, _, err = iai(
        capsys, "compare", "--data", train, "--test", test, "--methods", method, "--backbone", encoder_folder,
        "--output", tmp_path / "compared", "--quiet",
    )  # fmt: skip
    assert status == 0, err
    assert "macro f1" in (tmp_path / "compared" / "results.md").read_text()
    if method == "iterative":
        auditing = ("audit", state, "--data", train, "--output", tmp_path / "audit.jsonl", "--plot", tmp_path / "a.png")
        status, out, err = iai(capsys, *auditing, "--quiet")
        assert status == 0, err
        findings = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
        assert sorted(finding["row"] for finding in findings) == list(range(48))
        assert all(isinstance(finding["suggestion"], list) for finding in findings)
        assert "likelier" in out
        status, out, err = iai(capsys, "audit", "--data", train, "--backbone", encoder_folder, "--quiet", "--json")
        assert status == 0, err
        assert json.loads(out)["examples"] == 48
    assert iai(capsys, "forget", state, "--data", train, "--output", tmp_path / "less", "--quiet")[0] == 0


def test_a_separator_makes_the_same_state_of_a_table(
    encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = rows(24)
    lists = write(tmp_path / "train.jsonl", found)
    table = tmp_path / "train.csv"
    table.write_text("input,output\n" + "".join(f"{row['input']},{'|'.join(row['output'])}\n" for row in found))
    for data, name, more in ((lists, "one", ()), (table, "other", ("--label-separator", "|"))):
        making = ("adapt", "iterative", "--data", data, "--backbone", encoder_folder, "--output", tmp_path / name)
        status, _, err = iai(capsys, *making, "--quiet", *more)
        assert status == 0, err
    one, other = (TaskState.from_pretrained(tmp_path / name) for name in ("one", "other"))
    assert one.task == other.task
    assert all(bool((other.tensors[name] == tensor).all()) for name, tensor in one.tensors.items())
    table.write_text("input,output\na song of the band,music|short\n")
    status, _, err = iai(capsys, "evaluate", tmp_path / "one", "--data", table, "--quiet")
    assert status == 2
    assert "--label-separator" in err


def test_mistakes_are_one_line_and_write_nothing(
    encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = write(tmp_path / "lists.jsonl", rows(16))
    texts = write(tmp_path / "texts.jsonl", examples(16))
    output = tmp_path / "state"

    def adapting(method: str, data: Path, *more: Any) -> tuple[Any, ...]:
        return ("adapt", method, "--data", data, "--backbone", encoder_folder, "--output", output, "--quiet", *more)

    for arguments, words in (
        (adapting("iterative-implicit", lists, "--watch"), "watching a stream takes"),
        (adapting("iterative", lists, "--kind", "classification"), "multi-label"),
        (adapting("iterative", texts, "--kind", "multi-label"), "--label-separator"),
        (adapting("iterative", lists, "--set", "depth=1"), "depth=0"),
        (adapting("iterative", lists, "--unlabelled", texts), "rows without a label"),
        (
            (
                "compare",
                "--data",
                lists,
                "--test",
                lists,
                "--methods",
                "iterative,numeric-parametric",
                "--quiet",
                "--backbone",
                encoder_folder,
                "--output",
                output,
            ),
            "'numeric-parametric' ",
        ),
    ):
        status, _, err = iai(capsys, *arguments)
        assert (status, err.count("\n")) == (2, 1), err
        assert words in err
        assert not list(output.rglob("*.safetensors"))
