"""What a user passes by mistake is told in the package's own words, and what is likely a mistake is warned of."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from conftest import LABELS, examples

from iai_hf import AutoAmortizer, TaskSpec, TaskState
from iai_hf.amortizer import Amortizer
from iai_hf.backbones import Backbone
from iai_hf.errors import ConfigError, DataError, StateError

ROWS = examples(24)


@pytest.fixture
def amortizer(encoder: Backbone) -> Amortizer:
    return AutoAmortizer.from_pretrained("iterative", backbone=encoder)


def test_what_is_no_state_no_chunk_and_no_task_is_named(amortizer: Amortizer) -> None:
    state = amortizer.adapt(ROWS, progress=False)
    given: Any
    for given in ("folder", None, ["a"]):
        with pytest.raises(StateError, match="for a state; expected a TaskState"):
            amortizer.predict(given, ["a"])
    with pytest.raises(StateError, match="for a state"):
        amortizer.predict_each([state, "folder"], ["a", "b"])  # type: ignore[list-item]
    with pytest.raises(DataError, match="got a list for a chunk"):
        amortizer.update(state, ROWS)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"expected e\.g\. TaskSpec"):
        amortizer.adapt(ROWS, task="classification", progress=False)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="half_life says nothing of how to load"):
        AutoAmortizer.from_pretrained("iterative", half_life=5000)


def test_a_state_is_shown_in_a_line(amortizer: Amortizer) -> None:
    shown = repr(amortizer.adapt(ROWS, progress=False))
    assert shown.startswith("TaskState(iterative, classification, 3 labels, 24 examples")
    assert "tensor" not in shown


def test_data_that_would_count_twice_is_not_merged(amortizer: Amortizer, tmp_path: Path) -> None:
    first, other = (amortizer.adapt(rows, progress=False) for rows in (ROWS, examples(24, seed=1)))
    merged = amortizer.merge([first, other])
    assert merged.header.examples == 48
    kept = TaskState.from_pretrained(merged.save_pretrained(tmp_path / "merged"))
    going_on = amortizer.adapt(examples(24, seed=2), merged, progress=False)
    twice = ([first, first], [first, other, amortizer.adapt(ROWS, progress=False)])
    for states in (*twice, [merged, first], [other, kept], [going_on, first]):
        with pytest.raises(StateError, match="read the same data"):
            amortizer.merge(states)


def test_labels_that_look_alike_are_told_in_a_merge(amortizer: Amortizer, caplog: pytest.LogCaptureFixture) -> None:
    loud = [{**row, "output": row["output"].upper()} for row in examples(24, seed=1)]
    states = [amortizer.adapt(rows, progress=False) for rows in (ROWS, loud)]
    caplog.clear()
    assert len(amortizer.merge(states).task.labels) == 6
    assert "differ only in case" in caplog.text


def test_what_is_read_twice_and_labels_of_another_task_are_warned_of(
    amortizer: Amortizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "iai_hf")
    path = tmp_path / "rows.csv"
    path.write_text("input,output\n" + "".join(f"{row['input']},{row['output']}\n" for row in ROWS))
    state = amortizer.adapt(path, progress=False)
    assert "read this data already" not in caplog.text
    assert amortizer.adapt(path, state, progress=False).header.examples == 48
    assert "read this data already" in caplog.text
    amortizer.adapt(ROWS, task=TaskSpec("classification", LABELS), progress=False)
    assert "named ahead" not in caplog.text
    amortizer.adapt(ROWS, task=TaskSpec("classification", ("0", "1")), progress=False)
    assert "none of the labels named ahead" in caplog.text


def test_what_was_read_is_known_behind_another_stream_and_an_edit(
    amortizer: Amortizer, caplog: pytest.LogCaptureFixture
) -> None:
    first, other = ROWS, examples(24, seed=1)
    both = amortizer.adapt(other, amortizer.adapt(first, progress=False), progress=False)
    renamed = amortizer.rename_label(amortizer.adapt(first, progress=False), LABELS[0], "another name")
    for state in (both, renamed):
        with pytest.raises(StateError, match="read the same data"):
            amortizer.merge([state, amortizer.adapt(first, progress=False)])
    again = amortizer.adapt(other, both, progress=False)
    assert amortizer.merge([again, amortizer.adapt(examples(24, seed=2), progress=False)]).header.examples == 96
