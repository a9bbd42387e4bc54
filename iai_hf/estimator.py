"""IAIClassifier: any method as a scikit-learn estimator. Wants scikit-learn, which this package does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from iai_hf import values
from iai_hf.auto import AutoAmortizer, amortizer_class, methods
from iai_hf.config import whole_number
from iai_hf.errors import ConfigError, DataError
from iai_hf.label_indicators import LabelSets, are_sets, indicators, label_sets
from iai_hf.task import Chunk, Kind, TaskSpec

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Inputs = Sequence[str] | Any  # or an array of numbers, `[n, columns]`


class IAIClassifier(ClassifierMixin, BaseEstimator):
    """Texts, or rows of numbers where the method reads those, to labels, through a task state.

    Texts come as a sequence, a frame's column, or a frame or an array of one column. Where rows have any number of
    labels, `y` is an indicator matrix (a frame names its columns, and with them the labels) or a list of lists of
    labels; `predict` gives a matrix, and `predict_proba` each label's own probability, as `OneVsRestClassifier` does.

    Args:
        method: registered name, folder or Hub id of an amortizer.
        backbone: Hub id, folder or a loaded one; by default the method's own.
        config: settings of the method.
        chunk_size: examples an update.
        shuffle_seed: `fit` reads the rows in an order permuted from this seed, since classes should be mixed within a
            chunk; None keeps theirs, as `partial_fit` does.
        unlabelled: take rows whose label is -1, as in `sklearn.semi_supervised`, or missing, for rows without one. By
            default -1 is a class like any other, and a missing label an error.

    Attributes:
        state_: the `TaskState` so far.
        classes_: labels in ascending order, of a matrix in that of its columns; so are `predict_proba`'s, `[classes]`.
        multilabel_: whether rows have any number of labels.
    """

    def __init__(
        self,
        method: str = "iterative",
        backbone: Any = None,
        config: Mapping[str, Any] | None = None,
        chunk_size: int = 64,
        shuffle_seed: int | None = 0,
        unlabelled: bool = False,
    ) -> None:
        self.method, self.backbone, self.config, self.chunk_size = method, backbone, config, chunk_size
        self.shuffle_seed, self.unlabelled = shuffle_seed, unlabelled

    def fit(self, X: Inputs, y: ArrayLike) -> IAIClassifier:
        """Adapt from the initial state to texts `[n]`, or numbers `[n, columns]`, and their labels `[n]`.

        Of several labels a row, `y` is an indicator matrix `[n, classes]`, or `n` lists of labels.

        Raises:
            DataError: texts or labels that are none, as many labels as rows not given, or a single class.
            ConfigError: a setting that is not known or out of range, or rows without a label for a method of others.
            ValueError: numbers or labels that scikit-learn refuses.
        """
        labels, known, classes = self._labels(y)
        if len(classes) < (least := 1 if isinstance(labels, LabelSets) else 2):
            raise DataError(f"y has {len(classes)} class; expected at least {'two classes' if least == 2 else 'one'}")
        with self._all_or_nothing():
            self._update(X, labels, known, classes, first=True, shuffled=self.shuffle_seed is not None)
        return self

    def partial_fit(self, X: Inputs, y: ArrayLike, classes: ArrayLike | None = None) -> IAIClassifier:
        """Go on with more examples.

        Args:
            classes: labels known ahead, at the first call; those that turn up later are added.

        Raises:
            DataError, ConfigError, ValueError: as `fit`.
        """
        first = not hasattr(self, "state_")
        labels, known, ahead = self._labels(y)
        if isinstance(labels, LabelSets):
            labels = labels if classes is None else labels.named(classes)
            ahead = _array(labels.classes)
        else:
            ahead = labels[:0] if classes is None else numpy.unique(_labels(classes, "classes"))
        if not first and classes is not None and (unknown := set(ahead.tolist()) - set(self._names)):
            raise DataError(f"classes has {sorted(unknown)}; labels ahead are named at the first call alone")
        with self._all_or_nothing():
            self._update(X, labels, known, ahead, first, shuffled=False)
        return self

    def predict(self, X: Inputs) -> numpy.ndarray:
        """The likeliest label of each input, `[n]`; of several labels which apply, int64 `[n, classes]`."""
        check_is_fitted(self, "state_")
        if self.multilabel_:
            found = self.amortizer_.predict(self.state_, self._inputs(X, first=False))
            return indicators(found.outputs, [self._names[label] for label in self.classes_.tolist()])
        likeliest = self.predict_proba(X).argmax(1)
        return self.classes_[likeliest]

    def predict_proba(self, X: Inputs) -> numpy.ndarray:
        """Probabilities, float32 `[n, classes]`."""
        check_is_fitted(self, "state_")
        found = self.amortizer_.predict(self.state_, self._inputs(X, first=False))
        scores = found.probabilities if found.log_probs is None else found.log_probs.exp()
        assert scores is not None
        columns = [found.labels.index(self._names[label]) for label in self.classes_.tolist()]
        return scores.numpy()[:, columns]

    def score(self, X: Inputs, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Accuracy; of several labels the share of rows whose set is right, as scikit-learn has it."""
        check_is_fitted(self, "state_")
        if self.multilabel_ and are_sets(y):
            rows, known = label_sets(y, "y").rows, set(self.classes_.tolist())
            more = [label for row in rows for label in row if label not in known]
            classes = [*self.classes_.tolist(), *dict.fromkeys(more)]
            answers = numpy.pad(self.predict(X), ((0, 0), (0, len(classes) - len(self.classes_))))
            return float(accuracy_score(indicators(rows, classes), answers, sample_weight=sample_weight))
        return float(super().score(X, y, sample_weight))

    def _labels(self, y: Any) -> tuple[numpy.ndarray | LabelSets, numpy.ndarray, numpy.ndarray]:
        """Labels of the rows that have one, which rows these are, bool `[n]`, and the classes.

        Labels are an array `[labelled]`, or sets where a row has any number of them.
        """
        if y is not None and are_sets(y):
            if self.unlabelled:
                raise ConfigError("with several labels a row there are no rows without one; leave unlabelled at False")
            found = label_sets(y, "y")
            return found, numpy.ones(len(found.rows), dtype=bool), _array(found.classes)
        labels, known = self._label_of_each(y)
        return labels, known, numpy.unique(labels)

    def _label_of_each(self, y: Any) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Labels of the rows that have one, `[labelled]`, and which rows these are, bool `[n]`."""
        if not self.unlabelled or y is None:
            labels = _labels(y, "y")
            return labels, numpy.ones(len(labels), dtype=bool)
        given = numpy.asarray(y, dtype=object).ravel()
        if "-1" in [label for label in given.tolist() if isinstance(label, str)]:
            raise DataError(
                "y has the text '-1', as numpy makes of -1 in an array of texts; mark rows without a label by None, or "
                "pass a list or an array of dtype=object"
            )
        known = numpy.array([not values.missing(label) and (isinstance(label, str) or label != -1) for label in given])
        if not known.any():
            return given[:0], known
        labels = given[known]
        return _labels(labels if isinstance(labels[0], str) else numpy.asarray(labels.tolist()), "y"), known

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Where what is done inside fails, the estimator is as it was."""
        before = dict(self.__dict__)
        try:
            yield
        except BaseException:
            self.__dict__ = before
            raise

    def _update(
        self,
        X: Inputs,
        labels: numpy.ndarray | LabelSets,
        known: numpy.ndarray,
        ahead: numpy.ndarray,
        first: bool,
        shuffled: bool,
    ) -> None:
        size, several = whole_number("chunk_size", self.chunk_size, at_least=1), isinstance(labels, LabelSets)
        inputs = self._inputs(X, first)
        if len(inputs) != len(known):
            raise DataError(f"X has {len(inputs)} rows and y {len(known)} labels; expected as many")
        if first:
            self.amortizer_ = AutoAmortizer.from_pretrained(self.method, backbone=self.backbone, config=self.config)
            columns = tuple(f"x{number}" for number in range(len(inputs[0]))) if self._reads_numbers() else ()
            named = tuple(map(str, ahead.tolist()))
            kind: Kind = "multi-label" if several else "classification"
            self.state_ = self.amortizer_.init_state(TaskSpec(kind, named, columns=columns))
            self.classes_, self._names = ahead, dict(zip(ahead.tolist(), named, strict=True))
            self.multilabel_ = several
        if several != self.multilabel_:
            raise DataError(
                f"y has {'any number of labels' if several else 'one label'} a row, what was read before "
                f"{'one' if several else 'any number'}; go on as it began, or fit anew"
            )
        outputs: list[Any] = self._sets(labels) if isinstance(labels, LabelSets) else self._single(labels)
        labelled = [inputs[i] for i in numpy.flatnonzero(known).tolist()]
        others = [inputs[i] for i in numpy.flatnonzero(~known).tolist()]
        for start in range(0, len(others), size):
            self.state_ = self.amortizer_.update(self.state_, Chunk((), (), tuple(others[start : start + size])))
        order = numpy.arange(len(labelled))
        if shuffled:  # a table that is sorted by class would come in chunks of one class
            seed = whole_number("shuffle_seed", self.shuffle_seed, at_least=0)
            order = numpy.random.default_rng(seed).permutation(len(labelled))
        for start in range(0, len(labelled), size):
            part = order[start : start + size].tolist()
            chunk = Chunk(tuple(labelled[i] for i in part), tuple(outputs[i] for i in part))
            self.state_ = self.amortizer_.update(self.state_, chunk)
        if not isinstance(labels, LabelSets) and len(labels):
            self.classes_ = numpy.unique(numpy.concatenate([self.classes_, labels]) if len(self.classes_) else labels)

    def _single(self, labels: numpy.ndarray) -> list[str]:
        """Names of labels, one a row."""
        if len(labels) and len(self.classes_) and (self.classes_.dtype.kind == "U") != (labels.dtype.kind == "U"):
            raise DataError(f"y has labels like {labels[0]!r}, the classes are {self.classes_.tolist()}; use one type")
        # A label is the one that it equals: 0.0 goes on with the class 0.
        self._names = {label: str(label) for label in labels.tolist()} | self._names
        return [self._names[label] for label in labels.tolist()]

    def _sets(self, sets: LabelSets) -> list[tuple[str, ...]]:
        """Names of the labels of each row; labels of lists that were not known are classes from now on."""
        known = self.classes_.tolist()
        if sets.matrix and sets.classes != known:
            raise DataError(f"y has the columns {sets.classes[:5]}, the classes are {known[:5]}; go on with the same")
        if new := [label for label in sets.classes if label not in known]:
            if not all(isinstance(label, str) for label in known):
                raise DataError(f"y has labels like {new[0]!r}, the classes are {known[:5]}; use one type")
            self.classes_ = _array(sorted([*known, *new]))
            self._names = {label: label for label in new} | self._names
        return [tuple(self._names[label] for label in row) for row in sets.rows]

    def _inputs(self, X: Inputs, first: bool) -> Sequence[Any]:
        """Texts, or tuples of numbers, checked."""
        if self._reads_numbers():
            return [tuple(map(float, row)) for row in validate_data(self, X, reset=first)]
        validate_data(self, X, reset=first, skip_check_array=True, ensure_2d=False)  # the frame's column, by its name
        return values.texts(X, "X[{}]")

    def _reads_numbers(self) -> bool:
        known = self.method if self.method in methods() else AutoAmortizer.describe(self.method)["method"]
        return amortizer_class(known).reads == "numbers"

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = self._reads_numbers()
        tags.input_tags.string = not self._reads_numbers()
        tags.classifier_tags.multi_label = not self._reads_numbers()
        return tags


def _labels(y: Any, name: str) -> numpy.ndarray:
    """Labels `[n]`, texts or numbers; a column `[n, 1]` is one with scikit-learn's warning.

    Raises:
        DataError: a label is missing or empty, or texts and others are mixed; numpy would make the text "nan" of it.
        ValueError: no labels of classes, e.g. measured values.
    """
    if y is None:
        raise DataError("fit requires y to be passed, but the target y is None; expected a label a row")
    written = numpy.asarray(y, dtype=object)
    given = written.ravel().tolist()
    if (written.ndim > 1 and written.shape[1] > 1) or any(map(values.is_set, given)):
        raise DataError(f"{name} has several labels a row; expected one, or a name for each class")
    for number, label in enumerate(given):
        if isinstance(label, str) or values.missing(label):
            values.text(label, f"{name}[{number}]")
    if len({isinstance(label, str) for label in given}) > 1:
        raise DataError(
            f"{name} has labels that are text and others that are not; expected one type (where -1 or None marks rows "
            "without a label, IAIClassifier(unlabelled=True) reads them as such)"
        )
    check_classification_targets(y)
    labels = column_or_1d(y, warn=True)
    return labels.astype(str) if given and isinstance(given[0], str) else labels


def _array(classes: Sequence[Any]) -> numpy.ndarray:
    """Classes as an array of one type; numbers beside texts stay what they are."""
    texts = [isinstance(label, str) for label in classes]
    return numpy.array(classes, dtype=object if any(texts) and not all(texts) else None)
