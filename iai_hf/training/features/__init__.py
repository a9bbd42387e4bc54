"""Meta-training of heads on cached features: tasks, episodes, the greedy objective."""

from iai_hf.training.features.curriculum import FeatureCurriculum
from iai_hf.training.features.tasks import FeatureTask, load_tasks

__all__ = ["FeatureCurriculum", "FeatureTask", "load_tasks"]
