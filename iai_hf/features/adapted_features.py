"""Amortizers whose state reaches into the backbone: fast weights of the last layers, on top of a head that stays.

A state of depth 0 is the head on frozen features (`frozen_features.py`), and so is the floor of every deeper one.
Beside it stands the same head on features under the task's own low-rank weights. A chunk is

1. answered by both, which is the evidence for one or the other (`fast_weights/evidence.py`);
2. absorbed by both heads, the adapted one on features that were not yet trained on it, so that what it learns about its
   own reliability is honest;
3. added to the retained examples, which are trained on through the adapted head (`fast_weights/weights.py`);
4. read again, as far as examples were retained, so that the adapted head's moments fit the weights.

Queries are read once, under whichever weights are ahead.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from typing_extensions import TypeVar

from iai_hf.backbones.adapter import FeatureAdapter
from iai_hf.backbones.low_rank import LowRank
from iai_hf.config import ABSENT, APART, require
from iai_hf.features.fast_weights import PRIOR_GAIN, Descent, Evidence, FastWeights, Retained, Schedule, batches
from iai_hf.features.frozen_features import FrozenFeatures, FrozenFeaturesConfig, targets_of
from iai_hf.features.parts import as_part, part_of
from iai_hf.learned import AUTO
from iai_hf.task import Chunk, Prediction, TaskSpec, Tensors

if TYPE_CHECKING:
    import torch

    from iai_hf.backbones import Backbone
    from iai_hf.state import TaskState

log = logging.getLogger(__name__)
SMALLEST_PART, LARGEST_PART = 8, 64  # examples between two answers that count as evidence
LEAST_PER_CLASS = 0.5  # examples, before which nothing is trained: there is too little to learn, and much to unlearn
REREAD_RATIO = 1.5  # examples are read again each time they have become so many times as many
REREAD_TOKENS = 128  # of a text, in gradient steps and where it is read again
ADAPTED, WEIGHTS, RETAINED, EVIDENCE = "adapted.", "low_rank.", "retained.", "evidence."  # of tensors' names
OF_DEPTH = ("rank", "learning_rate", "steps", "batch_size", "retained_bytes")  # settings that say nothing without one


@dataclass(frozen=True)
class AdaptedFeaturesConfig(FrozenFeaturesConfig):
    """Settings of amortizers with fast weights.

    Attributes:
        depth: of the backbone's last layers so many get weights of the task's own; 0 leaves the backbone as it is,
            "auto" takes all layers that a feature comes from. States of before there was any have 0.
        rank: of these weights.
        learning_rate: of their steps, of Adam.
        steps: gradient steps on n examples: `steps * sqrt(n)`, and at least one for a batch; on retained ones.
        batch_size: examples a step.
        retained_bytes: of text that the state may keep as it is, to train on it again.
    """

    depth: int | str = field(default=0, metadata={ABSENT: 0, **APART})
    rank: int = field(default=4, metadata={ABSENT: 4, **APART})
    learning_rate: float = field(default=1e-3, metadata={ABSENT: 1e-3, **APART})
    steps: float = field(default=5.0, metadata={ABSENT: 5.0, **APART})
    batch_size: int = field(default=32, metadata={ABSENT: 32, **APART})
    retained_bytes: int = field(default=65536, metadata={ABSENT: 65536, **APART})

    def __post_init__(self) -> None:
        super().__post_init__()
        sound = self.depth == AUTO if isinstance(self.depth, str) else self.depth >= 0
        require(sound, f"depth is {self.depth!r}; expected 0 or more layers, or {AUTO!r}")
        for name in set(OF_DEPTH) - {"steps"}:
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; expected more than 0")
        require(
            not (self.watch and self.depth),
            f"watch is set, and depth is {self.depth!r}: a state is watched on frozen features; leave one of them out",
        )
        if not self.depth:
            fields = {field.name: field.default for field in dataclasses.fields(AdaptedFeaturesConfig)}
            idle = [name for name in OF_DEPTH if getattr(self, name) != fields[name]]
            require(not idle, f"{', '.join(idle)} is set, but depth is 0, where nothing is trained; set depth too")
        require(self.steps >= 0, f"steps is {self.steps}; expected 0 or more")


Config = TypeVar("Config", bound=AdaptedFeaturesConfig, default=Any)


@dataclass(frozen=True, eq=False)
class Prepared:
    """What answers: a prepared head, and the weights under which the backbone gives the features that it takes.

    Attributes:
        plain: the backbone without the task's own weights.
        low_rank: these, None where frozen features answer.
        factor: of the logits.
    """

    head: Any
    plain: Backbone
    low_rank: LowRank | None
    factor: float

    @cached_property
    def backbone(self) -> Backbone:
        """With the weights merged: a copy of their layers, made where queries are asked of this state alone."""
        if self.low_rank is None:
            return self.plain
        return FeatureAdapter(self.low_rank, self.plain.fingerprint).merged(self.plain)


class AdaptedFeatures(FrozenFeatures[Config]):
    """Base class: frozen features where depth is 0; a subclass's head must take its moments anew (`Head.reread`)."""

    @cached_property
    def fast_weights(self) -> FastWeights:
        """What moves. Its backbone has no such layers: BackboneError."""
        depth = self.config.depth
        return FastWeights(self.backbone, depth if isinstance(depth, int) else None, self.config.rank)

    @classmethod
    def summary(cls, state: TaskState) -> dict[str, str]:
        if EVIDENCE + "gain" not in state.tensors:
            return super().summary(state)
        evidence = Evidence(**part_of(EVIDENCE, state.tensors))
        adapted = evidence.prefers_adapted and _moved(state.tensors)
        return {
            **super().summary(state),
            "answers from": f"{'adapted' if adapted else 'frozen'} features",
            "gain of adapted features": f"{float(evidence.gain):+.1f} nats in all on examples that they had not seen",
            "frozen ones answer": f"where they are ahead by {PRIOR_GAIN:g} nats",
            "texts kept in the state": f"{len(Retained.of(part_of(RETAINED, state.tensors))):,}",
        }

    def bytes_a_label(self, task: TaskSpec) -> int:
        return super().bytes_a_label(task) * (2 if self.config.depth else 1)

    def initial(self, task: TaskSpec) -> Tensors:
        floor = super().initial(task)
        if not self.config.depth:
            return floor
        return {
            **floor,
            **as_part(ADAPTED, {name: tensor.clone() for name, tensor in floor.items()}),  # a file holds none twice
            **as_part(WEIGHTS, self.fast_weights.initial()),
            **as_part(RETAINED, Retained().tensors()),
            **as_part(EVIDENCE, Evidence.none().tensors()),
        }

    def read_ahead(self, chunk: Chunk) -> None:
        if not self.config.depth:  # else chunks are read in parts, and retained texts again
            super().read_ahead(chunk)

    def refine(
        self, tensors: Tensors, task: TaskSpec, chunk: Chunk, examples: int
    ) -> tuple[Tensors, Mapping[str, int]]:
        if not self.config.depth:
            return super().refine(tensors, task, chunk, examples)
        import torch

        counts = {"texts_cut": 0} if self.config.max_tokens else {}
        with torch.inference_mode(False):  # under which nothing could be trained
            tensors = {name: tensor.clone() if tensor.is_inference() else tensor for name, tensor in tensors.items()}
            for part in _parts(chunk, examples):
                tensors, cut = self._refined(tensors, task, part, examples)
                examples += len(part)
                if self.config.max_tokens:
                    counts["texts_cut"] += cut
        return tensors, counts

    def _refined(self, tensors: Tensors, task: TaskSpec, part: Chunk, seen: int) -> tuple[Tensors, int]:
        """The tensors after a part of a chunk behind `seen` examples, and how many of its texts were cut."""
        import torch

        floor: Tensors = part_of("", tensors)
        adapted: Tensors = part_of(ADAPTED, tensors)
        weights: Tensors = part_of(WEIGHTS, tensors)
        evidence = Evidence(**part_of(EVIDENCE, tensors))
        targets = targets_of(part, task)
        # Layers below the first one that is adapted are read once for frozen and adapted features.
        reading = self.backbone.prefill_texts(part.inputs, self.config.max_tokens, self.fast_weights.first_layer)
        frozen = self.backbone.features(reading)
        frozen_features = self.projected(frozen.vectors)
        new = Retained.chunk(part.inputs, targets.tolist(), seen)
        retained = Retained.of(part_of(RETAINED, tensors)).joined(
            new, self.config.retained_bytes, self.config.half_life
        )
        schedule, after = self._schedule, seen + len(part)
        begun = _moved(tensors)
        enough = begun or _enough(after, task)
        steps = schedule.between(seen if begun else 0, after) if enough else 0
        # What will hardly be passed again is learned from as it comes.
        passing = enough and schedule.steps > 0 and (len(retained) < after or steps * schedule.batch_size < len(part))
        rate = schedule.rate_after(after)
        if passing and not steps:
            rate *= min(1.0, len(part) / schedule.batch_size)  # so that it does not matter in how many parts they come
        descent = Descent(self.fast_weights, weights, steps + passing, rate)
        whole = max(reading.lengths, default=0) <= self._reread_tokens
        shown = self._differentiable(reading if whole else part.inputs, descent) if passing else None
        if shown is not None and whole:
            features = shown.detach()
        else:
            features = self._read(reading, weights, self.config.max_tokens)
        known = targets < len(floor["counts"])  # of classes that came with this chunk nobody could know
        if len(floor["counts"]) > 1 and bool(known.any()):
            with torch.no_grad():
                evidence = evidence.after(
                    self.head.logits(self.head.prepare(floor), frozen_features[known]),
                    self.head.logits(self.head.prepare(adapted), features[known]),
                    targets[known],
                    torch.tensor(seen, dtype=torch.float32),
                )
        floor = self.absorbed(floor, task, frozen_features, targets)
        adapted = self.absorbed(adapted, task, features, targets)
        if shown is not None:
            descent.step(self.head.logits(self._standing(adapted), shown), targets, torch.ones(len(part)))
        self._descend(descent, adapted, retained, steps)
        weights = descent.tensors
        adapted = self._reread(adapted, weights, retained, seen, after)
        return {
            **floor,
            **as_part(ADAPTED, adapted),
            **as_part(WEIGHTS, weights),
            **as_part(RETAINED, retained.tensors()),
            **as_part(EVIDENCE, evidence.tensors()),
        }, frozen.cut

    @property
    def _schedule(self) -> Schedule:
        return Schedule(self.config.steps, self.config.learning_rate, self.config.batch_size)

    def _descend(self, descent: Descent, adapted: Tensors, retained: Retained, steps: int) -> None:
        """So many steps on retained examples, through the closed form of the adapted head."""
        if not steps:
            return
        if not len(retained):
            log.warning("no text fits into retained_bytes=%d, so none is trained on yet", self.config.retained_bytes)
            return
        head, texts, targets = self._standing(adapted), retained.texts, retained.targets
        shares = retained.weights(self.config.half_life)
        drawn = list(itertools.islice(batches(len(texts), self.config.batch_size, seed=len(texts) + steps), steps))
        place = {number: place for place, number in enumerate(sorted(set(itertools.chain(*drawn))))}
        reading = self.fast_weights.backbone.prefill_texts(
            [texts[number] for number in place], self._reread_tokens, self.fast_weights.first_layer
        )
        for batch in drawn:
            shown = self._differentiable(reading.rows([place[number] for number in batch]), descent)
            descent.step(self.head.logits(head, shown), targets[batch], shares[batch] / shares.mean())

    def _trained_on(
        self, weights: Tensors, adapted: Tensors, task: TaskSpec, retained: Retained, before: int, after: int
    ) -> Tensors:
        """The weights after the steps that lead from `before` examples to `after`, on those that were retained."""
        steps = self._schedule.between(before if _enough(before, task) else 0, after)
        steps = steps if _enough(after, task) else 0
        descent = Descent(self.fast_weights, weights, steps, self._schedule.rate_after(after))
        self._descend(descent, adapted, retained, steps)
        return descent.tensors

    def _differentiable(self, texts: Sequence[str], descent: Descent) -> torch.Tensor:
        """Features of texts, as far as one is read again, differentiable in the weights."""
        import torch

        with torch.enable_grad():
            backbone = self.fast_weights.backbone
            found = backbone.differentiable_features(texts, self._reread_tokens, (descent.low_rank,))
            return self.projected(found.vectors)

    def _standing(self, adapted: Tensors) -> Any:
        """The adapted head, prepared; no gradient goes through its making."""
        import torch

        with torch.no_grad():
            return self.head.prepare(adapted)

    def _reread(self, adapted: Tensors, weights: Tensors, retained: Retained, before: int, after: int) -> Tensors:
        """The adapted head's tensors with moments that fit the weights, where all examples are there to be read again.

        That is done each time a stream has become half as long again, so it costs three passes in all.
        """
        due = math.floor(math.log(after, REREAD_RATIO)) > math.floor(math.log(max(before, 1), REREAD_RATIO))
        return self._from_retained(adapted, weights, retained) if due and len(retained) == after else adapted

    def _from_retained(self, adapted: Tensors, weights: Tensors, retained: Retained) -> Tensors:
        """The adapted head's tensors with moments of the retained examples, which stand for all that it counts."""
        import torch

        if not len(retained):
            return adapted
        features = self._read(retained.texts, weights, self._reread_tokens)
        shares = retained.weights(self.config.half_life)
        with torch.no_grad():
            return self.head.reread(
                adapted, features, retained.targets, shares * (adapted["counts"].sum() / shares.sum())
            )

    def _read(self, texts: Sequence[str], weights: Tensors, max_tokens: int | None) -> torch.Tensor:
        """Features of texts under the task's own weights, `[texts, feature_size]`."""
        low_rank = self.fast_weights.low_rank(weights)
        return self.projected(self.backbone.features(texts, max_tokens, (low_rank,)).vectors)

    @property
    def _reread_tokens(self) -> int:
        return min(self.config.max_tokens or REREAD_TOKENS, REREAD_TOKENS)

    def prepare(self, tensors: Tensors, task: TaskSpec) -> Any:
        if not self.config.depth:
            return super().prepare(tensors, task)
        evidence = Evidence(**part_of(EVIDENCE, tensors))
        if not (_moved(tensors) and evidence.prefers_adapted):
            return Prepared(super().prepare(part_of("", tensors), task), self.backbone, None, 1.0)
        low_rank = self.fast_weights.low_rank(part_of(WEIGHTS, tensors))
        head = super().prepare(part_of(ADAPTED, tensors), task)
        return Prepared(head, self.fast_weights.backbone, low_rank, float(evidence.factor(len(task.labels))))

    def answer(self, prepared: Any, task: TaskSpec, queries: Sequence[str]) -> Prediction:
        if not self.config.depth:
            return super().answer(prepared, task, queries)
        features = self.projected(prepared.backbone.features(queries, self.config.max_tokens).vectors)
        return self._answered(prepared, task, features)

    def answer_each(
        self, prepared: Sequence[Any], tasks: Sequence[TaskSpec], queries: Sequence[Any]
    ) -> list[Prediction]:
        if not self.config.depth:
            return super().answer_each(prepared, tasks, queries)
        weights = {id(made): made.low_rank for made in prepared if made.low_rank is not None}
        index = {key: place for place, key in enumerate(weights)}
        indices = [index.get(id(made), -1) for made in prepared]
        found = self.backbone.features(queries, self.config.max_tokens, tuple(weights.values()), indices)
        features = self.projected(found.vectors)
        return [
            self._answered(made, task, features[i : i + 1])
            for i, (made, task) in enumerate(zip(prepared, tasks, strict=True))
        ]

    def _answered(self, prepared: Prepared, task: TaskSpec, features: torch.Tensor) -> Prediction:
        import torch

        with torch.no_grad():
            return Prediction.from_logits(prepared.factor * self.head.logits(prepared.head, features), task.labels)

    def combine(self, parts: Sequence[tuple[Tensors, TaskSpec]], task: TaskSpec) -> Tensors:
        """The floor is merged as ever; weights are averaged, and trained on what was retained of all parts.

        The steps are those that lead from the largest part's number of examples to that of all.
        """
        floor = super().combine([(part_of("", tensors), part) for tensors, part in parts], task)
        if not self.config.depth:
            return floor
        counts = [float(tensors["counts"].sum()) for tensors, _ in parts]
        adapted = super().combine([(part_of(ADAPTED, tensors), part) for tensors, part in parts], task)
        weights = self.fast_weights.average(
            [(part_of(WEIGHTS, tensors), count) for (tensors, _), count in zip(parts, counts, strict=True)]
        )
        class_of = {label: place for place, label in enumerate(task.labels)}
        retained = Retained()
        for tensors, part in parts:
            own = Retained.of(part_of(RETAINED, tensors)).renumbered([class_of[label] for label in part.labels])
            retained = retained.joined(own, self.config.retained_bytes, self.config.half_life)
        evidence = [Evidence(**part_of(EVIDENCE, tensors)) for tensors, _ in parts]
        adapted = self._from_retained(adapted, weights, retained)
        weights = self._trained_on(weights, adapted, task, retained, round(max(counts)), round(sum(counts)))
        return {
            **floor,
            **as_part(ADAPTED, self._from_retained(adapted, weights, retained)),
            **as_part(WEIGHTS, weights),
            **as_part(RETAINED, retained.tensors()),
            **as_part(EVIDENCE, Evidence.merged(evidence).tensors()),
        }


def _enough(examples: float, task: TaskSpec) -> bool:
    """Whether so many examples are enough to train on."""
    return examples >= LEAST_PER_CLASS * len(task.labels)


def _moved(tensors: Tensors) -> bool:
    """Whether a state's fast weights have been trained: until then they are without effect."""
    return any(bool(tensor.any()) for name, tensor in tensors.items() if name.startswith(f"{WEIGHTS}up"))


def _parts(chunk: Chunk, seen: int) -> Iterator[Chunk]:
    """A chunk in parts, each at most as large as what was read before it."""
    first = 0
    while first < len(chunk):
        last = first + min(max(SMALLEST_PART, seen + first), LARGEST_PART)
        yield Chunk(chunk.inputs[first:last], chunk.outputs[first:last])
        first = last
