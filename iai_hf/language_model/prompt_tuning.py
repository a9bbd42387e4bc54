"""prompt-tuning: a soft prompt trained by a gradient step a batch. Explicit regime, g = Adam on the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from iai_hf.config import require
from iai_hf.language_model.gradient import GradientConfig
from iai_hf.language_model.trained import Trained
from iai_hf.task import TaskSpec
from iai_hf.threads import alone

if TYPE_CHECKING:
    import torch

    from iai_hf.backbones.conditions import Condition
    from iai_hf.language_model.learners import Learner


@dataclass(frozen=True)
class PromptTuningConfig(GradientConfig):
    """Settings of `prompt-tuning`.

    Attributes:
        num_virtual_tokens: length of the soft prompt.
        seed: of the vocabulary sample that the prompt starts from.
    """

    learning_rate: float = 0.03
    num_virtual_tokens: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_virtual_tokens > 0, f"num_virtual_tokens is {self.num_virtual_tokens}; expected more than 0")


class PromptTuning(Trained[PromptTuningConfig]):
    """A trained soft prompt P before the embeddings E of a query (Lester et al. 2021, arXiv 2104.08691).

    p(answer | query) = LM(answer | [P; E(query)])

    It starts as PEFT's prompt tuning does; the state is the prompt and Adam's moments.
    """

    method = "prompt-tuning"
    regime = "explicit"
    config_class = PromptTuningConfig

    def make_module(self) -> Learner:
        import peft
        import torch
        from peft.tuners.prompt_tuning import PromptEmbedding

        from iai_hf.language_model.learners import Learner

        model = self.prompter.model
        settings = peft.PromptTuningConfig(
            task_type=peft.TaskType.CAUSAL_LM,
            num_virtual_tokens=self.config.num_virtual_tokens,
            token_dim=model.embeddings([0]).shape[1],
            num_transformer_submodules=1,
            prompt_tuning_init=peft.PromptTuningInit.SAMPLE_VOCAB,
        )
        with alone(), torch.random.fork_rng(devices=[]):  # PEFT draws the vocabulary sample from the global generator
            torch.manual_seed(self.config.seed)
            usual = torch.get_default_dtype()
            torch.set_default_dtype(torch.float32)  # what is drawn depends on it
            try:
                encoder = PromptEmbedding(settings, model.model.get_input_embeddings())
            finally:
                torch.set_default_dtype(usual)
        start = {"prompt": encoder.embedding.weight.detach().float().cpu().clone()}
        return Learner(start, {}, self.config.learning_rate, self.config.learning_rate_exponent, "per_weight")

    def condition(
        self, own: Mapping[str, torch.Tensor], shared: Mapping[str, torch.Tensor], retained: Mapping[str, torch.Tensor]
    ) -> Condition:
        from iai_hf.backbones.conditions import Condition

        return Condition(prompt=own["prompt"])

    def prepare(self, tensors: Mapping[str, torch.Tensor], task: TaskSpec) -> Condition:
        from iai_hf.backbones.conditions import Condition

        prompt = self.learner.task_weights(tensors)["prompt"]
        return Condition(self.prompter.model.encode_prefix(embeddings=prompt.to(self.backbone.device)))

    def export_peft(self, tensors: Mapping[str, torch.Tensor], task: TaskSpec, directory: Path) -> None:
        from iai_hf.language_model.peft_export import write_prompt

        write_prompt(self.learner.task_weights(tensors)["prompt"], self.prompter.model, directory)
