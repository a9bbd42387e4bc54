"""Meta-training on features: of heads, on cached ones, and of adapters, which change them."""

from iai_hf.features.training.adapter import AdapterCurriculum
from iai_hf.features.training.curriculum import FeatureCurriculum
from iai_hf.features.training.tasks import FeatureTask, load_tasks

__all__ = ["AdapterCurriculum", "FeatureCurriculum", "FeatureTask", "load_tasks"]
