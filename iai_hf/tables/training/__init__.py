"""Training on numbers: families of tasks, drawn without end, and the paper's greedy objective on them."""

from iai_hf.tables.training.curriculum import NumbersCurriculum

__all__ = ["NumbersCurriculum"]
