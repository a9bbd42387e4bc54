"""Thresholds of labels: where each is to apply, by the F1 that held-out logits say a threshold would have.

A tally counts, for each label, the held-out logits of examples that have it and of those that have not, in bins. Of a
label with few examples that says little, so twice it is shrunk to what all labels say together: of its logits above a
threshold, how many are right is a ratio to what the common rate of each bin expects (the posterior mean of a
gamma-Poisson model), and its curve of F1 is averaged with that of all, the mean of macro-F1 and micro-F1: the first
alone gives nearly every label to a text before much is known, the second passes over rare ones. A curve is smoothed
over neighbouring bins, since the highest point of a rough one is often an accident. Thresholds that maximise F1 lie
below one half where a label is hard to tell (Lipton et al. 2014, arXiv 1402.1892).
"""

from __future__ import annotations

import torch

from iai_hf.features.heads.stacking import TEMPERATURE_PRECISION
from iai_hf.posterior import own_curvature

BINS, REACH = 64, 10.0  # of logits between +-REACH; those beyond are in the outermost
EXPECTED = 100.0  # examples of a label, expected by the common rate, that this counts for
COMMON = 3.0  # examples of a label that the common curve counts for
SMOOTHING = 5.0  # logits in a bin that the rate which they claim counts for
SHIFT_PRECISION, STEPS, LARGEST_STEP = 10.0, 12, 0.5  # of `calibration`


def tallied(logits: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Counts of logits `[n, C]` by label, by whether it applies, bool `[n, C]`, and by bin: `[C, 2, BINS]`."""
    bins = ((logits + REACH) * (BINS / (2 * REACH))).long().clamp(0, BINS - 1)
    places = 2 * BINS * torch.arange(logits.shape[1], device=logits.device) + BINS * own.long() + bins
    return torch.bincount(places.flatten(), minlength=2 * BINS * logits.shape[1]).to(logits).reshape(-1, 2, BINS)


def thresholds(tally: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Logits `[C]` above which labels are to apply; without evidence 0, where a label is as likely as not.

    Args:
        tally: `[C, 2, BINS]`, of examples that may have faded.
        counts: examples of each label, `[C]`.
    """
    lowest = torch.arange(BINS, device=tally.device) * (2 * REACH / BINS) - REACH
    right, every = tally[:, 1], tally.sum(1)
    if not bool(right.any()):
        return torch.zeros_like(counts)
    claimed = (lowest + REACH / BINS).sigmoid()
    rate = (right.sum(0) + SMOOTHING * claimed) / (every.sum(0) + SMOOTHING)
    expected, above = _above(every * rate), _above(every)
    hits = expected * (_above(right) + EXPECTED) / (expected + EXPECTED)
    sizes = (above + hits[:, :1]).clamp(min=1e-6)
    own = 2 * hits / sizes
    common = (own.mean(0) + 2 * hits.sum(0) / sizes.sum(0)) / 2
    curves = (counts[:, None] * own + COMMON * common) / (counts[:, None] + COMMON)
    return lowest[_smoothed(curves).argmax(1)]


def calibration(tally: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift `[]` that make log odds of a tally's logits, `[C, 2, BINS]`, all labels together (Platt 1999).

    The posterior mode around 1 and 0, of the scale's logarithm as of any temperature (`stacking.py`).
    """
    middle = (torch.arange(BINS, device=tally.device) + 0.5) * (2 * REACH / BINS) - REACH
    right, every = tally[:, 1].sum(0), tally.sum((0, 1))
    found, prior = tally.new_zeros(2), torch.diag(tally.new_tensor([TEMPERATURE_PRECISION, SHIFT_PRECISION]))
    for _ in range(STEPS):
        scaled = found[0].exp() * middle
        inputs, claimed = torch.stack([scaled, torch.ones_like(middle)], 1), (scaled + found[1]).sigmoid()
        gradient = inputs.T @ (right - every * claimed) - prior @ found
        curvature = inputs.T @ ((every * own_curvature(claimed))[:, None] * inputs)
        found = found + torch.linalg.solve(prior + curvature, gradient).clamp(-LARGEST_STEP, LARGEST_STEP)
    return found[0].exp(), found[1]


def _smoothed(curves: torch.Tensor) -> torch.Tensor:
    """Each bin with its neighbours, which count for as much as itself together, `[C, BINS]`."""
    padded = torch.cat([curves[:, :1], curves, curves[:, -1:]], 1)
    return (padded[:, :-2] + 2 * curves + padded[:, 2:]) / 4


def _above(tally: torch.Tensor) -> torch.Tensor:
    """Sums over a bin and all above it, `[..., BINS]`."""
    return tally.flip(-1).cumsum(-1).flip(-1)
