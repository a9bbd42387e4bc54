"""lm-state: a task state inside the language model, refined by learned steps. Parametric regime, signal gradient."""

from __future__ import annotations

from dataclasses import dataclass, field

from iai_hf.amortizers.learned import AUTO
from iai_hf.amortizers.lora import LoRA, LoRAConfig


@dataclass(frozen=True)
class LMStateConfig(LoRAConfig):
    """Settings of `lm-state`: those of `lora`, for a small state in the upper layers, where a gradient is cheap."""

    rank: int = 16
    alpha: int = 32
    target_modules: list = field(default_factory=lambda: ["v_proj", "o_proj"])
    layers: int | None = 14
    batch_size: int = 16
    learning_rate: float = 0.012
    decay: float = -0.3
    weights: str | None = AUTO


class LMState(LoRA):
    """Fast weights: the up projections of the last layers are the task's own, the down projections are shared.

    Shared projections, start and step sizes are meta-learned; untrained, it is LoRA with frozen random down
    projections (Zhang et al. 2023, LoRA-FA). A chunk costs one forward pass and a backward pass through the last
    layers alone.
    """

    method = "lm-state"
    config_class = LMStateConfig
    rule = "per_group"
    shares_down = True
