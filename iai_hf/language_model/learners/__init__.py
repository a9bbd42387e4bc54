"""Learners: learned initial values and learned steps for the weights that a task has of its own."""

from iai_hf.language_model.learners.learner import Learner, Tensors
from iai_hf.language_model.learners.rules import RULES

__all__ = ["RULES", "Learner", "Tensors"]
