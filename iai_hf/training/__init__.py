"""Greedy meta-training of heads: tasks as cached features, episodes, the objective, the loop on accelerate."""

from iai_hf.training.config import TrainingConfig
from iai_hf.training.trainer import train

__all__ = ["TrainingConfig", "train"]
