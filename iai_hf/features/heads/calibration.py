"""Calibration: what a state's own examples, each as if it had not been read, tell of the errors of answers to come.

Of m such examples, a new one exceeds the score that (1 - rate) (m + 1) of them do not exceed in at most `rate` of the
cases, as far as they are exchangeable (conformal prediction, Vovk et al. 2005; Angelopoulos and Bates 2021, arXiv
2107.07511). The scores are those of the state that answers: folds of the examples are taken out of what it knows, the
others stay (cross-conformal prediction, Vovk 2012, arXiv 1208.0806, with folds that leave nearly all in).

    label: -log p(y | x), 0 of the likeliest        text: -(a_1 + (a_1 - a_2))

The first makes least ambiguous sets (Sadinle et al. 2019, arXiv 1609.00451) that are never empty. a_1 and a_2 are the
two largest logits, the labels' log frequencies out of them: a text is strange where no label is likely, or none more so
than another (the largest logit: Hendrycks et al. 2022, arXiv 1911.11132). AUROC x 100 with 30% of the classes left out,
mean over 7 held-out meta-training tasks, 3 orders, 64 to 1,024 examples: this 72.8, the largest logit 70.8, the largest
probability 70.6, relative Mahalanobis distance 71.7, Mahalanobis distance 68.8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import Self

from iai_hf.features.heads.unlabelled import priorities
from iai_hf.features.parts import as_part, part_of
from iai_hf.task import Tensors

PREFIX = "calibration."
MOST = 256  # examples that are scored
ANY = 64.0  # no priority is as large
FOLD = 1 / 32  # of the examples behind a state, what is taken out at once


@dataclass(frozen=True, eq=False)
class Sample:
    """A uniform sample of the different examples that a state has read, whatever the chunks: the smallest priorities.

    Attributes:
        limit: priorities from which on no example is kept, `[]`, float64.
        priorities: of the kept ones, ascending, `[kept]`, float64; they follow from the texts alone.
        features: theirs, `[kept, d]`, float16.
        targets: theirs, `[kept]`, int16.
        times: how often each was read, `[kept]`, int32.
    """

    prefix: ClassVar[str] = PREFIX  # of its tensors' names in a state
    limit: torch.Tensor
    priorities: torch.Tensor
    features: torch.Tensor
    targets: torch.Tensor
    times: torch.Tensor

    @classmethod
    def read(cls, texts: Sequence[str], features: torch.Tensor, targets: torch.Tensor) -> Self:
        """Of examples with such texts, features `[n, d]` and classes `[n]`."""
        limit, times = torch.tensor(ANY, dtype=torch.float64), torch.ones_like(targets, dtype=torch.int32)
        drawn = priorities(texts).to(features.device)
        return cls(limit, drawn, features.to(torch.float16), targets.to(torch.int16), times)

    @classmethod
    def of(cls, tensors: Tensors) -> Self | None:
        """A state's, None where it has none."""
        found = part_of(cls.prefix, tensors)
        return cls(**found) if found else None

    @property
    def tensors(self) -> Tensors:
        """As a state names them."""
        return as_part(self.prefix, vars(self))

    @property
    def vectors(self) -> torch.Tensor:
        """The features as they are computed with, `[kept, d]`, float32."""
        return self.features.float()

    def joined(self, others: Sequence[Self], most: int) -> Self:
        """The sample of all examples of several, of `most` at most; that of one stream, whatever the parts."""
        parts = (self, *others)
        limit = torch.stack([part.limit for part in parts]).min()
        rows = {name: torch.cat([vars(part)[name] for part in parts]) for name in vars(self) if name != "limit"}
        times = rows["times"]
        keys, group = torch.unique(
            torch.stack([rows["priorities"], rows["targets"].double()], 1), dim=0, return_inverse=True
        )
        first = torch.full((len(keys),), len(group), device=group.device)
        first = first.scatter_reduce(0, group, torch.arange(len(group), device=group.device), "amin")
        total = times.new_zeros(len(keys)).index_add(0, group, times)
        if len(keys) > most:
            limit = torch.minimum(limit, keys[most, 0])
        kept = keys[:, 0] < limit
        found = {name: tensor[first[kept]] for name, tensor in rows.items()}
        return type(self)(limit, **{**found, "times": total[kept]})

    def without(self, texts: Sequence[str], targets: torch.Tensor) -> Self:
        """The sample without examples of such texts and classes, as often as they are given."""
        gone = priorities(texts).to(self.priorities.device)
        same = (self.priorities[:, None] == gone) & (self.targets[:, None] == targets)
        times = self.times - same.sum(1).int()
        return self._where(times > 0, times=times)

    def regrouped(self, places: Sequence[int | None]) -> Self:
        """The sample with class c called `places[c]`; examples of those that have none go."""
        to = torch.tensor([-1 if place is None else place for place in places], dtype=torch.int16)
        targets = to.to(self.targets.device)[self.targets.long()]
        return self._where(targets >= 0, targets=targets)

    def _where(self, kept: torch.Tensor, **changed: torch.Tensor) -> Self:
        """Those of the examples, of which `changed` is otherwise."""
        rows = {**vars(self), **changed}
        return type(self)(rows.pop("limit"), **{name: tensor[kept] for name, tensor in rows.items()})


def drawn(samples: Sequence[Sample], sizes: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Examples of all parts alike, features `[m, d]` and classes `[m]`, from samples of parts of such sizes.

    Each comes as often as it stands for others. They are as many as weights so different are worth.
    """
    pairs = [(sample.times.double(), size) for sample, size in zip(samples, sizes, strict=True)]
    weights = torch.cat([times * (size / times.sum()) for times, size in pairs])
    amounts, count = weights.cumsum(0), round(float(weights.sum() ** 2 / weights.square().sum()))
    at = (torch.arange(count, device=weights.device) + 0.5) * (amounts[-1] / count)
    chosen = torch.searchsorted(amounts, at).clamp(max=len(weights) - 1)
    features, targets = torch.cat([s.vectors for s in samples]), torch.cat([s.targets for s in samples])
    return features[chosen], targets[chosen].long()


@dataclass(frozen=True, eq=False)
class Scored:
    """Examples that a state has read, as if it had not: label and text scores, and what each counts for, all `[m]`."""

    labels: torch.Tensor
    texts: torch.Tensor
    weights: torch.Tensor

    def threshold(self, scores: torch.Tensor, rate: float) -> float | None:
        """The score that a new example exceeds in at most `rate` of the cases; None of too few examples."""
        ordered = scores.sort()
        counted = self.weights[ordered.indices].double().cumsum(0)
        place = int((counted < (1 - rate) * (len(scores) + 1) - 1e-6).sum())
        return None if place >= len(scores) else float(ordered.values[place])


def label_scores(logits: torch.Tensor) -> torch.Tensor:
    """How strange each label would be, `[n, C]`; 0 of the likeliest, so that no set is without it."""
    return -logits.log_softmax(1).scatter(1, logits.argmax(1, keepdim=True), 0.0)


def text_scores(logits: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """How strange each text is, `[n]`, to a state of `counts` `[C]` examples."""
    best = (logits - ((counts + 1) / (counts.sum() + len(counts))).log()).topk(2, dim=1).values
    return best[:, 1] - 2 * best[:, 0]
