"""Cheap rivals on the same frozen features, each tuned on its own training examples alone.

A baseline takes features `[n, d]`, class numbers `[n]` and label-name features `[labels, d]`, and returns a function
from queries `[q, d]` to log-probabilities (or, where it has none, scores) `[q, labels]`. Classes that it has not seen
get the least score. A semi-supervised one takes features of unlabelled texts too, `[m, d]`, and is not tuned on a task.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.semi_supervised import LabelSpreading, SelfTrainingClassifier

Answer = Callable[[torch.Tensor], torch.Tensor]
Baseline = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Answer]
SemiSupervised = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], Answer]
FOLDS = 3
CV_EXAMPLES = 2048  # C is chosen on so many; the fit takes all
FLOOR = -13.8155  # log 1e-6, for classes that logistic regression has not seen
LEAST = -1e9
MOST_LABELLED = 1024  # of the semi-supervised ones: a graph of more takes gigabytes
GAMMA = 10.0  # of the graph's kernel; best of 5 to 40 on held-out meta-training tasks with 16 and 64 examples


def names_alone(x: torch.Tensor, y: torch.Tensor, names: torch.Tensor) -> Answer:
    """Similarity to the label's name."""
    return lambda queries: queries @ names.T


def prototypes(x: torch.Tensor, y: torch.Tensor, names: torch.Tensor) -> Answer:
    """Similarity to the class's mean."""
    onehot = torch.nn.functional.one_hot(y, len(names)).float()
    means = torch.nn.functional.normalize(onehot.T @ x, dim=1)
    return lambda queries: (queries @ means.T).masked_fill(onehot.sum(0) == 0, LEAST)


def nearest_neighbours(x: torch.Tensor, y: torch.Tensor, names: torch.Tensor) -> Answer:
    """k nearest neighbours by similarity, which also weighs their votes; k by leave-one-out."""
    onehot = torch.nn.functional.one_hot(y, len(names)).float()

    def votes(queries: torch.Tensor, k: int, skip_first: bool) -> torch.Tensor:
        found = []
        for part in queries.split(1024):
            near = (part @ x.T).topk(min(k + skip_first, len(x)), dim=1)
            values, places = near.values[:, int(skip_first) :], near.indices[:, int(skip_first) :]
            found.append((values[..., None] * onehot[places]).sum(1))
        return torch.cat(found)

    best = max((1, 5, 15, 50), key=lambda k: float((votes(x, k, True).argmax(1) == y).float().mean()))
    return lambda queries: votes(queries, best, False)


def ridge(x: torch.Tensor, y: torch.Tensor, names: torch.Tensor) -> Answer:
    """Ridge regression to one-hot targets; the penalty by leave-one-out."""
    onehot = torch.nn.functional.one_hot(y, len(names)).float()
    mean, share = x.mean(0), onehot.mean(0)
    offset = x - mean
    best: tuple[float, torch.Tensor] | None = None
    for penalty in (0.03, 0.1, 0.3, 1.0, 3.0, 10.0):
        inverse = torch.linalg.inv(offset.T @ offset + penalty * torch.eye(x.shape[1]))
        weight = inverse @ offset.T @ (onehot - share)
        leverage = ((offset @ inverse) * offset).sum(1, keepdim=True) + 1 / len(x)
        left_out = onehot - (onehot - offset @ weight - share) / (1 - leverage).clamp(min=1e-3)
        accuracy = float((left_out.argmax(1) == y).float().mean())
        if best is None or accuracy > best[0]:
            best = (accuracy, weight)
    assert best is not None
    weight = best[1]
    return lambda queries: ((queries - mean) @ weight + share).masked_fill(onehot.sum(0) == 0, LEAST)


def logistic_regression(x: torch.Tensor, y: torch.Tensor, names: torch.Tensor, by: str = "accuracy") -> Answer:
    """Logistic regression, C by cross-validation: accuracy first, or likelihood first."""
    features, targets = x.numpy(), y.numpy()
    if len(set(targets.tolist())) < 2:
        return lambda queries: torch.nn.functional.one_hot(y[:1], len(names)).float().expand(len(queries), -1)

    def fitted(rows: numpy.ndarray, strength: float) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=300, tol=1e-3).fit(features[rows], targets[rows])

    def log_probs(model: LogisticRegression, queries: numpy.ndarray) -> numpy.ndarray:
        found = numpy.full((len(queries), len(names)), FLOOR)
        found[:, model.classes_] = model.predict_log_proba(queries)
        return found

    order = numpy.random.default_rng(0).permutation(len(x))[:CV_EXAMPLES]
    folds = numpy.array_split(order, FOLDS)

    def merit(strength: float) -> tuple[float, float]:
        hits, likelihood = [], []
        for fold in folds:
            rest = numpy.setdiff1d(order, fold)
            if len(set(targets[rest].tolist())) < 2:
                return -1e9, -1e9
            scores = log_probs(fitted(rest, strength), features[fold])
            hits.append((scores.argmax(1) == targets[fold]).mean())
            likelihood.append(scores[numpy.arange(len(fold)), targets[fold]].mean())
        both = round(float(numpy.mean(hits)), 6), float(numpy.mean(likelihood))
        return both if by == "accuracy" else (both[1], both[0])

    model = fitted(numpy.arange(len(x)), max((0.3, 1.0, 3.0, 10.0, 30.0, 100.0), key=merit))
    return lambda queries: torch.from_numpy(log_probs(model, queries.numpy())).float()


BASELINES: dict[str, Baseline] = {
    "label names": names_alone,
    "prototypes": prototypes,
    "k-nearest neighbours": nearest_neighbours,
    "ridge": ridge,
    "logistic regression": logistic_regression,
    "logistic regression, C by likelihood": partial(logistic_regression, by="likelihood"),
}


def self_training(x: torch.Tensor, y: torch.Tensor, names: torch.Tensor, unlabelled: torch.Tensor) -> Answer:
    """Logistic regression that adds unlabelled texts of which it is sure (scikit-learn's SelfTrainingClassifier)."""
    return _semi_supervised(SelfTrainingClassifier(LogisticRegression(C=10.0, max_iter=300)), x, y, names, unlabelled)


def label_spreading(x: torch.Tensor, y: torch.Tensor, names: torch.Tensor, unlabelled: torch.Tensor) -> Answer:
    """Labels that spread over a graph of like texts (scikit-learn's LabelSpreading)."""
    return _semi_supervised(LabelSpreading(gamma=GAMMA), x, y, names, unlabelled)


def _semi_supervised(
    model: Any, x: torch.Tensor, y: torch.Tensor, names: torch.Tensor, unlabelled: torch.Tensor
) -> Answer:
    if len(y.unique()) < 2:
        return lambda queries: torch.nn.functional.one_hot(y[:1], len(names)).float().expand(len(queries), -1)
    targets = numpy.concatenate([y.numpy(), numpy.full(len(unlabelled), -1)])
    model.fit(torch.cat([x, unlabelled]).numpy(), targets)

    def answer(queries: torch.Tensor) -> torch.Tensor:
        found = numpy.full((len(queries), len(names)), FLOOR)
        found[:, model.classes_] = numpy.log(numpy.clip(model.predict_proba(queries.numpy()), numpy.exp(FLOOR), None))
        return torch.from_numpy(found).float()

    return answer


SEMI_SUPERVISED: dict[str, SemiSupervised] = {
    "self-training, 2,000 unlabelled": self_training,
    "label spreading, 2,000 unlabelled": label_spreading,
}
RIVALS = (*BASELINES, *SEMI_SUPERVISED)
CALIBRATED = (
    "logistic regression",
    "logistic regression, C by likelihood",
    *SEMI_SUPERVISED,
)  # those with probabilities
