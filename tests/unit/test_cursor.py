"""Where a state was left in its stream: other columns, another order and a merged state are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import examples

from iai_hf import AutoAmortizer, TaskSpec, TaskState
from iai_hf.amortizer import Amortizer
from iai_hf.backbones import Backbone
from iai_hf.data import Columns, open_stream
from iai_hf.errors import StateError


@pytest.fixture
def amortizer(encoder: Backbone) -> Amortizer:
    return AutoAmortizer.from_pretrained("iterative", backbone=encoder)


def test_other_columns_of_the_same_file_are_refused(amortizer: Amortizer, tmp_path: Path) -> None:
    rows = [{**row, "title": "the team", "topic": row["output"]} for row in examples(30)]
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for seed in (None, 3):
        options: dict[str, Any] = {"chunk_size": 8, "shuffle_seed": seed, "progress": False}
        part = amortizer.adapt(data, max_examples=16, **options)
        for columns in (Columns("title"), Columns("input", "topic")):
            with pytest.raises(StateError, match="was left in a stream of columns"):
                amortizer.adapt(data, part, columns=columns, resume=True, **options)
        with pytest.raises(StateError, match="chunk size"):
            amortizer.adapt(data, part, resume=True, **{**options, "chunk_size": 4})
        assert amortizer.adapt(data, part, resume=True, **options).header.examples == 30


def test_an_open_stream_keeps_its_columns_when_a_state_goes_on(amortizer: Amortizer) -> None:
    rows = [{"text": row["input"], "topic": row["output"], "input": "the team", "output": "x"} for row in examples(32)]
    stream = open_stream(rows, Columns("text", "topic"))
    state = amortizer.adapt(stream, max_examples=16, progress=False)
    more = amortizer.adapt(stream, state, progress=False)
    assert set(more.task.labels) == {row["topic"] for row in rows}
    assert more.header.stream is not None
    assert more.header.stream.columns == ("text", "topic")


def test_another_output_column_of_the_same_table_is_refused(tmp_path: Path) -> None:
    amortizer = AutoAmortizer.from_pretrained("numeric-parametric")
    data = tmp_path / "table.csv"
    data.write_text("x,y,z\n" + "".join(f"{i / 7},{i % 3 + i / 5},{i / 3 - 2}\n" for i in range(40)))
    part = amortizer.adapt(data, columns=Columns(output="z", numbers=()), chunk_size=8, max_examples=16, progress=False)
    with pytest.raises(StateError, match="was left in a stream of columns"):
        amortizer.adapt(data, part, columns=Columns(output="y"), chunk_size=8, resume=True, progress=False)


def test_a_merged_state_has_no_place_in_a_stream(amortizer: Amortizer, tmp_path: Path) -> None:
    parts = [amortizer.adapt(examples(16, seed=seed), chunk_size=8, progress=False) for seed in (0, 1)]
    merged = TaskState.from_pretrained(amortizer.merge(parts).save_pretrained(tmp_path))
    with pytest.raises(StateError, match="no position in a stream"):
        amortizer.adapt(examples(16), merged, chunk_size=8, resume=True, progress=False)
    assert amortizer.adapt(examples(16, seed=2), merged, progress=False).header.examples == 48
    fresh = amortizer.init_state(TaskSpec())
    assert amortizer.adapt(examples(16), fresh, chunk_size=8, resume=True, progress=False).header.examples == 16


def test_labels_that_a_state_does_not_know_are_not_dropped_in_silence(amortizer: Amortizer) -> None:
    state = amortizer.adapt(examples(16), task=TaskSpec("classification", ("food",)), progress=False)
    with pytest.raises(StateError, match="chess"):
        amortizer.adapt(examples(8), state, task=TaskSpec("classification", ("chess",)), progress=False)
    known = TaskSpec("classification", ("music", "food"))
    assert amortizer.adapt(examples(8), state, task=known, progress=False).header.examples == 24
    with pytest.raises(StateError, match="labels"):  # in another order they would have made another state
        amortizer.adapt(examples(16), state, task=known, resume=True, progress=False)


@pytest.mark.parametrize("last_line_ends", [True, False])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_rows_that_were_appended_to_a_file_are_read_alone(
    amortizer: Amortizer, tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, last_line_ends: bool
) -> None:
    rows = examples(40)
    lines = [json.dumps(row) for row in rows]
    if suffix == ".csv":
        lines = ["input,output", *(f"{row['input']},{row['output']}" for row in rows)]
    old, data = len(lines) - 16, tmp_path / f"log{suffix}"
    data.write_text("\n".join(lines[:old]) + "\n" * last_line_ends)
    part = amortizer.adapt(data, chunk_size=8, progress=False)
    old_rows = tmp_path / f"before{suffix}"
    old_rows.write_bytes(data.read_bytes())
    data.write_text("\n".join(lines) + "\n")
    whole = amortizer.adapt(data, chunk_size=8, progress=False)
    caplog.clear()
    grown = amortizer.adapt(data, part, chunk_size=8, resume=True, progress=False)
    assert "has grown" in caplog.text
    assert all(torch.equal(tensor, whole.tensors[name]) for name, tensor in grown.tensors.items())
    assert set(grown.header.read) == {*part.header.read, *whole.header.read}
    other = amortizer.adapt(old_rows, chunk_size=8, progress=False)
    with pytest.raises(StateError, match="read the same data"):
        amortizer.merge([grown, other])
    caplog.clear()
    twice = amortizer.adapt(data, part, chunk_size=8, progress=False)
    assert "begins with rows that the state has read already" in caplog.text
    assert twice.header.examples == 24 + 40
    caplog.clear()
    changed = tmp_path / f"other{suffix}"
    changed.write_text("\n".join([*lines[:1], *lines[3:]]) + "\n")
    amortizer.adapt(changed, part, chunk_size=8, progress=False)
    assert "already" not in caplog.text
    with pytest.raises(StateError, match="another dataset"):
        amortizer.adapt(changed, part, chunk_size=8, resume=True, progress=False)


def test_a_shuffled_file_that_has_grown_has_another_order(
    amortizer: Amortizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines, data = [json.dumps(row) + "\n" for row in examples(40)], tmp_path / "log.jsonl"
    data.write_text("".join(lines[:24]))
    part = amortizer.adapt(data, shuffle_seed=1, progress=False)
    data.write_text("".join(lines))
    with pytest.raises(StateError, match="another dataset"):
        amortizer.adapt(data, part, shuffle_seed=1, resume=True, progress=False)
    amortizer.adapt(data, part, shuffle_seed=1, progress=False)
    assert "begins with rows that the state has read already" in caplog.text


def test_a_label_that_was_misspelt_ahead_is_told(amortizer: Amortizer, caplog: pytest.LogCaptureFixture) -> None:
    rows = examples(32)
    first, *others = sorted({row["output"] for row in rows})
    amortizer.adapt(rows, task=TaskSpec("classification", (first, others[0] + "x")), progress=False)
    assert f"that the data do not have: '{others[0]}x'" in caplog.text
    caplog.clear()
    amortizer.adapt(rows, task=TaskSpec("classification", (first, *others, "later")), progress=False)
    assert "do not have" not in caplog.text, "a label may come later"
