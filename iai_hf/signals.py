"""Signals: what an update takes from a chunk, an axis of Mittal et al. 2025 (arXiv 2510.11471) beside the regimes.

A further one is named here and gets its question; the heads (`features/heads`) and solvers (`tables/solvers`) ask.
"""

from __future__ import annotations

from typing import Literal, get_args

Signal = Literal["data", "gradient", "both"]
SIGNALS: tuple[Signal, ...] = get_args(Signal)


def takes_data(signal: Signal) -> bool:
    """Whether an update sees the examples themselves, or their moments."""
    return signal in ("data", "both")


def takes_gradient(signal: Signal) -> bool:
    """Whether an update sees the gradient of the loss, what the state leaves unexplained."""
    return signal in ("gradient", "both")
