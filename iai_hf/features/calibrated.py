"""Answers with a stated error (`iai_hf.answering`), from examples that the head leaves out (`heads/calibration.py`)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import torch

from iai_hf.answering import too_few
from iai_hf.errors import ConfigError
from iai_hf.features.frozen_features import Config, FrozenFeatures
from iai_hf.features.heads.calibration import MOST, Sample, Scored, label_scores, text_scores
from iai_hf.features.heads.implicit import ImplicitHead
from iai_hf.features.sampled import KeepsSample, sample_of, without_sample
from iai_hf.task import Prediction, TaskSpec

if TYPE_CHECKING:
    from iai_hf.state import TaskState


class Examples(NamedTuple):
    """Different examples that a state has read: features `[m, d]`, classes, how often, what each counts for, `[m]`."""

    features: torch.Tensor
    targets: torch.Tensor
    times: torch.Tensor
    weights: torch.Tensor


class _Sampling(Protocol):
    """Settings of those that keep a sample."""

    calibration_examples: int


class ConformalFeatures(FrozenFeatures[Config]):
    """Base of those whose state has examples that the head can leave out."""

    @abstractmethod
    def examples(self, state: TaskState) -> Examples:
        """Examples that the state has read."""

    @property
    @abstractmethod
    def most(self) -> int:
        """Examples that a state keeps at most."""

    def no_stated_error(self) -> str | None:
        """Why states can't state their error, None where they can."""
        if self.config.watch:
            return "watches its stream takes it to change, where nothing can be promised; adapt with watch=False"
        if self.config.half_life is not None:
            return "with a half-life does not know how much is left of an example; adapt without one"
        return None

    def answer_within(
        self, state: TaskState, queries: Sequence[str], coverage: float | None, abstain: float | None
    ) -> Prediction:
        """As `Answers.answer_within`.

        Raises:
            ConfigError: the state keeps no examples that it could leave out.
            StateError: it keeps too few.
        """
        if (why := self.no_stated_error()) is not None:
            raise ConfigError(f"a state of {self.method!r} can't state the error of its answers: one that {why}")
        scored: Scored = self.made(state, "scored", lambda: self.scored(state))
        limits = {}
        for name, share, rate, scores in (
            ("coverage", coverage, 1 - (coverage or 0), scored.labels),
            ("abstain", abstain, abstain or 0, scored.texts),
        ):
            limits[name] = scored.threshold(scores, rate) if share is not None else None
            if share is not None and limits[name] is None:
                raise too_few(name, share, math.ceil(1 / rate - 1e-9) - 1, len(scores), self.most)
        with torch.no_grad():
            logits = self.head.logits(self.prepared(state), self.features(queries)[0])
            labels, strange = label_scores(logits), text_scores(logits, state.tensors["counts"])
        prediction, names = Prediction.from_logits(logits, state.task.labels), state.task.labels
        if limits["abstain"] is not None:
            pairs = zip(prediction.outputs, (strange > limits["abstain"]).tolist(), strict=True)
            prediction = replace(prediction, outputs=tuple(None if odd else output for output, odd in pairs))
        if limits["coverage"] is not None:
            inside = zip(prediction.outputs, (labels <= limits["coverage"]).tolist(), strict=True)
            sets = tuple(
                None if output is None else tuple(name for name, is_in in zip(names, row, strict=True) if is_in)
                for output, row in inside
            )
            prediction = replace(prediction, sets=sets)
        return prediction

    def scored(self, state: TaskState) -> Scored:
        """The state's examples, scored as if they had not been read."""
        examples = self.examples(state)
        weights = examples.weights
        with torch.no_grad():
            logits = self.unread(state, examples)
            own = label_scores(logits).gather(1, examples.targets[:, None])[:, 0]
            weights = weights * (len(weights) / weights.sum().clamp(min=1e-6))
            return Scored(own, text_scores(logits, state.tensors["counts"]), weights)

    def unread(self, state: TaskState, examples: Examples) -> torch.Tensor:
        """The state's logits `[m, C]` for its examples, as if they had not been read."""
        features, targets, times, _ = examples
        return self.head.unread(without_sample(state.tensors), features, targets, times)


class ScoresObservations(ConformalFeatures[Config]):
    """Those whose state is observations; a class that has lost some to the budget counts as before."""

    def examples(self, state: TaskState) -> Examples:
        features, targets, counts = (state.tensors[name] for name in ("features", "targets", "counts"))
        drawn = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))[:MOST].to(targets.device)
        chosen = targets[drawn].long()
        here = torch.bincount(chosen, minlength=len(counts)).clamp(min=1)
        return Examples(features[drawn].float(), chosen, torch.ones_like(chosen), (counts / here)[chosen])

    @property
    def most(self) -> int:
        return min(MOST, cast("ImplicitHead", self.head).budget)


class ScoresSample(ConformalFeatures[Config], KeepsSample[Config]):
    """Those whose state keeps a sample of its examples beside the head's tensors, which are the same with and without.

    There is none under fast weights, which have been trained on the examples, nor with a half-life, where it is not
    known how much of an example is left.
    """

    @property
    def most(self) -> int:
        return cast("_Sampling", self.config).calibration_examples

    def no_stated_error(self) -> str | None:
        if getattr(self.config, "depth", 0):
            return "has weights that were trained on its examples can't leave one out; adapt with depth=0"
        if not self.most:
            return (
                "was adapted with calibration_examples=0, or by a version without that setting, keeps no examples to "
                f"leave out; adapt anew with calibration_examples={MOST}"
            )
        return super().no_stated_error()

    def examples(self, state: TaskState) -> Examples:
        sample = sample_of(state.tensors) or self._none(state)
        features, targets, times = (tensor[: self.most] for tensor in (sample.vectors, sample.targets, sample.times))
        return Examples(features, targets.long(), times.long(), torch.ones_like(times).float())

    def _none(self, state: TaskState) -> Sample:
        names = state.tensors["names"]
        return Sample.read([], names[:0], torch.zeros(0, dtype=torch.long, device=names.device))

    def kind(self, task: TaskSpec) -> type[Sample] | None:
        return Sample if self.no_stated_error() is None and task.kind == "classification" else None

    def limit(self, kind: type[Sample]) -> int:
        return self.most
