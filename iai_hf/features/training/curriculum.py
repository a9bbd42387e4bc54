"""FeatureCurriculum: classification tasks as features, for the heads."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import torch

from iai_hf.features.training.episodes import Episode, draw, whole
from iai_hf.features.training.objective import GreedyObjective
from iai_hf.features.training.tasks import FeatureTask
from iai_hf.training.config import TrainingConfig
from iai_hf.training.curriculum import Curriculum, Evaluation, split

if TYPE_CHECKING:
    from iai_hf.features.frozen_features import FrozenFeatures

HIDDEN_NAMES = tuple("abcdefghijklmnopqrstuvwxyz") + tuple(str(number) for number in range(40))
VALIDATION_ORDERS = 2


class FeatureCurriculum(Curriculum):
    """Episodes of `tasks` for the amortizer's head.

    Raises:
        DataError: no task is left to train on, or a validation task is unknown.
    """

    def __init__(self, amortizer: FrozenFeatures, tasks: list[FeatureTask], config: TrainingConfig) -> None:
        self.training, self.validation = split(tasks, config)
        self.config, self.hidden = config, amortizer.name_features(HIDDEN_NAMES)
        self.learned = amortizer.module
        self.objective: GreedyObjective = GreedyObjective(amortizer.head, config.unroll)

    def draw(self, number: int, device: torch.device) -> Episode:
        return _on(draw(self.training, self.hidden, self.config, number), device)

    def describe(self, episode: Episode) -> str:
        return f"task {episode.task!r} ({len(episode.targets)} examples, {episode.classes} classes)"

    def evaluate(self) -> Evaluation | None:
        losses, hits = [], []
        device = next(self.objective.parameters()).device
        with torch.no_grad():
            for task in self.validation:
                for seed in range(VALIDATION_ORDERS):
                    episode = _on(whole(task, self.config, seed), device)
                    for logits in self.objective.paid_logits(episode):
                        loss = torch.nn.functional.cross_entropy(logits, episode.answers)
                        losses.append(float(loss) / math.log(max(episode.classes, 2)))
                        hits.append(float((logits.argmax(1) == episode.answers).float().mean()))
        return Evaluation(sum(losses) / len(losses), sum(hits) / len(hits)) if losses else None


def _on(episode: Episode, device: torch.device) -> Episode:
    moved = {
        field.name: getattr(episode, field.name).to(device)
        for field in dataclasses.fields(episode)
        if isinstance(getattr(episode, field.name), torch.Tensor)
    }
    return dataclasses.replace(episode, **moved)
