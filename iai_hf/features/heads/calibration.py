"""Calibration: what leave-one-out answers tell of answers to come, as two histograms, which are added in a merge.

Each absorbed example is answered as if it alone had been left out. Counted are how strange its label was, and how
strange its text, whatever the label:

    label: -log p(y | x)        text: -(max_c l_c + (max_c l_c - sum_c share_c l_c))

with the logits l. The first makes least ambiguous sets (Sadinle et al. 2019, arXiv 1609.00451), the second is small
where one class is likely, and more so than the others (the largest logit as in Hendrycks et al. 2022, arXiv 1911.11132).
Of W examples counted, a new one exceeds the value that (1 - rate) (W + 1) of them stay below in at most `rate` of the
cases (conformal prediction: Vovk et al. 2005; with leave-one-out scores the jackknife: Barber et al. 2021, arXiv
1905.02928), where examples are exchangeable. Counts fade as (n / (n + chunk))^3: early scores are of a state that knew
less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from iai_hf.features.heads.stacking import MEMORY_EXPONENT
from iai_hf.posterior import power_decay
from iai_hf.task import Tensors

BINS, LARGEST = 512, 6.0  # of asinh(score), from -LARGEST to LARGEST: a score's relative error is 2% at most
LABEL_SCORES, TEXT_SCORES = "label_scores", "text_scores"
NAMES = (LABEL_SCORES, TEXT_SCORES)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Histograms `[BINS]`, float32: of labels' scores and of texts'."""

    label_scores: torch.Tensor
    text_scores: torch.Tensor

    @classmethod
    def none(cls) -> Calibration:
        """Of no example."""
        return cls(torch.zeros(BINS, dtype=torch.float32), torch.zeros(BINS, dtype=torch.float32))

    @classmethod
    def of(cls, tensors: Tensors) -> Calibration | None:
        """A state's, None of one from before there was any."""
        return cls(*(tensors[name] for name in NAMES)) if LABEL_SCORES in tensors else None

    def after(self, logits: torch.Tensor, targets: torch.Tensor, counts: torch.Tensor) -> Calibration:
        """With a chunk's leave-one-out logits `[n, C]` and classes `[n]`; `counts` `[C]` are with the chunk."""
        kept = power_decay(counts.sum() - len(targets), len(targets), MEMORY_EXPONENT)
        label = histogram(label_scores(logits).gather(1, targets[:, None])[:, 0])
        return Calibration(
            kept * self.label_scores + label, kept * self.text_scores + histogram(text_scores(logits, counts))
        )

    @property
    def examples(self) -> float:
        """How many are counted, those of before with their weights."""
        return float(self.label_scores.sum())

    @property
    def tensors(self) -> Tensors:
        """As a state names them."""
        return vars(self)


def label_scores(logits: torch.Tensor) -> torch.Tensor:
    """How strange each label would be, `[n, C]`."""
    return -logits.log_softmax(1)


def text_scores(logits: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """How strange each text is, `[n]`, to a state of `counts` `[C]` examples."""
    shares = (counts + 0.5) / (counts + 0.5).sum()
    return logits @ shares - 2 * logits.amax(1)


def histogram(scores: torch.Tensor) -> torch.Tensor:
    """Of scores `[n]`."""
    places = ((scores.asinh() / LARGEST + 1) * (BINS / 2)).long().clamp(0, BINS - 1)
    return torch.bincount(places, minlength=BINS).float()


def threshold(counted: torch.Tensor, rate: float) -> float:
    """What a new score exceeds in at most `rate` of the cases; infinite where there are too few examples to say."""
    wanted = (1 - rate) * (float(counted.sum()) + 1)
    below = counted.double().cumsum(0)
    place = int((below < wanted - 1e-6).sum())
    return math.inf if place >= BINS else math.sinh(LARGEST * (2 * (place + 1) / BINS - 1))


def merged(parts: Sequence[Calibration]) -> Calibration:
    """Of disjoint parts of a stream."""
    label, text = (torch.stack([getattr(part, name) for part in parts]).sum(0) for name in NAMES)
    return Calibration(label, text)
