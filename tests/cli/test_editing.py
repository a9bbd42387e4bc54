"""Commands that edit a state."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import examples
from test_cli import adapt, iai, write

from iai_hf import TaskState


@pytest.fixture
def state(encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    rows = examples(24)
    relabelled = [{**row, "better": "food"} for row in rows[:4]]
    write(tmp_path / "few.jsonl", relabelled)
    command = adapt(encoder_folder, write(tmp_path / "train.jsonl", rows), tmp_path / "state")
    assert iai(capsys, *command)[0] == 0
    return tmp_path / "state"


def test_examples_are_forgotten_and_moved(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = tmp_path / "few.jsonl"
    status, out, _ = iai(capsys, "forget", state, "--data", few, "--output", tmp_path / "less", "--quiet")
    assert status == 0
    assert "20 examples, 3 labels" in out
    assert "forget: 16.67% of what made curvature" in out
    status, out, _ = iai(
        capsys, "forget", state, "--data", few, "--output", tmp_path / "strict", "--strict", "--quiet", "--json"
    )
    assert json.loads(out)["history"][0]["approximate"] == {}
    moved = ("relabel", state, "--data", few, "--quiet", "--output")
    assert iai(capsys, *moved, tmp_path / "moved", "--to-column", "better")[0] == 0
    assert iai(capsys, *moved, tmp_path / "all", "--to", "food")[0] == 0
    one, other = (TaskState.from_pretrained(tmp_path / name).tensors for name in ("moved", "all"))
    assert one["counts"].tolist() == other["counts"].tolist()
    status, _, err = iai(capsys, *moved, tmp_path / "neither")
    assert (status, err.strip()) == (2, "error: expected either --to LABEL or --to-column COLUMN")


def test_labels_are_edited_in_order(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edits = ("--rename", "music=song", "--add", "player", "--merge", "sports,food=ball", "--drop", "song")
    status, out, _ = iai(capsys, "labels", state, "--output", tmp_path / "other", "--quiet", "--json", *edits)
    found = json.loads(out)
    assert (status, found["labels"]) == (0, ["ball", "player"])
    assert [line["edit"] for line in found["history"]] == ["rename_label", "merge_labels", "add_label", "drop_label"]
    assert "history" in iai(capsys, "info", tmp_path / "other")[1]


def test_what_can_not_be_edited_is_one_line_and_leaves_all_as_it_was(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (state / "state.safetensors").read_bytes()
    never = write(tmp_path / "never.jsonl", [{"input": "oven coach guitar", "output": "food"}])
    output = ("--output", tmp_path / "other", "--quiet")
    for arguments, message in (
        (("forget", state, "--data", never, *output), "never read"),
        (("labels", state, *output), "nothing to edit"),
        (("labels", state, "--rename", "music", *output), "expected what stands, an equals sign"),
        (("labels", state, "--drop", "weather", *output), "does not know the label 'weather'"),
        (("labels", state, "--add", "x", "--output", state), "holds a state already"),
    ):
        status, _, err = iai(capsys, *arguments)
        assert status == 2
        assert message in err
        assert err.count("\n") == 1
    assert (state / "state.safetensors").read_bytes() == before
    assert not (tmp_path / "other" / "state.safetensors").exists()
