"""Converging: answers of many classes, in which regression on kept examples has its share (`heads/converged.py`)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch

from iai_hf.features.calibrated import Examples, ScoresSample
from iai_hf.features.frozen_features import Config
from iai_hf.features.heads.calibration import Sample
from iai_hf.features.heads.converged import FEWEST_CLASSES, Compact, Converged, converged
from iai_hf.features.sampled import sample_of, without_sample
from iai_hf.task import TaskSpec, Tensors

if TYPE_CHECKING:
    from iai_hf.features.heads import ParametricHead
    from iai_hf.state import TaskState


class _Converging(Protocol):
    """Settings of those that fit regression."""

    converged_examples: int


class Converging(ScoresSample[Config]):
    """Base of those whose head is a `ParametricHead`.

    Nothing is fitted under fast weights, nor where a stream is watched or has a half-life, since the kept examples
    would have to change with the features, or fade. It begins once as many labels are known as it is for; from then on
    the sample is in 8 bits, and larger.
    """

    def kind(self, task: TaskSpec) -> type[Sample] | None:
        config = self.config
        stands = config.half_life is None and not config.watch and not getattr(config, "depth", 0)
        many = task.kind == "classification" and len(task.labels) >= FEWEST_CLASSES
        kept = super().kind(task)  # from the first example on, else what is kept would not be drawn from all
        return Compact if stands and many and self._examples and kept is not None else kept

    def limit(self, kind: type[Sample]) -> int:
        return max(self._examples, super().limit(kind)) if kind is Compact else super().limit(kind)

    @property
    def _examples(self) -> int:
        return cast("_Converging", self.config).converged_examples

    def prepare(self, tensors: Tensors, task: TaskSpec) -> Any:
        prepared, found = super().prepare(tensors, task), self._converged(tensors, task)
        return prepared if found is None else found.beside(*prepared)

    def unread(self, state: TaskState, examples: Examples) -> torch.Tensor:
        logits, sample = super().unread(state, examples), sample_of(state.tensors)
        found = self._converged(state.tensors, state.task)
        if found is None or sample is None:
            return logits
        return found.unread(logits, examples.features, sample.priorities[: len(logits)])

    def _converged(self, tensors: Tensors, task: TaskSpec) -> Converged | None:
        """Regression on what a state's tensors keep for it, None where it does not count."""
        sample, head = sample_of(tensors), cast("ParametricHead", self.head)
        if not isinstance(sample, Compact):
            return None
        with torch.no_grad():
            return converged(sample, len(task.labels), partial(head.never_read, without_sample(tensors)))
