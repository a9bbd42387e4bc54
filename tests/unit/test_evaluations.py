"""evaluation.json: it keeps the points of a run that was cut off, and is only ever told of the state it was made of."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import pytest
from conftest import examples

from iai_hf import AutoAmortizer, TaskState
from iai_hf.amortizer import Amortizer
from iai_hf.backbones import Backbone
from iai_hf.card import state_card
from iai_hf.curve import Curve
from iai_hf.errors import DataError
from iai_hf.evaluation_file import read_evaluation
from iai_hf.files import EVALUATION_FILE
from iai_hf.task import Chunk

ROWS, TESTS = examples(48), examples(12, seed=1)
MARKS = [8, 16, 32]


@pytest.fixture
def amortizer(encoder: Backbone) -> Amortizer:
    return AutoAmortizer.from_pretrained("iterative", backbone=encoder)


def curve_of(amortizer: Amortizer, folder: Path, tests: list[dict[str, str]] = TESTS) -> Curve:
    return Curve(amortizer, [row["input"] for row in tests], [row["output"] for row in tests], "films", folder)


def run(amortizer: Amortizer, folder: Path, curve: Curve, resume: bool = False, crash_at: int = 10**6) -> TaskState:
    """A run whose state is saved every second chunk; it breaks off behind `crash_at` examples."""
    evaluate = curve.evaluate_at(MARKS)

    def on_step(state: TaskState, chunk: Chunk) -> None:
        evaluate(state, chunk)
        if state.header.examples >= crash_at:
            raise MemoryError  # after Ctrl-C all that was read would be kept

    state = TaskState.from_pretrained(folder) if resume else None
    if state is not None:
        curve.resume(state)
    state = amortizer.adapt(
        ROWS,
        state,
        chunk_size=8,
        output=folder,
        resume=resume,
        checkpointing_steps=2,
        on_step=on_step,
        progress=False,
    )
    curve.evaluate(state)
    curve.save(state)
    return state


def points(folder: Path) -> list[dict[str, float]]:
    found = json.loads((folder / EVALUATION_FILE).read_text())["curve"]
    assert [point["adapt_seconds"] for point in found] == sorted(point["adapt_seconds"] for point in found)
    return [{key: value for key, value in point.items() if key != "adapt_seconds"} for point in found]


def test_a_resumed_run_has_the_curve_of_a_whole_one(amortizer: Amortizer, tmp_path: Path) -> None:
    whole = run(amortizer, tmp_path / "whole", curve_of(amortizer, tmp_path / "whole"))
    folder = tmp_path / "part"
    with pytest.raises(MemoryError):
        run(amortizer, folder, curve_of(amortizer, folder), crash_at=40)
    assert [point["examples"] for point in points(folder)] == [8, 16, 32]
    # both were left at 32 examples
    assert read_evaluation(folder, TaskState.from_pretrained(folder).digest) is not None
    state = run(amortizer, folder, curve_of(amortizer, folder), resume=True)
    assert state.digest == whole.digest
    assert points(folder) == points(tmp_path / "whole")
    before = json.loads((folder / EVALUATION_FILE).read_text())
    run(amortizer, folder, curve_of(amortizer, folder), resume=True)  # which has nothing left to do
    assert json.loads((folder / EVALUATION_FILE).read_text()) == before


def test_points_of_other_test_data_or_another_run_are_not_mixed_in(
    amortizer: Amortizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = run(amortizer, tmp_path, curve_of(amortizer, tmp_path))
    with pytest.raises(DataError, match="other test data"):
        curve_of(amortizer, tmp_path, TESTS[1:]).resume(state)
    other = amortizer.adapt(examples(48, seed=5), chunk_size=8, progress=False)
    curve = curve_of(amortizer, tmp_path)
    curve.resume(other)
    assert not curve.curve
    assert "another run" in caplog.text


def test_an_evaluation_is_told_of_its_own_state_alone(
    amortizer: Amortizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = run(amortizer, tmp_path, curve_of(amortizer, tmp_path))
    assert read_evaluation(tmp_path, TaskState.from_pretrained(tmp_path).digest) is not None
    moved = TaskState(state.tensors, dataclasses.replace(state.header, backbone="elsewhere"))
    assert read_evaluation(tmp_path, moved.digest) is not None
    caplog.set_level(logging.WARNING, "iai_hf")
    for other in (
        amortizer.adapt(examples(48, seed=5), chunk_size=8, progress=False),
        amortizer.update(state, Chunk(("ball", "song"), ("sports", "music"))),
    ):
        evaluation = read_evaluation(tmp_path, other.digest)
        assert evaluation is None
        assert other.digest[:8] in caplog.text
        assert "model-index" not in state_card(other.header, other.nbytes, "someone/films", evaluation=evaluation)
