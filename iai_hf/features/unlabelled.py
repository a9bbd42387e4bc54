"""TakesUnlabelled: rows without a label in a state on features, kept as a sample (see `heads/unlabelled.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from iai_hf.edits import Edited, never_read
from iai_hf.errors import DataError
from iai_hf.features.editing import EditableFeatures
from iai_hf.features.frozen_features import Config
from iai_hf.features.heads.unlabelled import PREFIX, Sample, split
from iai_hf.methods import check_one_label
from iai_hf.posterior import half_life_decay
from iai_hf.task import Chunk, TaskSpec

if TYPE_CHECKING:
    import torch


class TakesUnlabelled(EditableFeatures[Config]):
    """Base of those whose head reads the sample beside its own tensors, which are the same with it and without."""

    takes_unlabelled = True

    def absorb(
        self, tensors: Mapping[str, torch.Tensor], task: TaskSpec, inputs: Sequence[str]
    ) -> tuple[Mapping[str, torch.Tensor], Mapping[str, int]]:
        """The sample with more texts; with a half-life it follows the newest ones, counted in unlabelled texts.

        Raises:
            ConfigError: texts have several labels.
        """
        instead = "leave these out; a text to which no label applies is one with an empty list, and tells something"
        check_one_label(task, "reading rows without a label, or queries that inform each other,", instead)
        features, cut = self.features(inputs)
        labelled, sample = split(tensors)
        new = Sample.read(features, inputs)
        if sample is not None:
            decay = half_life_decay(len(inputs), self.config.half_life)
            new = (sample if self.config.half_life is None else sample.faded(decay)).joined(new)
        return {**labelled, **new.tensors}, {"texts_cut": cut} if self.config.max_tokens else {}

    def refine(
        self, tensors: Mapping[str, torch.Tensor], task: TaskSpec, chunk: Chunk, examples: int
    ) -> tuple[Mapping[str, torch.Tensor], Mapping[str, int]]:
        labelled, sample = split(tensors)
        refined, counts = super().refine(labelled, task, chunk, examples)
        return refined if sample is None else {**refined, **sample.tensors}, counts

    def combine(
        self, parts: Sequence[tuple[Mapping[str, torch.Tensor], TaskSpec]], task: TaskSpec
    ) -> Mapping[str, torch.Tensor]:
        apart = [split(tensors) for tensors, _ in parts]
        merged = super().combine([(found[0], part[1]) for found, part in zip(apart, parts, strict=True)], task)
        samples = [sample for _, sample in apart if sample is not None]
        return {**merged, **samples[0].joined(*samples[1:]).tensors} if samples else merged

    def forgotten(
        self, tensors: Mapping[str, torch.Tensor], task: TaskSpec, chunk: Chunk, examples: int, strict: bool
    ) -> Edited:
        """As `EditableFeatures.forgotten`; unlabelled texts go from the sample."""
        labelled, sample = split(tensors)
        edited = super().forgotten(labelled, task, chunk, examples, strict)
        if not chunk.unlabelled:
            return edited if sample is None else replace(edited, tensors={**edited.tensors, **sample.tensors})
        if sample is None:
            raise DataError("got unlabelled rows to forget; the state has read none")
        if not sample.may_hold(chunk.unlabelled):
            raise never_read("unlabelled ones")
        left, read = sample.without(chunk.unlabelled), float(sample.rows)
        approximate = dict(edited.approximate)
        if read > len(sample.priorities):  # one that was pushed out, or came twice, would have had its place
            approximate[PREFIX] = min(len(chunk.unlabelled) / read, 1.0)
        kept = left.tensors if float(left.rows) else {}
        return replace(edited, tensors={**edited.tensors, **kept}, approximate=approximate)

    def regrouped(
        self,
        tensors: Mapping[str, torch.Tensor],
        before: TaskSpec,
        after: TaskSpec,
        places: Sequence[int | None],
        examples: int,
    ) -> Edited:
        labelled, sample = split(tensors)
        edited = super().regrouped(labelled, before, after, places, examples)
        return edited if sample is None else replace(edited, tensors={**edited.tensors, **sample.tensors})
