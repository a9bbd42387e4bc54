"""IAIClassifier: any method as a scikit-learn estimator. Wants scikit-learn, which this package does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from iai_hf import values
from iai_hf.auto import AutoAmortizer, amortizer_class, methods
from iai_hf.config import whole_number
from iai_hf.errors import DataError
from iai_hf.task import Chunk, TaskSpec

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Inputs = Sequence[str] | Any  # or an array of numbers, `[n, columns]`


class IAIClassifier(ClassifierMixin, BaseEstimator):
    """Texts, or rows of numbers where the method reads those, to labels, through a task state.

    Texts come as a sequence, a frame's column, or a frame or an array of one column.

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
        classes_: labels in ascending order, which is that of `predict_proba`'s columns, `[classes]`.
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

        Raises:
            DataError: texts or labels that are none, as many labels as rows not given, or a single class.
            ConfigError: a setting that is not known or out of range, or rows without a label for a method of others.
            ValueError: numbers or labels that scikit-learn refuses.
        """
        labels, known = self._labels(y)
        classes = numpy.unique(labels)
        if len(classes) < 2:
            raise DataError(f"y has {len(classes)} class; expected at least two classes")
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
        labels, known = self._labels(y)
        ahead = labels[:0] if classes is None else numpy.unique(_labels(classes, "classes"))
        if not first and (unknown := set(ahead.tolist()) - set(self._names)):
            raise DataError(f"classes has {sorted(unknown)}; labels ahead are named at the first call alone")
        with self._all_or_nothing():
            self._update(X, labels, known, ahead, first, shuffled=False)
        return self

    def predict(self, X: Inputs) -> numpy.ndarray:
        """The likeliest label of each input, `[n]`."""
        likeliest = self.predict_proba(X).argmax(1)
        return self.classes_[likeliest]

    def predict_proba(self, X: Inputs) -> numpy.ndarray:
        """Probabilities, float32 `[n, classes]`."""
        check_is_fitted(self, "state_")
        found = self.amortizer_.predict(self.state_, self._inputs(X, first=False))
        assert found.log_probs is not None
        columns = [found.labels.index(self._names[label]) for label in self.classes_.tolist()]
        return found.log_probs.exp().numpy()[:, columns]

    def _labels(self, y: Any) -> tuple[numpy.ndarray, numpy.ndarray]:
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
        labels: numpy.ndarray,
        known: numpy.ndarray,
        ahead: numpy.ndarray,
        first: bool,
        shuffled: bool,
    ) -> None:
        size = whole_number("chunk_size", self.chunk_size, at_least=1)
        inputs = self._inputs(X, first)
        if len(inputs) != len(known):
            raise DataError(f"X has {len(inputs)} rows and y {len(known)} labels; expected as many")
        if first:
            self.amortizer_ = AutoAmortizer.from_pretrained(self.method, backbone=self.backbone, config=self.config)
            columns = tuple(f"x{number}" for number in range(len(inputs[0]))) if self._reads_numbers() else ()
            named = tuple(map(str, ahead.tolist()))
            self.state_ = self.amortizer_.init_state(TaskSpec("classification", named, columns=columns))
            self.classes_, self._names = ahead, dict(zip(ahead.tolist(), named, strict=True))
        if len(labels) and len(self.classes_) and (self.classes_.dtype.kind == "U") != (labels.dtype.kind == "U"):
            raise DataError(f"y has labels like {labels[0]!r}, the classes are {self.classes_.tolist()}; use one type")
        # A label is the one that it equals: 0.0 goes on with the class 0.
        self._names = {label: str(label) for label in labels.tolist()} | self._names
        outputs = [self._names[label] for label in labels.tolist()]
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
        if len(labels):
            self.classes_ = numpy.unique(numpy.concatenate([self.classes_, labels]) if len(self.classes_) else labels)

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
        raise DataError(
            f"{name} has several labels a row, this estimator reads one; `adapt` reads lists of labels, which "
            "MultiLabelBinarizer.inverse_transform makes of an indicator matrix"
        )
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
