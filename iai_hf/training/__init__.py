"""Greedy meta-training: one loop on accelerate, and a curriculum each for features and for texts."""

from iai_hf.training.config import TrainingConfig
from iai_hf.training.trainer import train

__all__ = ["TrainingConfig", "train"]
