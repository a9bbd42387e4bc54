"""iterative: the streaming head on frozen features. Parametric regime: the state is a classifier's parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from iai_hf.amortizer import Amortizer
from iai_hf.amortizers.discriminant import Discriminant, Prior, Statistics, absorb, head
from iai_hf.backbones import Backbone
from iai_hf.config import require
from iai_hf.errors import BackboneError
from iai_hf.task import Chunk, Prediction, TaskSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class IterativeConfig:
    """Settings of `iterative`.

    Attributes:
        max_tokens: read only so many tokens of a text; None reads all of it.
        max_features: wider features are projected to this size, at random, so that a state stays under
            2 (size + 1)^2 bytes and 10 (size + 1) bytes a label.
    """

    max_tokens: int | None = None
    max_features: int = 512

    def __post_init__(self) -> None:
        require(self.max_tokens is None or self.max_tokens > 0, f"max_tokens is {self.max_tokens}; expected 1 or more")
        require(self.max_features > 0, f"max_features is {self.max_features}; expected 1 or more")


class Iterative(Amortizer):
    """Each chunk's features refine the moments and the correction of a linear classifier; a query costs its features.

    The state is safe by construction: see `iai_hf.amortizers.discriminant`.
    """

    method = "iterative"
    regime = "parametric"
    kinds = ("classification",)
    config_class = IterativeConfig
    default_backbone = "sentence-transformers/all-MiniLM-L6-v2"

    def __init__(self, backbone: Backbone, config: Any = None) -> None:
        super().__init__(backbone, config)
        self.prior = Prior()

    def initial(self, task: TaskSpec) -> Mapping[str, torch.Tensor]:
        size = min(self.backbone.hidden_size, self.config.max_features)
        return vars(self._with_labels(Statistics.empty(size, self.prior), task))

    def refine(
        self, tensors: Mapping[str, torch.Tensor], task: TaskSpec, chunk: Chunk, examples: int
    ) -> tuple[Mapping[str, torch.Tensor], Mapping[str, int]]:
        import torch

        features, cut = self._features(chunk.inputs)
        numbers = {label: number for number, label in enumerate(task.labels)}
        targets = torch.tensor([numbers[output] for output in chunk.outputs])
        statistics = absorb(self._with_labels(Statistics(**tensors), task), features, targets, self.prior)
        return vars(statistics), {"texts_cut": cut} if self.config.max_tokens else {}

    def prepare(self, tensors: Mapping[str, torch.Tensor], task: TaskSpec) -> Discriminant:
        return head(Statistics(**tensors), self.prior)

    def answer(self, prepared: Discriminant, task: TaskSpec, queries: Sequence[str]) -> Prediction:
        features, _ = self._features(queries)
        return Prediction.from_logits(prepared.scores(features), task.labels)

    def _with_labels(self, statistics: Statistics, task: TaskSpec) -> Statistics:
        new = task.labels[len(statistics.counts) :]
        if not new:
            return statistics
        spoken = [label.translate(str.maketrans("_-./", "    ")).strip() or label for label in new]
        return statistics.with_names(self._features(spoken)[0])

    def _features(self, texts: Sequence[str]) -> tuple[torch.Tensor, int]:
        features = self.backbone.features(texts, self.config.max_tokens)
        vectors = features.vectors
        if self._projection is not None:
            vectors = vectors @ self._projection
        if not vectors.isfinite().all():
            bad = [text[:40] for text, row in zip(texts, vectors, strict=True) if not row.isfinite().all()]
            raise BackboneError(
                f"{self.backbone.name} gave features that are not finite, e.g. for {bad[0]!r}; try float32"
            )
        return vectors, features.cut

    @cached_property
    def _projection(self) -> torch.Tensor | None:
        """Gaussian random projection `[hidden, max_features]`, where the backbone is wider than that."""
        import torch

        wide, size = self.backbone.hidden_size, self.config.max_features
        if wide <= size:
            return None
        return torch.randn(wide, size, generator=torch.Generator().manual_seed(0)) / size**0.5
