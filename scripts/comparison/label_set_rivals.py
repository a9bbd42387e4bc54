"""Rivals for several labels a text: scikit-learn's on given features, with thresholds that cross-validation chooses."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.multioutput import ClassifierChain
from sklearn.neighbors import KNeighborsClassifier

Array = numpy.ndarray[Any, Any]
Fit = Callable[[Array, Array, Array, Any], Array]
FOLDS = 3
GRID = numpy.linspace(0.02, 0.98, 49)
THRESHOLDS = ("at .5", "one tuned", "tuned by label")


def macro_f1(right: Array, given: Array) -> float:
    """Mean F1 of the labels that occur."""
    hits, sizes = (right & given).sum(0), right.sum(0) + given.sum(0)
    return float((2 * hits / numpy.maximum(sizes, 1))[right.any(0)].mean())


def logistic_regression(x: Array, y: Array, queries: Array, setting: Mapping[str, Any]) -> Array:
    """One against the rest, for each label; one that no example has is never given."""
    found = numpy.zeros((len(queries), y.shape[1]))
    for label in range(y.shape[1]):
        if y[:, label].all() or not y[:, label].any():
            found[:, label] = y[0, label]
        else:
            model = LogisticRegression(max_iter=200, **setting).fit(x, y[:, label])
            found[:, label] = model.predict_proba(queries)[:, 1]
    return found


def chain(x: Array, y: Array, queries: Array, setting: Mapping[str, Any]) -> Array:
    """A classifier chain (Read et al. 2011) in a random order, of the labels that some example has and some has not."""
    known = numpy.flatnonzero(y.any(0) & ~y.all(0))
    found = numpy.repeat(y[:1].astype(float), len(queries), axis=0)
    if len(known):
        model = ClassifierChain(LogisticRegression(max_iter=200, **setting), order="random", random_state=0)
        found[:, known] = model.fit(x, y[:, known].astype(int)).predict_proba(queries)
    return found


def neighbours(x: Array, y: Array, queries: Array, setting: Mapping[str, Any]) -> Array:
    """Shares of the nearest neighbours, weighted by distance, that have a label."""
    count = min(setting["n_neighbors"], len(x))
    model = KNeighborsClassifier(count, weights="distance", metric="euclidean").fit(x, y.astype(int))
    each = model.predict_proba(queries)
    columns = zip(each, model.classes_, strict=True)
    return numpy.stack([shares[:, -1] if classes[-1] else numpy.zeros(len(queries)) for shares, classes in columns], 1)


RIVALS: Mapping[str, tuple[Fit, Sequence[Mapping[str, Any]]]] = {
    "logistic regression": (logistic_regression, [{"C": c} for c in (1.0, 10.0, 100.0)]),
    "logistic regression, balanced": (
        logistic_regression,
        [{"C": c, "class_weight": "balanced"} for c in (0.1, 1.0, 10.0)],
    ),
    "classifier chain": (chain, [{"C": 10.0}, {"C": 100.0}]),  # of which one-vs-rest nearly always takes one
    "nearest neighbours": (neighbours, [{"n_neighbors": k} for k in (1, 3, 10, 30)]),
}


def answers(rival: str, x: Array, y: Array, queries: Array) -> tuple[Array, dict[str, Array]]:
    """Probabilities `[queries, C]`, and by each of `THRESHOLDS` the thresholds `[C]`.

    The setting is the one whose cross-validated macro-F1, at the one threshold that is best for it, is the highest.
    """
    fit, settings = RIVALS[rival]
    parts = numpy.array_split(numpy.random.default_rng(0).permutation(len(x)), FOLDS)
    best: tuple[float, Any, float, Array] | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for setting in settings:
            apart = numpy.zeros(y.shape)
            for part in parts:
                rest = numpy.setdiff1d(numpy.arange(len(x)), part)
                apart[part] = fit(x[rest], y[rest], x[part], setting)
            scores = [macro_f1(y, apart > threshold) for threshold in GRID] if y.any() else [0.0]
            place = int(numpy.argmax(scores))
            if best is None or scores[place] > best[0]:
                best = scores[place], setting, float(GRID[place]), apart
        assert best is not None
        _, setting, one, apart = best
        probabilities = fit(x, y, queries, setting)
    own = numpy.array([_threshold(apart[:, label], y[:, label]) for label in range(y.shape[1])])
    return probabilities, {
        "at .5": numpy.full(y.shape[1], 0.5),
        "one tuned": numpy.full(y.shape[1], one),
        "tuned by label": own,
    }


def _threshold(scores: Array, right: Array) -> float:
    """That of the highest F1, between two scores; of a label that no example has .5."""
    if not right.any():
        return 0.5
    order = numpy.argsort(-scores, kind="stable")
    ordered, hits = scores[order], numpy.cumsum(right[order])
    f1 = 2 * hits / (numpy.arange(1, len(scores) + 1) + right.sum())
    last = numpy.append(ordered[:-1] != ordered[1:], True)
    place = int(numpy.argmax(numpy.where(last, f1, -1)))
    below = ordered[place + 1] if place + 1 < len(ordered) else ordered[place] - 1e-6
    return float((ordered[place] + below) / 2)
