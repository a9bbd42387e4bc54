"""Training on numbers: families of tasks, drawn without end, and the paper's greedy objective on them."""

from iai_hf.tables.training.curriculum import TableCurriculum

__all__ = ["TableCurriculum"]
