"""Labels that are nearly the same are shown, and test labels that a state does not know are never just errors."""

from __future__ import annotations

import logging
from typing import Any

import datasets
import pytest
from conftest import examples

from iai_hf import AutoAmortizer, Chunk, TaskSpec
from iai_hf.backbones import Backbone
from iai_hf.compare import compare
from iai_hf.curve import Curve
from iai_hf.errors import DataError
from iai_hf.metrics import check_labels

SPLITS = datasets.DatasetDict(
    {"train": datasets.Dataset.from_list(examples(40)), "test": datasets.Dataset.from_list(examples(10, seed=1))}
)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("sport", "Sport"),
        ("sport", "sport "),
        ("caf\u00e9", "cafe\u0301"),
        ("two words", "two  words"),
        ("\u00df", "SS"),
    ],
)
def test_labels_that_look_alike_get_a_warning_that_shows_them(
    one: str, other: str, encoder: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=encoder)
    shown = f"the labels {one!a} and {other!a} are different classes"
    with caplog.at_level(logging.WARNING, "iai_hf"):
        amortizer.init_state(TaskSpec(labels=(one, other)))
        assert shown in caplog.text
        caplog.clear()
        state = amortizer.update(amortizer.init_state(TaskSpec(labels=("else",))), Chunk(("a",), (one,)))
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
        state = amortizer.update(state, Chunk(("a",), (other,)))
        assert shown in caplog.text
        caplog.clear()
        amortizer.update(state, Chunk(("a", "b"), (one, other)))
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]  # it is said once
    assert set(state.task.labels) == {"else", one, other}


def test_an_unknown_label_that_looks_like_a_known_one_is_shown_beside_it() -> None:
    with pytest.raises(DataError, match=r"it knows 'cafe\\u0301', and this is 'caf\\xe9'"):
        check_labels(("tea", "cafe\u0301"), ["tea", "caf\u00e9"])


def test_test_labels_that_the_data_never_show_are_refused_before_the_work(encoder: Backbone) -> None:
    test = [*examples(10, seed=1), {"input": "ball", "output": "chess"}]
    options: dict[str, Any] = {"backbone": str(encoder.name), "progress": False}
    with pytest.raises(DataError, match="1 of 11 examples have labels that the state has not seen, first 'chess'"):
        compare(examples(40), test, ["iterative"], **options)
    with pytest.raises(DataError, match="first 'chess'"):
        compare(iter(examples(40)), test, ["iterative"], **options)  # known at its end
    found = compare(examples(40), test, ["iterative"], allow_unseen_labels=True, **options)
    assert found["test_examples"] == 11
    few = [row for row in examples(40) if row["output"] != "food"][:8] + examples(40)
    with pytest.raises(DataError, match="first 'food'"):
        compare(few, examples(10, seed=1), ["iterative"], max_examples={"iterative": 8}, **options)


def test_a_curve_tells_a_state_that_can_not_know_the_labels(encoder: Backbone) -> None:
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=encoder)
    state = amortizer.adapt(examples(20), progress=False)
    curve = Curve(amortizer, ["ball", "song"], ["chess", "music"])
    with pytest.raises(DataError, match="first 'chess'"):
        curve.check(state.task)
    curve.check(state.task, ["chess"])  # it is still to come
    curve.check(state.task, None)  # it may be
    curve.check(TaskSpec("generation"))
    Curve(amortizer, ["ball"], ["chess"], allow_unseen_labels=True).check(state.task)


def test_methods_are_compared_on_the_test_split(encoder: Backbone) -> None:
    options: dict[str, Any] = {"backbone": str(encoder.name), "progress": False}
    found = compare(SPLITS, SPLITS, ["iterative"], **options)
    assert (found["test_examples"], found["methods"][0]["examples"]) == (10, 40)
    found = compare(SPLITS, SPLITS, ["iterative"], split="test", test_split="train", **options)
    assert (found["test_examples"], found["methods"][0]["examples"]) == (40, 10)
    with pytest.raises(DataError, match=r"splits \['train'\]; 'test' is not one of them"):
        compare(SPLITS, datasets.DatasetDict(train=SPLITS["train"]), ["iterative"], **options)


def test_a_generator_is_compared_whole_or_refused(encoder: Backbone) -> None:
    options: dict[str, Any] = {"backbone": str(encoder.name), "progress": False}
    found = compare(iter(examples(300)), examples(9, seed=1), ["iterative"], **options)
    assert found["methods"][0]["examples"] == 300
    with pytest.raises(DataError, match="can be read once only"):
        compare(iter(examples(300)), examples(9, seed=1), ["iterative", "iterative-explicit"], **options)


def test_labels_that_look_like_missing_values_are_told(caplog: pytest.LogCaptureFixture) -> None:
    TaskSpec(labels=("1.0",)).with_labels_of(("nan", "N/A", "2.0"))
    assert "'N/A', 'nan' look like values that are missing" in caplog.text
    caplog.clear()
    TaskSpec(labels=("a",)).with_labels_of(("b", "none of these"))
    assert "missing" not in caplog.text
