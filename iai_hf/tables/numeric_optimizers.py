"""sgd, adam, maml, reptile and learned-optimizer: gradient steps on the predictor's weights, chunk by chunk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from iai_hf.config import ABSENT, require
from iai_hf.tables.numeric import Numeric, NumericConfig
from iai_hf.tables.solvers.network import NetworkSizes
from iai_hf.tables.solvers.optimizers import GradientOptimizer, Reptile, Rule
from iai_hf.tables.solvers.predictor import Predictor
from iai_hf.tables.solvers.solver import Solver


@dataclass(frozen=True)
class OptimizerConfig(NumericConfig):
    """Settings of optimizers.

    Attributes:
        rate: length of a step; SGD's (and MAML's, Reptile's) in units of 1 / features.
        inner_steps: steps on each chunk.
        rate_exponent: step t is as long as rate / t^rate_exponent; 0 for a constant rate.
    """

    rate: float = 1.0
    inner_steps: int = 1
    rate_exponent: float = field(default=0.0, metadata={ABSENT: 0.0})

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rate > 0, f"rate is {self.rate}; expected more than 0")
        require(self.inner_steps > 0, f"inner_steps is {self.inner_steps}; expected 1 or more")
        require(self.rate_exponent >= 0, f"rate_exponent is {self.rate_exponent}; expected 0 or more, e.g. 0.5")


@dataclass(frozen=True)
class AdaptiveConfig(OptimizerConfig):
    """Settings of adam and learned-optimizer, whose steps are in units of theta."""

    rate: float = 0.05


class _Optimizer(Numeric[OptimizerConfig]):
    regime = "parametric"
    config_class = OptimizerConfig
    rule: ClassVar[Rule] = "sgd"
    greedy = False

    def make_solver(self, predictor: Predictor, sizes: NetworkSizes | None) -> Solver:
        """From zero."""
        config = self.config
        return GradientOptimizer(
            predictor, self.rule, config.rate, config.inner_steps, rate_exponent=config.rate_exponent
        )


class SGD(_Optimizer):
    """Stochastic gradient descent from zero."""

    method = "sgd"


class Adam(_Optimizer):
    """Adam from zero (Kingma and Ba 2015, arXiv 1412.6980)."""

    method = "adam"
    config_class = AdaptiveConfig
    rule = "adam"


class LearnedOptimizer(_Optimizer):
    """A small network a coordinate, near Adam at first (small_fc_lopt; Metz et al. 2022, arXiv 2203.11860)."""

    method = "learned-optimizer"
    config_class = AdaptiveConfig
    rule = "learned"


class _Started(_Optimizer):
    kind_of: ClassVar[type[GradientOptimizer]] = GradientOptimizer

    def make_solver(self, predictor: Predictor, sizes: NetworkSizes | None) -> Solver:
        """From the start."""
        start = (predictor.size(sizes.inputs), sizes.outputs) if sizes else None
        config = self.config
        return self.kind_of(predictor, self.rule, config.rate, config.inner_steps, start, config.rate_exponent)


class MAML(_Started):
    """Gradient steps from a learned start with a learned rate.

    Finn et al. 2017, arXiv 1703.03400; Li et al. 2017, arXiv 1707.09835.
    """

    method = "maml"


class ReptileStart(_Started):
    """Gradient steps from a start that was drawn towards the solutions of tasks.

    Nichol et al. 2018, arXiv 1803.02999.
    """

    method = "reptile"
    kind_of = Reptile
