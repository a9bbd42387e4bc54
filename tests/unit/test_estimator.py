"""IAIClassifier keeps scikit-learn's promises, and is the amortizer that it wraps."""

from __future__ import annotations

import pickle
import warnings

import numpy
import pytest
from conftest import LABELS, examples
from sklearn.base import clone
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

from iai_hf import AutoAmortizer, TaskSpec
from iai_hf.backbones import Backbone
from iai_hf.errors import DataError
from iai_hf.estimator import IAIClassifier

ROWS = examples(60)
TEXTS, OUTPUTS = [row["input"] for row in ROWS], [row["output"] for row in ROWS]


@pytest.fixture
def classifier(encoder: Backbone) -> IAIClassifier:
    return IAIClassifier(backbone=encoder, chunk_size=16)


def test_it_answers_as_the_amortizer_does(classifier: IAIClassifier, encoder: Backbone) -> None:
    found = classifier.fit(TEXTS, OUTPUTS).predict_proba(TEXTS[:5])
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=encoder)
    task = TaskSpec("classification", tuple(sorted(LABELS)))
    state = amortizer.adapt(ROWS, amortizer.init_state(task), chunk_size=16, progress=False)
    numpy.testing.assert_allclose(found, amortizer.predict(state, TEXTS[:5]).log_probs.exp(), rtol=1e-5)
    numpy.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    assert list(classifier.classes_) == sorted(LABELS)


def test_parts_make_the_whole_and_new_classes_are_appended(classifier: IAIClassifier) -> None:
    whole = clone(classifier).fit(TEXTS, OUTPUTS)
    parts = clone(classifier).partial_fit(TEXTS[:32], OUTPUTS[:32], sorted(LABELS))
    parts.partial_fit(TEXTS[32:], OUTPUTS[32:])
    numpy.testing.assert_array_equal(whole.predict(TEXTS), parts.predict(TEXTS))
    parts.partial_fit(["something else"] * 3, ["other"] * 3)
    assert list(parts.classes_) == [*sorted(LABELS), "other"]


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
    with pytest.raises(DataError, match="as many"):
        classifier.fit(TEXTS, OUTPUTS[:5])
    with pytest.raises(DataError, match="expected text"):
        classifier.fit([1.0, 2.0], ["a", "b"])
