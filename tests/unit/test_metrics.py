"""Metrics equal scikit-learn's where it has them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, log_loss

from iai_hf import Prediction
from iai_hf.errors import DataError
from iai_hf.metrics import score

LABELS = ("a", "b", "c")


@given(st.lists(st.tuples(st.sampled_from(LABELS), st.lists(st.floats(-5, 5), min_size=3, max_size=3)), min_size=1))
@settings(deadline=None)
def test_they_agree_with_scikit_learn(rows: list[tuple[str, list[float]]]) -> None:
    outputs = [output for output, _ in rows]
    prediction = Prediction.from_logits(torch.tensor([logits for _, logits in rows]), LABELS)
    found = score(prediction, outputs)
    assert prediction.log_probs is not None
    assert found["accuracy"] == pytest.approx(accuracy_score(outputs, prediction.outputs))
    macro = f1_score(outputs, prediction.outputs, average="macro", labels=sorted(set(outputs)), zero_division=0)
    assert found["macro_f1"] == pytest.approx(macro)
    probabilities = prediction.log_probs.double().exp()
    expected = log_loss(outputs, (probabilities / probabilities.sum(1, keepdim=True)).numpy(), labels=LABELS)
    assert found["negative_log_likelihood"] == pytest.approx(expected, abs=1e-4)


def test_calibration_error_of_known_cases() -> None:
    sure = torch.tensor([[0.9, 0.1]]).log().repeat(10, 1)
    outputs = ["a"] * 9 + ["b"]
    assert score(Prediction.from_logits(sure, ("a", "b")), outputs)["calibration_error"] == pytest.approx(0, abs=1e-6)
    assert score(Prediction.from_logits(sure, ("a", "b")), ["b"] * 10)["calibration_error"] == pytest.approx(0.9)


def test_generation_is_scored_by_exact_match() -> None:
    assert score(Prediction(("Paris", "rome")), ["Paris", "Rome"]) == {"exact_match": 0.5}


def test_a_label_that_the_state_has_not_seen_is_named() -> None:
    prediction = Prediction.from_logits(torch.zeros(2, 2), ("a", "b"))
    with pytest.raises(DataError, match="'z'"):
        score(prediction, ["a", "z"])
    assert score(prediction, ["a", "z"], allow_unseen_labels=True)["accuracy"] == 0.5
    with pytest.raises(DataError, match="as many"):
        score(prediction, ["a"])
