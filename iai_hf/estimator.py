"""IAIClassifier: any method as a scikit-learn estimator. Wants scikit-learn, which this package does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from iai_hf.auto import AutoAmortizer, amortizer_class, methods
from iai_hf.errors import DataError
from iai_hf.task import Chunk, TaskSpec

Inputs = Sequence[str] | Any  # or an array of numbers, `[n, columns]`


class IAIClassifier(ClassifierMixin, BaseEstimator):
    """Texts, or rows of numbers where the method reads those, to labels, through a task state.

    Args:
        method: registered name, folder or Hub id of an amortizer.
        backbone: Hub id, folder or a loaded one; by default the method's own.
        config: settings of the method.
        chunk_size: examples an update.

    Attributes:
        state_: the `TaskState` so far.
        classes_: labels in the order of `predict_proba`'s columns, `[classes]`.
    """

    def __init__(
        self,
        method: str = "iterative",
        backbone: Any = None,
        config: Mapping[str, Any] | None = None,
        chunk_size: int = 64,
    ) -> None:
        self.method, self.backbone, self.config, self.chunk_size = method, backbone, config, chunk_size

    def fit(self, X: Inputs, y: Sequence[Any]) -> IAIClassifier:
        """Adapt from the initial state to texts `[n]`, or numbers `[n, columns]`, and their labels `[n]`.

        Raises:
            DataError: texts that are none, as many labels as texts not given, or a single class.
            ValueError: numbers that scikit-learn refuses.
        """
        check_classification_targets(y)
        labels = numpy.unique(numpy.asarray(y))
        if len(labels) < 2:
            raise DataError(f"y has {len(labels)} class; expected at least two classes")
        self.__dict__.pop("state_", None)
        return self.partial_fit(X, y, labels.tolist())

    def partial_fit(self, X: Inputs, y: Sequence[Any], classes: Sequence[Any] | None = None) -> IAIClassifier:
        """Go on with more examples.

        Args:
            classes: labels known ahead, at the first call; those that turn up later are appended.

        Raises:
            DataError, ValueError: as `fit`.
        """
        first = not hasattr(self, "state_")
        inputs, labels = self._checked(X, y, first)
        if first:
            self.amortizer_ = AutoAmortizer.from_pretrained(self.method, backbone=self.backbone, config=self.config)
            known = [] if classes is None else list(classes)
            columns = tuple(f"x{number}" for number in range(len(inputs[0]))) if self._reads_numbers() else ()
            self.state_ = self.amortizer_.init_state(
                TaskSpec("classification", tuple(map(str, known)), columns=columns)
            )
            self.classes_ = numpy.asarray(known)
        for start in range(0, len(inputs), self.chunk_size):
            part = slice(start, start + self.chunk_size)
            self.state_ = self.amortizer_.update(self.state_, Chunk(tuple(inputs[part]), tuple(map(str, labels[part]))))
        by_name = {str(label): label for label in [*self.classes_, *labels]}
        self.classes_ = numpy.asarray([by_name[name] for name in self.state_.task.labels])
        return self

    def predict(self, X: Inputs) -> numpy.ndarray:
        """The likeliest label of each input, `[n]`."""
        likeliest = self.predict_proba(X).argmax(1)
        return self.classes_[likeliest]

    def predict_proba(self, X: Inputs) -> numpy.ndarray:
        """Probabilities, float32 `[n, classes]`."""
        check_is_fitted(self, "state_")
        queries = _rows(validate_data(self, X, reset=False)) if self._reads_numbers() else list(X)
        scores = self.amortizer_.predict(self.state_, queries).log_probs
        assert scores is not None
        return scores.exp().numpy()

    def _checked(self, X: Inputs, y: Sequence[Any], first: bool) -> tuple[Sequence[Any], list[Any]]:
        """Inputs and labels, as many of each."""
        if self._reads_numbers():
            rows, labels = validate_data(self, X, y, reset=first)
            return _rows(rows), labels.tolist()
        texts, labels = list(X), list(y)
        if len(texts) != len(labels) or not texts:
            raise DataError(f"got {len(texts)} texts and {len(labels)} labels; expected as many, and at least one")
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"X[{number}] is {type(text).__name__}; expected text")
        return texts, labels

    def _reads_numbers(self) -> bool:
        known = self.method if self.method in methods() else AutoAmortizer.describe(self.method)["method"]
        return amortizer_class(known).reads == "numbers"

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = self._reads_numbers()
        tags.input_tags.string = not self._reads_numbers()
        return tags


def _rows(numbers: numpy.ndarray) -> list[tuple[float, ...]]:
    return [tuple(map(float, row)) for row in numbers]
