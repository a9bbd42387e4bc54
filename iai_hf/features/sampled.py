"""KeepsSample: a sample of what a state has read, beside the head's tensors, which are the same with it and without."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from iai_hf.edits import Edited
from iai_hf.features.editing import EditableFeatures
from iai_hf.features.frozen_features import Config, targets_of
from iai_hf.features.heads.calibration import Sample, drawn
from iai_hf.features.heads.converged import Compact
from iai_hf.task import Chunk, TaskSpec, Tensors

KINDS: tuple[type[Sample], ...] = (Sample, Compact)


class KeepsSample(EditableFeatures[Config]):
    """Base of those whose state keeps a sample; one that has begun in 8 bits stays so."""

    @abstractmethod
    def kind(self, task: TaskSpec) -> type[Sample] | None:
        """Which kind of sample a state of the task keeps; None for none."""

    @abstractmethod
    def limit(self, kind: type[Sample]) -> int:
        """Examples that a sample of the kind has at most."""

    def sampled(self, task: TaskSpec, chunk: Chunk, features: torch.Tensor, targets: torch.Tensor) -> Tensors:
        kind = self.kind(task)
        return {} if kind is None else kind.read(chunk.inputs, features, targets).tensors

    def refine(
        self, tensors: Tensors, task: TaskSpec, chunk: Chunk, examples: int
    ) -> tuple[Tensors, Mapping[str, int]]:
        refined, counts = super().refine(without_sample(tensors), task, chunk, examples)
        return self._joined(refined, sample_of(tensors), sample_of(refined)), counts

    def prepare(self, tensors: Tensors, task: TaskSpec) -> Any:
        return super().prepare(without_sample(tensors), task)

    def absorb(self, tensors: Tensors, task: TaskSpec, inputs: Sequence[str]) -> tuple[Tensors, Mapping[str, int]]:
        absorbed, counts = super().absorb(without_sample(tensors), task, inputs)
        return self._joined(absorbed, sample_of(tensors)), counts

    def combine(self, parts: Sequence[tuple[Tensors, TaskSpec]], task: TaskSpec) -> Tensors:
        place = {label: number for number, label in enumerate(task.labels)}
        samples = [
            (sample := sample_of(tensors)) and sample.regrouped([place[label] for label in part.labels])
            for tensors, part in parts
        ]
        plain = [(without_sample(tensors), part) for tensors, part in parts]
        sizes = [float(self.head_of(task).examples(tensors)) for tensors, _ in plain]
        merged = self._caught_up(super().combine(plain, task), task, samples, sizes)
        return self._joined(merged, *samples)

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
        edited, sample = super().forgotten(without_sample(tensors), task, chunk, examples, strict), sample_of(tensors)
        left = sample.without(chunk.inputs, targets_of(chunk, task)) if sample is not None else None
        return replace(edited, tensors=self._joined(edited.tensors, left))

    def regrouped(
        self, tensors: Tensors, before: TaskSpec, after: TaskSpec, places: Sequence[int | None], examples: int
    ) -> Edited:
        edited, sample = super().regrouped(without_sample(tensors), before, after, places, examples), sample_of(tensors)
        return replace(edited, tensors=self._joined(edited.tensors, sample and sample.regrouped(places)))

    def _joined(self, tensors: Tensors, *samples: Sample | None) -> Tensors:
        """The tensors and one sample, in 8 bits where any is."""
        known = [sample for sample in samples if sample is not None]
        if any(isinstance(sample, Compact) for sample in known):
            known = [sample if isinstance(sample, Compact) else Compact.from_sample(sample) for sample in known]
        if not known:
            return tensors
        return {**without_sample(tensors), **known[0].joined(known[1:], self.limit(type(known[0]))).tensors}


def sample_of(tensors: Tensors) -> Sample | None:
    """A state's sample, None where it has none."""
    return next((sample for kind in KINDS if (sample := kind.of(tensors)) is not None), None)


def without_sample(tensors: Tensors) -> Tensors:
    """A state's tensors without its sample."""
    prefixes = tuple(kind.prefix for kind in KINDS)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}
