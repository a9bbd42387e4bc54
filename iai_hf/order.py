"""Order: whether labels come in longer runs than a random order has, as in data that are sorted or grouped by label.

Given how often each label occurs, all orders of n exchangeable examples are equally likely (the runs test of Wald and
Wolfowitz 1940; of several labels, Mood 1940). Its normal approximation fails for rare labels, so orders are counted: to
make r runs, each label's n_c examples are cut into r_c parts, in C(n_c - 1, r_c - 1) ways, and the parts are put into
some order. That counts each order with r runs at least once, so that

    P(R <= r) <= sum over r' <= r, sum r_c = r' of  r'! / prod r_c!  *  prod C(n_c - 1, r_c - 1)  /  (n! / prod n_c!).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable

MOST = math.log(1e-6)  # of the probability that a look at a random order has so few runs
SHARE = 0.5  # of the runs that are expected: what has more is mixed well enough
MANY = 100  # runs: half of those expected are then 7 standard deviations too few, and counting orders would take long
LOOKS = 1.25  # by how much the examples have grown at the next look


class LabelOrder:
    """Reads labels in their order, and looks at growing distances, some 60 times in a million examples."""

    def __init__(self) -> None:
        self.counts = Counter[Hashable]()
        self.runs = 0
        self._last: Hashable = None
        self._next = 0.0

    def read(self, labels: Iterable[Hashable]) -> bool:
        """Whether with these, none of which is None, the labels have turned out to be sorted or grouped."""
        for label in labels:
            self.runs += label != self._last
            self.counts[label] += 1
            self._last = label
        total = self.counts.total()
        if total < self._next:
            return False
        self._next = LOOKS * total
        if self.runs > SHARE * self.expected:
            return False
        return self.runs > MANY or log_probability(self.counts.values(), self.runs) < MOST

    @property
    def expected(self) -> float:
        """Runs that a random order has on average."""
        total = max(self.counts.total(), 1)
        return total + 1 - sum(count**2 for count in self.counts.values()) / total

    def __str__(self) -> str:
        return (
            f"the labels of {self.counts.total():,} examples come in {self.runs:,} runs, where a random order has some "
            f"{self.expected:,.0f}: data that are sorted or grouped by label teach less, and probabilities are honest "
            "only where labels are mixed; if their order means nothing, shuffle them (shuffle_seed)"
        )


def log_probability(counts: Iterable[int], runs: int) -> float:
    """Log of a bound on the probability that a random order of labels with such `counts` has at most so many runs."""
    numbers = list(counts)
    # Of each number of parts, the log of the sum over the labels so far of prod C(n_c - 1, r_c - 1) / r_c!.
    ways = [0.0] + [-math.inf] * runs
    for count in numbers:
        own = [_log_choose(count - 1, parts - 1) - math.lgamma(parts + 1) for parts in range(1, min(count, runs) + 1)]
        ways = [
            _log_sum([ways[made - parts] + log for parts, log in enumerate(own[:made], 1)]) for made in range(runs + 1)
        ]
    fewer = _log_sum([log + math.lgamma(made + 1) for made, log in enumerate(ways)])
    return fewer - math.lgamma(sum(numbers) + 1) + sum(math.lgamma(count + 1) for count in numbers)


def _log_choose(whole: int, part: int) -> float:
    return math.lgamma(whole + 1) - math.lgamma(part + 1) - math.lgamma(whole - part + 1)


def _log_sum(logs: list[float]) -> float:
    most = max(logs, default=-math.inf)
    return most if most == -math.inf else most + math.log(sum(math.exp(log - most) for log in logs))
