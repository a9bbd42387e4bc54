"""Several labels a text: how lists of labels are read from any source, measured, and what they are mistaken for."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy
import pandas
import pyarrow
import pyarrow.parquet
import pytest
import torch

from iai_hf import Chunk, Prediction, TaskSpec, values
from iai_hf.data import Columns, open_stream
from iai_hf.errors import DataError
from iai_hf.features.heads.multi_label.thresholds import BINS, tallied, thresholds
from iai_hf.metrics import score

ROWS = [{"input": "one", "output": ["a", "b"]}, {"input": "two", "output": []}, {"input": "three", "output": ["b"]}]
SETS = [("a", "b"), (), ("b",)]


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def parquet(path: Path, output: Any) -> str:
    pyarrow.parquet.write_table(pyarrow.table({"input": ["one", "two", "three"], "output": output}), path)
    return str(path)


def named(kind: Any) -> datasets.Dataset:
    column = datasets.List(datasets.ClassLabel(names=["a", "b", "c"]))
    features = datasets.Features({"input": datasets.Value("string"), "output": column})
    made = datasets.Dataset.from_dict(
        {"input": ["one", "two", "three"], "output": [[0, 1], [], [1]]}, features=features
    )
    return kind(made)


def from_parquet_with_names(path: Path) -> str:
    named(lambda made: made).to_parquet(path)
    return str(path)


SOURCES: dict[str, Any] = {
    "jsonl": lambda tmp: written(tmp / "a.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS)),
    "parquet": lambda tmp: parquet(tmp / "a.parquet", [["a", "b"], [], ["b"]]),
    "parquet with class names": lambda tmp: from_parquet_with_names(tmp / "a.parquet"),
    "list": lambda tmp: ROWS,
    "tuples and sets": lambda tmp: [
        {**row, "output": kind(row["output"])} for row, kind in zip(ROWS, (set, tuple, frozenset), strict=False)
    ],
    "generator": lambda tmp: iter(ROWS),
    "pandas": lambda tmp: pandas.DataFrame(ROWS),
    "pandas of arrays": lambda tmp: pandas.DataFrame(
        [{**r, "output": numpy.array(r["output"], dtype=object)} for r in ROWS]
    ),
    "arrow": lambda tmp: pyarrow.Table.from_pylist(ROWS),
    "dataset": lambda tmp: datasets.Dataset.from_list(ROWS),
    "dataset with class names": lambda tmp: named(lambda made: made),
    "streamed dataset with class names": lambda tmp: named(lambda made: made.to_iterable_dataset()),
    "dataset of numpy": lambda tmp: named(lambda made: made.with_format("numpy")),
}


@pytest.mark.parametrize("source", SOURCES)
def test_lists_of_labels_are_read_from_every_source(source: str, tmp_path: Path) -> None:
    stream = open_stream(SOURCES[source](tmp_path))
    assert stream.task() == TaskSpec("multi-label")
    assert [record.output for record in stream.records()] == SETS
    if stream.outputs is not None:
        assert stream.outputs == {"a", "b"}
    (chunk,) = stream.chunks(8)
    assert (chunk.label_sets, chunk.outputs, chunk.labels) == (True, tuple(SETS), ("a", "b"))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
@pytest.mark.parametrize("seed", [None, 0])
def test_a_separator_parts_labels_of_a_text(suffix: str, seed: int | None, tmp_path: Path) -> None:
    mark = "\t" if suffix == ".tsv" else ","
    table = f"input{mark}output\none{mark}a; b\ntwo{mark}\nthree{mark}b\n"
    lines = "".join(json.dumps(row | {"output": ";".join(row["output"])}) + "\n" for row in ROWS)
    path = written(tmp_path / f"a{suffix}", lines if suffix == ".jsonl" else table)
    stream = open_stream(path, Columns(label_separator=";"), shuffle_seed=seed)
    assert sorted((record.input, record.output) for record in stream.records()) == sorted(
        zip(("one", "two", "three"), SETS, strict=True)
    )
    assert stream.task() == TaskSpec("multi-label")


def test_without_a_separator_a_text_is_one_label(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "input,output\none,a;b\ntwo,a;b\nthree,b\nfour,b\n")
    assert open_stream(path).task().kind == "classification"
    with pytest.raises(DataError, match="what separates several"):
        open_stream(path).task(TaskSpec("multi-label"))


def test_a_shuffled_file_of_lists_is_laid_out_whole(tmp_path: Path) -> None:
    path = SOURCES["jsonl"](tmp_path)
    records = list(open_stream(path, shuffle_seed=3).records())
    assert {record.input: record.output for record in records} == dict(zip(("one", "two", "three"), SETS, strict=True))


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (None, "missing"),
        (math.nan, "missing"),
        ("a", "one label"),
        (["a", "a"], "twice"),
        (["a", ""], "is empty"),
        (["a", None], "missing"),
        (["a", ["b"]], "expected names of labels"),
        ([0, 1, 0], "indicator matrix"),
        ([True, False], "indicator matrix"),
        (numpy.array([1.0, 0.0]), "indicator matrix"),
        ({"a": 1}, "dict"),
    ],
)
def test_what_is_no_list_of_labels_is_named_by_its_row(output: Any, words: str) -> None:
    with pytest.raises(DataError, match=words) as raised:
        list(open_stream(iter([*ROWS, {"input": "four", "output": output}])).records())
    assert "row 3" in str(raised.value)
    if output is not None and not isinstance(output, (str, float, dict)):
        with pytest.raises(DataError, match=words):
            Chunk(("one", "two"), (["a"], output))


def test_a_list_among_labels_is_named_by_its_row() -> None:
    with pytest.raises(DataError, match=r"row 1: 'output' is a list of labels .* rows before have one label"):
        open_stream([{"input": "one", "output": "a"}, {"input": "two", "output": ["a"]}])


@pytest.mark.parametrize("text", ["a;;b", ";a", "a;"])
def test_a_separator_with_nothing_beside_it_is_named(text: str) -> None:
    with pytest.raises(DataError, match="nothing stands between"):
        open_stream([{"input": "one", "output": text}], Columns(label_separator=";"))


def test_numbers_outside_the_class_names_are_no_labels() -> None:
    wrong = named(lambda made: made).to_list()
    features = named(lambda made: made).features
    rows = datasets.Dataset.from_list([*wrong, {"input": "four", "output": [0, -1]}], features=None)
    with pytest.raises(DataError, match="outside the dataset's 3 class names"):
        list(open_stream(rows.cast(features)).records())


def test_separators_and_missing_outputs_are_not_told_apart() -> None:
    with pytest.raises(DataError, match="leave one of the two out"):
        Columns(allow_missing_outputs=True, label_separator=";")
    for wrong in ("", 3):
        with pytest.raises(DataError, match="label separator"):
            Columns(label_separator=wrong)  # type: ignore[arg-type]


def test_metrics_agree_with_scikit_learn() -> None:
    from sklearn.metrics import f1_score, label_ranking_loss

    generator = torch.Generator().manual_seed(0)
    labels = tuple("abcde")
    logits = torch.randn(200, 5, generator=generator) - 1
    right = torch.rand(200, 5, generator=generator) < (logits.sigmoid() + 0.1) / 1.2
    right[:, 4] = False
    outputs = [tuple(label for label, own in zip(labels, row, strict=True) if own) for row in right.tolist()]
    prediction = Prediction.from_label_logits(logits, torch.tensor([0.0, -1.0, 0.5, 0.0, 9.0]), labels)
    given = torch.tensor([[label in several for label in labels] for several in prediction.outputs])
    found = score(prediction, outputs)
    y, p = right.numpy(), given.numpy()
    wanted = {
        "micro_f1": f1_score(y, p, average="micro"),
        "macro_f1": f1_score(y[:, :4], p[:, :4], average="macro"),
        "subset_accuracy": (y == p).all(1).mean(),
        "ranking_loss": label_ranking_loss(y[y.any(1)], logits.numpy()[y.any(1)]),
    }
    for name, value in wanted.items():
        assert found[name] == pytest.approx(float(value), abs=1e-6), name
    bits = torch.nn.functional.binary_cross_entropy_with_logits(logits, right.float(), reduction="none").sum(1).mean()
    assert found["negative_log_likelihood"] == pytest.approx(float(bits), abs=1e-3)
    perfect = Prediction.from_label_logits(right.float() * 60 - 30, torch.zeros(5), labels)
    assert score(perfect, outputs)["calibration_error"] < 1e-6 < found["calibration_error"]


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset, lambda own: numpy.array(own, dtype=object)])
def test_sets_of_labels_of_any_type_are_scored(kind: Any) -> None:
    prediction = Prediction.from_label_logits(torch.tensor([[5.0, 4.0], [-5.0, 5.0]]), torch.zeros(2), ("a", "b"))
    right = [("a", "b"), ("a",)]
    assert score(prediction, [kind(list(own)) for own in right]) == score(prediction, right)
    one = Prediction.from_logits(torch.tensor([[5.0, 4.0], [-5.0, 5.0]]), ("a", "b"))
    with pytest.raises(DataError, match="example 0 has a list of labels"):
        score(one, [kind(["a"]), kind(["b"])])


@pytest.mark.parametrize(("output", "words"), [([1, 0], "indicator"), (["a", "a"], "twice"), (3, "each is a list")])
def test_what_is_no_set_of_labels_is_not_scored(output: Any, words: str) -> None:
    prediction = Prediction.from_label_logits(torch.tensor([[5.0, 4.0], [-5.0, 5.0]]), torch.zeros(2), ("a", "b"))
    with pytest.raises(DataError, match=f"example 1.*{words}"):
        score(prediction, [["a"], output])


def test_different_lists_of_a_large_dataset_are_read_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [[f"l{number % 40}", f"m{number % 7}"] for number in range(25_000)]  # three batches, 280 different lists
    dataset = datasets.Dataset.from_dict({"input": ["a text"] * len(rows), "output": rows})
    read = Counter[tuple[str, ...]]()
    label_set = values.label_set

    def counted(value: Any, *rest: Any, **options: Any) -> tuple[str, ...]:
        read[tuple(value)] += 1
        return label_set(value, *rest, **options)

    monkeypatch.setattr(values, "label_set", counted)
    assert open_stream(dataset).outputs == {label for row in rows for label in row}
    assert len(read) == 280
    assert max(read.values()) <= 2  # the first rows are looked at ahead


def test_labels_that_are_not_known_are_refused_or_counted_as_missed() -> None:
    prediction = Prediction.from_label_logits(torch.tensor([[5.0, -5.0]]), torch.zeros(2), ("a", "b"))
    with pytest.raises(DataError, match="'c'"):
        score(prediction, [("a", "c")])
    found = score(prediction, [("a", "c")], allow_unseen_labels=True)
    assert found["micro_f1"] == pytest.approx(2 / 3)
    assert found["subset_accuracy"] == 0


def test_a_threshold_is_the_common_one_until_a_label_has_examples_of_its_own() -> None:
    generator = torch.Generator().manual_seed(0)
    own = torch.rand(400, 3, generator=generator) < torch.tensor([0.3, 0.3, 0.02])
    logits = torch.randn(400, 3, generator=generator) + torch.where(own, 2.0, -2.0)
    logits[:, 1] += 3  # the scores of this label are too high
    tally = tallied(logits, own)
    assert tally.shape == (3, 2, BINS)
    assert tally.sum((1, 2)).tolist() == [400.0] * 3
    assert tally[:, 1].sum(1).tolist() == own.sum(0).tolist()
    many = thresholds(tally, own.sum(0).float())
    assert float(many[1] - many[0]) > 1.5
    none = thresholds(tally, torch.zeros(3))
    assert none.unique().numel() == 1
    assert thresholds(torch.zeros(3, 2, BINS), torch.zeros(3)).tolist() == [0.0] * 3


def test_lists_that_were_written_as_text_and_a_separator_that_separates_nothing_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "iai_hf")
    task = TaskSpec("classification").with_labels_of(("['food', 'sports']", "[]"))
    assert "look like lists" in caplog.text
    caplog.clear()
    task.with_labels_of(("['food']",))
    assert not caplog.records, "once is enough"
    rows = [{"input": "a", "output": "food|sports"}, {"input": "b", "output": ""}]
    open_stream(rows, Columns(label_separator=";")).task()
    assert "is that the separator?" in caplog.text
    caplog.clear()
    open_stream(rows, Columns(label_separator="|")).task()
    assert not caplog.records


def test_a_separator_that_was_forgotten_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "iai_hf")

    def told(outputs: list[str], separator: str | None = None) -> str:
        caplog.clear()
        open_stream([{"input": "a", "output": output} for output in outputs], Columns(label_separator=separator)).task()
        return caplog.text

    several = ["food;sports", "food", "sports; politics", "politics"] * 4
    assert "';' between" in told(several)
    assert "look like" not in told(several, ";")
    assert "look like" not in told(["food, drink", "sports, leisure", "politics"] * 4)
    assert "look like" not in told(["Paris, France", "Lyon, France", "Rome, Italy", "Turin, Italy"])
    assert "look like" not in told(["one", "two"] * 4)


def test_an_empty_output_among_single_labels_may_be_of_several() -> None:
    rows = [{"input": "a", "output": "food;sports"}, {"input": "b", "output": ""}]
    with pytest.raises(DataError, match="name what stands between several labels"):
        open_stream(rows, Columns())
