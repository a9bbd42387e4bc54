"""What heads of several labels share: a logit is the log odds of its label alone, a set what is above thresholds.

A list of labels is taken to be whole: a label that turns up later did not apply to what was read before.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from iai_hf.features.heads.head import Head
from iai_hf.features.heads.moments import Moments, may_hold, may_hold_each
from iai_hf.features.heads.multi_label.thresholds import tallied
from iai_hf.posterior import own_curvature, power_decay
from iai_hf.task import Prediction, Tensors

TALLY_EXPONENT = 1.0  # how fast the tally forgets answers of before: (n / (n + chunk))^exponent


@dataclass(frozen=True, eq=False)
class LinearLabels:
    """A linear map to the labels' log odds, weight `[C, d]` and bias `[C]`, and their thresholds `[C]`."""

    weight: torch.Tensor
    bias: torch.Tensor
    thresholds: torch.Tensor


class MultiLabelHead(Head):
    """Base class: `targets` are bool `[n, C]`, which labels apply, and what is prepared has `thresholds` `[C]`."""

    exclusive: ClassVar[bool] = False

    @abstractmethod
    def examples(self, tensors: Tensors) -> torch.Tensor:
        """As `Head.examples`: texts, whatever the number of their labels."""

    def predicted(self, prepared: Any, features: torch.Tensor, labels: tuple[str, ...]) -> Prediction:
        return Prediction.from_label_logits(self.logits(prepared, features), prepared.thresholds, labels)

    def reread(self, tensors: Tensors, features: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> Tensors:
        raise NotImplementedError("there are no fast weights below several labels a text")

    def without_class(self, tensors: Tensors, number: int) -> Tensors:
        """The state without what a label made of its texts, which stay."""
        empty = torch.tensor([number], device=tensors["counts"].device)
        rows = {name: tensors[name].index_fill(0, empty, 0) for name in self.per_class if name != "names"}
        return {**tensors, **rows}


class MultiLabelMoments(MultiLabelHead):
    """Base of those that keep sums of their examples, and a `tally` of held-out logits, `[C, 2, bins]`."""

    @abstractmethod
    def all_texts(self, tensors: Tensors) -> Moments:
        """Moments of all texts, as of one class."""

    def may_hold(self, tensors: Tensors, features: torch.Tensor, targets: torch.Tensor) -> bool:
        """As `Head.may_hold`: of all texts together, and of those that have a label and those that do not, by label."""
        gone = self.summed(features, targets, len(tensors["counts"]))
        texts, texts_gone = self.all_texts(tensors), self.all_texts(gone)
        if not may_hold(texts, texts_gone):
            return False
        whole, part = (
            Moments(of["counts"], of["sums"], all_texts.second)
            for of, all_texts in ((tensors, texts), (gone, texts_gone))
        )
        return may_hold_each(whole, part, texts, texts_gone)

    def tally_after(
        self, tally: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor, seen: torch.Tensor, trust: torch.Tensor
    ) -> torch.Tensor:
        """The tally `[C, 2, bins]` behind `seen` texts with held-out logits `[n, C]` of a chunk, trusted so far."""
        kept = power_decay(seen, len(targets), TALLY_EXPONENT * trust)
        return kept * tally + trust * tallied(logits, targets)


def label_coverage(counts: torch.Tensor, examples: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """How far a chunk looks drawn at random, 1/n^2 to 1: the variance of its labels over that of all that were read.

    Of a stream that is sorted, or of one example again and again, a chunk has less; see `moments.class_coverage`. A
    text alone has no variance, tells nothing of this, and is trusted; of n texts that are alike 1/n^2 is left.

    Args:
        counts, examples: by label `[C]` and of all `[]`, those of the chunk among them.
        targets: of the chunk, bool `[n, C]`.
    """
    share, number = counts / examples, len(targets)
    within = own_curvature(targets.float().mean(0).to(share)).sum() * (number / max(number - 1, 1))
    found = (within / own_curvature(share).sum().clamp(min=1e-6)).clamp(max=1)
    return found + (1 - found) / number**2
