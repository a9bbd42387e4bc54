"""Trained: base of the gradient methods whose start and step sizes are meta-learned on tasks as texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iai_hf.backbones import load_backbone
from iai_hf.config import read_config
from iai_hf.language_model.gradient import Config, Gradient

if TYPE_CHECKING:
    from iai_hf.training.config import TrainingConfig
    from iai_hf.training.curriculum import Curriculum, Sources


class Trained(Gradient[Config]):
    """Stands above its curriculum, as `Gradient` stands below it."""

    @classmethod
    def curriculum(cls, config: TrainingConfig, sources: Sources) -> tuple[Gradient, Curriculum]:
        from iai_hf.data import open_stream
        from iai_hf.language_model.training import TextCurriculum
        from iai_hf.training.curriculum import task_files
        from iai_hf.training.tasks import load_text_tasks

        files = task_files(config.tasks, sources.data_dir)
        backbone = load_backbone(config.backbone, device=sources.device)
        amortizer = cls(backbone, read_config(cls.config_class, {**config.settings, "weights": None}))
        unrelated = task_files(config.unrelated, sources.data_dir)
        texts = [record.input for path in unrelated for record in open_stream(path).records()]
        return amortizer, TextCurriculum(amortizer, load_text_tasks(files, config.max_task_examples), texts, config)
