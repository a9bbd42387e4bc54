"""States of partitions, as Ray Data and Spark make them, and the tree that merges them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from conftest import LABELS, examples, log_probs

from iai_hf import AutoAmortizer, TaskSpec, TaskState
from iai_hf.errors import DataError, StateError
from iai_hf.partitions import AT_ONCE, STATE_SCHEMA, adapt_partition, merge_tree

ROWS = examples(96)
QUERIES = [row["input"] for row in examples(8, 3)]
Made = Callable[..., Iterator[pandas.DataFrame]]


@pytest.fixture
def made(encoder_folder: Path) -> Made:
    """An engine's function: settings under which what is merged is exactly what one process would have made."""
    return partial(
        adapt_partition,
        method="iterative",
        task=TaskSpec("classification"),
        backbone=str(encoder_folder),
        config={"signal": "data"},
        chunk_size=8,
    )


def parts_of(rows: list[dict[str, Any]], count: int) -> list[pandas.DataFrame]:
    size = -(-len(rows) // count)
    return [pandas.DataFrame(rows[at : at + size]) for at in range(0, len(rows), size)]


def one_process(encoder_folder: Path) -> TaskState:
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=str(encoder_folder), config={"signal": "data"})
    return amortizer.adapt(ROWS, task=TaskSpec("classification"), chunk_size=8, progress=False)


def assert_alike(found: TaskState, expected: TaskState) -> None:
    assert found.header.examples == expected.header.examples
    order = [expected.task.labels.index(label) for label in found.task.labels]
    answers = log_probs(expected.predict(QUERIES))[:, order]
    assert torch.allclose(log_probs(found.predict(QUERIES)), answers, atol=1e-3)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
def test_parts_give_what_one_process_does(made: Made, encoder_folder: Path, count: int) -> None:
    frames = [frame for part in parts_of(ROWS, count) for frame in made(iter([part[:5], part[5:]]))]
    assert [list(frame.columns) for frame in frames] == [[name.split()[0] for name in STATE_SCHEMA.split(", ")]] * count
    assert sum(int(frame["examples"][0]) for frame in frames) == len(ROWS)
    found = merge_tree(frame["state"][0] for frame in frames)
    assert set(found.task.labels) == set(LABELS)
    assert_alike(found, one_process(encoder_folder))


def test_a_partition_may_have_a_single_label(made: Made, encoder_folder: Path) -> None:
    ordered = sorted(ROWS, key=lambda row: row["output"])
    frames = [frame for part in parts_of(ordered, 12) for frame in made(part)]
    assert any(len(TaskState.from_bytes(frame["state"][0]).task.labels) == 1 for frame in frames)
    assert_alike(merge_tree(frame["state"][0] for frame in frames), one_process(encoder_folder))
    with pytest.raises(DataError, match="expected at least two"):
        merge_tree([frames[0]["state"][0]])


def test_few_states_are_held_at_a_time(made: Made, encoder_folder: Path) -> None:
    parts = [next(made(part))["state"][0] for part in parts_of(ROWS, 48)]
    sizes, held = [], set[int]()

    def merged(states: Sequence[TaskState]) -> TaskState:
        sizes.append([state.header.examples for state in states])
        held.difference_update(map(id, states))
        state = amortizer_merge(states)
        held.add(id(state))
        return state

    def read() -> Iterator[TaskState]:
        for part in parts:
            state = TaskState.from_bytes(part)
            held.add(id(state))
            assert len(held) <= 2 * (AT_ONCE - 1) + 1
            yield state

    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=str(encoder_folder), config={"signal": "data"})
    amortizer_merge = amortizer.merge
    amortizer.merge = merged  # type: ignore[method-assign]
    found = merge_tree(read(), amortizer=amortizer)
    assert sizes == [[2] * 8] * 6 + [[16] * 6]
    assert_alike(found, one_process(encoder_folder))


def test_what_is_missing_twice_or_damaged_is_told(made: Made) -> None:
    assert list(made(iter(()))) == []
    assert list(made(pandas.DataFrame({"input": [], "output": []}))) == []
    with pytest.raises(StateError, match="no state to merge"):
        merge_tree([])
    first, second = (next(made(part))["state"][0] for part in parts_of(ROWS, 2))
    assert merge_tree([first]).header.examples == 48
    with pytest.raises(StateError, match="read the same data"):
        merge_tree([first, second, first])
    with pytest.raises(StateError, match="no readable task state"):
        merge_tree([first, second[:-10]])
    for wrong in (list(made(parts_of(ROWS, 2)[0])), "a folder", [iter(())]):
        with pytest.raises(StateError, match="expected states or their bytes"):
            merge_tree(wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="'output' is"):
        list(made(pandas.DataFrame({"input": ["a", "b"], "output": ["x", None]})))
    with pytest.raises(DataError, match="no column 'output'"):
        list(made(pandas.DataFrame({"input": ["a", "b"], "topic": ["x", "y"]})))
    with pytest.raises(DataError, match="tasks, not generation"):
        list(adapt_partition(parts_of(ROWS, 2)[0], method="iterative", task=TaskSpec("generation")))


def test_a_state_is_a_value_and_back(made: Made) -> None:
    state = TaskState.from_bytes(next(made(pandas.DataFrame(ROWS[:16])))["state"][0])
    again = TaskState.from_bytes(state.to_bytes())
    assert again.header == state.header
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in state.tensors.items())
    pickle.loads(pickle.dumps(made))  # as engines send it


def test_ray_data_makes_the_state_of_one_process(made: Made, encoder_folder: Path) -> None:
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        blocks = ray.data.from_pandas(parts_of(ROWS, 4))
        found = blocks.map_batches(made, batch_format="pandas", batch_size=None)
        state = merge_tree(row["state"] for row in found.iter_rows())
    finally:
        ray.shutdown()
    assert_alike(state, one_process(encoder_folder))


def test_spark_makes_the_state_of_one_process(made: Made, encoder_folder: Path) -> None:
    sql = pytest.importorskip("pyspark.sql")
    spark = sql.SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    try:
        frame = spark.createDataFrame(ROWS).repartition(4)
        found = frame.mapInPandas(made, STATE_SCHEMA)
        state = merge_tree(row["state"] for row in found.toLocalIterator())
    finally:
        spark.stop()
    assert_alike(state, one_process(encoder_folder))
