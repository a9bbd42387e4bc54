"""What answers after a change: forecasts of several kinds, weighed by what each got right before it saw it.

Labels that changed their meaning leave behind a head that still tells texts apart. It is kept as it was, and what its
labels are called now is learned as a table:

    renamed(y | x) = sum over o of before(o | x) table(y | o),    table ~ (o = y) + 1 / C + examples since

(an example counts for the old label that it most probably has, p(o | x, y)). Beside it stand a head that began anew,
without the names, which may no longer hold; the one before as it was, where less changed than seemed; and the new one
together with either, p ~ anew(y | x) renamed(y | x).

Labels that changed their frequencies are weighed anew, p ~ answer(y | x) (share since / share of all)^a with a = 0, 1/2
or 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from iai_hf.posterior import half_life_decay

MEMORY = 256  # examples after which what a forecast got right counts half
EXPONENTS = (0.0, 0.5, 1.0)
FIRM = 16.0  # examples that the share of all counts for in the share since
FORECASTS = 5
LEAST = 1e-6  # probability of a label that the head before did not know


def renaming(moved: torch.Tensor) -> torch.Tensor:
    """The table `[C0, C]`, rows summing to 1, of how much was `moved` from old labels to those of now."""
    before, classes = moved.shape
    table = moved + torch.eye(before, classes).to(moved) + 1 / classes
    return table / table.sum(1, keepdim=True)


def since_renamed(anew: torch.Tensor, before: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    """Log probabilities of the forecasts, `[5, n, C]`, that of the new head first.

    Args:
        anew: logits of the head that began anew, `[n, C]`.
        before: logits of the one before, `[n, C0]`.
        moved: `[C0, C]`.
    """
    fresh, known = anew.log_softmax(1), before.softmax(1)
    stayed = torch.nn.functional.pad(known, (0, anew.shape[1] - known.shape[1]))
    others = [found.clamp(min=LEAST).log() for found in (known @ renaming(moved), stayed)]
    return torch.stack([fresh, *others, *(fresh + other for other in others)]).log_softmax(2)


def moved_by(before: torch.Tensor, moved: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """`moved` `[C0, C]` after examples with logits `before` `[n, C0]` and labels `targets` `[n]`."""
    likely = before.softmax(1) * renaming(moved)[:, targets].T
    likely = likely / likely.sum(1, keepdim=True).clamp(min=1e-12)
    own = torch.nn.functional.one_hot(targets, moved.shape[1]).to(moved)
    return moved + likely.T @ own


def reweighted(log_probs: torch.Tensor, since: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """`[3, n, C]` of `[n, C]`: with frequencies as they were, half-way, and as they are in the counts `since` `[C]`."""
    share = (counts + 1 / len(counts)) / (counts.sum() + 1)
    now = (since + FIRM * share) / (since.sum() + FIRM)
    exponents = torch.tensor(EXPONENTS, dtype=torch.float32).to(log_probs)
    return (log_probs + exponents[:, None, None] * (now / share).log()).log_softmax(2)


def mixed(forecasts: torch.Tensor, gains: torch.Tensor) -> torch.Tensor:
    """One forecast `[n, C]` of `[F, n, C]`, each counting by its `gains` `[F]`."""
    return torch.logsumexp(forecasts + gains.log_softmax(0)[:, None, None], 0)


def gained(gains: torch.Tensor, forecasts: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Gains `[F]` after examples that were forecast before they were seen."""
    own = forecasts[:, torch.arange(len(targets), device=targets.device), targets].sum(1)
    faded = gains * half_life_decay(len(targets), MEMORY) + own
    return faded - faded.max()


def in_parts(examples: int, size: int) -> Sequence[slice]:
    """Parts of so many examples, in order."""
    return [slice(first, min(first + size, examples)) for first in range(0, examples, size)]
