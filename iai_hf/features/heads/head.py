"""The contract of a head: the same three steps as an amortizer's, on features instead of texts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from iai_hf.features.heads.calibration import FOLD
from iai_hf.hyperparameters import Hyperparameters, saved_as
from iai_hf.task import Prediction, Tensors

TEMPLATES = ("{}", "This is about {}.", "{} news", "This expresses {}.")  # ways in which a label's name is put


class Head(nn.Module, ABC):
    """A streaming classifier on features `[n, d]`, float32, whose learned parameters start at a known solver.

    Equivariant to a permutation of the classes by construction; any number of classes. `refine` is pure.

    Attributes:
        per_class: tensors of the state whose rows are classes.
        additive: tensors that are sums over examples: they are added in a merge, and fade.
        moments: those of them that are sums of what examples are alone, so that one can be taken out again.
        stepped: tensors that follow the stream, zeros at first, out of which no example can be taken.
        estimated: moments that hold no class's own part.
        exclusive: whether an example has one class, or any number of them.
        hyperparameters: at first those that are given.
    """

    per_class: ClassVar[tuple[str, ...]]
    additive: ClassVar[tuple[str, ...]]
    moments: ClassVar[tuple[str, ...]]
    stepped: ClassVar[tuple[str, ...]] = ()
    estimated: ClassVar[tuple[str, ...]] = ()
    exclusive: ClassVar[bool] = True

    def __init__(self, hyperparameters: Mapping[str, float]) -> None:
        super().__init__()
        # The plain name alone, at first.
        self.template_weights = nn.Parameter(torch.tensor([1.0] + [0.0] * (len(TEMPLATES) - 1), dtype=torch.float32))
        self.hyperparameters = Hyperparameters(hyperparameters)
        saved_as(self, {"hyperparameters": "numbers"})

    @abstractmethod
    def initial(self, size: int) -> Tensors:
        """The state of no example and no class; `size` is d."""

    @abstractmethod
    def refine(self, tensors: Tensors, features: torch.Tensor, targets: torch.Tensor) -> Tensors:
        """The state after a chunk: features `[n, d]`, class numbers int64 `[n]`.

        Here and below, targets of a head that is not `exclusive` are bool `[n, C]`.
        """

    @abstractmethod
    def prepare(self, tensors: Tensors) -> Any:
        """All that answering does not need the query for."""

    @abstractmethod
    def logits(self, prepared: Any, features: torch.Tensor) -> torch.Tensor:
        """`[n, C]` of queries `[n, d]`."""

    def predicted(self, prepared: Any, features: torch.Tensor, labels: tuple[str, ...]) -> Prediction:
        """The answers to queries `[n, d]`."""
        return Prediction.from_logits(self.logits(prepared, features), labels)

    def examples(self, tensors: Tensors) -> torch.Tensor:
        """Labelled examples behind a state, or a chunk's moments, `[]`."""
        return tensors["counts"].sum()

    def unread(
        self, tensors: Tensors, features: torch.Tensor, targets: torch.Tensor, times: torch.Tensor
    ) -> torch.Tensor:
        """Logits `[n, C]` of different absorbed examples, each as if it and the others of its fold had not been read.

        Args:
            features, targets: of the examples, `[n, d]` and int64 `[n]`.
            times: how often each was absorbed, `[n]`.
        """
        logits = features.new_zeros(len(features), len(tensors["counts"]))
        folds = math.ceil(len(features) / max(1, int(FOLD * float(self.examples(tensors)))))
        for first in range(folds):
            fold, own, often = features[first::folds], targets[first::folds], times[first::folds]
            left = self.without(tensors, fold.repeat_interleave(often, 0), own.repeat_interleave(often, 0))
            logits[first::folds] = self.logits(self.prepare(left), fold)
        return logits

    def grow(self, tensors: Tensors, names: torch.Tensor) -> Tensors:
        """The state with new classes, whose names have the features `[templates, new, d]`."""
        more = {name: grown(tensors[name], names.shape[1]) for name in self.per_class}
        mixed = self.mixed_names(names).to(torch.float16)
        return {**tensors, **more, "names": torch.cat([tensors["names"], mixed])}

    def reread(self, tensors: Tensors, features: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> Tensors:
        """The state with what it knows of its examples taken from other features of the same ones.

        Args:
            features: of all examples, `[n, d]`.
            targets: int64 `[n]`.
            weights: how much each example counts, `[n]`.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps more of its examples than sums")

    def merge(self, parts: Sequence[Tensors]) -> Tensors:
        """The state of all examples from the states of disjoint parts of them, whose classes are in the same order.

        Exact for the additive tensors; a subclass says what becomes of others.
        """
        merged = dict(parts[0])
        for name in self.additive:
            merged[name] = torch.stack([part[name] for part in parts]).sum(0)
        # A state that does not know a class yet has zeros for its name.
        names = torch.stack([part["names"] for part in parts])
        merged["names"] = names.gather(0, names.abs().argmax(0, keepdim=True))[0]
        return merged

    def caught_up(
        self, tensors: Tensors, features: torch.Tensor, targets: torch.Tensor, sizes: Sequence[float]
    ) -> Tensors:
        """A merged state, with what follows the stream brought as far as all examples together would have.

        Args:
            features, targets: a uniform sample of the absorbed examples, `[n, d]` and `[n]`.
            sizes: examples of each part.
        """
        return tensors

    def aligned(self, tensors: Tensors, places: torch.Tensor, classes: int) -> Tensors:
        """The state with class c moved to row `places[c]` of `classes`; rows that nothing comes to are zeros."""
        moved = dict(tensors)
        for name in self.per_class:
            moved[name] = grown(tensors[name][:0], classes).index_copy(0, places, tensors[name])
        return moved

    def faded(self, tensors: Tensors, factor: float) -> Tensors:
        """The state with what it has seen counting `factor` times as much."""
        return {name: tensor * factor if name in self.additive else tensor for name, tensor in tensors.items()}

    def without(self, tensors: Tensors, features: torch.Tensor, targets: torch.Tensor) -> Tensors:
        """The state with examples `[n, d]` and `[n]` out of its moments; at most as many of a class as there are."""
        gone = self.summed(features, targets, len(tensors["counts"]))
        left = {name: tensors[name] - gone[name] for name in self.moments}
        none, nothing = left["counts"] < 0.5, bool(self.examples(left) < 0.5)
        for name in self.moments:  # of what is empty nothing is left, not what was lost in rounding
            if name in self.per_class:
                left[name] = left[name].masked_fill(none.reshape(-1, *[1] * (left[name].ndim - 1)), 0)
            elif nothing:
                left[name] = torch.zeros_like(left[name])
        return {**tensors, **left}

    def may_hold(self, tensors: Tensors, features: torch.Tensor, targets: torch.Tensor) -> bool:
        """Whether the state can have read examples `[n, d]` and `[n]`, of no class more than there are."""
        raise NotImplementedError

    def summed(self, features: torch.Tensor, targets: torch.Tensor, classes: int) -> dict[str, torch.Tensor]:
        """The moments of a chunk `[n, d]` and `[n]`."""
        raise NotImplementedError

    def traces(self, tensors: Tensors, *, of_stream: bool = False) -> tuple[str, ...]:
        """Tensors that would be others without an example that was taken out, or under another name where `of_stream`.

        Those that are still as they were at first bear none.
        """
        return tuple(name for name in self.stepped if bool(tensors[name].any()))

    def without_class(self, tensors: Tensors, number: int) -> Tensors:
        """The state without the examples of a class, which stays, empty; of `estimated` moments by their mean share."""
        raise NotImplementedError

    def faded_steps(self, tensors: Tensors, factor: float) -> Tensors:
        """The state with what has followed the stream counting `factor` times as much; 0 is as before any example."""
        fading = self.stepped if not factor else tuple(set(self.stepped) & set(self.additive))
        return {name: tensor * factor if name in fading else tensor for name, tensor in tensors.items()}

    def regrouped(self, tensors: Tensors, kept: torch.Tensor, places: torch.Tensor, classes: int) -> Tensors:
        """The state with class `kept[i]` moved to row `places[i]` of `classes`; those that come to one row are added.

        Classes that are not kept are empty (`without_class`).
        """
        moved = dict(tensors)
        for name in self.per_class:
            rows = grown(tensors[name][:0], classes)
            put = rows.index_copy if name == "names" else rows.index_add
            moved[name] = put(0, places, tensors[name][kept])
        return moved

    def renamed(self, tensors: Tensors, rows: torch.Tensor, names: torch.Tensor) -> Tensors:
        """The state with the classes of `rows` under names with the features `[templates, rows, d]`."""
        mixed = self.mixed_names(names).to(torch.float16)
        return {**tensors, "names": tensors["names"].index_copy(0, rows, mixed)}

    def mixed_names(self, names: torch.Tensor) -> torch.Tensor:
        """One unit vector a class, `[C, d]`, of the features of its templates, `[templates, C, d]`."""
        return nn.functional.normalize(torch.einsum("t,tcd->cd", self.template_weights, names), dim=1)


def grown(tensor: torch.Tensor, new: int) -> torch.Tensor:
    """`new` rows of zeros appended."""
    return torch.cat([tensor, tensor.new_zeros(new, *tensor.shape[1:])])
