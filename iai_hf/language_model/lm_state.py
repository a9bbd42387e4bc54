"""lm-state: a task state inside the language model, refined by learned steps. Parametric regime, signal gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from iai_hf.backbones.gains import output_gains
from iai_hf.config import ABSENT, APART, renamed
from iai_hf.language_model.lora import LoRA, LoRAConfig
from iai_hf.learned import AUTO
from iai_hf.threads import computing

if TYPE_CHECKING:
    from iai_hf.backbones.conditions import Condition
    from iai_hf.backbones.packing import Row

SENTENCE = "Someone asked for the capital of France, and was told that it is Paris."
USUAL_GAIN = 4.6  # of the layers of SmolLM2, for which `learning_rate` was chosen; of Gemma 3's it is 1.0


@dataclass(frozen=True)
class LMStateConfig(LoRAConfig):
    """Settings of `lm-state`: those of `lora`, for a small state in the upper layers, where a gradient is cheap.

    Attributes:
        demonstration_tokens: about four short examples.
        scale_steps: take steps in parts of what a layer puts out, so that one `learning_rate` suits models of every
            scale; learned step sizes are taken as they are. Not so in states that were saved before.
    """

    rank: int = 16
    alpha: int = 32
    layers: int | None = 12
    demonstration_tokens: int = renamed(64, former="demonstrations")
    batch_size: int = 8
    passes: int = 2
    learning_rate: float = 0.012
    scale_steps: bool = field(default=True, metadata={ABSENT: False, **APART})
    learning_rate_exponent: float = renamed(-0.3, former="decay")
    weights: str | None = AUTO


class LMState(LoRA):
    """Demonstrations, and fast weights: up projections of the last layers are the task's own, down projections shared.

    Shared projections, start and step sizes are meta-learned; untrained, it is LoRA with frozen random down
    projections (LoRA-FA, arXiv 2308.03303). The first examples are kept as demonstrations, so before its first step a
    state is in-context learning, and steps are taken on what that gets wrong. A chunk is read in one forward pass, and
    steps go through the positions of its answers alone, in the last layers: it costs little more than that pass.
    """

    method = "lm-state"
    config: LMStateConfig
    config_class = LMStateConfig
    rule = "per_group"
    shares_down = True
    usual_targets: ClassVar[tuple[str, ...]] = ("v_proj", "o_proj")

    @cached_property
    def step_scales(self) -> Mapping[str, float]:
        if not self.config.scale_steps or self.config.weights is not None:
            return {}
        import torch

        model = self.prompter.model
        ids = torch.tensor([[*model.special_tokens[0], *model.tokens(SENTENCE)]], device=model.device)

        def read() -> None:
            with torch.inference_mode():
                model.model(input_ids=ids)

        with computing(), model.lock:
            gains = output_gains(model.model, self.groups, read)
        return {f"up_{group}": gain / USUAL_GAIN for group, gain in gains.items()}

    def prefill(self, rows: Sequence[Row], condition: Condition) -> Sequence[Row]:
        return self.prompter.model.prefill(rows, condition)
