"""in-context: demonstrations in the prompt. Implicit regime: the state is the observations themselves."""

from __future__ import annotations

import logging
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from iai_hf.config import renamed, require
from iai_hf.language_model.answers import written
from iai_hf.language_model.prompted import Prompted
from iai_hf.language_model.prompting import PromptConfig
from iai_hf.task import Chunk, TaskSpec

if TYPE_CHECKING:
    import torch

    from iai_hf.backbones.conditions import Condition

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InContextConfig(PromptConfig):
    """Settings of `in-context`.

    Attributes:
        demonstration_tokens: of demonstrations that are kept, at most half of the model's context.
    """

    demonstration_tokens: int = renamed(1024, former="budget")

    def __post_init__(self) -> None:
        super().__post_init__()
        tokens = self.demonstration_tokens
        require(tokens > 0, f"demonstration_tokens is {tokens}; expected 1 or more")


class InContext(Prompted[InContextConfig]):
    """Keeps as many demonstrations as `demonstration_tokens` hold, and encodes them once for all queries.

    p(answer | query) = LM(answer | x[1], y[1], ..., x[k], y[k], query)    (Brown et al. 2020, arXiv 2005.14165)

    When they are full, the oldest demonstration of the output that has most of them leaves, so that classes stay
    balanced whatever the order of the stream; where all outputs differ, that is the oldest of all. A demonstration
    that alone exceeds them is left out, which the state counts and the log tells.
    """

    method = "in-context"
    regime = "implicit"
    config_class = InContextConfig
    chunk_free = True

    def initial(self, task: TaskSpec) -> Mapping[str, torch.Tensor]:
        return self._tensors([], [])

    def refine(
        self, tensors: Mapping[str, torch.Tensor], task: TaskSpec, chunk: Chunk, examples: int
    ) -> tuple[Mapping[str, torch.Tensor], Mapping[str, int]]:
        chunk = self.in_order(task, chunk)
        kept = [tuple(part.tolist()) for part in tensors["tokens"].split(tensors["lengths"].tolist())]
        outputs = tensors["outputs"].tolist()
        budget = min(self.config.demonstration_tokens, self.backbone.context // 2)
        total, left_out, cuts = sum(map(len, kept)), 0, 0
        for text, output in zip(chunk.inputs, chunk.outputs, strict=True):
            tokens, cut = self.prompter.demonstration(text, output)
            cuts += cut
            if len(tokens) > budget:
                left_out += 1
                continue
            kept.append(tokens)
            outputs.append(zlib.crc32(written(output).encode()))
            total += len(tokens)
            while total > budget:
                commonest = Counter(outputs).most_common(1)[0][0]
                leaving = outputs.index(commonest)
                outputs.pop(leaving)
                total -= len(kept.pop(leaving))
        if left_out:
            log.warning("left out %d demonstrations longer than demonstration_tokens, %d", left_out, budget)
        counts = {"demonstrations_left_out": left_out} | ({"texts_cut": cuts} if self.config.max_tokens else {})
        return self._tensors(kept, outputs), counts | self.counted(task, chunk)

    def prepare(self, tensors: Mapping[str, torch.Tensor], task: TaskSpec) -> Condition:
        from iai_hf.backbones.conditions import Condition

        return Condition(self.prompter.model.encode_prefix(tensors["tokens"].tolist()))

    def export_peft(self, tensors: Mapping[str, torch.Tensor], task: TaskSpec, directory: Path) -> None:
        from iai_hf.language_model.peft_export import write_prefix

        write_prefix(self.prepare(tensors, task).prefix, self.prompter.model, directory)

    def _tensors(self, kept: Sequence[tuple[int, ...]], outputs: Sequence[int]) -> Mapping[str, torch.Tensor]:
        """All demonstrations' `tokens` in a row, int32; their `lengths` int32 and `outputs` (CRC-32) int64."""
        import torch

        return {
            "tokens": torch.tensor([token for tokens in kept for token in tokens], dtype=torch.int32),
            "lengths": torch.tensor([len(tokens) for tokens in kept], dtype=torch.int32),
            "outputs": torch.tensor(outputs, dtype=torch.int64),
        }
