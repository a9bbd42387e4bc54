"""What is asked of each example of a watched stream, from what came before it: bets on a change, `[n, B]` each.

* meaning: how much less likely the label was than what the state would have said, among examples of that label;
* frequencies: whether the label is one that has become more frequent lately;
* texts: whether the text lies where texts have lately moved, beyond what other frequencies of the labels explain.

Each is ranked or weighed against a bag of earlier examples and the one at hand, in which all are treated alike, so that
without a change it could as well have been any of them.
"""

from __future__ import annotations

import torch

from iai_hf.features.watch.detectors import ranked

KEPT = 320  # newest examples that are kept
LATELY = 64  # of them tell what has changed, and what is betted on next
CALM = 128  # earlier examples before anything is betted
STAKES = (0.2, 0.4, 0.6)  # of a bet on frequencies or texts
BINS, LARGEST = 96, 8.0  # of a label's histogram of surprises


def surprises(log_probs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log of the probability of labels no likelier than the one that came, `[n]`, from `[n, C]`: 0 for the likeliest.

    An honest state is surprised no more often when it knows little than when it knows much.
    """
    own = log_probs.gather(1, targets[:, None])
    tail = log_probs.exp().masked_fill(log_probs > own + 1e-6, 0).sum(1)
    return -tail.clamp(min=1e-9, max=1).log()


def bets_on_meaning(
    histograms: torch.Tensor, found: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bets on surprises `[n]`, ranked among those of their own label `[n]`, and the histograms `[C, BINS]` then.

    Labels that are hard to tell are more surprising than others at all times: among all labels' surprises, theirs would
    look like a change of meaning wherever they become more frequent (Vovk et al. 2003: label-conditional p-values).
    """
    bins = (found * (BINS / LARGEST) - 1e-3).ceil().long().clamp(0, BINS - 1)  # rounding is no surprise
    places = targets * BINS + bins
    own = torch.nn.functional.one_hot(places, histograms.numel()).to(histograms)
    before = (histograms.reshape(-1) + own.cumsum(0) - own).reshape(-1, *histograms.shape)
    mine = before[torch.arange(len(targets)), targets]
    same = mine.gather(1, bins[:, None])[:, 0]
    above = mine.flip(1).cumsum(1).flip(1).gather(1, bins[:, None])[:, 0] - same
    bets = _calm(ranked(above, same, mine.sum(1)), before.sum((1, 2)))
    return bets, histograms + own.sum(0).reshape(histograms.shape)


def bets_on_frequencies(counts: torch.Tensor, lately: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Bets on labels that are as frequent as lately.

    Args:
        counts: of the labels before the chunk, `[C]`, those of `lately` among them.
        lately: targets of the newest examples, `[at most LATELY]`.
        targets: of the chunk, `[n]`.
    """
    classes = len(counts)
    own = torch.nn.functional.one_hot(torch.cat([lately, targets]), classes).double()
    run = torch.cat([own.new_zeros(1, classes), own.cumsum(0)])
    ends = torch.arange(len(lately), len(own))
    window = run[ends] - run[(ends - LATELY).clamp(min=0)]
    bag = counts.double() + own[len(lately) :].cumsum(0) - window  # earlier examples and the one at hand
    total = bag.sum(1, keepdim=True)
    share = (bag + 1 / classes) / (total + 1)
    held = LATELY / 4 + classes
    ratio = (window + held * share) / (window.sum(1, keepdim=True) + held) / share
    stakes = torch.tensor(STAKES, dtype=torch.float64)
    ratios = 1 - stakes + stakes * ratio[..., None]
    mine = ratios[torch.arange(len(targets)), targets]
    return _calm(mine * total / (bag[..., None] * ratios).sum(1), total[:, 0] - 1 - 2 * classes)


def bets_on_texts(
    earlier: torch.Tensor, lately: torch.Tensor, features: torch.Tensor, sides: torch.Tensor
) -> torch.Tensor:
    """Bets on texts `[n, d]` that lie as the `lately` read ones do, against `earlier` ones.

    Directions in which labels differ, `sides` `[d, r]`, are left out: there texts move with frequencies.
    """
    if len(earlier) < KEPT - LATELY or len(lately) < LATELY:
        return torch.ones(len(features), len(STAKES), dtype=torch.float64)
    earlier, lately, features = (some - some @ sides @ sides.T for some in (earlier, lately, features))
    moved, total, size = lately.mean(0), earlier.sum(0), len(earlier) + 1
    mine = features @ moved - (features @ total + features.square().sum(1)) / size
    others = (earlier @ moved)[:, None] - ((earlier @ total)[:, None] + earlier @ features.T) / size
    bag = torch.cat([mine[None], others]).double().T
    along = torch.tanh((bag - bag.mean(1, keepdim=True)) / bag.std(1, keepdim=True).clamp(min=1e-9))
    ratios = 1 + torch.tensor(STAKES, dtype=torch.float64) * along[..., None]
    return ratios[:, 0] / ratios.mean(1)


def differences(means: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis `[d, r]` of the differences of means `[C, d]`, of at most half of all directions."""
    if not len(means):
        return means.T
    left, sizes, _ = torch.linalg.svd((means - means.mean(0)).T, full_matrices=False)
    most = means.shape[1] // 2
    return left[:, :most][:, sizes[:most] > 1e-4]


def _calm(bets: torch.Tensor, earlier: torch.Tensor) -> torch.Tensor:
    """No bet where too few examples are there to rank against."""
    return bets.masked_fill((earlier < CALM)[:, None], 1.0)
