"""How the learning rate goes, and when a run ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

FEWEST_EVALUATIONS = 20  # before which a run does not count as flat: many networks learn nothing for a while at first
LAST = 0.2  # share of the steps that are looked at then
RISING, CONSTANT = 200, 1000  # steps until the rate is at its peak, and until it falls, where the last one is unknown


def decaying(part: float, warmup: float) -> float:
    """Share of the peak learning rate where `part` of the run is over: up in a line, down as a cosine."""
    return min(part / warmup if warmup else 1.0, 1.0) * 0.5 * (1 + math.cos(math.pi * min(part, 1.0)))


def unending(step: int) -> float:
    """Share of the peak learning rate where nobody knows which step is the last: up in a line, down as their root.

    Vaswani et al. 2017, arXiv 1706.03762.
    """
    return min(step / RISING, 1.0, (CONSTANT / step) ** 0.5)


def regular(history: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """The evaluations that a run has wherever it was cut off: without that at its limit of time."""
    return tuple(entry for entry in history if "at_limit" not in entry)


def flat(history: Sequence[dict[str, Any]], least: float) -> bool:
    """Whether the best of the evaluations' losses fell by less than a share of `least` over the last fifth of steps."""
    history = regular(history)
    if len(history) <= FEWEST_EVALUATIONS:
        return False
    before = min(entry["loss"] for entry in history if entry["step"] <= (1 - LAST) * history[-1]["step"])
    return bool(min(entry["loss"] for entry in history) > (1 - least) * before)


def ended(history: Sequence[dict[str, Any]], until_flat: float, seconds: float | None = None) -> bool:
    """Whether a run is over at its last evaluation: it is flat, where it asks for that, or its time is over."""
    if not history:
        return False
    late = seconds is not None and history[-1]["seconds"] > seconds
    return late or (until_flat > 0 and flat(history, until_flat))
