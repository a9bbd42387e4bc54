"""prompt-tuning: a soft prompt trained by gradient steps on each chunk. Explicit regime, g = SGD on the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from iai_hf.amortizer import Amortizer
from iai_hf.amortizers.prompting import PromptConfig, Prompter
from iai_hf.config import require
from iai_hf.task import Chunk, Prediction, TaskSpec

if TYPE_CHECKING:
    import torch

    from iai_hf.backbones.causal_lm import Prefix


@dataclass(frozen=True)
class PromptTuningConfig(PromptConfig):
    """Settings of `prompt-tuning`.

    Attributes:
        num_virtual_tokens: length of the soft prompt.
        learning_rate: of Adam.
        batch_size: examples a gradient step; a chunk is gone through once.
        seed: of the vocabulary sample that the prompt starts from.
    """

    num_virtual_tokens: int = 16
    learning_rate: float = 0.03
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_virtual_tokens", "learning_rate", "batch_size"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; expected more than 0")


class PromptTuning(Amortizer):
    """Lester et al. 2021, on PEFT's prompt tuning; the state is the prompt and Adam's moments."""

    method = "prompt-tuning"
    regime = "explicit"
    config_class = PromptTuningConfig
    default_backbone = "HuggingFaceTB/SmolLM2-135M-Instruct"

    @cached_property
    def prompter(self) -> Prompter:
        return Prompter(self.backbone, self.config)

    def initial(self, task: TaskSpec) -> Mapping[str, torch.Tensor]:
        import peft
        import torch
        from peft.tuners.prompt_tuning import PromptEmbedding

        model = self.prompter.model
        settings = peft.PromptTuningConfig(
            task_type=peft.TaskType.CAUSAL_LM,
            num_virtual_tokens=self.config.num_virtual_tokens,
            token_dim=model.hidden_size,
            num_transformer_submodules=1,
            prompt_tuning_init=peft.PromptTuningInit.SAMPLE_VOCAB,
        )
        with torch.random.fork_rng(devices=[]):  # PEFT draws the vocabulary sample from the global generator
            torch.manual_seed(self.config.seed)
            encoder = PromptEmbedding(settings, model.model.get_input_embeddings())
        prompt = encoder.embedding.weight.detach().float().cpu().clone()
        return {"prompt": prompt, "mean": torch.zeros_like(prompt), "square": torch.zeros_like(prompt)} | {
            "steps": torch.zeros((), dtype=torch.int64)
        }

    def refine(
        self, tensors: Mapping[str, torch.Tensor], task: TaskSpec, chunk: Chunk, examples: int
    ) -> tuple[Mapping[str, torch.Tensor], Mapping[str, int]]:
        import torch

        model, config = self.prompter.model, self.config
        prompt = torch.nn.Parameter(tensors["prompt"].to(model.device, copy=True))
        adam = torch.optim.Adam([prompt], lr=config.learning_rate)
        adam.state[prompt] = {
            "step": tensors["steps"].float(),
            "exp_avg": tensors["mean"].to(model.device, copy=True),
            "exp_avg_sq": tensors["square"].to(model.device, copy=True),
        }
        empty = model.encode_prefix()
        for first in range(0, len(chunk), config.batch_size):
            batch = slice(first, first + config.batch_size)
            examples_in = zip(chunk.inputs[batch], chunk.outputs[batch], strict=True)
            rows = [self.prompter.row(text, [output]) for text, output in examples_in]
            for row in rows:
                model.check_room(empty, config.num_virtual_tokens + len(row))
            adam.zero_grad()
            model.loss(prompt, rows).backward()
            adam.step()
        moments = adam.state[prompt]
        refined = {
            "prompt": prompt.detach().cpu(),
            "mean": moments["exp_avg"].cpu(),
            "square": moments["exp_avg_sq"].cpu(),
            "steps": moments["step"].to(torch.int64),
        }
        cuts = sum(self.prompter.query(text)[1] for text in chunk.inputs) if config.max_tokens else 0
        return refined, {"texts_cut": cuts} if config.max_tokens else {}

    def prepare(self, tensors: Mapping[str, torch.Tensor], task: TaskSpec) -> Prefix:
        return self.prompter.model.encode_prefix(embeddings=tensors["prompt"].to(self.backbone.device))

    def answer(self, prepared: Prefix, task: TaskSpec, queries: Sequence[str]) -> Prediction:
        return self.prompter.predict(prepared, task, queries)
