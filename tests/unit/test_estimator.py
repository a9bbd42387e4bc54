"""IAIClassifier keeps scikit-learn's promises, and is the amortizer that it wraps."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy
import pandas
import pytest
import scipy.sparse
from conftest import LABELS, examples, log_probs
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning, NotFittedError, SkipTestWarning
from sklearn.metrics import f1_score, get_scorer, log_loss, roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

from iai_hf import AutoAmortizer, Chunk, TaskSpec, TaskState
from iai_hf.backbones import Backbone
from iai_hf.errors import ConfigError, DataError
from iai_hf.estimator import IAIClassifier

ROWS = examples(60)
TEXTS, OUTPUTS = [row["input"] for row in ROWS], [row["output"] for row in ROWS]


@pytest.fixture
def classifier(encoder: Backbone) -> IAIClassifier:
    return IAIClassifier(
        backbone=encoder, chunk_size=16, shuffle_seed=None
    )  # rows in their order, as a stream has them


def test_it_answers_as_the_amortizer_does(classifier: IAIClassifier, encoder: Backbone) -> None:
    found = classifier.fit(TEXTS, OUTPUTS).predict_proba(TEXTS[:5])
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=encoder)
    task = TaskSpec("classification", tuple(sorted(LABELS)))
    state = amortizer.adapt(ROWS, amortizer.init_state(task), chunk_size=16, progress=False)
    numpy.testing.assert_allclose(found, log_probs(amortizer.predict(state, TEXTS[:5])).exp(), rtol=1e-5)
    numpy.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    assert list(classifier.classes_) == sorted(LABELS)


def test_parts_make_the_whole_and_new_classes_find_their_place(classifier: IAIClassifier) -> None:
    whole = clone(classifier).fit(TEXTS, OUTPUTS)
    parts = clone(classifier).partial_fit(TEXTS[:32], OUTPUTS[:32], sorted(LABELS))
    parts.partial_fit(TEXTS[32:], OUTPUTS[32:])
    numpy.testing.assert_array_equal(whole.predict(TEXTS), parts.predict(TEXTS))
    parts.partial_fit(["something else"] * 3, ["other"] * 3)
    assert list(parts.classes_) == sorted([*LABELS, "other"])
    assert (parts.predict(TEXTS) == numpy.asarray(OUTPUTS)).mean() > 0.7


def test_labels_keep_their_type(classifier: IAIClassifier) -> None:
    numbers = numpy.asarray([sorted(LABELS).index(output) for output in OUTPUTS])
    found = classifier.fit(TEXTS, numbers).predict(TEXTS)
    assert found.dtype == numbers.dtype
    assert (found == numbers).mean() > 0.7


def test_it_works_in_scikit_learns_own_tools(classifier: IAIClassifier) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)  # the checks with numbers do not apply to texts
        check_estimator(classifier)
    assert cross_val_score(make_pipeline(classifier), TEXTS, OUTPUTS, cv=3).mean() > 0.5


@pytest.mark.parametrize("method", ["numeric-parametric", "numeric-implicit", "prior-fitted", "adam"])
def test_of_numbers_it_is_an_estimator_in_full(method: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)
        check_estimator(IAIClassifier(method))


def test_a_fitted_one_goes_to_another_process(classifier: IAIClassifier) -> None:
    classifier.fit(TEXTS, OUTPUTS)
    copy = pickle.loads(pickle.dumps(classifier))
    numpy.testing.assert_array_equal(copy.predict_proba(TEXTS[:5]), classifier.predict_proba(TEXTS[:5]))


def test_bad_input_is_named(classifier: IAIClassifier) -> None:
    with pytest.raises(NotFittedError):
        classifier.predict(TEXTS)
    with pytest.raises(DataError, match="at least two"):
        classifier.fit(TEXTS, ["one"] * len(TEXTS))
    with pytest.raises(DataError, match="60 rows and y 5"):
        classifier.fit(TEXTS, OUTPUTS[:5])
    with pytest.raises(DataError, match="expected text"):
        classifier.fit([1.0, 2.0], ["a", "b"])
    with pytest.raises(DataError, match="alone; expected a sequence"):
        classifier.fit("ab", ["a", "b"])


def test_columns_are_in_the_order_that_metrics_assume(classifier: IAIClassifier) -> None:
    two = [label for label in LABELS if label != "food"]
    rows = examples(60, labels=tuple(two))
    texts, outputs = [row["input"] for row in rows], [row["output"] for row in rows]
    classifier.partial_fit(texts[:30], outputs[:30], classes=["sports", "music"])
    classifier.partial_fit(texts[30:], outputs[30:])
    assert list(classifier.classes_) == ["music", "sports"]
    positive = [output == "sports" for output in outputs]
    assert roc_auc_score(positive, classifier.predict_proba(texts)[:, 1]) > 0.9
    assert get_scorer("roc_auc")(classifier, texts, outputs) > 0.9
    assert log_loss(outputs, classifier.predict_proba(texts)) < 0.7


@pytest.mark.parametrize("kind", [int, float, bool, numpy.int32])
def test_numbers_are_sorted_as_numbers_and_equal_ones_are_one_class(kind: type, encoder: Backbone) -> None:
    names = [LABELS.index(output) for output in OUTPUTS]
    if kind is bool:
        names = [name > 0 for name in names]
    elif kind is int:
        names = [[10, 9, 2][name] for name in names]
    classifier = IAIClassifier(backbone=encoder).partial_fit(TEXTS[:30], names[:30], classes=sorted(set(names))[::-1])
    classifier.partial_fit(TEXTS[30:], numpy.asarray(names[30:], dtype=kind))
    assert list(classifier.classes_) == sorted(set(names))
    assert (classifier.predict(TEXTS) == numpy.asarray(names)).mean() > 0.7


@pytest.mark.parametrize("missing", [None, float("nan"), numpy.nan, pandas.NA, pandas.NaT, "", " "])
@pytest.mark.parametrize("form", [list, lambda labels: pandas.Series(labels, dtype=object)])
def test_a_label_that_is_missing_is_none(missing: object, form: Callable[..., Any], classifier: IAIClassifier) -> None:
    for method in (classifier.fit, classifier.partial_fit):
        with pytest.raises(DataError, match=r"y\[2\] is (missing|empty)"):
            method(TEXTS[:4], form(["music", "food", missing, "music"]))
    assert not hasattr(classifier, "state_")


def test_labels_of_two_types_are_refused(classifier: IAIClassifier) -> None:
    with pytest.raises(DataError, match="one type"):
        classifier.fit(TEXTS[:2], ["1", 1])  # type: ignore[arg-type]
    classifier.partial_fit(TEXTS[:2], [0, 1])
    with pytest.raises(DataError, match="one type"):
        classifier.partial_fit(TEXTS[:2], ["0", "1"])
    with pytest.raises(DataError, match=r"\[7\].*first call"):
        classifier.partial_fit(TEXTS[:2], [0, 1], classes=[0, 7])
    with pytest.raises(ValueError, match="array-like"):
        classifier.partial_fit(TEXTS[:2], "ab")


FORMS = {
    "Series": lambda values: pandas.Series(values, index=range(100, 100 + len(values))),
    "a column of strings": lambda values: pandas.Series(values, dtype="string"),
    "Index": pandas.Index,
    "object array": lambda values: numpy.asarray(values, dtype=object),
    "array": numpy.asarray,
    "tuple": tuple,
    "frame": lambda values: pandas.DataFrame({"text": values}),
    "column": lambda values: numpy.asarray(values)[:, None],
    "a dataset's column": lambda values: datasets.Dataset.from_dict({"text": values})["text"],
}


@pytest.mark.parametrize("form", FORMS)
def test_all_that_hold_texts_are_read_alike(form: str, classifier: IAIClassifier) -> None:
    made = FORMS[form]
    wanted = clone(classifier).fit(TEXTS, OUTPUTS).predict_proba(TEXTS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataConversionWarning)  # y as a column
        found = classifier.fit(made(TEXTS), made(OUTPUTS)).predict_proba(made(TEXTS))
    numpy.testing.assert_array_equal(found, wanted)
    assert (classifier.predict(made(TEXTS)) == numpy.asarray(OUTPUTS)).mean() > 0.7


def test_a_frame_of_more_columns_or_another_one_is_refused(classifier: IAIClassifier) -> None:
    frame = pandas.DataFrame({"text": TEXTS, "title": TEXTS})
    with pytest.raises(DataError, match="the columns"):
        classifier.fit(frame, OUTPUTS)
    classifier.fit(frame[["text"]], OUTPUTS)
    with pytest.raises(DataError, match="list"):
        classifier.predict(frame.to_numpy())
    with pytest.raises(ValueError, match="title"):
        classifier.predict(frame[["title"]])


def test_a_column_of_labels_gets_scikit_learns_warning(classifier: IAIClassifier) -> None:
    with pytest.warns(DataConversionWarning):
        classifier.fit(TEXTS, numpy.asarray(OUTPUTS)[:, None])
    assert classifier.score(TEXTS, OUTPUTS) > 0.7


@pytest.mark.parametrize("bad", ["", " ", None, 3, float("nan"), b"bytes"])
def test_a_row_that_fails_late_changes_nothing_and_is_named(bad: object, classifier: IAIClassifier) -> None:
    classifier.fit(TEXTS, OUTPUTS)
    before, answers = dict(classifier.__dict__), classifier.predict_proba(TEXTS)
    for method in (classifier.fit, classifier.partial_fit):
        with pytest.raises(DataError, match=r"X\[40\]"):  # of the third chunk
            method([*TEXTS[:40], bad], [*OUTPUTS[:40], "new"])
    with pytest.raises(DataError, match=r"X\[1\]"):
        classifier.predict([TEXTS[0], bad])
    assert classifier.__dict__ == before
    numpy.testing.assert_array_equal(classifier.predict_proba(TEXTS), answers)


def test_a_chunk_that_fails_changes_nothing(classifier: IAIClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier.partial_fit(TEXTS[:20], OUTPUTS[:20])
    before = dict(classifier.__dict__)
    update, calls = classifier.amortizer_.update, []

    def failing(state: TaskState, chunk: Chunk) -> TaskState:
        calls.append(chunk)
        if len(calls) % 2 == 0:
            raise KeyboardInterrupt
        return update(state, chunk)

    monkeypatch.setattr(classifier.amortizer_, "update", failing)
    with pytest.raises(KeyboardInterrupt):
        classifier.partial_fit(TEXTS, [*OUTPUTS[:-1], "new"])
    assert classifier.__dict__ == before


def test_a_table_of_other_columns_changes_nothing() -> None:
    numbers = numpy.random.default_rng(0).normal(size=(20, 3))
    classifier = IAIClassifier("numeric-parametric").fit(numbers, numbers[:, 0] > 0)
    before = dict(classifier.__dict__)
    with pytest.raises(DataError, match="y"):
        classifier.fit(numbers[:, :2], [None] * 20)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="as many"):
        classifier.fit(numbers[:, :2], [0, 1])
    assert classifier.__dict__ == before


@pytest.mark.parametrize("size", [-1, 0, 2.5, "64", None, True])
def test_a_chunk_has_a_whole_number_of_examples(size: object, encoder: Backbone) -> None:
    with pytest.raises(ConfigError, match="chunk_size"):
        IAIClassifier(backbone=encoder, chunk_size=size).fit(TEXTS, OUTPUTS)  # type: ignore[arg-type]


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_settings_are_searched(n_jobs: int | None, encoder_folder: Path) -> None:
    grid = {"chunk_size": numpy.asarray([16]), "config": [{"max_tokens": 8}, {"max_tokens": numpy.int64(64)}]}
    search = GridSearchCV(IAIClassifier(backbone=str(encoder_folder)), grid, cv=2, n_jobs=n_jobs, error_score="raise")
    search.fit(pandas.DataFrame({"text": TEXTS}), OUTPUTS)
    assert search.best_score_ > 0.5
    assert search.score(pandas.DataFrame({"text": TEXTS}), OUTPUTS) > 0.5


def test_a_clone_shares_the_frozen_backbone(classifier: IAIClassifier) -> None:
    assert clone(classifier).backbone is classifier.backbone
    assert copy.deepcopy(classifier).backbone is classifier.backbone


def test_rows_sorted_by_class_are_mixed_before_they_are_read() -> None:
    from sklearn.datasets import load_iris

    table, classes = load_iris(return_X_y=True)
    mixed = numpy.random.default_rng(1).permutation(len(classes))
    scores = [
        IAIClassifier(method="numeric-parametric", chunk_size=8, shuffle_seed=seed).fit(x, y).score(table, classes)
        for x, y, seed in ((table, classes, 0), (table[mixed], classes[mixed], 0), (table, classes, None))
    ]
    assert min(scores[:2]) > 0.9
    assert scores[2] < scores[0]


SEVERAL = [[output, *["short"] * (i % 2)] for i, output in enumerate(OUTPUTS)]
SEVERAL[:3] = [[], [], []]
NAMED = sorted([*LABELS, "short"])
MATRIX = numpy.array([[int(name in own) for name in NAMED] for own in SEVERAL])


@pytest.mark.parametrize("method", ["iterative", "iterative-implicit", "in-context"])
def test_rows_of_several_labels_are_answered_by_a_matrix(method: str, encoder: Backbone, causal: Backbone) -> None:
    backbone = causal if method == "in-context" else encoder
    classifier = IAIClassifier(method, backbone=backbone, chunk_size=16, shuffle_seed=None).fit(TEXTS, SEVERAL)
    assert (list(classifier.classes_), classifier.multilabel_) == (NAMED, True)
    amortizer = AutoAmortizer.from_pretrained(method, backbone=backbone)
    rows = [{"input": text, "output": own} for text, own in zip(TEXTS, SEVERAL, strict=True)]
    state = amortizer.adapt(rows, task=TaskSpec("multi-label", tuple(NAMED)), chunk_size=16, progress=False)
    wanted = amortizer.predict(state, TEXTS[:9])
    assert wanted.probabilities is not None
    numpy.testing.assert_allclose(classifier.predict_proba(TEXTS[:9]), wanted.probabilities, atol=1e-4)
    given = classifier.predict(TEXTS[:9])
    assert (given.shape, given.dtype) == ((9, 4), numpy.int64)
    assert [{NAMED[i] for i in row.nonzero()[0]} for row in given] == [set(own) for own in wanted.outputs]


@pytest.mark.parametrize(
    "form",
    [
        lambda: MATRIX,
        lambda: MATRIX.astype(bool),
        lambda: MATRIX.tolist(),
        lambda: scipy.sparse.csr_matrix(MATRIX),
        lambda: pandas.DataFrame(MATRIX, columns=NAMED),
        lambda: [set(own) for own in SEVERAL],
    ],
)
def test_matrices_frames_and_sets_are_one_task(form: Callable[[], Any], classifier: IAIClassifier) -> None:
    y = form()
    found = classifier.fit(TEXTS, y)
    wanted = clone(classifier).fit(TEXTS, SEVERAL)
    named = NAMED if hasattr(y, "columns") or (isinstance(y, list) and isinstance(y[0], set)) else list(range(4))
    assert list(found.classes_) == named
    assert (found.predict(TEXTS) == MATRIX).mean() > 0.7
    if named == NAMED:
        numpy.testing.assert_allclose(found.predict_proba(TEXTS), wanted.predict_proba(TEXTS), atol=1e-5)
    assert 0 < found.score(TEXTS, y) <= 1
    assert f1_score(MATRIX, found.predict(TEXTS), average="micro") > 0.6


def test_parts_of_several_labels_make_the_whole(classifier: IAIClassifier) -> None:
    whole = clone(classifier).fit(TEXTS, SEVERAL)
    parts = clone(classifier).partial_fit(TEXTS[:32], MATRIX[:32], NAMED).partial_fit(TEXTS[32:], SEVERAL[32:])
    numpy.testing.assert_array_equal(whole.predict(TEXTS), parts.predict(TEXTS))
    parts.partial_fit(["something else"] * 3, [["other"], [], ["other", "food"]])
    assert list(parts.classes_) == sorted([*NAMED, "other"])
    assert parts.predict(TEXTS).shape == (60, 5)
    assert cross_val_score(classifier, TEXTS, MATRIX, cv=3).shape == (3,)


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (2 * MATRIX, "expected an indicator matrix"),
        (MATRIX - 1, "expected an indicator matrix"),
        (MATRIX + numpy.nan, "columns"),
        ([["food", "food"]] * 60, "twice"),
        ([["food"], "food"] * 30, "list of labels"),
        ([["food", 3]] * 60, "indicator matrix"),
        ([[]] * 60, "0 class"),
        (SEVERAL[:-1], "59"),
        (pandas.DataFrame(MATRIX, columns=["a", "a", "b", "c"]), "called alike"),
    ],
)
def test_what_is_no_set_of_labels_leaves_the_estimator_as_it_was(y: Any, words: str, classifier: IAIClassifier) -> None:
    classifier.fit(TEXTS, SEVERAL)
    before = classifier.predict_proba(TEXTS[:4])
    calls = (classifier.fit, classifier.partial_fit)
    for call in calls[:1] if words == "0 class" else calls:  # in a part there may be no label
        with pytest.raises((DataError, ValueError), match=words):
            call(TEXTS, y)
    numpy.testing.assert_array_equal(classifier.predict_proba(TEXTS[:4]), before)


def test_one_label_and_several_are_not_mixed(classifier: IAIClassifier) -> None:
    one, several = clone(classifier).fit(TEXTS, OUTPUTS), clone(classifier).fit(TEXTS, MATRIX)
    for made, y in ((one, SEVERAL), (several, OUTPUTS), (several, MATRIX[:, :3]), (several, SEVERAL)):
        before = made.predict_proba(TEXTS[:4])
        with pytest.raises(DataError):
            made.partial_fit(TEXTS, y)
        numpy.testing.assert_array_equal(made.predict_proba(TEXTS[:4]), before)
    with pytest.raises(ConfigError, match="unlabelled"):
        IAIClassifier(backbone=classifier.backbone, unlabelled=True).fit(TEXTS, MATRIX)
    with pytest.raises(DataError, match="numeric-parametric"):
        IAIClassifier("numeric-parametric").fit(numpy.arange(120.0).reshape(60, 2), MATRIX)
