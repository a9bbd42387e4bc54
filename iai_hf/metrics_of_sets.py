"""Metrics of predictions of label sets, where a text has any number of labels or none.

The ranking loss is the share of pairs of a label that applies and one that does not which are in the wrong order
(Schapire and Singer 2000).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from iai_hf.task import Prediction

BINS = 15
FLOOR = 1e-6  # of a probability, so that one label does not decide the likelihood


def score_sets(prediction: Prediction, outputs: Sequence[Sequence[str]]) -> dict[str, float]:
    """Metrics by name; labels of `outputs` that the prediction does not know count as given up, with probability 0.

    `macro_f1` is the mean over the labels that occur, `subset_accuracy` the share of texts whose set is right,
    `calibration_error` the mean over labels of the expected calibration error of each (Guo et al. 2017), and
    `negative_log_likelihood` nats a query, summed over labels.
    """
    assert prediction.probabilities is not None
    labels = tuple(dict.fromkeys((*prediction.labels, *(label for output in outputs for label in output))))
    right, given = _indicators(outputs, labels), _indicators(prediction.outputs, labels)
    unknown = len(labels) - len(prediction.labels)
    probabilities = torch.nn.functional.pad(prediction.probabilities.double().cpu(), (0, unknown))
    hits, sizes = (right & given).sum(0).double(), (right.sum(0) + given.sum(0)).double()
    occur = right.any(0)
    clamped = probabilities.clamp(FLOOR, 1 - FLOOR)
    log_likelihood = torch.where(right, clamped.log(), (-clamped).log1p()).sum(1)
    return {
        "micro_f1": float(2 * hits.sum() / sizes.sum()) if bool(sizes.any()) else 1.0,
        "macro_f1": float((2 * hits / sizes.clamp(min=1))[occur].mean()) if bool(occur.any()) else 1.0,
        "ranking_loss": _ranking_loss(probabilities, right),
        "subset_accuracy": float((right == given).all(1).double().mean()),
        "negative_log_likelihood": -float(log_likelihood.mean()),
        "calibration_error": _calibration_error(probabilities, right),
    }


def _indicators(sets: Sequence[Sequence[str]], labels: Sequence[str]) -> torch.Tensor:
    """Which labels are in each set, bool `[n, C]`."""
    place = {label: number for number, label in enumerate(labels)}
    found = torch.zeros(len(sets), len(labels), dtype=torch.bool)
    for row, several in enumerate(sets):
        for label in several:
            found[row, place[label]] = True
    return found


def _ranking_loss(probabilities: torch.Tensor, right: torch.Tensor) -> float:
    """Mean over the texts that some label applies to and some does not; a tie is half a mistake."""
    losses = []
    for row, own in zip(probabilities, right, strict=True):
        if 0 < int(own.sum()) < len(own):
            ahead = row[own][:, None] - row[~own]
            losses.append(float(((ahead < 0).double() + 0.5 * (ahead == 0)).mean()))
    return sum(losses) / len(losses) if losses else 0.0


def _calibration_error(probabilities: torch.Tensor, right: torch.Tensor) -> float:
    bins = (probabilities * BINS).long().clamp(max=BINS - 1)
    gaps = torch.zeros(BINS, right.shape[1], dtype=torch.float64).scatter_add(0, bins, probabilities - right.double())
    return float(gaps.abs().sum(0).mean()) / len(right)
