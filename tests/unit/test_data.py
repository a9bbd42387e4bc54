"""Readers and streams: nothing is lost, changed or guessed, and what is wrong is named."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iai_hf.data import Columns, open_stream
from iai_hf.errors import DataError

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1).filter(lambda text: text.strip())
ROWS = st.lists(st.fixed_dictionaries({"input": TEXT, "output": TEXT}), min_size=1, max_size=20)
SAME_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".csv":
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["input", "output"], quoting=csv.QUOTE_ALL)
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def read(data: Any, **options: Any) -> list[dict[str, str]]:
    return [record._asdict() for record in open_stream(data, **options).records()]


@SAME_FOLDER
@given(rows=ROWS, suffix=st.sampled_from([".jsonl", ".csv", ".parquet"]))
def test_files_give_back_what_was_written(rows: list[dict[str, str]], suffix: str, tmp_path: Path) -> None:
    assert read(write(tmp_path / f"data{suffix}", rows)) == rows


@SAME_FOLDER
@given(content=st.binary(max_size=300), suffix=st.sampled_from([".jsonl", ".csv", ".parquet"]))
def test_any_bytes_are_read_or_refused_with_a_reason(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"noise{suffix}"
    path.write_bytes(content)
    try:
        read(path)
    except DataError as error:
        assert str(error)


@given(rows=ROWS, size=st.integers(1, 7), start=st.integers(0, 25), stop=st.none() | st.integers(0, 25))
@settings(deadline=None)
def test_chunks_hold_every_example_once(rows: list[dict[str, str]], size: int, start: int, stop: int | None) -> None:
    chunks = list(open_stream(rows).chunks(size, start, stop))
    inputs = [text for chunk in chunks for text in chunk.inputs]
    assert inputs == [row["input"] for row in rows[start:stop]]
    assert all(len(chunk) == size for chunk in chunks[:-1])


@pytest.mark.parametrize("label", ["NA", "None", "null", "nan", "2020-01-01", "007", "1e3", "True"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_labels_that_look_like_something_else_stay_text(label: str, suffix: str, tmp_path: Path) -> None:
    rows = [{"input": "text", "output": label}]
    assert read(write(tmp_path / f"data{suffix}", rows)) == rows


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_and_their_class_names(streaming: bool) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    data: Any = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    data = data.to_iterable_dataset() if streaming else data
    assert [record.output for record in open_stream(data, Columns("text", "label")).records()] == ["yes", "no"]


def test_a_generator_is_read_whole_after_its_kind_was_told() -> None:
    rows = [{"input": f"text {i}", "output": str(i % 3)} for i in range(600)]
    stream = open_stream(row for row in rows)
    assert stream.task().kind == "classification"
    assert [record.input for record in stream.records()] == [row["input"] for row in rows]


def test_answers_that_all_differ_are_generation() -> None:
    assert open_stream([{"input": "x", "output": str(i)} for i in range(50)]).task().kind == "generation"


def test_shuffling_is_a_permutation_made_from_the_seed(tmp_path: Path) -> None:
    rows = [{"input": f"text {i}", "output": "a"} for i in range(300)]
    path = write(tmp_path / "data.jsonl", rows)
    first, again, other = (read(path, shuffle_seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert sorted(row["input"] for row in first) == sorted(row["input"] for row in rows)
    in_memory = read(datasets.Dataset.from_list(rows), shuffle_seed=0)
    assert in_memory == first
    middle = [record.input for record in open_stream(path, shuffle_seed=0).records(100)]
    assert middle == [row["input"] for row in first[100:]]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("data.jsonl", "", "is empty"),
        ("data.jsonl", "\n\n", "no examples"),
        ("data.jsonl", '{"input": "a", "output": "b"}\n{"input": \n', "line 2 is no JSON"),
        ("data.jsonl", '["a"]\n', "expected an object"),
        ("data.jsonl", '{"text": "a", "label": "b"}\n', r"found \['label', 'text'\]"),
        ("data.jsonl", '{"input": "a"}\n', "no column 'output'"),
        ("data.jsonl", '{"input": "", "output": "b"}\n', "is empty"),
        ("data.jsonl", '{"input": "  ", "output": "b"}\n', "is empty"),
        ("data.jsonl", '{"input": 3, "output": "b"}\n', "expected text"),
        ("data.jsonl", '{"input": null, "output": "b"}\n', "expected text"),
        ("data.jsonl", '{"input": "a", "output": {"b": 1}}\n', "expected text"),
        ("data.jsonl", '{"input": "a", "output": [["b"]]}\n', "expected names of labels"),
        ("data.csv", "input,output\na,b,c\n", "fields"),
        ("data.csv", "input,output\na\n", "fields"),
        ("data.parquet", "no parquet", "no readable Parquet"),
        ("data.txt", "text", "suffix"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(name: str, content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=words):
        open_stream(path).task()


def test_a_missing_file_and_other_things_are_refused(tmp_path: Path) -> None:
    for data in (tmp_path / "none.jsonl", str(tmp_path / "none.csv"), 7):
        with pytest.raises(DataError):
            open_stream(data)
    with pytest.raises(DataError, match="can't be shuffled"):
        open_stream(iter([{"input": "a", "output": "b"}]), shuffle_seed=0)
    with pytest.raises(DataError, match="network"):
        open_stream("nobody/no-such-dataset")


def test_a_malformed_line_is_named_when_shuffling_too(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"input": "a", "output": "b"}\nnonsense\n')
    with pytest.raises(DataError, match="line 2"):
        open_stream(path, shuffle_seed=0)


def test_a_column_is_not_both_text_and_answer() -> None:
    with pytest.raises(DataError, match="both to be read from the column 'x'"):
        Columns("x", "x")
