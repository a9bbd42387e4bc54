"""numeric-parametric, -explicit, -implicit: the paper's three regimes on numbers, and their one-shot forms."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import get_args

from iai_hf.config import APART, require
from iai_hf.signals import Signal
from iai_hf.tables.numeric import Numeric, NumericConfig
from iai_hf.tables.solvers.implicit import Implicit, ImplicitState
from iai_hf.tables.solvers.network import NetworkSizes
from iai_hf.tables.solvers.one_shot import OneShot
from iai_hf.tables.solvers.parametric import Parametric
from iai_hf.tables.solvers.predictor import Predictor
from iai_hf.tables.solvers.solver import Solver


@dataclass(frozen=True)
class NumericIterativeConfig(NumericConfig):
    """Settings of the iterative regimes.

    Attributes:
        signal: what an update takes from a chunk: "data", "gradient" or "both".
        free: the paper's form, a network alone; otherwise it stands on a solver that can't collapse.
        window: states that an update sees; above 1 non-Markovian (parametric and explicit).
        carried: what the implicit regime hands on: "logits", "probabilities" or, in the free form, "latents".
        budget: examples that the implicit regime retains.
        batches: that it reads them in, at most; the free form reads chunk by chunk.
        half_life: for streams that drift (parametric and explicit): examples after which what was seen counts half.
    """

    signal: Signal = "both"
    free: bool = False
    window: int = 1
    carried: ImplicitState = "logits"
    budget: int = field(default=4096, metadata=APART)
    batches: int = 5
    half_life: int | None = field(default=None, metadata=APART)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.half_life is None or self.half_life > 0, f"half_life is {self.half_life}; expected 1 or more")
        for name, kind in (("signal", Signal), ("carried", ImplicitState)):
            value = getattr(self, name)
            require(value in get_args(kind), f"{name} is {value!r}; expected {', '.join(get_args(kind))}")
        require(self.window > 0, f"window is {self.window}; expected 1 or more")
        for name in ("budget", "batches"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; expected 1 or more")
        require(self.free or self.carried != "latents", "latents are carried in the free form alone; set free too")
        require(self.inputs > 0 or not self.free, "free has nothing but a network; give inputs and outputs")


class _Refining(Numeric[NumericIterativeConfig]):
    config_class = NumericIterativeConfig

    def make_solver(self, predictor: Predictor, sizes: NetworkSizes | None) -> Solver:
        """Refines theta."""
        config = self.config
        return Parametric(
            predictor, config.signal, sizes, free=config.free, window=config.window, half_life=config.half_life
        )


class NumericParametric(_Refining):
    """theta are the weights of a predictor of fixed form."""

    method = "numeric-parametric"
    regime = "parametric"


class NumericExplicit(_Refining):
    """theta is a code for a predictor whose features are learned too; at first they are the fixed ones."""

    method = "numeric-explicit"
    regime = "explicit"


class NumericImplicit(Numeric[NumericIterativeConfig]):
    """The answers are the state; the task information is the observations, newest ones first within the budget."""

    method = "numeric-implicit"
    regime = "implicit"
    config_class = NumericIterativeConfig

    def make_solver(self, predictor: Predictor, sizes: NetworkSizes | None) -> Solver:
        """Refines answers."""
        config = self.config
        return Implicit(
            predictor,
            config.signal,
            sizes,
            free=config.free,
            carried=config.carried,
            budget=config.budget,
            batches=config.batches,
        )


@dataclass(frozen=True)
class OneShotConfig(NumericConfig):
    """Settings of the one-shot methods.

    Attributes:
        budget: examples that are retained.
    """

    budget: int = field(default=4096, metadata=APART)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.budget > 0, f"budget is {self.budget}; expected 1 or more")


class Hypernetwork(Numeric[OneShotConfig]):
    """theta in one shot from all observations retained; without a network the ridge solution."""

    method = "hypernetwork"
    regime = "parametric"
    config_class = OneShotConfig

    def make_solver(self, predictor: Predictor, sizes: NetworkSizes | None) -> Solver:
        """One step, on the data alone."""
        return OneShot(Parametric(predictor, "data", sizes, free=sizes is not None), self.config.budget)


class PriorFitted(Numeric[OneShotConfig]):
    """Answers in one shot from all observations retained; without a network ridge answers.

    Mueller et al. 2022, arXiv 2112.10510.
    """

    method = "prior-fitted"
    regime = "implicit"
    config_class = OneShotConfig

    def make_solver(self, predictor: Predictor, sizes: NetworkSizes | None) -> Solver:
        """One step, on the data alone."""
        return OneShot(
            Implicit(predictor, "data", sizes, free=sizes is not None, budget=self.config.budget), self.config.budget
        )
