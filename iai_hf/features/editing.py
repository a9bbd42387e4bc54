"""Edits of states on features (see `iai_hf.edits`): what a head's moments hold of examples is taken out exactly.

What follows the stream (a correction, the experts' weights, fast weights) bears traces of every example. Where texts
are retained it is made anew from them, as if they alone had been read; otherwise the header tells the share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from typing_extensions import TypeVar

from iai_hf.edits import Edited, check_counts, never_read
from iai_hf.errors import ConfigError
from iai_hf.features.adapted_features import (
    ADAPTED,
    EVIDENCE,
    RETAINED,
    WEIGHTS,
    AdaptedFeatures,
    AdaptedFeaturesConfig,
    as_part,
    part_of,
)
from iai_hf.features.fast_weights import Retained
from iai_hf.features.fast_weights.retained import MAX_CHARACTERS
from iai_hf.features.frozen_features import Config, FrozenFeatures, targets_of
from iai_hf.task import Chunk, TaskSpec, Tensors

DeepConfig = TypeVar("DeepConfig", bound=AdaptedFeaturesConfig, default=Any)


class EditableFeatures(FrozenFeatures[Config]):
    """Base of those whose head can be edited."""

    def forgotten(self, tensors: Tensors, task: TaskSpec, chunk: Chunk, examples: int, strict: bool) -> Edited:
        """As `Edits.forgotten`.

        Raises:
            ConfigError: there is a half-life, so that what is left of an example depends on when it was read.
            DataError: the state can't have read the chunk.
        """
        if self.config.half_life is not None:
            raise ConfigError(
                f"a state with a half-life, here {self.config.half_life}, does not know how much is left of an "
                "example, so it can't be told to forget one; it fades by itself, or adapt anew on the other data"
            )
        if not chunk.inputs:
            return Edited(tensors)
        head, targets = self.head_of(task), targets_of(chunk, task)
        gone = targets.sum(0) if targets.ndim == 2 else torch.bincount(targets, minlength=len(task.labels))
        check_counts(task, tensors["counts"].tolist(), gone.tolist())
        features, cut = self.features(chunk.inputs)
        with torch.no_grad():
            if not head.may_hold(tensors, features, targets):
                raise never_read("what would be left could be made of no examples")
            left = head.without(tensors, features, targets)
            share = len(chunk) / examples
            left = head.faded_steps(left, 0.0 if strict else 1 - share)
        approximate = dict.fromkeys(head.traces(left), share)
        return Edited(left, approximate, None, share, {"texts_cut": cut} if self.config.max_tokens else {})

    def regrouped(
        self, tensors: Tensors, before: TaskSpec, after: TaskSpec, places: Sequence[int | None], examples: int
    ) -> Edited:
        """As `Edits.regrouped`."""
        head, counts, ways = self.head_of(after), tensors["counts"], Counter(places)
        texts = float(head.examples(tensors))
        new = [number for number, label in enumerate(after.labels) if label not in before.labels]
        dropped = [number for number, place in enumerate(places) if place is None]
        joined = [number for number, place in enumerate(places) if ways[place] > 1 and place is not None]
        renamed = [number for number, place in enumerate(places) if place in new]
        touched = sorted({*dropped, *joined, *renamed})
        share = float(counts[touched].sum()) / texts if texts else 0.0
        kept = {number: place for number, place in enumerate(places) if place is not None}
        with torch.no_grad():
            for number in dropped:
                tensors = head.without_class(tensors, number)
            if dropped and head.exclusive:  # else the examples stay
                tensors = head.faded_steps(tensors, 1 - share)
            rows, to = (torch.tensor([*numbers], device=counts.device) for numbers in (kept, kept.values()))
            tensors = head.regrouped(tensors, rows, to, len(after.labels))
            if new:
                names = self.name_features([after.labels[number] for number in new])
                tensors = head.renamed(tensors, torch.tensor(new, device=counts.device), names)
        traces = head.traces(tensors) if dropped or joined else head.traces(tensors, of_stream=True)
        inexact = (*traces, *(head.estimated if dropped else ()))
        return Edited(tensors, dict.fromkeys(inexact, share) if share else {}, None, share)


class EditableDepth(AdaptedFeatures[DeepConfig], EditableFeatures[DeepConfig]):
    """The same with fast weights: these and all else that follows the stream are made anew from the retained examples.

    So nothing of what is forgotten remains, neither its text nor what was trained on it.
    """

    def forgotten(self, tensors: Tensors, task: TaskSpec, chunk: Chunk, examples: int, strict: bool) -> Edited:
        if not self.config.depth or not chunk.inputs:
            return super().forgotten(tensors, task, chunk, examples, strict)
        held = Retained.of(part_of(RETAINED, tensors))
        left = held.without(Retained.chunk(chunk.inputs, targets_of(chunk, task).tolist(), 0))
        floor = super().forgotten(part_of("", tensors), task, chunk, examples, strict)
        if len(held) == examples and len(held) - len(left) < len(chunk):
            raise never_read("all texts are retained, and these are not among them")
        made = self._made_anew(floor.tensors, task, left, examples - len(chunk))
        return replace(floor, tensors=made, approximate={}, restepped=len(left))

    def regrouped(
        self, tensors: Tensors, before: TaskSpec, after: TaskSpec, places: Sequence[int | None], examples: int
    ) -> Edited:
        if not self.config.depth:
            return super().regrouped(tensors, before, after, places, examples)
        floor: Tensors = part_of("", tensors)
        retained = Retained.of(part_of(RETAINED, tensors))
        if None not in places:
            edited = super().regrouped(floor, before, after, places, examples)
            adapted = super().regrouped(part_of(ADAPTED, tensors), before, after, places, examples).tensors
            inexact = dict.fromkeys((ADAPTED, WEIGHTS, EVIDENCE), edited.share) if edited.share else {}
            renumbered = retained.renumbered([int(place or 0) for place in places])
            made: Tensors = {
                **tensors,
                **edited.tensors,
                **as_part(ADAPTED, adapted),
                **as_part(RETAINED, renumbered.tensors()),
            }
            return replace(edited, tensors=made, approximate={**edited.approximate, **inexact})
        gone = [example for example in retained.examples if places[example.target] is None]
        share = sum(float(floor["counts"][number]) for number, place in enumerate(places) if place is None)
        share = share / float(floor["counts"].sum()) if share else 0.0
        floor = self._without_whole(floor, Retained(tuple(gone)))
        edited = super().regrouped(floor, before, after, places, examples)
        kept = Retained(tuple(example for example in retained.examples if places[example.target] is not None))
        kept = kept.renumbered([int(place or 0) for place in places])
        made = self._made_anew(edited.tensors, after, kept, examples - round(share * examples))
        inexact = {name: part for name, part in edited.approximate.items() if name in self.head.estimated}
        return replace(edited, tensors=made, approximate=inexact, restepped=len(kept), share=share)

    def _without_whole(self, floor: Tensors, gone: Retained) -> Tensors:
        """The head without those examples whose texts are retained whole, so that they need not be estimated."""
        whole = Retained(
            tuple(example for example in gone.examples if len(example.text.decode("utf-8", "ignore")) < MAX_CHARACTERS)
        )
        if not len(whole) or self.config.half_life is not None:
            return floor
        with torch.no_grad():
            return self.head.without(floor, self.features(whole.texts)[0], whole.targets)

    def _made_anew(self, floor: Tensors, task: TaskSpec, retained: Retained, examples: int) -> Tensors:
        """A state of the moments in `floor`, behind `examples` examples, all else of which comes from retained ones.

        As in a merge, the weights take the steps that lead from the retained examples to all.
        """
        made = self.initial(task)
        read = Retained(tuple(example for example in retained.examples if example.text.strip()))
        if len(read):
            outputs = tuple(task.labels[number] for number in read.targets.tolist())
            made, _ = self.refine(made, task, Chunk(tuple(read.texts), outputs), 0)
        exact = {name: floor[name] for name in self.head.moments}
        if len(read) == examples:
            return {**made, **exact}
        adapted, weights = {**part_of(ADAPTED, made), "counts": floor["counts"].clone()}, part_of(WEIGHTS, made)
        if len(read):
            adapted = dict(self._from_retained(adapted, weights, retained))
            weights = dict(self._trained_on(weights, adapted, task, retained, len(read), examples))
            adapted = dict(self._from_retained(adapted, weights, retained))
        else:  # the weights are without effect, so that features are the frozen ones
            adapted |= {name: tensor.clone() for name, tensor in exact.items()}
        return {
            **made,
            **exact,
            **as_part(ADAPTED, adapted),
            **as_part(WEIGHTS, weights),
            **as_part(RETAINED, retained.tensors()),
        }
