"""lora: low-rank weights trained by a gradient step a batch. Parametric regime, g = Adam from a (learned) start."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from iai_hf.backbones.low_rank import layer_of
from iai_hf.config import renamed, require
from iai_hf.errors import BackboneError
from iai_hf.language_model.gradient import GradientConfig, Retained
from iai_hf.language_model.prompting import Prompter
from iai_hf.language_model.targets import by_family, last_part, linear_layers, over_the_cache, sizes, unknown
from iai_hf.language_model.trained import Trained
from iai_hf.task import Chunk, TaskSpec
from iai_hf.threads import computing

if TYPE_CHECKING:
    import torch

    from iai_hf.backbones import Backbone
    from iai_hf.backbones.conditions import Condition, Prefix
    from iai_hf.backbones.low_rank import LowRank
    from iai_hf.language_model.learners import Learner

log = logging.getLogger(__name__)
RETAINED = "demonstrations"  # tokens of all kept demonstrations in a row, int32
MOST_ENCODED = 8  # prefixes of demonstrations, a few MB each


@dataclass(frozen=True)
class LoRAConfig(GradientConfig):
    """Settings of `lora`.

    Attributes:
        rank, alpha: of the low-rank weights; they are scaled by alpha / rank.
        target_modules: linear layers that get them, by the last part of their name; None takes those of the attention
            that are usual in the backbone's family, which are written into the state.
        layers: adapt only so many of the model's last layers; None adapts all.
        demonstration_tokens: of the first examples that the state keeps as they are; the plain model reads them once,
            as a prefix of everything that is read under the state. No step is taken on them.
        seed: of the random down projections.
    """

    rank: int = 8
    alpha: int = 16
    target_modules: list[str] | None = None
    layers: int | None = None
    demonstration_tokens: int = renamed(0, former="demonstrations")
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rank > 0, f"rank is {self.rank}; expected 1 or more")
        require(self.alpha > 0, f"alpha is {self.alpha}; expected 1 or more")
        require(self.layers is None or self.layers > 0, f"layers is {self.layers}; expected 1 or more")
        tokens = self.demonstration_tokens
        require(tokens >= 0, f"demonstration_tokens is {tokens}; expected 0 or more")
        names = self.target_modules is None or (
            len(self.target_modules) > 0 and all(isinstance(name, str) for name in self.target_modules)
        )
        require(names, f"target_modules is {self.target_modules}; expected names of linear layers")


class LoRA(Trained[LoRAConfig]):
    """Low-rank weights beside linear layers, trained chunk by chunk (Hu et al. 2021, arXiv 2106.09685).

    y = W x + alpha / rank * up (down x)

    The state is both projections of each layer and Adam's moments.
    """

    method = "lora"
    regime = "parametric"
    config_class = LoRAConfig
    rule: ClassVar[str] = "per_weight"
    shares_down: ClassVar[bool] = False
    usual_targets: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj", "o_proj")

    def __init__(self, backbone: Backbone, config: LoRAConfig | None = None) -> None:
        settings = config if config is not None else self.config_class()
        Prompter(backbone, settings)  # an encoder is refused as one, not for the names of its layers
        if settings.target_modules is None:
            settings = dataclasses.replace(settings, target_modules=by_family(backbone, self.usual_targets))
        super().__init__(backbone, settings)

    def make_module(self) -> Learner:
        import torch

        from iai_hf.language_model.learners import Learner

        generator = torch.Generator().manual_seed(self.config.seed)
        down, up = {}, {}
        for group, names in self.groups.items():
            wide, out = sizes(self.targets[names[0]])
            down[f"down_{group}"] = torch.randn(
                len(names), self.config.rank, wide, generator=generator, dtype=torch.float32
            ) / math.sqrt(wide)
            up[f"up_{group}"] = torch.zeros(len(names), out, self.config.rank, dtype=torch.float32)
        start, shared = (up, down) if self.shares_down else (up | down, {})
        return Learner(start, shared, self.config.learning_rate, self.config.learning_rate_exponent, self.rule)

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """Targets of one kind and size, which are kept in one tensor each, e.g. "q_proj_576x576"."""
        found: dict[str, list[str]] = {}
        for name, layer in self.targets.items():
            wide, out = sizes(layer)
            found.setdefault(f"{last_part(name)}_{out}x{wide}", []).append(name)
        return found

    @cached_property
    def targets(self) -> dict[str, torch.nn.Module]:
        """The linear layers that get low-rank weights, by their names in the model.

        Raises:
            BackboneError: the model has none of that name.
        """
        model = self.prompter.model.model
        asked = self.config.target_modules or []  # None was made names of the family's before
        depth = int(model.config.num_hidden_layers)
        first = 0 if self.config.layers is None else max(depth - self.config.layers, 0)
        named = {name: layer for name, layer in linear_layers(model).items() if last_part(name) in asked}
        if not named:
            raise unknown(self.backbone, asked)
        again = over_the_cache(self.backbone, asked) if self.config.demonstration_tokens else set()
        if again:
            raise BackboneError(
                f"{self.backbone.name} applies {', '.join(sorted(again))} to its cache too, so that weights there "
                "would change the demonstrations; leave it out of target_modules, or set demonstration_tokens to 0"
            )
        missing = set(asked) - set(map(last_part, named))
        if missing:
            log.warning("%s has no linear layers called %s", self.backbone.name, ", ".join(sorted(missing)))
        found = {name: layer for name, layer in named.items() if layer_of(name) >= first}
        if not found:
            raise BackboneError(
                f"{self.backbone.name} has {', '.join(asked)} in layers up to "
                f"{max(map(layer_of, named))} only, none in the last {self.config.layers}; raise 'layers'"
            )
        return found

    @cached_property
    def first_layer(self) -> int:
        """The first of the model's layers that is adapted."""
        return min(layer_of(name) for name in self.targets)

    def condition(
        self, own: Mapping[str, torch.Tensor], shared: Mapping[str, torch.Tensor], retained: Mapping[str, torch.Tensor]
    ) -> Condition:
        from iai_hf.backbones.conditions import Condition

        return Condition(self.prefix(retained), (self.low_rank(own, shared),), first_layer=self.first_layer)

    def retained(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        import torch

        if not self.config.demonstration_tokens:
            return {}
        return {RETAINED: tensors.get(RETAINED, torch.zeros(0, dtype=torch.int32))}

    def retain(self, retained: Mapping[str, torch.Tensor], chunk: Chunk, steps: int) -> Retained:
        """Demonstrations are the first examples of a stream, from the first that fits to the first that does not."""
        import torch

        if steps or not retained:
            return super().retain(retained, chunk, steps)
        budget, tokens, taken, lengths = self.config.demonstration_tokens, retained[RETAINED].tolist(), set(), []
        for place, (text, output) in enumerate(zip(chunk.inputs, chunk.outputs, strict=True)):
            more, _ = self.prompter.demonstration(text, output)
            lengths.append(len(more))
            if len(tokens) + len(more) <= budget:
                tokens += more
                taken.add(place)
            elif tokens:
                break
        if not tokens:
            log.warning(
                "no demonstration is kept: the shortest example of the first chunk has %d tokens, the budget is %d; "
                "raise demonstration_tokens, or read less of each text with max_tokens",
                min(lengths),
                budget,
            )
        trained_on = [place for place in range(len(chunk)) if place not in taken]
        left_out = sum(length > budget for length in lengths)
        return Retained({RETAINED: torch.tensor(tokens, dtype=torch.int32)}, trained_on, left_out)

    def prefix(self, retained: Mapping[str, torch.Tensor]) -> Prefix:
        """The demonstrations as the plain model reads them; those of the last few states stay encoded."""
        from iai_hf.backbones.conditions import NO_PREFIX

        if not retained:
            return NO_PREFIX
        tokens = tuple(retained[RETAINED].tolist())
        with computing(), self.backbone.lock:
            if tokens not in self._encoded:
                while len(self._encoded) >= MOST_ENCODED:
                    self._encoded.pop(next(iter(self._encoded)))
                self._encoded[tokens] = self.prompter.model.encode_prefix(tokens)
            return self._encoded[tokens]

    @cached_property
    def _encoded(self) -> dict[tuple[int, ...], Prefix]:
        return {}

    def prepare(self, tensors: Mapping[str, torch.Tensor], task: TaskSpec) -> Condition:
        return self.condition_of(tensors)

    def low_rank(self, own: Mapping[str, torch.Tensor], shared: Mapping[str, torch.Tensor]) -> LowRank:
        """The weights as the model takes them, in its precision and on its device."""
        from iai_hf.backbones.low_rank import LowRank

        device, dtype = self.backbone.device, self.backbone.dtype
        whole = {name: tensor.to(device, dtype) for name, tensor in {**shared, **own}.items()}
        down: dict[str, torch.Tensor] = {}
        up: dict[str, torch.Tensor] = {}
        for group, names in self.groups.items():
            down |= zip(names, whole[f"down_{group}"].unbind(), strict=True)
            up |= zip(names, (self.scale * whole[f"up_{group}"]).unbind(), strict=True)
        return LowRank(down, up)

    @property
    def scale(self) -> float:
        """What the low-rank weights are multiplied by."""
        return self.config.alpha / self.config.rank

    def export_peft(self, tensors: Mapping[str, torch.Tensor], task: TaskSpec, directory: Path) -> None:
        from iai_hf.language_model.peft_export import write_lora

        weights = self.low_rank(self.learner.task_weights(tensors), self.learner.shared_weights())
        retained = self.retained(tensors)
        shown = retained[RETAINED].tolist() if retained else None
        write_lora(weights, self.config.rank, self.config.alpha, self.prompter, shown, directory)
