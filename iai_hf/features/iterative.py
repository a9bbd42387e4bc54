"""iterative: the paper's three regimes on features. Each is its head (`heads/`) under the contract."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import get_args

from iai_hf.config import APART, require
from iai_hf.features.frozen_features import FrozenFeatures, FrozenFeaturesConfig
from iai_hf.features.heads import ExplicitHead, Head, ImplicitHead, ParametricHead
from iai_hf.task import Signal


@dataclass(frozen=True)
class IterativeConfig(FrozenFeaturesConfig):
    """Settings of `iterative`.

    Attributes:
        signal: what an update takes from a chunk: "data", "gradient" or "both".
    """

    signal: str = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        known = get_args(Signal)
        require(self.signal in known, f"signal is {self.signal!r}; expected {', '.join(known)}")


@dataclass(frozen=True)
class IterativeImplicitConfig(FrozenFeaturesConfig):
    """Settings of `iterative-implicit`.

    Attributes:
        budget: examples that the state may keep, 2 bytes a feature each.
    """

    budget: int = field(default=1024, metadata=APART)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.budget > 0, f"budget is {self.budget}; expected 1 or more")


class Iterative(FrozenFeatures):
    """Parametric: the state is a linear classifier's parameters (see `iai_hf.features.heads.parametric`)."""

    method = "iterative"
    regime = "parametric"
    config_class = IterativeConfig

    def make_module(self) -> Head:
        return ParametricHead(self.config.signal)


class IterativeExplicit(FrozenFeatures):
    """Explicit: the state is a compact code, the predictor is learned (see `iai_hf.features.heads.explicit`)."""

    method = "iterative-explicit"
    regime = "explicit"

    def make_module(self) -> Head:
        return ExplicitHead()


class IterativeImplicit(FrozenFeatures):
    """Implicit: the state is observations, queries' logits are refined by them (see `heads/implicit.py`)."""

    method = "iterative-implicit"
    regime = "implicit"
    config_class = IterativeImplicitConfig

    def make_module(self) -> Head:
        return ImplicitHead(self.config.budget)
