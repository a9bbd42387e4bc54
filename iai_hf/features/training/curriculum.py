"""FeatureCurriculum: classification tasks as features, for the heads."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from iai_hf.features.training.episodes import FeatureEpisode, draw, whole
from iai_hf.features.training.objective import HeadObjective
from iai_hf.features.training.tasks import FeatureTask
from iai_hf.training.config import TrainingConfig
from iai_hf.training.curriculum import Curriculum, Evaluation, split

if TYPE_CHECKING:
    from iai_hf.features.frozen_features import FrozenFeatures

MEANINGLESS = tuple("abcdefghijklmnopqrstuvwxyz") + tuple(str(number) for number in range(40))
VALIDATION_ORDERS = 2


class FeatureCurriculum(Curriculum):
    """Episodes of `tasks` for the amortizer's head.

    Raises:
        DataError: no task is left to train on, or a validation task is unknown.
    """

    objective: HeadObjective

    def __init__(self, amortizer: FrozenFeatures, tasks: list[FeatureTask], config: TrainingConfig) -> None:
        self.training, self.validation = split(tasks, config)
        self.config, self.meaningless = config, amortizer.name_features(MEANINGLESS)
        self.learned = amortizer.module
        self.objective = HeadObjective(amortizer.head, config.unroll)

    def draw(self, number: int, device: torch.device) -> FeatureEpisode:
        return _on(draw(self.training, self.meaningless, self.config, number), device)

    def describe(self, episode: FeatureEpisode) -> str:
        return f"task {episode.task!r} ({len(episode.targets)} examples, {episode.classes} classes)"

    def evaluate(self) -> Evaluation | None:
        device = next(self.objective.parameters()).device
        orders = ((task, seed) for task in self.validation for seed in range(VALIDATION_ORDERS))
        return self.objective.evaluate(_on(whole(task, self.config, seed), device) for task, seed in orders)


def _on(episode: FeatureEpisode, device: torch.device) -> FeatureEpisode:
    moved = {
        field.name: getattr(episode, field.name).to(device)
        for field in dataclasses.fields(episode)
        if isinstance(getattr(episode, field.name), torch.Tensor)
    }
    return dataclasses.replace(episode, **moved)
