"""IAIClassifier: any method as a scikit-learn estimator of texts. Wants scikit-learn, which this package does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from iai_hf.auto import AutoAmortizer
from iai_hf.errors import DataError
from iai_hf.task import Chunk, TaskSpec


class IAIClassifier(ClassifierMixin, BaseEstimator):
    """Texts to labels, through a task state.

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

    def fit(self, X: Sequence[str], y: Sequence[Any]) -> IAIClassifier:
        """Adapt from the initial state to texts `[n]` and their labels `[n]`.

        Raises:
            DataError: texts that are none, as many labels as texts not given, or a single class.
        """
        self.__dict__.pop("state_", None)
        labels = numpy.unique(numpy.asarray(y))
        if len(labels) < 2:
            raise DataError(f"y has {len(labels)} class(es); expected at least two")
        return self.partial_fit(X, y, labels.tolist())

    def partial_fit(self, X: Sequence[str], y: Sequence[Any], classes: Sequence[Any] | None = None) -> IAIClassifier:
        """Go on with more texts and labels.

        Args:
            classes: labels known ahead, at the first call; those that turn up later are appended.

        Raises:
            DataError: as `fit`.
        """
        texts, labels = list(X), list(y)
        if len(texts) != len(labels) or not texts:
            raise DataError(f"got {len(texts)} texts and {len(labels)} labels; expected as many, and at least one")
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"X[{number}] is {type(text).__name__}; expected text")
        if not hasattr(self, "state_"):
            self.amortizer_ = AutoAmortizer.from_pretrained(self.method, backbone=self.backbone, config=self.config)
            known = [] if classes is None else list(classes)
            self.state_ = self.amortizer_.init_state(TaskSpec("classification", tuple(map(str, known))))
            self.classes_ = numpy.asarray(known)
        for first in range(0, len(texts), self.chunk_size):
            part = slice(first, first + self.chunk_size)
            self.state_ = self.amortizer_.update(self.state_, Chunk(tuple(texts[part]), tuple(map(str, labels[part]))))
        by_name = {str(label): label for label in [*self.classes_, *labels]}
        self.classes_ = numpy.asarray([by_name[name] for name in self.state_.task.labels])
        return self

    def predict(self, X: Sequence[str]) -> numpy.ndarray:
        """The likeliest label of each text, `[n]`."""
        likeliest = self.predict_proba(X).argmax(1)
        return self.classes_[likeliest]

    def predict_proba(self, X: Sequence[str]) -> numpy.ndarray:
        """Probabilities, float32 `[n, classes]`."""
        check_is_fitted(self, "state_")
        scores = self.amortizer_.predict(self.state_, list(X)).log_probs
        assert scores is not None
        return scores.exp().numpy()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags
