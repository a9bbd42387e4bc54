"""Converged: of many classes, logistic regression on kept examples beside the linear map that a stream has made.

One pass takes a step or two on each example. Where classes are many and examples of each few, regression that is fitted
until it no longer improves errs otherwise, so that both together are right more often:

    logits = a (W x + b) + c (V x + v)

V minimises the mean cross-entropy of the kept examples + ridge. a and c follow from what both say of these examples as
if they had not been read (stacking: Wolpert 1992; Yao et al. 2018, arXiv 1704.02030): W one by one, as of
`ParametricHead.never_read`, V by cross-validation. c is 0, and the answer W's alone, unless that tells for V by
`EVIDENCE` standard errors. All of it follows from the state, so that nothing has to be kept in step with it but the
examples, whose features take 8 bits a number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import Self

from iai_hf.features.heads.calibration import Sample
from iai_hf.features.heads.moments import with_one

FEWEST_CLASSES = 16  # with fewer it gains nothing
PER_CLASS = 4  # examples of a class, on average, from which on it is tried
RIDGE = 0.02  # precision of V, beside one for each example
FOLDS = 4  # of cross-validation
STEPS, FEW_STEPS = 40, 30  # of L-BFGS at most: of V, and of a and c
FIRM = 10.0  # precision of the prior of a and c, which is a = 1, c = 0
EVIDENCE = 2.0  # standard errors
LEVELS = 127  # of a feature's size in 8 bits


@dataclass(frozen=True, eq=False)
class Compact(Sample):
    """A sample with features in 8 bits.

    Attributes:
        features: int8 `[kept, d]`, in units of the
        scales: of each example, float32 `[kept]`.
    """

    prefix: ClassVar[str] = "converged."
    scales: torch.Tensor

    @classmethod
    def read(cls, texts: Sequence[str], features: torch.Tensor, targets: torch.Tensor) -> Self:
        return cls.from_sample(Sample.read(texts, features, targets))

    @classmethod
    def from_sample(cls, sample: Sample) -> Self:
        """Of the same examples."""
        features = sample.vectors
        scales = (features.abs().amax(1) / LEVELS).clamp(min=1e-12)
        levels = (features / scales[:, None]).round().to(torch.int8)
        return cls(**{**vars(sample), "features": levels, "scales": scales})

    @property
    def vectors(self) -> torch.Tensor:
        return self.features.float() * self.scales[:, None]


@dataclass(frozen=True, eq=False)
class Converged:
    """Regression on kept examples, and how far it counts.

    Attributes:
        weight: V and v, `[C, d + 1]`; zeros of a class that has no kept example.
        left_out: the same without a fold each, `[FOLDS, C, d + 1]`.
        shares: a and c, `[2]`.
    """

    weight: torch.Tensor
    left_out: torch.Tensor
    shares: torch.Tensor

    def beside(self, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The linear map of both, from W `[C, d]` and b `[C]`."""
        own, added = self.shares
        return own * weight + added * self.weight[:, :-1], own * bias + added * self.weight[:, -1]

    def unread(self, logits: torch.Tensor, features: torch.Tensor, priorities: torch.Tensor) -> torch.Tensor:
        """Logits of both `[n, C]` for examples `[n, d]` as if not read, from W's own of that kind."""
        own, added = self.shares
        return own * logits + added * _apart(self.left_out, features, priorities)


def converged(
    sample: Compact, classes: int, unread: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
) -> Converged | None:
    """What the sample's examples make of regression; None where it is not to count.

    Args:
        unread: the state's logits `[n, C]` for examples `[n, d]` of such classes and so many copies, `[n]`, as if they
            had not been read.
    """
    features, targets, times = sample.vectors, sample.targets.long(), sample.times.long()
    if classes < FEWEST_CLASSES or len(targets) < PER_CLASS * classes:
        return None
    folds, every = _folds(sample.priorities), times.float()
    parts = [_fitted(features, targets, every * (folds != fold), classes) for fold in range(FOLDS)]
    left_out = torch.stack(parts)
    logits = torch.stack([unread(features, targets, times), _apart(left_out, features, sample.priorities)])
    shares = _weighed(logits, targets)
    right = torch.nn.functional.one_hot(targets, classes).bool()
    both = torch.einsum("k,knc->nc", shares, logits)
    gains = both.log_softmax(1)[right] - logits[0].log_softmax(1)[right]
    certain = gains.sum() > EVIDENCE * gains.std() * len(gains) ** 0.5
    if not bool(certain) or not bool(shares[1] > 0):
        return None
    return Converged(_fitted(features, targets, every, classes), left_out, shares)


def _folds(priorities: torch.Tensor) -> torch.Tensor:
    """Numbers of the folds of examples `[n]`; they follow from the texts alone, as the priorities do."""
    return (priorities * 2**20).floor().long() % FOLDS


def _apart(left_out: torch.Tensor, features: torch.Tensor, priorities: torch.Tensor) -> torch.Tensor:
    """Logits `[n, C]` of examples `[n, d]`, of each by the regression without its fold."""
    every = torch.einsum("nd,fcd->fnc", features, left_out[..., :-1]) + left_out[:, None, :, -1]
    return every[_folds(priorities), torch.arange(len(features), device=features.device)]


def _fitted(features: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, classes: int) -> torch.Tensor:
    """Regression `[C, d + 1]` on examples `[n, d]` that count `weights` `[n]`; zeros of a class that none is of."""
    ones = with_one(features)
    right = torch.nn.functional.one_hot(targets, classes).to(features)
    absent, total = (weights @ right) == 0, weights.sum().clamp(min=1)
    ridge = RIDGE / total

    def loss(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_probs = (ones @ weight.T).masked_fill(absent, -torch.inf).log_softmax(1)
        surprise = -log_probs.gather(1, targets[:, None])[:, 0]
        pull = (weights / total)[:, None] * (log_probs.exp() - right)
        value = weights[weights > 0] @ surprise[weights > 0] / total + ridge / 2 * weight.square().sum()
        return value, pull.T @ ones + ridge * weight

    return _least(loss, ones.new_zeros(classes, ones.shape[1]), STEPS)


def _weighed(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """a and c `[2]`, from logits of both `[2, n, C]` for examples that neither had read."""
    prior = logits.new_tensor([1.0, 0.0])
    right = torch.nn.functional.one_hot(targets, logits.shape[2]).to(logits)

    def loss(shares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_probs = torch.einsum("k,knc->nc", shares, logits).log_softmax(1)
        pull = torch.einsum("knc,nc->k", logits, log_probs.exp() - right)
        value = -(right * log_probs).sum() + FIRM / 2 * (shares - prior).square().sum()
        return value, pull + FIRM * (shares - prior)

    return _least(loss, prior.clone(), FEW_STEPS)


def _least(
    loss: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]], start: torch.Tensor, steps: int
) -> torch.Tensor:
    """Where a convex loss is least, by L-BFGS from `start`, which is changed; `loss` gives value and gradient."""
    search = torch.optim.LBFGS([start], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        value, start.grad = loss(start)
        return value

    with torch.no_grad():
        search.step(closure)
    return start.detach()
