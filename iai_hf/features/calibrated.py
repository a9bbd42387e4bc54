"""Answers with a stated error (`iai_hf.answering`), from examples that the head leaves out (`heads/calibration.py`)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import torch

from iai_hf.answering import too_few
from iai_hf.edits import Edited
from iai_hf.errors import ConfigError
from iai_hf.features.editing import EditableFeatures
from iai_hf.features.frozen_features import Config, FrozenFeatures, targets_of
from iai_hf.features.heads.calibration import MOST, PREFIX, Sample, Scored, drawn, label_scores, text_scores
from iai_hf.features.heads.implicit import ImplicitHead
from iai_hf.task import Chunk, Prediction, TaskSpec, Tensors

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
        features, targets, times, weights = self.examples(state)
        tensors = {name: part for name, part in state.tensors.items() if not name.startswith(PREFIX)}
        with torch.no_grad():
            logits = self.head.unread(tensors, features, targets, times)
            own = label_scores(logits).gather(1, targets[:, None])[:, 0]
            weights = weights * (len(weights) / weights.sum().clamp(min=1e-6))
            return Scored(own, text_scores(logits, state.tensors["counts"]), weights)


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


class ScoresSample(ConformalFeatures[Config], EditableFeatures[Config]):
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
        sample = Sample.of(state.tensors) or self._none(state)
        times = sample.times.long()
        return Examples(sample.features.float(), sample.targets.long(), times, torch.ones_like(times).float())

    def _none(self, state: TaskState) -> Sample:
        names = state.tensors["names"]
        return Sample.read([], names[:0], torch.zeros(0, dtype=torch.long, device=names.device))

    def sampled(self, task: TaskSpec, chunk: Chunk, features: torch.Tensor, targets: torch.Tensor) -> Tensors:
        if self.no_stated_error() is not None or task.kind != "classification":
            return {}
        return Sample.read(chunk.inputs, features, targets).tensors

    def refine(
        self, tensors: Tensors, task: TaskSpec, chunk: Chunk, examples: int
    ) -> tuple[Tensors, Mapping[str, int]]:
        before, plain = self._apart(tensors)
        refined, counts = super().refine(plain, task, chunk, examples)
        new, plain = self._apart(refined)
        return self._joined(plain, before, new), counts

    def prepare(self, tensors: Tensors, task: TaskSpec) -> Any:
        return super().prepare(self._apart(tensors)[1], task)

    def absorb(
        self, tensors: Tensors, task: TaskSpec, inputs: Sequence[str]
    ) -> tuple[Mapping[str, torch.Tensor], Mapping[str, int]]:
        sample, plain = self._apart(tensors)
        absorbed, counts = super().absorb(plain, task, inputs)
        return self._joined(absorbed, sample), counts

    def combine(self, parts: Sequence[tuple[Tensors, TaskSpec]], task: TaskSpec) -> Tensors:
        apart = [(*self._apart(tensors), part) for tensors, part in parts]
        place = {label: number for number, label in enumerate(task.labels)}
        samples = [sample and sample.regrouped([place[label] for label in part.labels]) for sample, _, part in apart]
        merged = super().combine([(plain, part) for _, plain, part in apart], task)
        sizes = [float(self.head_of(task).examples(plain)) for _, plain, _ in apart]
        return self._joined(self._caught_up(merged, task, samples, sizes), *samples)

    def _caught_up(
        self, merged: Tensors, task: TaskSpec, samples: Sequence[Sample | None], sizes: Sequence[float]
    ) -> Tensors:
        """As `Head.caught_up`, by all that was kept of the parts, where each part that has examples kept some."""
        pairs = [(sample, size) for sample, size in zip(samples, sizes, strict=True) if size >= 0.5]
        known = [(sample, size) for sample, size in pairs if sample is not None and len(sample.times)]
        if len(known) < len(pairs) or not known:
            return merged
        kept, read = zip(*known, strict=True)
        with torch.no_grad():
            return self.head_of(task).caught_up(merged, *drawn(kept, read), read)

    def forgotten(self, tensors: Tensors, task: TaskSpec, chunk: Chunk, examples: int, strict: bool) -> Edited:
        """As `EditableFeatures.forgotten`; the examples go from the sample, others do not come in their place."""
        sample, plain = self._apart(tensors)
        edited = super().forgotten(plain, task, chunk, examples, strict)
        left = sample.without(chunk.inputs, targets_of(chunk, task)) if sample is not None else None
        return replace(edited, tensors=self._joined(edited.tensors, left))

    def regrouped(
        self, tensors: Tensors, before: TaskSpec, after: TaskSpec, places: Sequence[int | None], examples: int
    ) -> Edited:
        sample, plain = self._apart(tensors)
        edited = super().regrouped(plain, before, after, places, examples)
        return replace(edited, tensors=self._joined(edited.tensors, sample and sample.regrouped(places)))

    def _apart(self, tensors: Tensors) -> tuple[Sample | None, Tensors]:
        """The sample, where there is one, and what else there is."""
        return Sample.of(tensors), {name: part for name, part in tensors.items() if not name.startswith(PREFIX)}

    def _joined(self, tensors: Tensors, *samples: Sample | None) -> Tensors:
        """The tensors and one sample."""
        known = [sample for sample in samples if sample is not None]
        return {**tensors, **known[0].joined(known[1:], self.most).tensors} if known else tensors
