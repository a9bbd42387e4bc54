"""Metrics of predictions: accuracy, macro-F1, negative log-likelihood, calibration error, exact match.

One that is added to `score` stands in `iai evaluate`, in curves, `evaluation.json` and cards; the tables of
`compare.py` and of `scripts/comparison/` name their columns themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pvariance
from typing import Any

from iai_hf import values
from iai_hf.errors import DataError
from iai_hf.metrics_of_sets import score_sets
from iai_hf.task import Prediction, TaskSpec, check_sets, distinct, plain_sets

BINS = 15
LARGEST = 3.4028234663852886e38  # of float32


def score(prediction: Prediction, outputs: Sequence[Any], *, allow_unseen_labels: bool = False) -> dict[str, float]:
    """Metrics by name, each a fraction of one but for `negative_log_likelihood` (nats a query).

    Classification: `accuracy`, `macro_f1` (mean over the labels that occur), `negative_log_likelihood`,
    `calibration_error` (expected, 15 equal bins, Guo et al. 2017). Generation: `exact_match`. Regression:
    `root_mean_squared_error` and `mean_absolute_error` in units of the target, and `r2`, the explained variance. Sets
    of labels: see `iai_hf.metrics_of_sets`.

    Args:
        prediction: of a classification its likeliest labels count, also where it was abstained from.
        allow_unseen_labels: count an output that the state does not know as an error, with probability 1e-6.

    Raises:
        DataError: as many predictions as outputs are expected; an output that the state does not know, or a list of
            labels where it answers one, or the other way round.
    """
    if len(prediction.outputs) != len(outputs):
        raise DataError(f"{len(prediction.outputs)} predictions for {len(outputs)} outputs; expected as many")
    outputs = plain_sets(outputs)
    check_sets(TaskSpec(prediction.kind), outputs)
    if prediction.values is not None:
        return _regression(prediction.values.tolist(), outputs)
    if prediction.probabilities is not None:
        if not allow_unseen_labels:
            check_labels(prediction.labels, outputs)
        return score_sets(prediction, outputs)
    found = prediction.outputs
    if prediction.log_probs is not None:
        found = tuple(prediction.labels[number] for number in prediction.log_probs.argmax(1).tolist())
    hits = [predicted == output for predicted, output in zip(found, outputs, strict=True)]
    if prediction.log_probs is None:
        return {"exact_match": sum(hits) / len(hits)}
    if not allow_unseen_labels:
        check_labels(prediction.labels, outputs)
    return {
        "accuracy": sum(hits) / len(hits),
        "macro_f1": _macro_f1(found, outputs),
        "negative_log_likelihood": _negative_log_likelihood(prediction, outputs),
        "calibration_error": _calibration_error(prediction, hits),
    }


def covered(sets: Sequence[Sequence[str] | None], outputs: Sequence[str]) -> dict[str, float]:
    """`coverage`: the share of sets that hold the right label; `labels_a_set`: their mean size. {} if all are None."""
    given = [(labels, output) for labels, output in zip(sets, outputs, strict=True) if labels is not None]
    if not given:
        return {}
    return {
        "coverage": fmean(output in labels for labels, output in given),
        "labels_a_set": fmean(len(labels) for labels, _ in given),
    }


def answered(predicted: Sequence[str | None], outputs: Sequence[str]) -> dict[str, float]:
    """`answered`: the share that did not get None; `accuracy_of_answered`, left out where none was answered."""
    hits = [found == output for found, output in zip(predicted, outputs, strict=True) if found is not None]
    return {"answered": len(hits) / len(outputs), **({"accuracy_of_answered": fmean(hits)} if hits else {})}


def _regression(values: Sequence[float], outputs: Sequence[str]) -> dict[str, float]:
    try:
        right = [float(output) for output in outputs]
    except ValueError as error:
        raise DataError(f"a target is no number ({error}); expected the column that the state predicts") from error
    for number, target in enumerate(right):
        if not abs(target) <= LARGEST:
            raise DataError(f"the target of example {number} is {target}; expected a number that float32 can hold")
    gaps = [value - target for value, target in zip(values, right, strict=True)]
    squared = fmean(gap**2 for gap in gaps)
    variance = pvariance(right)
    return {
        "root_mean_squared_error": squared**0.5,
        "mean_absolute_error": fmean(map(abs, gaps)),
        "r2": 1 - squared / variance if variance else float(squared == 0),  # of a constant, as in scikit-learn
    }


def check_labels(labels: Sequence[str], outputs: Sequence[Any]) -> None:
    """Raise DataError where an output, or a label in one, is none of those that the state knows."""
    known = set(labels)
    rows = [i for i, output in enumerate(outputs) if not known.issuperset(distinct([output]))]
    if rows:
        first = next(label for label in distinct([outputs[rows[0]]]) if label not in known)
        near = next((label for label in labels if values.folded(label) == values.folded(first)), None)
        shown = ", ".join(map(ascii, labels[:5])) + (", ..." if len(labels) > 5 else "")
        similar = f" (it knows {shown})" if near is None else f" (it knows {near!a}, and this is {first!a})"
        raise DataError(
            f"{len(rows)} of {len(outputs)} examples have labels that the state has not seen, first "
            f"{first!r} in example {rows[0]}{similar}: adapt on examples of it, or count them as errors",
            options=("allow_unseen_labels",),
        )


def _macro_f1(predicted: Sequence[str], outputs: Sequence[str]) -> float:
    scores = []
    for label in set(outputs):
        both = sum(p == o == label for p, o in zip(predicted, outputs, strict=True))
        either = sum(p == label for p in predicted) + sum(o == label for o in outputs)
        scores.append(2 * both / either)
    return sum(scores) / len(scores)


def _negative_log_likelihood(prediction: Prediction, outputs: Sequence[str]) -> float:
    assert prediction.log_probs is not None
    numbers = {label: number for number, label in enumerate(prediction.labels)}
    floor = -13.8155  # log 1e-6
    found = [
        float(row[numbers[output]]) if output in numbers else floor
        for row, output in zip(prediction.log_probs, outputs, strict=True)
    ]
    return -sum(found) / len(found)


def _calibration_error(prediction: Prediction, hits: Sequence[bool]) -> float:
    assert prediction.log_probs is not None
    confidences = prediction.log_probs.max(1).values.exp().tolist()
    bins: dict[int, list[float]] = {}
    for confidence, hit in zip(confidences, hits, strict=True):
        bins.setdefault(min(int(confidence * BINS), BINS - 1), []).append(confidence - hit)
    return sum(abs(sum(gaps)) for gaps in bins.values()) / len(hits)
