"""Texts, labels and rows as users pass them: made plain, or refused by name; never read by their letters."""

from __future__ import annotations

import enum
from typing import Any

import datasets
import numpy
import pandas
import pyarrow
import pytest
import torch

from iai_hf import Chunk, TaskSpec, values
from iai_hf.errors import DataError

TWO = ("a fine film", "a dull film")


class Word(str, enum.Enum):
    FINE = "a fine film"
    DULL = "a dull film"


@pytest.mark.parametrize(
    "given",
    [
        list(TWO),
        TWO,
        iter(TWO),
        (text for text in TWO),
        pandas.Series(TWO, index=[7, 3]),
        pandas.Series(TWO, dtype="category"),
        pandas.Series(TWO, dtype="string"),
        pandas.Index(TWO),
        pandas.DataFrame({"text": TWO}),
        pandas.DataFrame({"text": TWO}).to_numpy(),
        numpy.asarray(TWO),
        numpy.asarray(TWO, dtype=object),
        numpy.asarray(TWO)[:, None],
        list(numpy.asarray(TWO)),
        pyarrow.array(TWO),
        pyarrow.chunked_array([TWO[:1], TWO[1:]]),
        pyarrow.table({"text": TWO}),
        datasets.Dataset.from_dict({"text": TWO}),
        datasets.Dataset.from_dict({"text": TWO})["text"],
        datasets.Dataset.from_dict({"text": TWO}).to_iterable_dataset()["text"],
        list(Word),
    ],
    ids=lambda given: type(given).__name__,
)
def test_any_column_is_its_texts(given: Any) -> None:
    found = values.texts(given)
    assert found == TWO
    assert {type(text) for text in found} == {str}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("a fine film", "query: got 'a fine film' alone"),
        (numpy.str_("a fine film"), "alone"),
        (numpy.asarray("a fine film"), "alone"),
        (b"bytes", "alone"),
        ({"text": "a fine film"}, "got a dict"),
        (datasets.DatasetDict(), "got a DatasetDict"),
        ({"a"}, "got a set"),
        (7, "got a int"),
        (None, "got a NoneType"),
        ([], "there are none"),
        (pandas.DataFrame({"a": TWO, "b": TWO}), r"columns \['a', 'b'\]"),
        (pandas.DataFrame([["x", "y"]], columns=["a", "a"]), r"columns \['a', 'a'\]"),
        (numpy.asarray([("a", 1)], dtype=[("text", "U3"), ("n", int)]), r"columns \['text', 'n'\]"),
        (numpy.asarray([TWO]), "query 0 is list"),
        (["a", None], "query 1 is missing"),
        (pandas.Series(["a", None]), "query 1 is missing"),
        (pandas.Series(["a", None], dtype="string"), "query 1 is missing"),
        (["a", float("nan")], "query 1 is missing"),
        (["a", "  "], "query 1 is empty"),
        (["a", 3], "query 1 is int 3; expected text"),
        (["a", ["b"]], "query 1 is list"),
        (["a", b"b"], "query 1 is bytes"),
        (["a", "half \ud83d an emoji"], r"query 1 has half a character, the lone surrogate U\+D83D, at position 5"),
        (torch.tensor([1, 2]), "query 0 is int"),
    ],
    ids=str,
)
def test_what_is_no_column_of_texts_is_named(given: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        values.texts(given)


def test_a_place_may_be_named_otherwise() -> None:
    with pytest.raises(DataError, match=r"^X\[1\] is missing"):
        values.texts(["a", None], "X[{}]")
    with pytest.raises(DataError, match=r"^X: got"):
        values.texts("a", "X[{}]")


@pytest.mark.parametrize(
    "given",
    [
        [(1, 2.5), (3, 4)],
        numpy.asarray([[1, 2.5], [3, 4]], dtype="float32"),
        torch.tensor([[1, 2.5], [3, 4]]),
        [torch.tensor([1, 2.5]), numpy.asarray([3, 4])],
        pandas.DataFrame({"b": [2.5, 4], "extra": ["x", "y"], "a": [1, 3]}),
        pyarrow.table({"b": [2.5, 4], "a": [1, 3]}),
        datasets.Dataset.from_dict({"b": [2.5, 4], "a": [1, 3]}),
        numpy.asarray([(2.5, 1), (4, 3)], dtype=[("b", float), ("a", int)]),
        [{"b": 2.5, "a": 1}, {"a": 3, "b": 4}],
    ],
    ids=lambda given: type(given).__name__,
)
def test_rows_are_read_in_order_and_tables_by_name(given: Any) -> None:
    assert values.rows(given, ("a", "b")) == ((1.0, 2.5), (3.0, 4.0))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([(1, float("nan"))], "row 0 is"),
        ([("1", "2")], "row 0 is"),
        (["12"], "row 0: got '12' alone"),
        ([3.5], "row 0: got a float"),
        ([(1, None)], "row 0 is"),
        (pandas.DataFrame({"a": [1]}), r"expected the columns \['a', 'b'\]"),
        ([{"a": 1}], "row 0: expected the columns"),
    ],
    ids=str,
)
def test_what_is_no_row_is_named(given: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        values.rows(given, ("a", "b"))


@pytest.mark.parametrize(
    ("given", "written"),
    [
        (True, "True"),
        (numpy.bool_(False), "False"),
        (3, "3"),
        (numpy.int64(3), "3"),
        (torch.tensor(3), "3"),
        (torch.tensor(True), "True"),
        (numpy.asarray(3), "3"),
        (numpy.str_("yes"), "yes"),
        (Word.FINE, "a fine film"),
    ],
    ids=str,
)
def test_truth_values_and_scalars_are_labels(given: Any, written: str) -> None:
    found = values.label(given, "output")
    assert (found, type(found)) == (written, str)
    assert TaskSpec(labels=(given, "other")).labels == (written, "other")
    assert Chunk(("a", "b"), (given, "other")).outputs == (written, "other")


@pytest.mark.parametrize("given", [None, float("nan"), pandas.NA, pandas.NaT, "", 1.5, [1], torch.tensor([1, 2])])
def test_what_is_no_label_is_named(given: Any) -> None:
    with pytest.raises(DataError, match="output"):
        values.label(given, "output")


def test_a_number_outside_the_class_names_is_no_label() -> None:
    assert values.label(1, "output", ("no", "yes")) == "yes"
    for number in (-1, 2):
        with pytest.raises(DataError, match=f"output is {number}, outside .* no label"):
            values.label(number, "output", ("no", "yes"))


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: TaskSpec(labels="sport"), "alone"),  # type: ignore[arg-type]
        (lambda: TaskSpec(labels=("a", None)), "label 1 of a task is missing"),  # type: ignore[arg-type]
        (lambda: TaskSpec(labels={"a": 1}), "got a dict"),  # type: ignore[arg-type]
        (lambda: TaskSpec(columns="size"), "alone"),  # type: ignore[arg-type]
        (lambda: TaskSpec(columns=(1, 2)), "expected names"),  # type: ignore[arg-type]
        (lambda: TaskSpec(labels=("1", 1)), "given twice"),  # type: ignore[arg-type]
        (lambda: Chunk("ab", "xy"), "alone"),  # type: ignore[arg-type]
        (lambda: Chunk(("a", (1.0,)), ("x", "y")), "example 1 of a chunk: input is tuple"),
        (lambda: Chunk(((1.0,), "a"), ("x", "y")), "example 1 of a chunk: input: got 'a' alone"),
        (lambda: Chunk((1.0, 2.0), ("x", "y")), "example 0 of a chunk: input"),
        (lambda: Chunk(("a",), (0.5,)), "output is float"),
        (lambda: Chunk(("a",), ("half \udc00",)), "lone surrogate"),
    ],
)
def test_constructors_check_their_types(made: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        made()


def test_constructors_make_tuples_of_columns() -> None:
    chunk = Chunk(pandas.Series(TWO), numpy.asarray([1, 0]))  # type: ignore[arg-type]
    assert (chunk.inputs, chunk.outputs) == (TWO, ("1", "0"))
    assert Chunk(numpy.eye(2), [0.5, 1.0]).outputs == ("0.5", "1.0")  # type: ignore[arg-type]
    assert TaskSpec(labels=["b", "a"], columns=pandas.Index(["x", ""])).columns == ("x", "")  # type: ignore[arg-type]
