"""Unlabelled text: a sample of the rows without an answer, and what experts make of them.

The sample stands apart from all that labelled examples have made, which is the same with it and without. Rows get
their soft labels anew in each answer, under the state of that moment: EM (Dempster et al. 1977) around the labelled
moments, a few rounds, with unlabelled rows counting little. Kept soft moments (stepwise EM, Cappe and Moulines 2009,
arXiv 0712.4273) did as well where the labels came first, and lost up to 6 points where text came before its labels,
since those rows keep the soft labels of the names alone; a sample knows no order. Which rows are kept follows from
their text alone (the smallest of random priorities), so a merge is that of one stream, and a text counts once.

How far the experts that also know unlabelled rows replace those that don't:

    share = s(labelled) e(shift),    s(n) = 1 / (1 + (n / 96)^2),    e(shift) = 1 / (1 + (shift / 0.02)^2)

`shift` is how far the mean of the unlabelled text is from that of the labelled one beyond chance, in units of the
text's variance (the statistic of Bai and Saranadasa 1996): text of another task is not of this one, and counts nothing
once labels tell so. An expert keeps the size of its scores, so that answers grow no surer than labels have made them.

Measured on 10 held-out meta-training tasks x 2 orders, points of accuracy / likelihood: +4.1 / -.10 with no label,
+3.0 / -.08 with 4, +2.0 / -.05 with 16, +1.2 / -.03 with 64; text of another task lost a task 3 points at most with no
label, 0.8 with 4, 0.2 from 16 on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from iai_hf.features.heads.moments import log_shares
from iai_hf.task import Tensors

KEPT = 512  # rows of the sample
WEIGHT, MOST = 0.3, 600.0  # examples that an unlabelled row counts for, and that all of them do
LABELLED = 96.0  # labelled examples from which on unlabelled text counts less than half
SHIFT, CHANCE = 0.02, 3.0  # distance of the mean texts at which it counts half; standard deviations that chance may be
SHARPNESS = 4.0  # of soft labels: the head's probabilities are honest, so softer than a cluster's
BALANCE = 0.5  # how far soft labels' shares are brought to those of the labels
ROUNDS = 4
PREFIX = "unlabelled."


@dataclass(frozen=True, eq=False)
class Sample:
    """What a state keeps of unlabelled rows.

    Attributes:
        rows: read so far, `[]`, float32.
        priorities: of the kept rows, ascending, `[kept]`, float64.
        features: theirs, `[kept, d]`, float16.
    """

    rows: torch.Tensor
    priorities: torch.Tensor
    features: torch.Tensor

    @classmethod
    def read(cls, features: torch.Tensor, texts: Sequence[str]) -> Sample:
        """Of rows `[n, d]` and their texts."""
        rows = torch.tensor(float(len(texts)), dtype=torch.float32)
        return _smallest(cls(rows, priorities(texts), features.to(torch.float16)))

    @property
    def tensors(self) -> Tensors:
        """As a state names them."""
        return {PREFIX + name: tensor for name, tensor in vars(self).items()}

    def joined(self, *others: Sample) -> Sample:
        """The sample of all rows of several; that of one stream, whatever the parts and their order."""
        parts = (self, *others)
        return _smallest(
            Sample(
                torch.stack([part.rows for part in parts]).sum(0),
                torch.cat([part.priorities for part in parts]),
                torch.cat([part.features for part in parts]),
            )
        )

    def faded(self, factor: float) -> Sample:
        """The sample with its rows counting `factor` times as much against new ones (Efraimidis, Spirakis 2006)."""
        behind = -math.log2(max(factor, 2.0**-1000))
        return replace(self, rows=factor * self.rows, priorities=self.priorities + behind)

    def without(self, texts: Sequence[str]) -> Sample:
        """The sample without rows of such texts, which have not faded."""
        kept = ~torch.isin(self.priorities, priorities(texts))
        return Sample(self.rows - len(texts), self.priorities[kept], self.features[kept])

    def may_hold(self, texts: Sequence[str]) -> bool:
        """Whether rows of such texts can have been read: those that are not kept were pushed out, or came again."""
        missing = int((~torch.isin(priorities(texts), self.priorities)).sum())
        return missing <= float(self.rows) - len(self.priorities) + 0.5


def split(tensors: Tensors) -> tuple[Tensors, Sample | None]:
    """A state's tensors without the sample, and the sample where it has one."""
    labelled = {name: tensor for name, tensor in tensors.items() if not name.startswith(PREFIX)}
    if len(labelled) == len(tensors):
        return tensors, None
    found = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name not in labelled}
    return labelled, Sample(**found)


def priorities(texts: Sequence[str]) -> torch.Tensor:
    """Random numbers that follow from the texts, `[n]`, float64: the log2 of exponential ones."""
    digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
    uniform = [((int.from_bytes(digest, "big") >> 11) + 0.5) / 2**53 for digest in digests]
    return torch.tensor([math.log2(-math.log(value)) for value in uniform], dtype=torch.float64)


def _smallest(sample: Sample) -> Sample:
    """The `KEPT` rows of the smallest priorities, each text once."""
    ordered = sample.priorities.sort(stable=True)
    new = torch.ones_like(ordered.indices, dtype=torch.bool)
    new[1:] = ordered.values[1:] != ordered.values[:-1]
    places = ordered.indices[new][:KEPT]
    return replace(sample, priorities=sample.priorities[places], features=sample.features[places])


@dataclass(frozen=True, eq=False)
class Scores:
    """Linear scores of K experts, weight `[K, C, d]` and bias `[K, C]`."""

    weight: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True, eq=False)
class SoftMoments:
    """Of unlabelled rows by their soft labels: counts `[C]`, sums `[C, d]`, second moment `[d, d]`."""

    counts: torch.Tensor
    sums: torch.Tensor
    second: torch.Tensor


def informed(
    sample: Sample,
    counts: torch.Tensor,
    sums: torch.Tensor,
    plain: Scores,
    remade: Callable[[SoftMoments], Scores],
    logits: Callable[[Scores, torch.Tensor], torch.Tensor],
    chosen: torch.Tensor,
) -> Scores:
    """The experts' scores, those chosen of them as far as unlabelled rows are trusted from labels and soft labels.

    Args:
        counts, sums: of labelled examples, `[C]` and `[C, d]`.
        plain: scores from labels alone.
        remade: the experts' scores from labels and such soft moments.
        logits: of such scores, for features `[n, d]`: `[n, C]`.
        chosen: how far each expert takes unlabelled rows at most, 0 to 1, `[K]`.
    """
    if len(sample.features) < 2:  # one text alone has no variance, beside which scores would count nothing
        return plain
    features = sample.features.float()
    each = (WEIGHT * sample.rows).clamp(max=MOST) / len(features)
    mean, second = features.mean(0), features.T @ features
    covariance = second / len(features) - torch.outer(mean, mean)
    share = chosen * _trusted(counts, sums, mean, covariance, len(features))
    wanted = log_shares(counts, counts.sum(), len(counts), torch.ones_like(counts.sum()))
    size, scores = _spread(plain, covariance), plain
    for _ in range(ROUNDS):
        soft = _soft_labels(logits(scores, features), wanted)
        found = remade(SoftMoments(each * soft.sum(0), each * soft.T @ features, each * second))
        kept = (size / _spread(found, covariance).clamp(min=1e-12)).sqrt()
        scores = Scores(
            torch.lerp(plain.weight, kept[:, None, None] * found.weight, share[:, None, None]),
            torch.lerp(plain.bias, kept[:, None] * found.bias, share[:, None]),
        )
    return scores


def _soft_labels(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Sharpened probabilities `[n, C]`, their shares brought nearer to those `wanted`, log `[C]`."""
    sharp = SHARPNESS * logits
    shares = sharp.softmax(1).mean(0).clamp(min=1e-6)
    return (sharp + BALANCE * (wanted - shares.log())).softmax(1)


def _spread(scores: Scores, covariance: torch.Tensor) -> torch.Tensor:
    """Variance over texts of each expert's scores about their mean over classes, summed over these, `[K]`."""
    weight = scores.weight - scores.weight.mean(1, keepdim=True)
    return (weight @ covariance * weight).sum((1, 2))


def _trusted(
    counts: torch.Tensor, sums: torch.Tensor, mean: torch.Tensor, covariance: torch.Tensor, kept: int
) -> torch.Tensor:
    """How far unlabelled rows are trusted, 0 to 1, `[]`; wholly before the first label."""
    total = counts.sum()
    few = 1 / (1 + (total / LABELLED).square())
    seen = total.clamp(min=1e-6)
    variance = covariance.diagonal().sum().clamp(min=1e-12)
    spread = (2 * covariance.square().sum()).sqrt() / variance
    chance = (1 + CHANCE * spread) * (1 / seen + 1 / kept)
    shift = ((sums.sum(0) / seen - mean).square().sum() / variance - chance).clamp(min=0)
    return torch.where(total > 0, few / (1 + (shift / SHIFT).square()), 1.0)
